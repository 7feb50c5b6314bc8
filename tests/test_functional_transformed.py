"""Claims about TTM and WTTM, against a float64 twin that raises probabilities to their power."""

from __future__ import annotations

import pytest
import torch
import twins
from torch import Tensor
from twins import gradients

from limbeck import functional


def twin(logits: Tensor, target_logits: Tensor, power: float, weighted: bool) -> Tensor:
    values = []
    for s, t in zip(logits, target_logits, strict=True):
        powers = twins.softmax(t) ** power
        value = twins.kl(powers / powers.sum(), twins.softmax(s))
        values.append(powers.sum().detach() * value if weighted else value)
    return torch.stack(values)


def batch(samples: int = 7, classes: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    student, target = (2 * torch.randn(samples, classes, generator=generator, dtype=torch.float64) for _ in range(2))
    return student.requires_grad_(), target.requires_grad_()


@pytest.mark.parametrize("classes", [2, 5, 100])
@pytest.mark.parametrize("power", [0.1, 1.0, 2.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_ttm_equals_the_papers_formula(classes: int, power: float, weighted: bool) -> None:
    student, target = batch(classes=classes)
    each = twin(student, target, power, weighted)
    for reduction, expected in (("none", each), ("mean", each.mean()), ("sum", each.sum())):
        value = functional.ttm_divergence(student, target, power=power, weighted=weighted, reduction=reduction)
        assert value.shape == expected.shape
        assert (value - expected).abs().max() < 1e-11
        got, wanted = (gradients(x.sum(), student, target) for x in (value, expected))
        assert all((a - b).abs().max() < 1e-11 for a, b in zip(got, wanted, strict=True))


def test_at_power_one_both_are_kl() -> None:
    student, target = batch()
    kl = functional.kl_divergence(student, target)
    for weighted in (False, True):
        assert torch.isclose(functional.ttm_divergence(student, target, power=1.0, weighted=weighted), kl, rtol=1e-12)


def test_the_minimum_is_the_targets_scaled_logits() -> None:
    _, target = batch()
    student = (0.3 * target.detach() + 7).requires_grad_()
    value = functional.ttm_divergence(student, target, power=0.3, weighted=True)
    assert value.abs() < 1e-13
    assert gradients(value, student)[0].abs().max() < 1e-13
    assert functional.ttm_divergence(target, target, power=0.3) > 0.01


def test_the_weight_is_one_for_a_certain_target_and_largest_for_a_flat_one() -> None:
    target = torch.tensor([[900.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    student = torch.tensor([[0.0, 1.0, 2.0, 3.0]], dtype=torch.float64).expand(2, 4)
    plain, weighted = (
        functional.ttm_divergence(student, target, power=0.25, weighted=weighted, reduction="none")
        for weighted in (False, True)
    )
    assert torch.allclose(weighted / plain, torch.tensor([1.0, 4.0**0.75], dtype=torch.float64))


def test_derivatives_of_both_orders_agree_with_finite_differences() -> None:
    """On both sides of TTM; of WTTM on the student alone, since its weight is detached."""
    student, target = batch(samples=3, classes=4)
    assert torch.autograd.gradcheck(functional.ttm_divergence, (student, target))
    assert torch.autograd.gradgradcheck(functional.ttm_divergence, (student, target))

    def weighted(s: Tensor) -> Tensor:
        return functional.ttm_divergence(s, target.detach(), weighted=True)

    assert torch.autograd.gradcheck(weighted, (student,))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_ttm_is_finite_at_any_gap(dtype: torch.dtype) -> None:
    student = torch.tensor([[0.0, 1e4, 0.0]], dtype=dtype, requires_grad=True)
    target = torch.tensor([[1e4, 0.0, 0.0]], dtype=dtype, requires_grad=True)
    value = functional.ttm_divergence(student, target, weighted=True)
    assert value.dtype == torch.promote_types(dtype, torch.float32)
    assert value.item() == pytest.approx(float(student.detach()[0, 1]), rel=1e-6)
    for gradient in gradients(value, student, target):
        assert gradient.dtype == dtype
        assert gradient.isfinite().all()


def test_absent_classes_count_for_nothing() -> None:
    student, target = batch()
    absent = torch.tensor([False, True, False, False, True])
    sides = [x.detach().masked_fill(absent, -torch.inf).requires_grad_() for x in (student, target)]
    small = [x.detach()[:, ~absent].requires_grad_() for x in sides]
    value, expected = (functional.ttm_divergence(*x, weighted=True) for x in (sides, small))
    assert torch.isclose(value, expected, rtol=1e-12)
    for got, wanted in zip(gradients(value, *sides), gradients(expected, *small), strict=True):
        assert not got[:, absent].any()
        assert (got[:, ~absent] - wanted).abs().max() < 1e-12
    assert functional.ttm_divergence(student[:, :1], target[:, :1], weighted=True) == 0


def test_ttm_is_captured_whole_and_has_its_own_dtype_under_autocast() -> None:
    student, target = batch(samples=12)
    compiled = torch.compile(functional.ttm_divergence, fullgraph=True, backend="aot_eager")
    expected = functional.ttm_divergence(student, target)
    assert torch.isclose(compiled(student, target), expected)
    none = functional.ttm_divergence(student.view(3, 4, 5), target.view(3, 4, 5), reduction="none")
    assert none.shape == (3, 4)
    assert torch.isclose(none.mean(), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = functional.ttm_divergence(student.float(), target.float())
    assert torch.equal(inside, functional.ttm_divergence(student.float(), target.float()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target_logits": torch.zeros(2, 4)}, "one shape"),
        ({"power": 0.0}, "`power`"),
        ({"reduction": "batchmean"}, "`reduction`"),
    ],
)
def test_bad_input_is_said_in_one_line(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        functional.ttm_divergence(**{"logits": torch.zeros(2, 3), "target_logits": torch.zeros(2, 3), **change})
