"""Claims about the kernel of Sinkhorn's sweeps: interpreted without a GPU, compiled with one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import kernel_builds
import pytest
import torch
from torch import Tensor

from limbeck.functional import sinkhorn, wkd_logit

pytest.importorskip("triton")

ENGINES: list[tuple[Any, torch.dtype]] = [("triton", torch.float32), ("torch", torch.float64)]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def poisoned() -> Iterator[None]:
    """What is not written stays NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def problem(samples: int, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Log probabilities of both sides, and a cost that no symmetry makes easy."""
    generator = torch.Generator().manual_seed(classes)
    sides = (torch.randn(samples, classes, generator=generator).mul(2).log_softmax(-1) for _ in range(2))
    cost = torch.rand(classes, classes, generator=generator).fill_diagonal_(0.0)
    return *(x.to(DEVICE) for x in sides), cost.to(DEVICE)


def solve(a: Tensor, b: Tensor, cost: Tensor, dtype: torch.dtype | None = None, **options: Any) -> list[Tensor]:
    """Values and both gradients, in float64."""
    sides = [x.detach().to(dtype or x.dtype).requires_grad_() for x in (a, b)]
    value = sinkhorn(*sides, cost.to(dtype or cost.dtype), **options)
    seed = torch.linspace(0.5, 1.5, value.numel(), device=value.device, dtype=value.dtype).view(value.shape)
    return [x.double() for x in (value.detach(), *torch.autograd.grad(value, sides, seed))]


def errors(found: list[Tensor], exact: list[Tensor]) -> list[float]:
    return [float((x - y).abs().max() / y.abs().max().clamp_min(1e-9)) for x, y in zip(found, exact, strict=True)]


@pytest.mark.parametrize("classes", [1, 2, 10, 100, 128])
@pytest.mark.parametrize("mode", ["log", "published"])
def test_values_and_gradients_are_those_of_the_sweeps(classes: int, mode: str) -> None:
    a, b, cost = problem(3, classes)
    for options in ({"reduction": "none"}, {"iterations": 1}, {"reg": 0.2, "iterations": 23, "reduction": "sum"}):
        given: Any = {"mode": mode, **options}
        exact = solve(a, b, cost, torch.float64, impl="torch", **given)
        value, *gradients = errors(solve(a, b, cost, impl="triton", **given), exact)
        assert value < 1e-6
        assert max(gradients) < 2e-5  # of plain operations up to 1.5e-5: the sweeps pass on what they round


@pytest.mark.parametrize("mode", ["log", "published"])
def test_classes_that_are_absent_take_no_part(mode: Any) -> None:
    a, b, cost = problem(4, 12)
    a[0, 3] = b[0, 3] = a[1, 5] = b[2, 7] = -torch.inf
    a[3] = b[3] = -torch.inf
    got, exact = (solve(a, b, cost, dtype, mode=mode, reduction="none", impl=impl) for impl, dtype in ENGINES)
    for found, wanted in zip(got, exact, strict=True):
        assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-6)
    assert not got[1][0, 3]
    assert not got[1][3].any()


def test_logit_distillation_takes_the_kernel_with_the_label_set_apart() -> None:
    a, b, cost = problem(6, 10)
    labels = torch.arange(6, device=DEVICE)
    found = []
    for impl, dtype in ENGINES:
        student = a.to(dtype).view(2, 3, 10).requires_grad_()
        options: Any = {"temperature": 4.0, "impl": impl, "reduction": "none"}
        terms = wkd_logit(student, b.to(dtype).view(2, 3, 10), labels.view(2, 3), cost.to(dtype), **options)
        value = terms.transport
        assert value.shape == (2, 3)
        found.append([x.double() for x in (value, *torch.autograd.grad(value.sum(), student))])
    assert max(errors(*found)) < 2e-5


def test_second_derivatives_are_those_of_plain_operations() -> None:
    a, b, cost = problem(2, 6)
    found = []
    for impl, dtype in (*ENGINES, ("torch", torch.float32)):
        sides = [x.to(dtype).requires_grad_() for x in (a, b)]
        value = sinkhorn(*sides, cost.to(dtype), reg=0.2, impl=impl)
        first = torch.autograd.grad(value, sides, create_graph=True)
        second = torch.autograd.grad(sum((x**2).sum() for x in first), sides)
        found.append([x.double() for x in (*first, *second)])
    got, exact, plain = found
    assert all(x <= 2 * y + 1e-6 for x, y in zip(errors(got, exact), errors(plain, exact), strict=True))


def test_operator_keeps_the_rules_of_torch_and_stays_in_a_compiled_graph() -> None:
    a, b, cost = problem(2, 6)
    a.requires_grad_()
    kernel = torch.exp(-cost / 0.05)
    for wanted in (True, False):
        inputs = a if wanted else a.detach(), b, kernel, kernel * cost, 3, False, wanted
        torch.library.opcheck(torch.ops.limbeck.sinkhorn, inputs)
    seen: list[str] = []

    def look(graph: torch.fx.GraphModule, _: Any) -> Any:
        seen.extend(str(node.target) for node in graph.graph.nodes)
        return graph

    plain = torch.autograd.grad(sinkhorn(a, b, cost, impl="triton"), a)[0]
    torch.compile(sinkhorn, fullgraph=True, backend=look)(a, b, cost, impl="triton")
    assert "limbeck.sinkhorn" in seen
    whole = torch.compile(sinkhorn, fullgraph=True, backend="aot_eager")(a, b, cost, impl="triton")
    assert torch.equal(torch.autograd.grad(whole, a)[0], plain)


def test_what_the_kernel_cannot_serve_is_refused() -> None:
    a, b, cost = problem(2, 129)
    for tensors, options, reason in (
        ((a, b, cost), {}, "more than 128 classes"),
        ((a.double(), b, cost), {}, "float64"),
        ((a, b, cost), {"gradient": "implicit"}, "an implicit gradient"),
    ):
        given: Any = {"impl": "triton", **options}
        with pytest.raises(ValueError, match=rf"^`impl='triton'` cannot serve this call \({reason}"):
            sinkhorn(*tensors, **given)
    with pytest.raises(ValueError, match=r"^`impl` expected 'auto', 'torch' or 'triton', got 'cuda'"):
        sinkhorn(a, b, cost, impl="cuda")  # type: ignore[arg-type]


@pytest.mark.slow
def test_the_matrix_fits_into_registers() -> None:
    types = dict.fromkeys(("classes", "iterations"), "i32")
    types |= {f"{name}_ptr": "*fp32" for name in ("log_a", "log_b", "kernel", "kernel_cost", "value", "kept")}
    types |= {"to_a_ptr": "*fp32", "to_b_ptr": "*fp32"}
    builds = [
        kernel_builds.Build("limbeck.kernels.sinkhorn_rows", "sweep_rows", types, {**constants, "WANTED": True}, 16)
        for constants in ({"CLASSES": 128, "PUBLISHED": False}, {"CLASSES": 128, "PUBLISHED": True})
    ]
    for found in kernel_builds.build_all(builds):
        assert found.spilled == 0
        assert found.registers <= 128
