"""Claims about MART, against a float64 twin written from the paper's formula."""

from __future__ import annotations

import math

import pytest
import torch
import twins
from torch import Tensor
from twins import gradients
from twins import labelled_batch as batch

from limbeck import functional


def twin(logits: Tensor, target_logits: Tensor, labels: Tensor, kl_weight: float) -> Tensor:
    q, p = twins.softmax(logits), twins.softmax(target_logits)
    values = []
    for sample, label in enumerate(labels.tolist()):
        wrong = torch.cat([q[sample, :label], q[sample, label + 1 :]])
        boosted = -q[sample, label].log() - (1 - wrong.max()).log()
        values.append(boosted + kl_weight * (1 - p[sample, label]) * twins.kl(p[sample], q[sample]))
    return torch.stack(values)


@pytest.mark.parametrize("classes", [2, 5, 100])
@pytest.mark.parametrize("kl_weight", [0.0, 5.0])
def test_mart_equals_the_papers_formula_and_detaches_nothing(classes: int, kl_weight: float) -> None:
    adversarial, clean, labels = batch(classes=classes)
    each = twin(adversarial, clean, labels, kl_weight)
    for reduction, expected in (("none", each), ("mean", each.mean()), ("sum", each.sum())):
        value = functional.mart_loss(adversarial, clean, labels, kl_weight=kl_weight, reduction=reduction)
        assert value.shape == expected.shape
        assert (value - expected).abs().max() < 1e-12
        got, wanted = (gradients(x.sum(), adversarial, clean) for x in (value, expected))
        assert all((a - b).abs().max() < 1e-12 for a, b in zip(got, wanted, strict=True))


def test_derivatives_of_both_orders_agree_with_finite_differences() -> None:
    adversarial, clean, labels = batch(samples=3, classes=4)
    assert torch.autograd.gradcheck(functional.mart_loss, (adversarial, clean, labels))
    assert torch.autograd.gradgradcheck(functional.mart_loss, (adversarial, clean, labels))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_mart_needs_no_floor_in_any_dtype(dtype: torch.dtype) -> None:
    """Both logarithms of the boosted cross-entropy are as long as a gap, where 1 - p is 0 in every dtype."""
    adversarial = torch.tensor([[1e4, -1e4, 0.0], [60.0, -40.0, 0.0]], dtype=dtype, requires_grad=True)
    clean = adversarial.detach().clone().requires_grad_()
    labels = torch.tensor([1, 1])
    value = functional.mart_loss(adversarial, clean, labels, reduction="none")
    assert value.dtype == torch.float32
    gaps = adversarial.detach().float()  # -log p[1] = z[0] - z[1], -log(1 - p[0]) = z[0] - z[2]
    assert torch.allclose(value, 2 * gaps[:, 0] - gaps[:, 1])
    for gradient in gradients(value.sum(), adversarial, clean):
        assert gradient.dtype == dtype
        assert gradient.isfinite().all()


def test_the_weight_of_a_certain_prediction_keeps_its_tail() -> None:
    """1 - p_t[y] is exp(-80): nothing beside 1 in any dtype, and nothing beside the public code's floors."""
    clean = torch.tensor([[80.0, 0.0]], dtype=torch.float64, requires_grad=True)
    adversarial, labels = -clean.detach(), torch.tensor([0])
    value = functional.mart_loss(adversarial, clean, labels, kl_weight=1.0)
    assert value == 80 + 80  # -log p_s[y] and -log(1 - p_s[k])
    slope = gradients(value, clean)[0][0, 1].item()
    assert slope == pytest.approx(80 * math.exp(-80), rel=1e-12)  # of the weight, times KL


def test_absent_classes_count_for_nothing() -> None:
    adversarial, clean, _ = batch()
    labels = torch.zeros(7, dtype=torch.int64)
    absent = torch.tensor([False, True, False, False, True])
    sides = [x.detach().masked_fill(absent, -torch.inf).requires_grad_() for x in (adversarial, clean)]
    small = [x.detach()[:, ~absent].requires_grad_() for x in sides]
    value, expected = functional.mart_loss(*sides, labels), functional.mart_loss(*small, labels)
    assert torch.isclose(value, expected, rtol=1e-13)
    for got, wanted in zip(gradients(value, *sides), gradients(expected, *small), strict=True):
        assert not got[:, absent].any()
        assert (got[:, ~absent] - wanted).abs().max() < 1e-13


@pytest.mark.parametrize("wrong", [0.0, -torch.inf])
def test_without_a_wrong_class_only_the_label_counts(wrong: float) -> None:
    """One class costs nothing, and neither do wrong classes that all are absent."""
    single = torch.tensor([[3.0, *([wrong] if wrong else [])]])
    assert functional.mart_loss(single, single, torch.tensor([0])) == 0


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"kl_weight": -1.0}, ValueError, "`kl_weight`"),
    ],
)
def test_bad_option_is_said_in_one_line(change: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        functional.mart_loss(*batch(), **change)
