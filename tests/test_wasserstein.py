"""Claims about transport between class distributions, against a float64 twin that solves each sample by itself."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import twins
from scipy.optimize import linprog
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from twins import gradients

from limbeck import WKDLogitLoss, functional


def published(a: Tensor, b: Tensor, cost: Tensor, reg: float, iterations: int) -> Tensor:
    """One sample as the paper's code solves it: relu, 1e-8 everywhere, student last, the plan in full."""
    cost = torch.relu(cost) + 1e-8
    kernel = torch.exp(-cost / reg)
    u = torch.full_like(a, 1 / len(a))
    for _ in range(iterations):
        v = b / (kernel.T @ u + 1e-8)
        u = a / (kernel @ v + 1e-8)
    return (torch.diag(u) @ kernel @ torch.diag(v) * cost).sum()


def exact(a: Tensor, b: Tensor, cost: Tensor, reg: float, iterations: int) -> Tensor:
    """The same sweeps without any floor, by logsumexp over the plan's entries."""
    log_kernel, f = -cost / reg, torch.full_like(a, -math.log(len(a)))
    for _ in range(iterations):
        g = b.log() - torch.logsumexp(log_kernel + f[:, None], 0)
        f = a.log() - torch.logsumexp(log_kernel + g[None, :], 1)
    return ((f[:, None] + log_kernel + g[None, :]).exp() * cost).sum()


SOLVERS = {"published": published, "log": exact}


def twin(
    logits: Tensor,
    target_logits: Tensor,
    labels: Tensor,
    cost: Tensor,
    mode: str,
    *,
    temperature: float,
    reg: float = 0.05,
    iterations: int = 10,
    separate_target: bool = True,
) -> Tensor:
    """(N, 2): the target term and the transport among the C - 1 other classes (or all C), sample by sample."""
    rows = []
    for s, t, y in zip(logits, target_logits, labels.tolist(), strict=True):
        kept = [j for j in range(len(s)) if j != y or not separate_target]
        marginals = (twins.softmax(x[kept], temperature) for x in (s, t))
        transport = SOLVERS[mode](*marginals, cost[kept][:, kept], reg, iterations)
        target = -twins.softmax(t).detach()[y] * twins.softmax(s)[y].log() if separate_target else 0 * transport
        rows.append(torch.stack([target, transport]))
    return torch.stack(rows)


def linear_program(a: Tensor, b: Tensor, cost: Tensor) -> Tensor:
    """Exact optimal transport: no entropy, no sweeps."""
    n = len(a)
    rows, columns = torch.eye(n).repeat_interleave(n, 1), torch.eye(n).repeat(1, n)
    solved = linprog(cost.flatten().numpy(), A_eq=torch.cat([rows, columns]).numpy(), b_eq=torch.cat([a, b]).numpy())
    return torch.tensor(solved.fun, dtype=a.dtype)


