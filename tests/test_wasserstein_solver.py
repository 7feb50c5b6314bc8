"""Claims about how transport is solved: back through the sweeps by hand, uniform costs without products, the limit."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from test_wasserstein import SOLVERS, batch, gap, linear_program, twin
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from twins import gradients

from limbeck import WKDLogitLoss, functional
from limbeck.functional import _sweeps
from limbeck.functional._sweeps import Sweeps, gibbs_kernel


def log_marginals(samples: int = 5, classes: int = 6) -> list[Tensor]:
    student, target, _, _ = batch(samples, classes)
    return [torch.log_softmax(x.detach(), -1).requires_grad_() for x in (student, target)]


def solved(kernel: _sweeps.Kernel, sweeps: Sweeps, sides: list[Tensor], solver: Callable[..., Tensor]) -> list[Tensor]:
    """Values, and their gradients to both sides with a factor per sample."""
    present = torch.ones_like(sides[0], dtype=torch.bool)
    values = solver(*sides, present, kernel, sweeps)
    factors = torch.arange(1.0, len(values) + 1, dtype=values.dtype)
    return [values.detach(), *torch.autograd.grad((factors * values).sum(), sides)]


# --- back through the sweeps ----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", SOLVERS)
@pytest.mark.parametrize("iterations", [1, 2, 10, 60])
def test_going_back_by_hand_equals_plain_operations(iterations: int, mode: str) -> None:
    cost = batch(classes=6)[-1].triu() + 0.3 * batch(classes=6)[-1].tril()
    kernel, sweeps = gibbs_kernel(cost, 0.05, mode), Sweeps(iterations, mode, "unrolled")
    by_hand, plain = (solved(kernel, sweeps, log_marginals(), f) for f in (_sweeps._solve, _sweeps.composed))
    for got, wanted in zip(by_hand, plain, strict=True):
        assert gap(got, wanted) < 1e-12


@pytest.mark.parametrize("mode", SOLVERS)
def test_either_side_may_be_the_only_one_that_wants_a_gradient(mode: str) -> None:
    student, target, labels, cost = batch()
    both = gradients(
        functional.wkd_logit(student, target, labels, cost, temperature=2.0, mode=mode)[1], student, target
    )
    for sides, wanted in (((student, target.detach()), both[0]), ((student.detach(), target), both[1])):
        value = functional.wkd_logit(*sides, labels, cost, temperature=2.0, mode=mode).transport
        assert torch.equal(gradients(value, next(x for x in sides if x.requires_grad))[0], wanted)


def test_a_graph_can_be_gone_through_twice() -> None:
    student, target, labels, cost = batch()
    value = functional.wkd_logit(student, target, labels, cost, temperature=2.0).transport
    assert torch.equal(gradients(value, student)[0], gradients(value, student)[0])
    assert torch.equal(gradients(2 * value, student)[0], 2 * gradients(value, student)[0])


def test_second_derivatives_reach_the_weighted_module() -> None:
    student, target, labels, cost = batch(samples=2, classes=4)
    loss = WKDLogitLoss(cost, temperature=2.0, iterations=3, transport_weight=9.0)
    assert torch.autograd.gradgradcheck(lambda s: loss(s, target.detach(), labels), (student,))


class Alive(TorchDispatchMode):
    """Counts products, and the entries of the largest tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.products, self.largest = 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        self.products += func._overloadpacket in (torch.ops.aten.mm, torch.ops.aten.bmm, torch.ops.aten.addmm)
        if isinstance(made, Tensor):
            self.largest = max(self.largest, made.numel())
        return made


@pytest.mark.parametrize("mode", SOLVERS)
def test_a_half_sweep_is_one_product_in_either_direction(mode: str) -> None:
    student, target, labels, cost = batch(samples=40, classes=30)
    loss = WKDLogitLoss(cost.float(), temperature=2.0, mode=mode)
    with Alive() as forward, torch.no_grad():
        loss(student.float(), target.float(), labels)
    assert forward.products == 20 + 1
    single = student.detach().float().requires_grad_()
    with Alive() as both:
        loss(single, target.detach().float(), labels).backward()
    assert both.products == 21 + 20
    assert both.largest == 40 * 30


