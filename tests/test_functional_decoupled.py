"""Claims about DKD, against a float64 twin written from the paper's formula and numbers of the public code."""

from __future__ import annotations

import golden
import pytest
import torch
import twins
from torch import Tensor
from twins import gradients
from twins import labelled_batch as batch

from limbeck import functional


def twin_parts(logits: Tensor, target_logits: Tensor, labels: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """TCKD and NCKD per sample, without T squared, on the C - 1 other classes as such."""
    target_part, rest_part = [], []
    for s, t, y in zip(logits, target_logits, labels.tolist(), strict=True):
        q, p = twins.softmax(s / temperature), twins.softmax(t / temperature)
        two = [torch.stack([x[y], torch.cat([x[:y], x[y + 1 :]]).sum()]) for x in (p, q)]
        rest = [torch.cat([x[:y], x[y + 1 :]]) for x in (p, q)]
        target_part.append(twins.kl(*two))
        rest_part.append(twins.kl(*(x / x.sum() for x in rest)))
    return torch.stack(target_part), torch.stack(rest_part)


def test_dkd_gives_the_numbers_of_the_public_code() -> None:
    student, target, labels = golden.inputs()
    tckd = functional.dkd_divergence(student, target, labels, target_weight=1.0, rest_weight=0.0)
    nckd = functional.dkd_divergence(student, target, labels, target_weight=0.0, rest_weight=1.0)
    golden.holds(tckd, student, 0.02637547, 0.02507658)
    golden.holds(nckd, student, 3.00310807, 0.28272914)


@pytest.mark.parametrize("classes", [2, 5, 100])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("scale_by_t2", [False, True])
def test_dkd_equals_the_papers_formula(classes: int, temperature: float, scale_by_t2: bool) -> None:
    student, target, labels = batch(classes=classes)
    options = {"target_weight": 0.7, "rest_weight": 3.0, "temperature": temperature, "scale_by_t2": scale_by_t2}
    tckd, nckd = twin_parts(student, target, labels, temperature)
    each = (0.7 * tckd + 3.0 * nckd) * (temperature**2 if scale_by_t2 else 1)
    for reduction, expected in (("none", each), ("mean", each.mean()), ("sum", each.sum())):
        value = functional.dkd_divergence(student, target, labels, **options, reduction=reduction)
        assert value.shape == expected.shape
        assert (value - expected).abs().max() < 1e-12
        got, wanted = (gradients(x.sum(), student, target) for x in (value, expected))
        assert all((a - b).abs().max() < 1e-12 for a, b in zip(got, wanted, strict=True))


def test_kl_is_the_target_part_and_the_rest_by_its_mass() -> None:
    student, target, labels = batch()
    plain = {"temperature": 3.0, "scale_by_t2": False, "reduction": "none"}
    tckd = functional.dkd_divergence(student, target, labels, target_weight=1.0, rest_weight=0.0, **plain)
    nckd = functional.dkd_divergence(student, target, labels, target_weight=0.0, rest_weight=1.0, **plain)
    own = twins.softmax(target, 3.0).gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    kl = functional.kl_divergence(student, target, temperature=3.0, reduction="none")
    assert (tckd + (1 - own) * nckd - kl).abs().max() < 1e-12


def test_dkd_of_equal_sides_is_zero_with_zero_gradient_and_sees_no_shift() -> None:
    student, target, labels = batch()
    same = functional.dkd_divergence(student, student.detach(), labels)
    assert same.abs() < 1e-12
    assert gradients(same, student)[0].abs().max() < 1e-12
    shifted = functional.dkd_divergence(student + 3, target - 5, labels)
    assert torch.isclose(shifted, functional.dkd_divergence(student, target, labels), rtol=1e-12)


def test_derivatives_of_both_orders_agree_with_finite_differences() -> None:
    student, target, labels = batch(samples=3, classes=4)
    temperature = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)

    def function(s: Tensor, t: Tensor, tau: Tensor) -> Tensor:
        return functional.dkd_divergence(s, t, labels, temperature=tau)

    assert torch.autograd.gradcheck(function, (student, target, temperature))
    assert torch.autograd.gradgradcheck(function, (student, target, temperature))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("gap", [60.0, 1e4])
def test_dkd_is_finite_at_any_gap(dtype: torch.dtype, gap: float) -> None:
    """The logarithm of summed probabilities is -inf here; the value is a gap, on either side of it."""
    student = torch.tensor([[gap, 0.0, 0.0], [0.0, gap, 0.0]], dtype=dtype, requires_grad=True)
    target = torch.tensor([[0.0, gap, gap], [0.0, gap, 0.0]], dtype=dtype, requires_grad=True)
    value = functional.dkd_divergence(
        student, target, torch.tensor([0, 0]), temperature=1.0, rest_weight=1.0, reduction="none"
    )
    assert value.dtype == torch.promote_types(dtype, torch.float32)
    assert value[0].item() == pytest.approx(float(student.detach()[0, 0]), rel=0.02)  # gap, less a logarithm of 2
    assert value[1].abs() < 1e-6
    for gradient in gradients(value.sum(), student, target):
        assert gradient.dtype == dtype
        assert gradient.isfinite().all()
    assert student.detach()[0, 0] > 0
    assert gradients(value[0], student)[0][0, 0].item() == pytest.approx(1.0, rel=1e-3)  # p_s[y] - p_t[y]


@pytest.mark.parametrize("label", [0, 1])
def test_absent_classes_count_for_nothing(label: int) -> None:
    """Label 1 is itself absent: then all is the rest."""
    student, target, _ = batch()
    absent = torch.tensor([False, True, False, False, True])
    labels = torch.full((7,), label)
    sides = [x.detach().masked_fill(absent, -torch.inf).requires_grad_() for x in (student, target)]
    small = [x.detach()[:, ~absent].requires_grad_() for x in sides]
    value = functional.dkd_divergence(*sides, labels, temperature=2.0)
    if label == 0:
        expected = functional.dkd_divergence(*small, labels, temperature=2.0)
    else:
        expected = 8.0 * functional.kl_divergence(*small, temperature=2.0, scale_by_t2=True)
    assert torch.isclose(value, expected, rtol=1e-12)
    for got, wanted in zip(gradients(value, *sides), gradients(expected, *small), strict=True):
        assert not got[:, absent].any()
        assert (got[:, ~absent] - wanted).abs().max() < 1e-12


@pytest.mark.parametrize("others", [[], [-torch.inf], [-torch.inf, -torch.inf]])
def test_without_another_class_there_is_nothing_to_tell(others: list[float]) -> None:
    student, target = (torch.tensor([[x, *others]], requires_grad=True) for x in (3.0, -1.0))
    value = functional.dkd_divergence(student, target, torch.tensor([0]))
    assert value == 0
    assert all(not gradient.any() for gradient in gradients(value, student, target))


def test_a_class_that_only_the_student_lacks_costs_infinity() -> None:
    student, target = torch.tensor([[0.0, 1.0, -torch.inf]]), torch.tensor([[0.0, 1.0, 1.0]])
    assert functional.dkd_divergence(student, target, torch.tensor([0])) == torch.inf
    assert functional.dkd_divergence(student, target, torch.tensor([0]), rest_weight=0.0).isfinite()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"target_weight": -1.0}, ValueError, "`target_weight`"),
        ({"rest_weight": float("inf")}, ValueError, "`rest_weight`"),
        ({"temperature": 0.0}, ValueError, "`temperature`"),
    ],
)
def test_bad_option_is_said_in_one_line(change: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        functional.dkd_divergence(*batch(), **change)
