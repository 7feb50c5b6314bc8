"""Claims about losses between two predictions of one sample without a label."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from limbeck import functional


def pair(samples: int = 6, classes: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    student, target = (3 * torch.randn(samples, classes, generator=generator, dtype=torch.float64) for _ in range(2))
    return student.requires_grad_(), target


def softmax(row: list[float], temperature: float = 1.0) -> list[float]:
    powers = [math.exp(value / temperature) for value in row]
    return [power / sum(powers) for power in powers]


def test_a_hard_pseudo_label_is_the_cross_entropy_with_the_largest_logits_class():
    student, target = pair()
    each = functional.pseudo_label_cross_entropy(student, target, reduction="none")
    for row, other, value in zip(student.tolist(), target.tolist(), each.tolist(), strict=True):
        assert value == pytest.approx(-math.log(softmax(row)[other.index(max(other))]), abs=1e-12)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_a_soft_pseudo_label_tempers_the_target_alone(temperature):
    student, target = pair()
    value = functional.pseudo_label_cross_entropy(student, target, targets="soft", target_temperature=temperature)
    rows = [
        -sum(p * math.log(q) for p, q in zip(softmax(other, temperature), softmax(row), strict=True))
        for row, other in zip(student.tolist(), target.tolist(), strict=True)
    ]
    assert value.item() == pytest.approx(sum(rows) / len(rows), abs=1e-12)


def test_a_soft_pseudo_label_has_the_gradient_of_kl():
    student, target = pair()
    soft = functional.pseudo_label_cross_entropy(student, target, targets="soft")
    kl = functional.kl_divergence(student, target)
    gradients = [torch.autograd.grad(value, student)[0] for value in (soft, kl)]
    assert torch.allclose(*gradients, atol=1e-15)


@pytest.mark.parametrize("targets", ["hard", "soft"])
def test_a_pseudo_label_moves_the_student_alone(targets):
    student, target = pair()
    target.requires_grad_()
    functional.pseudo_label_cross_entropy(student, target, targets=targets).backward()
    assert student.grad.abs().sum() > 0
    assert target.grad is None


def test_probability_mse_is_the_brier_distance_over_the_classes():
    student, target = pair()
    value = functional.probability_mse(student, target)
    rows = [
        sum((q - p) ** 2 for q, p in zip(softmax(row), softmax(other), strict=True)) / len(row)
        for row, other in zip(student.tolist(), target.tolist(), strict=True)
    ]
    assert value.item() == pytest.approx(sum(rows) / len(rows), abs=1e-14)


def test_probability_mse_is_symmetric_and_at_most_two_over_the_classes():
    student, target = pair()
    assert torch.isclose(
        functional.probability_mse(student, target), functional.probability_mse(target, student), atol=1e-16
    )
    apart = torch.tensor([[99.0, 0, 0], [0, 99, 0]])
    assert functional.probability_mse(apart[:1], apart[1:]).item() == pytest.approx(2 / 3)


def test_probability_mse_has_all_derivatives_of_both_sides():
    student, target = pair(3, 3)
    sides = (student, target.requires_grad_())
    assert torch.autograd.gradcheck(functional.probability_mse, sides)
    assert torch.autograd.gradgradcheck(functional.probability_mse, sides)


@pytest.mark.parametrize(
    ("change", "words"),
    [({"targets": "both"}, "`targets`"), ({"target_temperature": 0.0}, "`target_temperature`")],
)
def test_mistakes_are_named(change, words):
    with pytest.raises(ValueError, match=words):
        functional.pseudo_label_cross_entropy(torch.zeros(1, 2), torch.zeros(1, 2), **change)