@pytest.mark.parametrize(("gradient", "iterations", "tensors"), [("unrolled", 10, 40), ("implicit", 100, 40)])
def test_memory_is_two_rows_per_sample_and_sweep_and_none_when_implicit(
    gradient: str, iterations: int, tensors: int
) -> None:
    samples, classes = 32, 200
    student, target, labels, cost = batch(samples, classes)
    student, target = student.detach().float().requires_grad_(), target.detach().float()
    loss = WKDLogitLoss(cost.float(), temperature=4.0, iterations=iterations, gradient=gradient)
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profiler:
        loss(student, target, labels).backward()
    alive = peak = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            alive += event.nbytes()
            peak = max(peak, alive)
    assert peak < tensors * 4 * samples * classes  # one plan per sample would be 200


class Products(TorchDispatchMode):
    """The range of all products' entries."""

    def __init__(self) -> None:
        super().__init__()
        self.low, self.high = math.inf, 0.0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        if func._overloadpacket == torch.ops.aten.mm:
            self.low, self.high = min(self.low, made.min().item()), max(self.high, made.max().item())
        return made


@pytest.mark.parametrize("solver", [_sweeps._solve, _sweeps.composed])
def test_no_product_leaves_the_range_of_the_kernel_s_sums(solver: Callable[..., Tensor]) -> None:
    """Each row of u and v has its largest entry at 1, whatever the marginals: so float32 holds exp(-80), for any C."""
    classes = 50
    cost = torch.zeros(classes, classes)  # one class, which has the student's mass, is far from all others
    cost[0, 1:] = cost[1:, 0] = 0.8
    kernel = gibbs_kernel(cost, 0.01, "log")._replace(kernel_cost=torch.ones(classes, classes))
    log_a, log_b = torch.zeros(1, classes), torch.zeros(1, classes)
    log_a[0, 0], log_b[0, 0] = 90.0, -90.0
    sides = [torch.log_softmax(x, -1) for x in (log_a, log_b)]
    with Products() as products:
        solver(*sides, torch.ones_like(log_a, dtype=torch.bool), kernel, Sweeps(10, "log", "unrolled"))
    assert kernel.kernel.min() * 0.99 < products.low
    assert products.high <= classes


# --- uniform costs --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", SOLVERS)
@pytest.mark.parametrize("separate_target", [True, False])
def test_a_uniform_cost_needs_no_product_and_changes_nothing(separate_target: bool, mode: str) -> None:
    student, target, labels, _ = batch(classes=9)
    cost = 0.6 * (1 - torch.eye(9, dtype=torch.float64))
    options = {"temperature": 4.0, "separate_target": separate_target, "mode": mode}
    loss = WKDLogitLoss(cost, **options)
    assert loss.kernel.shape == loss.kernel_cost.shape == (2,)
    with Alive() as forward:
        value = loss.terms(student, target, labels).transport
    wanted = twin(student, target, labels, cost, mode, temperature=4.0, separate_target=separate_target)[:, 1].mean()
    general = functional.wkd_logit(student, target, labels, cost, **options).transport
    assert forward.products == 0
    assert abs(value - wanted) < 1e-12
    assert abs(value - general) < 1e-13
    for other in (wanted, general):
        for got, expected in zip(gradients(value, student, target), gradients(other, student, target), strict=True):
            assert gap(got, expected) < 1e-12


@pytest.mark.parametrize("classes", [1, 2])
def test_with_one_or_two_classes_every_cost_is_uniform(classes: int) -> None:
    student, target, labels, _ = batch(classes=classes)
    cost = 0.6 * (1 - torch.eye(classes, dtype=torch.float64))
    options = {"temperature": 2.0, "separate_target": False}
    wanted = functional.wkd_logit(student, target, labels, cost, **options).transport
    assert abs(WKDLogitLoss(cost, **options).terms(student, target, labels).transport - wanted) < 1e-15


def test_a_uniform_cost_is_noticed_after_loading_and_forgotten_too() -> None:
    student, target, labels, cost = batch()
    uniform = 0.6 * (1 - torch.eye(7, dtype=torch.float64))
    for first, second in itertools.permutations((cost, uniform)):
        loss, other = WKDLogitLoss(first), WKDLogitLoss(second)
        loss.load_state_dict(other.state_dict())
        assert loss.kernel.shape == other.kernel.shape
        assert loss(student, target, labels) == other(student, target, labels)


