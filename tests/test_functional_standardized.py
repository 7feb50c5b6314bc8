"""Claims about logit standardisation, against torch's own mean and deviation and a number of the public code."""

from __future__ import annotations

import golden
import pytest
import torch
from torch import Tensor

from limbeck import DKDLoss, GKLLoss, KLLoss, functional
from limbeck.functional.multilevel import batch_correlation_loss, class_correlation_loss
from limbeck.losses import StandardizedLoss
from limbeck.losses.curriculum import CTKDLoss
from limbeck.losses.multilevel import MLKDLoss


def twin(logits: Tensor) -> Tensor:
    return (logits - logits.mean(-1, keepdim=True)) / (1e-7 + logits.std(-1, keepdim=True, unbiased=True))


def draw(samples: int = 7, classes: int = 5, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(samples, classes, generator=generator, dtype=torch.float64) + 3).requires_grad_()


def test_kl_of_standardized_logits_gives_the_number_of_the_public_code() -> None:
    student, target, labels = golden.inputs()
    loss = StandardizedLoss(KLLoss(temperature=2.0, scale_by_t2=True))
    golden.holds(loss(student, target, labels), student, 0.79810178, 0.06101181)


@pytest.mark.parametrize("classes", [2, 5, 100])
def test_standardizing_equals_torchs_mean_and_deviation(classes: int) -> None:
    logits = draw(classes=classes)
    value, expected = functional.standardize_logits(logits), twin(logits)
    assert (value - expected).abs().max() < 1e-13
    assert value.mean(-1).abs().max() < 1e-13
    assert (value.std(-1) - 1).abs().max() < 1e-6
    pull = draw(classes=classes, seed=1).detach()
    got, wanted = (torch.autograd.grad((x * pull).sum(), logits)[0] for x in (value, expected))
    assert (got - wanted).abs().max() < 1e-12
    assert got.sum(-1).abs().max() < 1e-12  # no pull on the mean, nor on the scale
    assert (got * logits.detach()).sum(-1).abs().max() < 1e-5


def test_shift_and_scale_count_for_nothing() -> None:
    logits = draw()
    assert torch.allclose(functional.standardize_logits(40 * logits - 9), functional.standardize_logits(logits))


def test_derivatives_of_both_orders_agree_with_finite_differences() -> None:
    assert torch.autograd.gradcheck(functional.standardize_logits, (draw(3, 4),))
    assert torch.autograd.gradgradcheck(functional.standardize_logits, (draw(3, 4),))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_standardizing_is_finite_in_any_dtype(dtype: torch.dtype) -> None:
    """60000 squared is far above float16's range, and equal logits have no deviation."""
    logits = torch.tensor([[6e4, -6e4, 0.0], [2.0, 2.0, 2.0]], dtype=dtype, requires_grad=True)
    value = functional.standardize_logits(logits)
    assert value.dtype == torch.promote_types(dtype, torch.float32)
    assert value[0].tolist() == pytest.approx([1.0, -1.0, 0.0])
    assert not value[1].any()
    (gradient,) = torch.autograd.grad((value[0] * value.new_tensor([1.0, 2.0, 3.0])).sum(), logits)
    assert gradient.dtype == dtype
    assert gradient.isfinite().all()


