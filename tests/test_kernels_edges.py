"""Claims about the kernels at the edges: layouts, empty weights, lowest logits, sizes past 32 bits, devices."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from limbeck import kernels
from limbeck.functional import gkl_divergence, js_divergence, kl_divergence, reverse_kl_divergence, soft_cross_entropy

pytest.importorskip("triton")
from limbeck.kernels import gkl_launch, js, sizes

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, of which the interpreter is made

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LOWEST = torch.finfo(torch.float32).min
KL_FAMILY = (kl_divergence, reverse_kl_divergence, soft_cross_entropy)


def draw(*shape: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(2 * torch.randn(*shape, generator=generator).to(DEVICE) for _ in range(2))  # type: ignore[return-value]


def solve(function: Callable[..., Tensor], student: Tensor, target: Tensor, **options: Any) -> list[Tensor]:
    """The value and both gradients."""
    sides = [x.detach().clone().requires_grad_() for x in (student, target)]
    value = function(*sides, **options)
    return [value.detach(), *torch.autograd.grad(value.sum(), sides)]


def assert_same(function: Callable[..., Tensor], student: Tensor, target: Tensor, **options: Any) -> None:
    found, expected = (solve(function, student, target, impl=impl, **options) for impl in ("triton", "torch"))
    for got, wanted in zip(found, expected, strict=True):
        assert torch.allclose(got, wanted, rtol=1e-5, atol=1e-6), (got, wanted)


def test_labels_and_masks_may_have_any_strides() -> None:
    student, target = draw(6, 9)
    prior = torch.softmax(draw(9, 9)[0], -1)
    labels, mask = torch.arange(12, device=DEVICE) * 5 % 9, torch.arange(12, device=DEVICE) % 3 > 0
    assert_same(gkl_divergence, student, target, prior=prior, labels=labels[::2])
    assert_same(gkl_divergence, student, target, prior=prior, labels=labels[3:4].expand(6))
    assert_same(gkl_divergence, student, target, mask=mask[::2], reduction="none")


@pytest.mark.parametrize("power", [1.0, 0.3, 2.0])
@pytest.mark.parametrize("normalizer", ["weights", "row", "samples"])
@pytest.mark.filterwarnings("ignore:.*normalizer:UserWarning")
def test_rows_without_any_weight_have_no_spread(power: float, normalizer: str) -> None:
    student, target = draw(6, 9)
    prior = torch.softmax(draw(9, 9)[0], -1)
    prior[3] = 0
    labels = torch.tensor([3, 3, 1, 2, 3, 0], device=DEVICE)
    assert_same(gkl_divergence, student, target, prior=prior, labels=labels, weight_power=power, normalizer=normalizer)


@pytest.mark.parametrize("classes", [9, 1500])
@pytest.mark.parametrize("function", KL_FAMILY)
def test_logits_at_the_lowest_number_are_logits(function: Callable[..., Tensor], classes: int) -> None:
    student, target = draw(2, classes)
    lowest = torch.full_like(student, LOWEST)
    for sides in ((lowest, target), (student, lowest), (lowest, lowest)):
        assert_same(function, *sides)


@pytest.mark.parametrize("shape", [(2, 1500), (1, 40_000)])
def test_classes_that_the_target_alone_excludes_by_the_lowest_number_have_no_weight(shape: tuple[int, int]) -> None:
    """Lanes, and parts of a row, that meet nothing else must not spoil what the others found."""
    student, target = draw(*shape)
    target[:, shape[1] // 2 :] = LOWEST
    assert_same(gkl_divergence, student, target)
    assert_same(gkl_divergence, student, target, weight_power=0.5)


def test_one_row_that_is_no_number_makes_the_batch_none() -> None:
    student, target = draw(4, 9)
    target[2, 3] = torch.nan
    values = gkl_divergence(student, target, weight_power=0.5, ce_weight=0.0, reduction="none", impl="triton")
    assert values.isnan().all()


@pytest.mark.parametrize("classes", [9, 1500])
@pytest.mark.parametrize("function", [gkl_divergence, kl_divergence])
def test_a_logit_that_is_no_number_is_no_infinity(function: Callable[..., Tensor], classes: int) -> None:
    for side in (0, 1):
        sides = draw(2, classes)
        sides[side][1, 3] = torch.nan
        values = function(*sides, reduction="none", impl="triton")
        assert values[0].isfinite()
        assert values[1].isnan()


def test_second_derivatives_never_ask_for_the_kernel_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU "auto" is the kernel, whose second derivative would be its own for ever."""
    asked = []
    monkeypatch.setattr("limbeck.functional.kl.takes_kernel", lambda _, impl, *tensors: asked.append(impl) or False)
    monkeypatch.setattr("limbeck.functional._weights.takes_kernel", lambda _, impl, *rest: asked.append(impl) or False)
    student, target = (x.requires_grad_() for x in draw(2, 5))
    for divergence in ("kl", "soft_cross_entropy", "gkl"):
        options = gkl_launch.Options(divergence, 1.0, 1.0, 1.0, 1.0, 1.0, True, "samples", "mean")  # type: ignore[arg-type]
        value = torch.ops.limbeck.gkl(student, target, None, None, None, None, *options)[0]
        (first,) = torch.autograd.grad(value, student, create_graph=True)
        torch.autograd.grad(first.sum(), student)
    (first,) = torch.autograd.grad(js.js(student, target, js.Mixture(0.5, 1.0, 1.0, True)), student, create_graph=True)
    torch.autograd.grad(first.sum(), student)
    assert set(asked) == {"torch"}


def test_grids_and_offsets_fit() -> None:
    """CUDA takes 65535 blocks along the second axis of a grid; 2^28 rows of nine numbers pass 2^31."""
    for classes in (1, 1000, 2**27, 2**27 + 1, 2**30):
        assert -(-classes // sizes.gradient_block(classes)) <= 65_535
    assert sizes.gradient_block(32_000) == sizes.GRADIENT_PAIRS
    assert kernels.why_not("gkl", torch.zeros(1, device=DEVICE).expand(1, 2**30)) is None
    assert "32 bits" in str(kernels.why_not("gkl", torch.zeros(1, device=DEVICE).expand(1, 2**30 + 1)))


@pytest.mark.parametrize("function", [gkl_divergence, js_divergence])
def test_kernels_start_on_the_device_of_their_tensors(
    function: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Triton starts them on the current device, which need not be that of the tensors."""
    entered: list[torch.device] = []

    @contextlib.contextmanager
    def on(device: torch.device) -> Any:
        entered.append(device)
        yield

    monkeypatch.setattr(sizes, "on", on)
    solve(function, *draw(2, 5), impl="triton")
    assert entered == [torch.zeros(1, device=DEVICE).device] * 2
