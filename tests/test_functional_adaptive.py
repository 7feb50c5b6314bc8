"""Claims about AKL, against a float64 twin that walks down the target's classes."""

from __future__ import annotations

import pytest
import torch
import twins
from torch import Tensor
from twins import gradients, labelled_batch

from limbeck import functional
from limbeck.functional.adaptive import akl_divergence
from limbeck.losses.adaptive import AKLLoss


def twin(logits: Tensor, target_logits: Tensor, head_mass: float, temperature: float = 1.0) -> Tensor:
    values = []
    for q, p in zip(
        twins.softmax(logits, temperature), twins.softmax(target_logits.detach(), temperature), strict=True
    ):
        order = sorted(range(len(p)), key=lambda k: -p[k].item())
        mass, head, tail = 0.0, 0.0, 0.0
        for place, k in enumerate(order):
            mass += p[k].item()
            gap = abs(p[k] - q[k]).item()
            if place == 0 or mass <= head_mass or head_mass == 1:
                head += gap
            else:
                tail += gap
        values.append((head * twins.kl(p, q) + tail * twins.kl(q, p)) / (head + tail))
    return torch.stack(values)


@pytest.mark.parametrize("head_mass", [0.0, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_akl_equals_its_formula(head_mass: float, temperature: float) -> None:
    student, target, _ = labelled_batch(classes=6)
    each = twin(student, target, head_mass, temperature)
    for t2 in (False, True):
        for reduction, expected in (("none", each), ("mean", each.mean()), ("sum", each.sum())):
            options = {"head_mass": head_mass, "temperature": temperature, "scale_by_t2": t2, "reduction": reduction}
            for value in (akl_divergence(student, target, **options), AKLLoss(**options)(student, target)):
                wanted = expected * temperature**2 if t2 else expected
                assert value.shape == expected.shape
                assert (value - wanted).abs().max() < 1e-11
                got = gradients(value.sum(), student)[0]
                assert (got - gradients(wanted.sum(), student)[0]).abs().max() < 1e-11
                assert torch.autograd.grad(value.sum(), target, allow_unused=True) == (None,)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_equal_logits_are_0_and_stationary_and_no_nan(dtype: torch.dtype) -> None:
    student = labelled_batch()[0].detach().to(dtype).requires_grad_()
    value = akl_divergence(student, student.detach(), reduction="none")
    assert not value.any()
    assert gradients(value.sum(), student)[0].abs().max() < 1e-6


def test_an_error_in_the_head_is_kls_and_one_in_the_tail_is_reverse_kls() -> None:
    """The target's first class alone is the head; a student that is right about it errs in the tail alone."""
    p = torch.tensor([[0.6, 0.3, 0.1]], dtype=torch.float64)
    tail_wrong = torch.tensor([[0.6, 0.1, 0.3]], dtype=torch.float64)
    assert torch.isclose(akl_divergence(tail_wrong.log(), p.log()), twins.kl(tail_wrong, p)[0])
    whole_head = akl_divergence(tail_wrong.log(), p.log(), head_mass=1.0)
    assert torch.isclose(whole_head, twins.kl(p, tail_wrong)[0])


def test_akl_whose_head_is_all_classes_is_kl() -> None:
    student, target, _ = labelled_batch(samples=50)
    value = akl_divergence(student, target, head_mass=1.0)
    assert torch.isclose(value, functional.kl_divergence(student, target), rtol=1e-12)


def test_akl_lies_between_kl_and_reverse_kl() -> None:
    student, target, _ = labelled_batch(samples=50)
    ends = [f(student, target, reduction="none") for f in (functional.kl_divergence, functional.reverse_kl_divergence)]
    value = akl_divergence(student, target, reduction="none")
    assert (value >= torch.minimum(*ends) - 1e-12).all()
    assert (value <= torch.maximum(*ends) + 1e-12).all()


def test_akl_sees_no_shift_and_no_order_of_classes_or_batch() -> None:
    student, target, _ = labelled_batch()
    expected = akl_divergence(student, target)
    assert torch.isclose(akl_divergence(student + 3, target - 5), expected, rtol=1e-12)
    assert torch.isclose(akl_divergence(student.flip(0), target.flip(0)), expected, rtol=1e-12)
    assert torch.isclose(akl_divergence(student.flip(1), target.flip(1)), expected, rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_akl_is_finite_at_any_gap_in_any_dtype_and_absent_classes_count_for_nothing(dtype: torch.dtype) -> None:
    student = torch.tensor([[6e4, 0.0, -6e4, -torch.inf], [0.0, 1.0, 2.0, -torch.inf]], dtype=dtype).requires_grad_()
    target = torch.tensor([[-6e4, 0.0, 6e4, -torch.inf], [3.0, 1.0, 2.0, -torch.inf]], dtype=dtype)
    value = akl_divergence(student, target, reduction="none")
    assert value.dtype == torch.promote_types(dtype, torch.float32)
    assert value.isfinite().all()
    assert value[0] > 1e5
    small = akl_divergence(student[:, :3], target[:, :3], reduction="none")
    assert torch.allclose(value, small)
    (gradient,) = gradients(value.sum(), student)
    assert gradient.dtype == dtype
    assert gradient.isfinite().all()
    assert not gradient[:, 3].any()


def test_a_part_without_weight_is_left_out_even_where_it_is_infinite() -> None:
    """All error is in the tail, and KL is infinite there: 0 times infinity counts as 0."""
    p = torch.tensor([[0.6, 0.4, 0.0]], dtype=torch.float64)
    q = torch.tensor([[0.6, 0.0, 0.4]], dtype=torch.float64).requires_grad_()
    assert not akl_divergence(q.log(), p.log()).isnan()
    assert not akl_divergence(p.log(), q.log()).isnan()
    one_class = akl_divergence(torch.zeros(2, 1), torch.ones(2, 1))
    assert one_class == 0


def test_akl_is_captured_whole_and_has_leading_axes_and_its_own_dtype_under_autocast() -> None:
    student, target, _ = labelled_batch(samples=12)
    compiled = torch.compile(akl_divergence, fullgraph=True, backend="aot_eager")
    assert torch.isclose(compiled(student, target), akl_divergence(student, target))
    none = akl_divergence(student.view(3, 4, 5), target.view(3, 4, 5), reduction="none")
    assert none.shape == (3, 4)
    assert torch.isclose(none.mean(), akl_divergence(student, target))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = akl_divergence(student.float(), target.float())
    assert torch.equal(inside, akl_divergence(student.float(), target.float()))


@pytest.mark.parametrize(
    ("change", "message"),
    [({"head_mass": 1.5}, "`head_mass`"), ({"temperature": 0.0}, "`temperature`"), ({"reduction": "m"}, "`reduction`")],
)
def test_bad_options_are_said_in_one_line(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        akl_divergence(torch.zeros(2, 3), torch.zeros(2, 3), **change)
    with pytest.raises(ValueError, match=message):
        AKLLoss(**change)
