"""Claims about NKD, against a float64 twin written from the paper's formula and numbers of the public code."""

from __future__ import annotations

import math

import golden
import pytest
import torch
import twins
from torch import Tensor
from twins import gradients
from twins import labelled_batch as batch

from limbeck import functional


def twin_parts(logits: Tensor, target_logits: Tensor, labels: Tensor, temperature: float) -> tuple[Tensor, ...]:
    """The label's part, the others' without T squared, and their entropy under the target, per sample."""
    parts = []
    for s, t, y in zip(logits, target_logits, labels.tolist(), strict=True):
        belief = twins.softmax(t)[y].detach()
        q, p = (twins.softmax(torch.cat([x[:y], x[y + 1 :]]) / temperature) for x in (s, t))
        parts.append(torch.stack([-belief * twins.softmax(s)[y].log(), -(p * q.log()).sum(), -(p * p.log()).sum()]))
    return torch.stack(parts).unbind(-1)


def test_nkd_gives_the_number_of_the_public_code() -> None:
    student, target, labels = golden.inputs()
    golden.holds(functional.nkd_loss(student, target, labels), student, 4.54596795, 0.29751870)


@pytest.mark.parametrize("classes", [2, 5, 100])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("scale_by_t2", [False, True])
@pytest.mark.parametrize("subtract_entropy", [False, True])
def test_nkd_equals_the_papers_formula(
    classes: int, temperature: float, scale_by_t2: bool, subtract_entropy: bool
) -> None:
    student, target, labels = batch(classes=classes)
    options = {"temperature": temperature, "scale_by_t2": scale_by_t2, "subtract_entropy": subtract_entropy}
    label, rest, entropy = twin_parts(student, target, labels, temperature)
    t2 = temperature**2 if scale_by_t2 else 1
    each = 0.7 * label + 3.5 * t2 * (rest - entropy if subtract_entropy else rest)
    for reduction, expected in (("none", each), ("mean", each.mean()), ("sum", each.sum())):
        value = functional.nkd_loss(
            student, target, labels, target_weight=0.7, rest_weight=3.5, **options, reduction=reduction
        )
        assert value.shape == expected.shape
        assert (value - expected).abs().max() < 1e-11
        got, wanted = (gradients(x.sum(), student, target) for x in (value, expected))
        assert all((a - b).abs().max() < 1e-11 for a, b in zip(got, wanted, strict=True))


def test_the_temperature_leaves_the_label_part_alone() -> None:
    student, target, labels = batch()
    hot, cold = (
        functional.nkd_loss(student, target, labels, rest_weight=0.0, temperature=temperature)
        for temperature in (1.0, 7.0)
    )
    assert torch.equal(hot, cold)


def test_the_entropy_changes_the_value_and_not_the_students_gradient() -> None:
    student, target, labels = batch()
    cross, divergence = (
        functional.nkd_loss(student, target, labels, target_weight=0.0, subtract_entropy=subtract)
        for subtract in (False, True)
    )
    assert cross > divergence + 0.1
    assert (gradients(cross, student)[0] - gradients(divergence, student)[0]).abs().max() < 1e-13
    same = functional.nkd_loss(target, target, labels, target_weight=0.0, subtract_entropy=True)
    assert same.abs() < 1e-13


def test_the_belief_in_the_label_is_a_constant() -> None:
    student, target, labels = batch()
    label = functional.nkd_loss(student, target, labels, rest_weight=0.0)
    assert torch.autograd.grad(label, target, allow_unused=True)[0] is None
    shifted = functional.nkd_loss(student + 3, target - 5, labels)
    assert torch.isclose(shifted, functional.nkd_loss(student, target, labels), rtol=1e-12)


def test_derivatives_of_both_orders_agree_with_finite_differences() -> None:
    """With respect to what no stop-gradient touches: the student, and the temperature."""
    student, target, labels = batch(samples=3, classes=4)
    temperature = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)

    def function(s: Tensor, tau: Tensor) -> Tensor:
        return functional.nkd_loss(s, target.detach(), labels, temperature=tau)

    assert torch.autograd.gradcheck(function, (student, temperature))
    assert torch.autograd.gradgradcheck(function, (student, temperature))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("gap", [60.0, 1e4])
def test_nkd_is_finite_at_any_gap(dtype: torch.dtype, gap: float) -> None:
    student = torch.tensor([[0.0, gap, 0.0], [0.0, gap, 0.0]], dtype=dtype, requires_grad=True)
    target = torch.tensor([[gap, 0.0, 0.0], [0.0, 0.0, gap]], dtype=dtype, requires_grad=True)
    value = functional.nkd_loss(student, target, torch.tensor([0, 0]), rest_weight=1.0, reduction="none")
    assert value.dtype == torch.promote_types(dtype, torch.float32)
    rounded = float(student.detach()[0, 1])
    assert value.tolist() == pytest.approx([1.5 * rounded, rounded], rel=1e-6)  # the label's and half; the rest's
    for gradient in gradients(value.sum(), student, target):
        assert gradient.dtype == dtype
        assert gradient.isfinite().all()


@pytest.mark.parametrize("label", [0, 1])
def test_absent_classes_count_for_nothing(label: int) -> None:
    """Label 1 is itself absent: then all is the rest."""
    student, target, _ = batch()
    absent = torch.tensor([False, True, False, False, True])
    labels = torch.full((7,), label)
    sides = [x.detach().masked_fill(absent, -torch.inf).requires_grad_() for x in (student, target)]
    small = [x.detach()[:, ~absent].requires_grad_() for x in sides]
    value = functional.nkd_loss(*sides, labels)
    expected = functional.nkd_loss(*small, labels) if label == 0 else 1.5 * functional.soft_cross_entropy(*small)
    assert torch.isclose(value, expected, rtol=1e-12)
    for got, wanted in zip(gradients(value, *sides), gradients(expected, *small), strict=True):
        assert not got[:, absent].any()
        assert (got[:, ~absent] - wanted).abs().max() < 1e-12


@pytest.mark.parametrize("others", [[], [-torch.inf]])
def test_without_another_class_there_is_nothing_to_tell(others: list[float]) -> None:
    student, target = (torch.tensor([[x, *others]], requires_grad=True) for x in (3.0, -1.0))
    value = functional.nkd_loss(student, target, torch.tensor([0]))
    assert value == 0
    assert all(not gradient.any() for gradient in gradients(value, student, target))


def test_a_label_that_only_the_student_lacks_costs_infinity() -> None:
    student, target, labels = torch.tensor([[-math.inf, 1.0, 0.0]]), torch.tensor([[0.0, 1.0, 1.0]]), torch.tensor([0])
    assert functional.nkd_loss(student, target, labels) == torch.inf
    assert functional.nkd_loss(student, target, labels, target_weight=0.0).isfinite()


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
        functional.nkd_loss(*batch(), **change)