def batch(samples: int = 6, classes: int = 7, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    student, target = (2 * torch.randn(samples, classes, generator=draw, dtype=torch.float64) for _ in range(2))
    cost = 0.4 + 0.2 * torch.rand(classes, classes, generator=draw, dtype=torch.float64)
    cost = ((cost + cost.T) / 2).fill_diagonal_(0)
    labels = torch.randint(classes, (samples,), generator=draw)
    return student.requires_grad_(), target.requires_grad_(), labels, cost


def gap(got: Tensor, wanted: Tensor) -> float:
    """The largest difference, relative to the largest entry."""
    return ((got - wanted).abs().max() / wanted.abs().max()).item()


@pytest.mark.parametrize("mode", SOLVERS)
@pytest.mark.parametrize("separate_target", [True, False])
@pytest.mark.parametrize(("samples", "classes"), [(6, 3), (6, 7), (4, 100)])
def test_shared_cost_equals_one_solver_per_sample(samples: int, classes: int, separate_target: bool, mode: str) -> None:
    student, target, labels, cost = batch(samples, classes)
    options = {"temperature": 4.0, "separate_target": separate_target}
    each = twin(student, target, labels, cost, mode, **options)
    for reduction, expected in (("none", each.T), ("mean", each.mean(0)), ("sum", each.sum(0))):
        terms = functional.wkd_logit(student, target, labels, cost, mode=mode, reduction=reduction, **options)
        for got, wanted in zip(terms, expected, strict=True):
            assert got.shape == wanted.shape
            assert (got - wanted).abs().max() < 1e-12
    for got, wanted in zip(
        gradients(terms.transport, student, target), gradients(each[:, 1].sum(), student, target), strict=True
    ):
        assert gap(got, wanted) < 1e-12
    if separate_target:
        unused = torch.autograd.grad(terms.target, target, retain_graph=True, allow_unused=True)
        assert unused == (None,)
        assert gap(gradients(terms.target, student)[0], gradients(each[:, 0].sum(), student)[0]) < 1e-12


@pytest.mark.parametrize("mode", SOLVERS)
@pytest.mark.parametrize(("reg", "iterations"), [(0.05, 1), (0.2, 3), (0.02, 50)])
def test_sweeps_and_reg_are_those_of_the_twin(reg: float, iterations: int, mode: str) -> None:
    student, target, labels, cost = batch()
    options = {"temperature": 2.0, "reg": reg, "iterations": iterations}
    wanted = twin(student, target, labels, cost, mode, **options)[:, 1].mean()
    got = functional.wkd_logit(student, target, labels, cost, mode=mode, **options).transport
    assert abs(got - wanted) < 1e-12
    assert gap(gradients(got, student)[0], gradients(wanted, student)[0]) < 1e-11


@pytest.mark.parametrize("mode", SOLVERS)
def test_the_direction_of_an_unsymmetric_cost_is_from_student_to_target(mode: str) -> None:
    student, target, _, cost = batch()
    cost = cost.triu() + 2 * cost.tril()
    sides = [torch.log_softmax(x, -1) for x in (student, target)]
    got = functional.sinkhorn(*sides, cost, mode=mode, reduction="none")
    pairs = zip(*(x.exp() for x in sides), strict=True)
    assert (got - torch.stack([SOLVERS[mode](a, b, cost, 0.05, 10) for a, b in pairs])).abs().max() < 1e-12


@pytest.mark.parametrize("mode", SOLVERS)
def test_the_label_s_logit_gets_no_gradient_from_the_transport(mode: str) -> None:
    student, target, labels, cost = batch()
    value = functional.wkd_logit(student, target, labels, cost, temperature=2.0, mode=mode).transport
    for gradient in gradients(value, student, target):
        assert not gradient.gather(-1, labels[:, None]).any()
        assert gradient.abs().max() > 0


def test_derivatives_of_both_orders_agree_with_finite_differences() -> None:
    student, target, labels, cost = batch(samples=2, classes=4)

    def transport(s: Tensor, t: Tensor) -> Tensor:
        return functional.wkd_logit(s, t, labels, cost, temperature=2.0, iterations=4).transport

    assert torch.autograd.gradcheck(transport, (student, target))
    assert torch.autograd.gradgradcheck(transport, (student, target))


@pytest.mark.parametrize(("classes", "reg", "scale"), [(100, 0.05, 2.0), (100, 0.01, 2.0), (50, 0.01, 30.0)])
def test_log_mode_is_right_in_float32_down_to_a_small_reg(classes: int, reg: float, scale: float) -> None:
    student, target, labels, cost = batch(8, classes)
    single = [(x.detach() * scale / 2).float().requires_grad_() for x in (student, target)]
    double = [x.detach().double().requires_grad_() for x in single]
    options = {"temperature": 2.0, "reg": reg, "iterations": 200}
    got = functional.wkd_logit(*single, labels, cost.float(), **options).transport
    wanted = twin(*double, labels, cost.float().double(), "log", **options)[:, 1].mean()
    assert got.dtype == torch.float32
    assert abs(got - wanted) < 1e-4 * wanted
    for a, b in zip(gradients(got, *single), gradients(wanted, *double), strict=True):
        assert gap(a.double(), b) < 1e-3


@pytest.mark.parametrize("mode", SOLVERS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_both_modes_stay_finite_at_extreme_logits(dtype: torch.dtype, mode: str) -> None:
    student = torch.tensor([[6e4, -6e4, 0.0, 1.0], [60.0, -40.0, 0.0, 3e4]], dtype=dtype, requires_grad=True)
    target = student.detach().flip(-1).clone().requires_grad_()
    cost = 0.8 * (1 - torch.eye(4))
    for reg, separate_target in itertools.product((0.05, 0.01), (True, False)):
        terms = functional.wkd_logit(
            student,
            target,
            torch.tensor([1, 2]),
            cost,
            temperature=1.0,
            reg=reg,
            separate_target=separate_target,
            mode=mode,
        )
        for gradient in gradients(sum(terms), student, target):
            assert gradient.dtype == dtype
            assert gradient.isfinite().all()
        assert all(term.dtype == torch.float32 and term.isfinite() for term in terms)


def test_many_sweeps_and_a_small_reg_come_to_exact_transport() -> None:
    student, target, _, cost = batch(samples=3, classes=6)
    sides = [torch.log_softmax(x.detach(), -1) for x in (student, target)]
    wanted = torch.stack([linear_program(a, b, cost) for a, b in zip(*(x.exp() for x in sides), strict=True)])
    gaps = []
    for reg in (0.1, 0.03, 0.01):
        value = functional.sinkhorn(*sides, cost, reg=reg, iterations=5000, reduction="none")
        assert (value > wanted - 1e-6).all()
        gaps.append((value - wanted).max().item())
    assert gaps[0] > 3 * gaps[1] > 9 * gaps[2]
    assert gaps[2] < 1e-3


def test_a_uniform_cost_is_total_variation_at_convergence() -> None:
    student, target, _, _ = batch()
    student, target = student.detach(), target.detach()
    sides = [torch.log_softmax(x, -1) for x in (student, target)]
    entropies = sum(-(x.exp() * x).sum(-1) for x in sides)
    bound = 0.6 * functional.total_variation(student, target, reduction="none")
    cost = 0.6 * (1 - torch.eye(7, dtype=torch.float64))
    for reg in (0.1, 0.02):
        value = functional.sinkhorn(*sides, cost, reg=reg, iterations=4000, reduction="none")
        assert (value > bound - 1e-9).all()
        assert (value < bound + reg * entropies).all()


def test_the_names_of_the_classes_do_not_matter() -> None:
    student, target, labels, cost = batch()
    order = torch.randperm(7, generator=torch.Generator().manual_seed(1))
    place = order.argsort()
    value = functional.wkd_logit(student, target, labels, cost, temperature=2.0)
    moved = functional.wkd_logit(
        student[:, order], target[:, order], place[labels], cost[order][:, order], temperature=2.0
    )
    assert all(abs(a - b) < 1e-14 for a, b in zip(value, moved, strict=True))


@pytest.mark.parametrize("mode", SOLVERS)
def test_absent_classes_count_for_nothing(mode: str) -> None:
    student, target, _, cost = batch()
    labels = torch.zeros(6, dtype=torch.int64)
    kept = torch.tensor([0, 2, 3, 5, 6])
    absent = ~torch.isin(torch.arange(7), kept)
    sides = [x.detach().masked_fill(absent, -torch.inf).requires_grad_() for x in (student, target)]
    small = [x.detach()[:, kept].requires_grad_() for x in sides]
    got = functional.wkd_logit(*sides, labels, cost, temperature=2.0, mode=mode)
    wanted = functional.wkd_logit(*small, labels, cost[kept][:, kept], temperature=2.0, mode=mode)
    assert all(abs(a - b) < 1e-14 for a, b in zip(got, wanted, strict=True))
    for a, b in zip(gradients(sum(got), *sides), gradients(sum(wanted), *small), strict=True):
        assert not a[:, absent].any()
        assert (a[:, kept] - b).abs().max() < 1e-14


@pytest.mark.parametrize("mode", SOLVERS)
@pytest.mark.parametrize("other", [[], [-torch.inf]])
def test_without_another_class_nothing_is_transported(other: list[float], mode: str) -> None:
    logits = torch.tensor([[3.0, *other]], requires_grad=True)
    cost = 0.5 * (1 - torch.eye(1 + len(other)))
    terms = functional.wkd_logit(logits, logits, torch.tensor([0]), cost, temperature=2.0, mode=mode)
    assert terms == (0, 0)
    assert not gradients(sum(terms), logits)[0].any()


class Largest(TorchDispatchMode):
    """The number of entries of the largest tensor that any operation makes."""

    entries = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        sizes = [x.numel() for x in tree_leaves(made) if isinstance(x, Tensor)]
        self.entries = max(self.entries, *sizes, 0)
        return made


@pytest.mark.parametrize("mode", SOLVERS)
def test_no_tensor_holds_a_plan_per_sample(mode: str) -> None:
    student, target, labels, cost = batch(samples=40, classes=30)
    with Largest() as largest:
        gradients(sum(functional.wkd_logit(student, target, labels, cost, temperature=2.0, mode=mode)), student)
    assert largest.entries == 40 * 30


@pytest.mark.parametrize("mode", SOLVERS)
def test_transport_is_captured_whole_and_maps_over_samples(mode: str) -> None:
    student, target, labels, cost = batch()

    def transport(s: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return functional.wkd_logit(s, t, y, cost, temperature=2.0, mode=mode, reduction="sum").transport

    compiled = torch.compile(transport, fullgraph=True, backend="aot_eager")
    assert torch.isclose(compiled(student, target, labels), transport(student, target, labels), rtol=1e-13)
    mapped = torch.func.vmap(torch.func.grad(transport))(student.detach(), target.detach(), labels)
    assert (mapped - gradients(transport(student, target, labels), student)[0]).abs().max() < 1e-13


def test_transport_has_leading_axes_and_its_own_dtype_under_autocast() -> None:
    student, target, labels, cost = batch(samples=12)
    shaped = (student.view(3, 4, 7), target.view(3, 4, 7), labels.view(3, 4))
    none = functional.wkd_logit(*shaped, cost, temperature=2.0, reduction="none")
    mean = functional.wkd_logit(student, target, labels, cost, temperature=2.0)
    assert none.transport.shape == none.target.shape == (3, 4)
    assert all(torch.isclose(a.mean(), b) for a, b in zip(none, mean, strict=True))
    single = (student.float(), target.float(), labels, cost.float())
    loss = WKDLogitLoss(cost, temperature=2.0)
    outside, module = functional.wkd_logit(*single, temperature=2.0), loss(*single[:3])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert functional.wkd_logit(*single, temperature=2.0) == outside
        assert loss(*single[:3]) == module


# --- the module -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", SOLVERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_module_weighs_the_terms_of_its_function(dtype: torch.dtype, mode: str) -> None:
    student, target, labels, cost = batch()
    student, target = student.to(dtype), target.to(dtype)
    for given in (cost, cost.float()):
        loss = WKDLogitLoss(given, temperature=4.0, mode=mode, target_weight=0.5, transport_weight=600.0)
        terms = functional.wkd_logit(student, target, labels, given, temperature=4.0, mode=mode)
        assert loss.terms(student, target, labels) == terms
        assert loss(student, target, labels) == 0.5 * terms.target + 600 * terms.transport
        assert loss(student, target, labels).dtype == dtype


def test_kernels_follow_the_cost_and_keep_their_precision() -> None:
    student, target, labels, cost = batch()
    single = (student.float(), target.float(), labels)
    loss, other = WKDLogitLoss(cost.float(), temperature=4.0), WKDLogitLoss(0.5 * cost.float(), temperature=4.0)
    assert {name for name, _ in loss.named_buffers()} == {"cost", "kernel", "kernel_cost"}
    expected = loss(*single)
    assert loss.half()(*single) == expected
    assert other(*single) != expected
    other.load_state_dict(loss.state_dict())
    assert other(*single) == expected
    assert torch.allclose(other.kernel, torch.exp(-cost.float() / 0.05))
    assert torch.allclose(other.kernel_cost, other.kernel * cost.float())


def test_a_teacher_under_inference_mode_is_welcome() -> None:
    student, target, labels, cost = batch()
    loss = WKDLogitLoss(cost, temperature=2.0)
    with torch.inference_mode():
        inferred = target * 1.0
    assert torch.equal(*(gradients(loss(student, t, labels), student)[0] for t in (target, inferred)))


def test_the_kernel_s_range_is_guarded_in_the_constructor() -> None:
    cost = 0.6 * (1 - torch.eye(3))
    WKDLogitLoss(cost, temperature=2.0, reg=0.0076)
    with pytest.raises(ValueError, match=r"`reg` expected at least 0.0075 .*got 0.007; "):
        WKDLogitLoss(cost, temperature=2.0, reg=0.007)


@pytest.mark.parametrize(
    ("cost", "error", "message"),
    [
        ([[0.0]], TypeError, "`cost` expected a tensor, got list"),
        (torch.zeros(3, 3, dtype=torch.int64), TypeError, "`cost` expected a floating dtype"),
        (torch.zeros(3, 4), ValueError, r"`cost` expected a square .*got \(3, 4\)"),
        (torch.full((3, 3), torch.nan), ValueError, "`cost` expected finite"),
        (torch.eye(3) - 1, ValueError, "`cost` expected finite .* at least 0.*got -1"),
        (torch.eye(3), ValueError, "`cost` expected a diagonal of 0"),
        (torch.ones(3, 3).triu(1), ValueError, "`cost` expected a symmetric"),
    ],
)
def test_a_cost_that_is_none_is_refused(cost: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        WKDLogitLoss(cost, temperature=2.0)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"labels": torch.full((2, 3), 1 / 3)}, TypeError, "`labels` expected class indices.*mixup and cutmix"),
        ({"labels": None}, TypeError, "`labels` expected class indices .* got NoneType"),
        ({"labels": torch.tensor([0, 3])}, ValueError, r"\[0, 2\], got 0 to 3"),
        ({"target_logits": torch.zeros(2, 4)}, ValueError, "one shape"),
        ({"cost": torch.zeros(4, 4)}, ValueError, r"`cost` expected the shape \(3, 3\), got \(4, 4\)"),
        ({"temperature": 0.0}, ValueError, "`temperature`"),
        ({"reg": 0.0}, ValueError, "`reg`"),
        ({"iterations": 0}, ValueError, "`iterations` expected a whole number of at least 1, got 0"),
        ({"iterations": 1.5}, ValueError, "`iterations`"),
        ({"mode": "exact"}, ValueError, "`mode` expected 'log' or 'published', got 'exact'"),
        ({"reduction": "batchmean"}, ValueError, "`reduction`"),
    ],
)
def test_bad_input_is_said_in_one_line(change: dict[str, object], error: type[Exception], message: str) -> None:
    arguments = {
        "logits": torch.zeros(2, 3),
        "target_logits": torch.zeros(2, 3),
        "labels": torch.tensor([0, 1]),
        "cost": 1 - torch.eye(3),
        "temperature": 2.0,
        **change,
    }
    with pytest.raises(error, match=message):
        functional.wkd_logit(**arguments)


def test_bad_marginals_are_said_by_their_names() -> None:
    with pytest.raises(ValueError, match="`log_probs` and `target_log_probs` expected one shape"):
        functional.sinkhorn(torch.zeros(2, 3), torch.zeros(2, 4), torch.zeros(3, 3))