def test_equal_logits_have_the_public_codes_gradient() -> None:
    logits = torch.zeros(1, 4, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(functional.standardize_logits(logits)[0, 0], logits)
    assert torch.allclose(gradient, 1e7 * (torch.eye(4, dtype=torch.float64)[0] - 0.25))


def test_absent_classes_count_for_nothing() -> None:
    absent = torch.tensor([False, True, False, False, True])
    logits = draw().detach().masked_fill(absent, -torch.inf).requires_grad_()
    small = logits.detach()[:, ~absent].requires_grad_()
    value, expected = functional.standardize_logits(logits), functional.standardize_logits(small)
    assert torch.isneginf(value[:, absent]).all()
    assert torch.allclose(value[:, ~absent], expected)
    got, wanted = (
        torch.autograd.grad(functional.kl_divergence(x, x.detach().roll(1, 0)), leaf)[0]
        for x, leaf in ((value, logits), (expected, small))
    )
    assert not got[:, absent].any()
    assert torch.allclose(got[:, ~absent], wanted)


@pytest.mark.parametrize("others", [[], [-torch.inf]])
def test_a_single_class_becomes_zero(others: list[float]) -> None:
    logits = torch.tensor([[3.0, *others]], requires_grad=True)
    value = functional.standardize_logits(logits)
    assert value[0, 0] == 0
    assert not torch.autograd.grad(value[0, 0], logits)[0].any()


def test_any_loss_is_wrapped_with_its_memory_and_its_reduction() -> None:
    student, target = draw(9), draw(9, seed=1).detach()
    labels = torch.arange(9) % 5
    sides = (functional.standardize_logits(x) for x in (student, target))
    none = StandardizedLoss(DKDLoss(reduction="none"))
    assert none.reduction == "none"
    assert torch.equal(none(student, target, labels), functional.dkd_divergence(*sides, labels, reduction="none"))
    inner, plain = GKLLoss(5, weight_power=0.3), GKLLoss(5, weight_power=0.3)
    wrapped = StandardizedLoss(inner)
    wrapped.observe(target, labels)
    wrapped.synchronize()
    wrapped.refresh()
    plain.observe(twin(target), labels)
    plain.refresh()
    assert torch.allclose(inner.prior.prior, plain.prior.prior)
    assert not torch.allclose(inner.prior.prior, torch.full((5, 5), 0.2))
    assert torch.isclose(wrapped(student, target, labels), plain(twin(student), twin(target), labels))
    assert "GKLLoss" in repr(wrapped)


def test_the_schedule_and_the_parameters_of_a_loss_are_passed_through() -> None:
    student, target = draw(), draw(seed=1).detach()
    inner = CTKDLoss(ramp_epochs=4).double()
    wrapped = StandardizedLoss(inner)
    wrapped.set_epoch(4)
    assert inner.strength == -1
    value = wrapped(student, target)
    assert torch.isclose(value, inner(twin(student), twin(target)), rtol=1e-6)
    value.backward()
    assert [x.grad.item() for x in wrapped.parameters()] == [inner.raw_temperature.grad.item()]
    again = StandardizedLoss(CTKDLoss())
    inner.raw_temperature.data.fill_(3.0)
    again.load_state_dict(wrapped.state_dict())
    assert again.loss.raw_temperature == 3


def test_parts_of_mlkd_may_be_standardised_alone() -> None:
    student, target = draw(), draw(seed=1).detach()
    kl = StandardizedLoss(MLKDLoss(class_weight=0.0, batch_weight=0.0, mask="none"))
    correlations = MLKDLoss(instance_weight=0.0, mask="none")
    whole = kl(student, target) + correlations(student, target)
    expected = sum(
        functional.kl_divergence(twin(student), twin(target), temperature=t, scale_by_t2=True)
        + class_correlation_loss(student, target, temperature=t)
        + batch_correlation_loss(student, target, temperature=t)
        for t in (2.0, 3.0, 4.0, 5.0, 6.0)
    )
    assert torch.isclose(whole, expected)


def test_standardizing_is_captured_whole_and_has_its_own_dtype_under_autocast() -> None:
    logits = draw(12)
    compiled = torch.compile(functional.standardize_logits, fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(logits), functional.standardize_logits(logits))
    axes = functional.standardize_logits(logits.view(3, 4, 5))
    assert torch.equal(axes.view(12, 5), functional.standardize_logits(logits))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = functional.standardize_logits(logits.float())
    assert torch.equal(inside, functional.standardize_logits(logits.float()))


@pytest.mark.parametrize(
    ("logits", "error", "message"),
    [
        (None, TypeError, "`logits` expected a tensor, got NoneType"),
        (torch.zeros(2, 3, dtype=torch.int64), TypeError, "`logits` expected a floating dtype"),
        (torch.zeros(0, 3), ValueError, r"`logits` expected a non-empty shape"),
    ],
)
def test_bad_input_is_said_in_one_line(logits: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        functional.standardize_logits(logits)


def test_something_that_is_no_loss_is_refused() -> None:
    with pytest.raises(TypeError, match="`loss` expected a loss of limbeck, such as `KLLoss"):
        StandardizedLoss(torch.nn.CrossEntropyLoss())
