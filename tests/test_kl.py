"""Claims about KL and its plain relatives, against float64 twins."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import twins
from torch import Tensor
from twins import gradients

from limbeck import functional

Function = Callable[..., Tensor]


def js_twin(p: Tensor, q: Tensor) -> Tensor:
    m = 0.3 * p + 0.7 * q
    return 0.3 * twins.kl(p, m) + 0.7 * twins.kl(q, m)


# name -> (function of logits, twin of the probabilities p of the target and q of the student)
PAIRS: dict[str, tuple[Function, Callable[[Tensor, Tensor], Tensor]]] = {
    "kl": (functional.kl_divergence, twins.kl),
    "reverse_kl": (functional.reverse_kl_divergence, lambda p, q: twins.kl(q, p)),
    "js": (lambda *a, **k: functional.js_divergence(*a, beta=0.3, **k), js_twin),
    "skew_kl": (
        lambda *a, **k: functional.skew_kl_divergence(*a, skew=0.2, **k),
        lambda p, q: twins.kl(p, 0.2 * p + 0.8 * q),
    ),
    "total_variation": (functional.total_variation, lambda p, q: (p - q).abs().sum(-1) / 2),
    "soft_cross_entropy": (functional.soft_cross_entropy, lambda p, q: -(p * q.log()).sum(-1)),
}
FINITE = [name for name in PAIRS if name != "total_variation"]  # whose gradient is smooth


def logits(samples: int = 6, classes: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    draw = [3 * torch.randn(samples, classes, generator=generator, dtype=torch.float64) for _ in range(2)]
    return draw[0].requires_grad_(), draw[1].requires_grad_()


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("scale_by_t2", [False, True])
def test_values_and_gradients_equal_the_twin(name: str, temperature: float, scale_by_t2: bool) -> None:
    function, twin = PAIRS[name]
    student, target = logits()
    each = twin(twins.softmax(target, temperature), twins.softmax(student, temperature))
    each = each * temperature**2 if scale_by_t2 else each
    for reduction, expected in (("none", each), ("mean", each.mean()), ("sum", each.sum())):
        value = function(student, target, temperature=temperature, scale_by_t2=scale_by_t2, reduction=reduction)
        assert value.shape == expected.shape
        assert (value - expected).abs().max() < 1e-12
        pairs = zip(gradients(value.sum(), student, target), gradients(expected.sum(), student, target), strict=True)
        assert all((got - wanted).abs().max() < 1e-12 for got, wanted in pairs)


@pytest.mark.parametrize("name", PAIRS)
def test_all_functions_share_their_rules_of_shape_and_dtype(name: str) -> None:
    function, _ = PAIRS[name]
    student, target = logits(samples=12)
    none = function(student.view(3, 4, 5), target.view(3, 4, 5), reduction="none")
    assert none.shape == (3, 4)
    assert torch.isclose(none.mean(), function(student, target))
    half = student.detach().to(torch.bfloat16).requires_grad_()
    value = function(half, target.detach().float())
    assert value.dtype == torch.float32
    assert gradients(value, half)[0].dtype == torch.bfloat16
    single = function(student[:, :1], target[:, :1])
    assert single.abs() < 1e-15
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = function(student.float(), target.float())
    assert torch.equal(inside, function(student.float(), target.float()))


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_gaps_of_ten_thousand_stay_finite(name: str, dtype: torch.dtype) -> None:
    function, _ = PAIRS[name]
    student = torch.tensor([[1e4, -1e4, 0.0], [0.0, 0.0, 0.0]], dtype=dtype, requires_grad=True)
    target = torch.tensor([[-1e4, 1e4, 0.0], [1e4, -1e4, 5.0]], dtype=dtype, requires_grad=True)
    value = function(student, target)
    assert value.isfinite()
    assert all(gradient.isfinite().all() for gradient in gradients(value, student, target))


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("learnt_temperature", [False, True])
def test_a_class_absent_on_both_sides_counts_for_nothing(name: str, learnt_temperature: bool) -> None:
    function, _ = PAIRS[name]
    student, target = logits()
    absent = torch.tensor([False, True, False, False, True])
    sides = [x.detach().masked_fill(absent, -torch.inf).requires_grad_() for x in (student, target)]
    temperature = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    value = function(*sides, temperature=temperature if learnt_temperature else 2.0)
    small = [x.detach()[:, ~absent].requires_grad_() for x in sides]
    expected = function(*small, temperature=2.0)
    assert torch.isclose(value, expected, rtol=1e-13)
    for got, wanted in zip(gradients(value, *sides), gradients(expected, *small), strict=True):
        assert not got[:, absent].any()
        assert (got[:, ~absent] - wanted).abs().max() < 1e-13
    if learnt_temperature:
        assert gradients(value, temperature)[0].isfinite()


def test_a_class_that_the_student_alone_excludes_gives_infinite_kl() -> None:
    student, target = torch.tensor([[0.0, -torch.inf]]), torch.zeros(1, 2)
    assert functional.kl_divergence(student, target) == torch.inf
    assert functional.soft_cross_entropy(student, target) == torch.inf
    assert functional.kl_divergence(target, student).isclose(torch.tensor(math.log(2)))
    assert functional.js_divergence(student, target).isfinite()
    assert functional.skew_kl_divergence(student, target, skew=0.1).isfinite()


def test_ends_of_js_are_kl_and_reverse_kl() -> None:
    student, target = logits()
    assert torch.equal(functional.js_divergence(student, target, beta=0.0), functional.kl_divergence(student, target))
    assert torch.equal(
        functional.js_divergence(student, target, beta=1.0), functional.reverse_kl_divergence(student, target)
    )
    for beta, end in ((1e-7, functional.kl_divergence), (1 - 1e-7, functional.reverse_kl_divergence)):
        scaled = functional.js_divergence(student, target, beta=beta) / (beta * (1 - beta))
        assert torch.isclose(scaled, end(student, target), rtol=1e-5)


def test_js_is_symmetric_and_at_most_ln_2() -> None:
    student, target = logits()
    both = [functional.js_divergence(a, b, reduction="none") for a, b in ((student, target), (target, student))]
    assert (both[0] - both[1]).abs().max() < 1e-15
    assert both[0].max() <= math.log(2)


def test_js_gradient_is_half_of_the_printed_one() -> None:
    """Eq. 17 of arXiv 2503.08038 lacks the factor 1/2."""
    student, target = logits(samples=1)
    p, q = twins.softmax(target), twins.softmax(student)
    gap = student - ((p + q) / 2).log()
    printed = (q.unsqueeze(-1) * q.unsqueeze(-2) * (gap.unsqueeze(-1) - gap.unsqueeze(-2))).sum(-1)
    got = gradients(functional.js_divergence(student, target), student)[0]
    assert (got - printed / 2).abs().max() < 1e-12


def test_skew_goes_from_kl_to_nothing() -> None:
    student, target = logits()
    assert torch.equal(
        functional.skew_kl_divergence(student, target, skew=0.0), functional.kl_divergence(student, target)
    )
    assert functional.skew_kl_divergence(student, target, skew=1 - 1e-9) < 1e-12


def test_kl_has_the_gradient_of_soft_cross_entropy_on_the_student_only() -> None:
    student, target = logits()
    kl, ce = (
        gradients(f(student, target), student, target)
        for f in (functional.kl_divergence, functional.soft_cross_entropy)
    )
    assert (kl[0] - ce[0]).abs().max() < 1e-14
    assert (kl[1] - ce[1]).abs().max() > 1e-3


def test_mixtures_are_exact_far_out_in_the_tail() -> None:
    student = torch.tensor([[0.0, -200.0, -300.0]], dtype=torch.float64, requires_grad=True)
    target = torch.tensor([[0.0, -300.0, -200.0]], dtype=torch.float64)
    gradient = gradients(functional.js_divergence(student, target), student)[0][0, 1]
    assert torch.isclose(gradient, torch.tensor(-200.0, dtype=torch.float64).exp() * 0.5 * math.log(2), rtol=1e-6)


def test_t2_keeps_the_gradient_at_high_temperature() -> None:
    """With T squared the gradient tends to that of the mean squared error of centred logits over C, without it to 0."""
    student, target = logits()
    gap = (student - target) - (student - target).mean(-1, keepdim=True)
    limit = gap.detach() / 5 / len(gap)
    hot = functional.kl_divergence(student, target, temperature=1e4, scale_by_t2=True)
    assert (gradients(hot, student)[0] - limit).abs().max() < 1e-3
    plain = functional.kl_divergence(student, target, temperature=1e4)
    assert (gradients(plain, student)[0] * 1e8 - gradients(hot, student)[0]).abs().max() < 1e-9


@pytest.mark.parametrize("name", FINITE)
def test_derivatives_of_both_orders_agree_with_finite_differences(name: str) -> None:
    function, _ = PAIRS[name]
    student, target = logits(samples=2, classes=3)
    temperature = torch.tensor(1.7, dtype=torch.float64, requires_grad=True)
    call = lambda s, t, tau: function(s, t, temperature=tau, scale_by_t2=True)  # noqa: E731
    assert torch.autograd.gradcheck(call, (student, target, temperature))
    assert torch.autograd.gradgradcheck(call, (student, target, temperature))


@pytest.mark.parametrize("name", PAIRS)
def test_functions_are_captured_whole_and_map_over_samples(name: str) -> None:
    function, _ = PAIRS[name]
    student, target = logits()
    compiled = torch.compile(lambda s, t: function(s, t, temperature=2.0), fullgraph=True, backend="aot_eager")
    assert torch.isclose(compiled(student, target), function(student, target, temperature=2.0), rtol=1e-12)
    mapped = torch.func.vmap(torch.func.grad(function))(student.detach(), target.detach())
    expected = gradients(function(student, target, reduction="sum"), student)[0]
    assert (mapped - expected).abs().max() < 1e-13


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target_logits": torch.zeros(2, 3)}, "one shape"),
        ({"temperature": -1.0}, "`temperature` expected a finite number above 0, got -1.0"),
        ({"reduction": "batchmean"}, "`reduction` expected 'none', 'mean' or 'sum', got 'batchmean'"),
        ({"logits": torch.zeros(0, 5), "target_logits": torch.zeros(0, 5)}, "non-empty"),
    ],
)
def test_bad_input_is_said_in_one_line(name: str, change: dict[str, object], message: str) -> None:
    arguments = {"logits": torch.zeros(2, 5), "target_logits": torch.zeros(2, 5), **change}
    first, second = arguments.pop("logits"), arguments.pop("target_logits")
    with pytest.raises(ValueError, match=message):
        PAIRS[name][0](first, second, **arguments)


def test_shares_outside_the_unit_interval_are_refused() -> None:
    with pytest.raises(ValueError, match=r"`beta` expected a finite number in \[0, 1\], got 1.5"):
        functional.js_divergence(torch.zeros(1, 2), torch.zeros(1, 2), beta=1.5)
    with pytest.raises(ValueError, match="`skew`"):
        functional.skew_kl_divergence(torch.zeros(1, 2), torch.zeros(1, 2), skew=1.0)