def test_a_uniform_cost_is_captured_whole_and_has_second_derivatives() -> None:
    student, target, labels, _ = batch(samples=2, classes=4)
    loss = WKDLogitLoss(0.6 * (1 - torch.eye(4, dtype=torch.float64)), temperature=2.0, iterations=3)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    assert torch.isclose(compiled(student, target, labels), loss(student, target, labels), rtol=1e-13)
    assert torch.autograd.gradgradcheck(lambda s: loss(s, target.detach(), labels), (student,))


@pytest.mark.parametrize("gradient", ["unrolled", "implicit"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_uniform_costs_and_implicit_gradients_stay_finite_at_extreme_logits(dtype: torch.dtype, gradient: str) -> None:
    student = torch.tensor([[6e4, -6e4, 0.0, 1.0], [60.0, -40.0, 0.0, 3e4]], dtype=dtype, requires_grad=True)
    target = student.detach().flip(-1).clone().requires_grad_()
    uniform = 0.79 * (1 - torch.eye(4))
    other = uniform.clone()
    other[0, 1] = other[1, 0] = 0.3
    for cost, reg, separate_target in itertools.product((uniform, other), (0.05, 0.01), (True, False)):
        options = {"temperature": 1.0, "reg": reg, "iterations": 50, "separate_target": separate_target}
        value = WKDLogitLoss(cost, gradient=gradient, **options)(student, target, torch.tensor([1, 2]))
        assert value.isfinite()
        assert all(x.isfinite().all() and x.dtype == dtype for x in gradients(value, student, target))


# --- the implicit gradient ------------------------------------------------------------------------------------


@pytest.mark.parametrize("separate_target", [True, False])
@pytest.mark.parametrize("classes", [5, 30])
def test_the_implicit_gradient_is_the_unrolled_one_at_convergence(classes: int, separate_target: bool) -> None:
    student, target, labels, cost = batch(classes=classes)
    options = {"temperature": 2.0, "iterations": 2000, "separate_target": separate_target}
    unrolled = functional.wkd_logit(student, target, labels, cost, **options).transport
    implicit = functional.wkd_logit(student, target, labels, cost, gradient="implicit", **options).transport
    assert implicit == unrolled
    for got, wanted in zip(gradients(implicit, student, target), gradients(unrolled, student, target), strict=True):
        assert gap(got, wanted) < 1e-10


def test_the_implicit_gradient_is_another_one_after_ten_sweeps() -> None:
    student, target, labels, cost = batch()
    values = [
        functional.wkd_logit(student, target, labels, cost, temperature=2.0, gradient=gradient).transport
        for gradient in ("implicit", "unrolled")
    ]
    assert values[0] == values[1]
    assert gap(gradients(values[0], student)[0], gradients(values[1], student)[0]) > 0.1


def test_the_implicit_gradient_is_that_of_finite_differences() -> None:
    student, target, labels, cost = batch(samples=2, classes=5)
    assert torch.autograd.gradcheck(
        lambda s, t: (
            functional.wkd_logit(s, t, labels, cost, temperature=2.0, iterations=500, gradient="implicit").transport
        ),
        (student, target),
        atol=1e-7,
    )


def test_the_implicit_gradient_to_probabilities_sums_to_nothing() -> None:
    sides = log_marginals()
    value = functional.sinkhorn(*sides, batch(classes=6)[-1], iterations=500, gradient="implicit")
    assert gradients(value, sides[0])[0].sum(-1).abs().max() < 1e-14


@pytest.mark.parametrize("kind", ["general", "uniform"])
def test_the_implicit_gradient_is_right_in_float32(kind: str) -> None:
    student, target, labels, cost = batch(classes=20)
    cost = cost if kind == "general" else 0.6 * (1 - torch.eye(20, dtype=torch.float64))
    loss = WKDLogitLoss(cost, temperature=2.0, iterations=300, gradient="implicit")
    single = [x.detach().float().requires_grad_() for x in (student, target)]
    for got, wanted in zip(
        gradients(loss.terms(*single, labels).transport, *single),
        gradients(loss.terms(student, target, labels).transport, student, target),
        strict=True,
    ):
        assert got.dtype == torch.float32
        assert gap(got.double(), wanted) < 1e-3


def test_absent_classes_and_the_label_have_no_implicit_gradient() -> None:
    student, target, _, cost = batch()
    sides = [x.detach().clone() for x in (student, target)]
    for side in sides:
        side[:, 2] = -torch.inf
        side.requires_grad_()
    labels = torch.zeros(6, dtype=torch.int64)
    value = functional.wkd_logit(*sides, labels, cost, temperature=2.0, iterations=500, gradient="implicit").transport
    for gradient in gradients(value, *sides):
        assert not gradient[:, [0, 2]].any()
        assert gradient.isfinite().all()


def test_the_implicit_gradient_is_captured_whole_and_maps_but_has_no_second_derivative() -> None:
    student, target, labels, cost = batch()

    def transport(s: Tensor, t: Tensor, y: Tensor) -> Tensor:
        options = {"temperature": 2.0, "iterations": 30, "reduction": "sum"}
        return functional.wkd_logit(s, t, y, cost, gradient="implicit", **options).transport

    wanted = gradients(transport(student, target, labels), student)[0]
    compiled = torch.compile(transport, fullgraph=True, backend="aot_eager")
    assert gap(gradients(compiled(student, target, labels), student)[0], wanted) < 1e-12
    mapped = torch.func.vmap(torch.func.grad(transport))(student.detach(), target.detach(), labels)
    assert gap(mapped, wanted) < 1e-12
    with pytest.raises(RuntimeError, match="`gradient='implicit'` has no second derivatives"):
        torch.autograd.grad(transport(student, target, labels), student, create_graph=True)


# --- the exact transport --------------------------------------------------------------------------------------


def test_more_sweeps_and_a_smaller_reg_come_nearer_to_exact_transport() -> None:
    ot = pytest.importorskip("ot", reason="POT is the oracle of exact transport; a linear program stands in elsewhere")
    sides = [x.detach() for x in log_marginals(samples=4, classes=12)]
    cost = batch(classes=12)[-1]
    pairs = list(zip(*(x.exp() for x in sides), strict=True))
    exact = torch.tensor([float(ot.emd2(a.numpy(), b.numpy(), cost.numpy())) for a, b in pairs], dtype=cost.dtype)
    assert torch.allclose(exact, torch.stack([linear_program(a, b, cost) for a, b in pairs]), atol=1e-9)

    def distance(reg: float, iterations: int) -> float:
        values = functional.sinkhorn(*sides, cost, reg=reg, iterations=iterations, reduction="none")
        return (values - exact).abs().max().item()

    assert distance(0.1, 3000) > 2 * distance(0.05, 3000) > 4 * distance(0.02, 3000) > 8 * distance(0.008, 3000)
    assert distance(0.02, 1) > 2 * distance(0.02, 10) > 4 * distance(0.02, 1000)
    assert distance(0.005, 20000) < 4e-4


def test_one_problem_s_plan_costs_what_pot_says() -> None:
    ot = pytest.importorskip("ot", reason="POT solves a single problem by the same sweeps")
    sides, cost = [x.detach() for x in log_marginals(samples=1)], batch(classes=6)[-1]
    a, b = (x[0].exp().numpy() for x in sides)
    plan = ot.sinkhorn(a, b, cost.numpy(), 0.05, numItermax=5000, stopThr=1e-14)
    wanted = float((plan * cost.numpy()).sum())
    assert math.isclose(functional.sinkhorn(*sides, cost, iterations=5000).item(), wanted, rel_tol=1e-9)


@pytest.mark.parametrize("mode", SOLVERS)
def test_the_gradient_moves_with_the_names_of_the_classes(mode: str) -> None:
    student, target, labels, cost = batch(classes=9)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(1))
    options = {"temperature": 2.0, "mode": mode}
    value = functional.wkd_logit(student, target, labels, cost, **options)
    moved = functional.wkd_logit(
        student[:, order], target[:, order], order.argsort()[labels], cost[order][:, order], **options
    )
    for a, b in zip(gradients(sum(value), student, target), gradients(sum(moved), student, target), strict=True):
        assert gap(b, a) < 1e-12


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_implicit_gradient_stays_finite_where_nothing_has_to_move(dtype: torch.dtype, samples: int) -> None:
    cost = (1 - torch.eye(7)).to(dtype)
    for logits in (torch.zeros(samples, 7, dtype=dtype), batch(samples, 7)[0].detach().to(dtype)):
        student = logits.clone().requires_grad_()
        value = functional.sinkhorn(
            student.log_softmax(-1), logits.log_softmax(-1), cost, gradient="implicit", iterations=100
        )
        (gradient,) = torch.autograd.grad(value, student)
        assert gradient.abs().max() <= (1e-6 if not logits.any() else 1.0)  # by symmetry; by the largest cost
