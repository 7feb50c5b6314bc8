"""Claims about the mean squared difference of logits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from limbeck import functional


def batch(samples: int = 6, classes: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    draw = [3 * torch.randn(samples, classes, generator=generator, dtype=torch.float64) for _ in range(2)]
    return draw[0].requires_grad_(), draw[1].requires_grad_()


def test_mean_over_samples_is_that_of_all_entries_with_opposite_gradients() -> None:
    student, target = batch()
    value = functional.logit_mse(student, target)
    assert torch.isclose(value, torch.nn.functional.mse_loss(student, target), rtol=1e-14)
    each = functional.logit_mse(student.view(2, 3, 5), target.view(2, 3, 5), reduction="none")
    assert each.shape == (2, 3)
    assert torch.isclose(each.sum(), functional.logit_mse(student, target, reduction="sum"))
    to_student, to_target = torch.autograd.grad(value, (student, target))
    assert (to_student - 2 * (student - target) / 5 / 6).abs().max() < 1e-14
    assert torch.equal(to_student, -to_target)


def test_a_constant_counts_here_but_not_in_the_weighted_mse() -> None:
    student, target = batch()
    assert functional.logit_mse(student, student + 2).item() == pytest.approx(4)
    uniform = torch.full_like(student, 0.2)
    assert functional.weighted_mse(student, student + 2, uniform).item() == pytest.approx(0, abs=1e-15)
    centred = [x - x.mean(-1, keepdim=True) for x in (student, target)]
    half = functional.logit_mse(*centred) / 2
    assert torch.isclose(functional.weighted_mse(student, target, uniform), half)


def test_absent_classes_count_for_nothing() -> None:
    student, target = batch()
    absent = torch.tensor([False, True, False, False, True])
    sides = [x.detach().masked_fill(absent, -torch.inf).requires_grad_() for x in (student, target)]
    value = functional.logit_mse(*sides)
    assert torch.isclose(value, functional.logit_mse(student[:, ~absent], target[:, ~absent]))
    for gradient in torch.autograd.grad(value, sides):
        assert gradient.isfinite().all()
        assert not gradient[:, absent].any()


def test_half_precision_does_not_overflow() -> None:
    student = torch.tensor([[6e4, 0.0]], dtype=torch.float16, requires_grad=True)
    value = functional.logit_mse(student, -student.detach())
    assert value.dtype == torch.float32
    assert value.isfinite()


def test_derivatives_agree_with_finite_differences_and_capture_is_whole() -> None:
    student, target = batch(samples=2, classes=3)
    assert torch.autograd.gradcheck(functional.logit_mse, (student, target))
    compiled = torch.compile(functional.logit_mse, fullgraph=True, backend="aot_eager")
    assert torch.isclose(compiled(student, target), functional.logit_mse(student, target))


def test_bad_input_is_said_in_one_line() -> None:
    with pytest.raises(ValueError, match="one shape"):
        functional.logit_mse(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(ValueError, match="`reduction`"):
        functional.logit_mse(torch.zeros(2, 3), torch.zeros(2, 3), reduction="batchmean")
