"""Claims about the kernel of the Jensen-Shannon divergence: interpreted without a GPU, compiled with one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from limbeck.functional import js_divergence

pytest.importorskip("triton")
from limbeck.kernels import js as kernel

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HALVES = torch.bfloat16, torch.float16
LARGE = pytest.param(32_000, marks=pytest.mark.gpu), pytest.param(128_257, marks=pytest.mark.gpu)


@pytest.fixture(autouse=True)
def poisoned() -> Iterator[None]:
    """What is not written stays NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def draw(samples: int, classes: int, dtype: torch.dtype = torch.float32, gap: float = 3.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(classes)
    student = 3 * torch.randn(samples, classes, generator=generator)
    target = student + gap * torch.randn(samples, classes, generator=generator)
    return student.to(DEVICE, dtype), target.to(DEVICE, dtype)


def solve(student: Tensor, target: Tensor, dtype: torch.dtype | None = None, **options: Any) -> list[Tensor]:
    """The value and both gradients, in float64."""
    sides = [x.detach().to(dtype or x.dtype).requires_grad_() for x in (student, target)]
    value = js_divergence(*sides, **options)
    seed = torch.linspace(0.5, 1.5, value.numel(), device=value.device, dtype=value.dtype).view(value.shape)
    return [x.double() for x in (value.detach(), *torch.autograd.grad(value, sides, seed))]


def errors(found: list[Tensor], exact: list[Tensor]) -> list[float]:
    return [float((x - y).abs().max() / y.abs().max()) for x, y in zip(found, exact, strict=True)]


def assert_no_worse_than_torch(student: Tensor, target: Tensor, **options: Any) -> None:
    """At most 1.5 times torch's error, and a rounding of the value, or of the gradient in its dtype.

    Triton's interpreter cuts bfloat16 off instead of rounding it: there it may be two roundings.
    """
    exact = solve(student, target, torch.float64, impl="torch", **options)
    plain = errors(solve(student, target, impl="torch", **options), exact)
    got = errors(solve(student, target, impl="triton", **options), exact)
    for error, other, side in zip(got, plain, (None, student, target), strict=True):
        dtype = torch.float32 if side is None else side.dtype
        cut = 2 if dtype == torch.bfloat16 and DEVICE == "cpu" else 1
        assert error <= 1.5 * other + cut * torch.finfo(dtype).eps, (got, plain)


@pytest.mark.parametrize("classes", [2, 10, 100, 1000, *LARGE])
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
@pytest.mark.parametrize("beta", [0.5, 0.1])
def test_error_is_no_worse_than_that_of_torch(classes: int, dtype: torch.dtype, beta: float) -> None:
    sides = draw(4 if DEVICE == "cpu" else 64, classes, dtype)
    assert_no_worse_than_torch(*sides, beta=beta, reduction="none")
    assert_no_worse_than_torch(*sides, beta=beta, temperature=3.0, scale_by_t2=True)


def test_a_million_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    if DEVICE == "cpu":  # the interpreter's time is that of the number of operations
        monkeypatch.setattr(kernel, "LANES", 2**15)
        monkeypatch.setattr(kernel, "TILE", 2**18)
    assert_no_worse_than_torch(*draw(2, 1_000_003), reduction="none")
