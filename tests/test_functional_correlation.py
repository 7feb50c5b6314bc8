"""Claims about DIST, against a float64 twin written from the paper's formula and numbers of the public code."""

from __future__ import annotations

import golden
import pytest
import torch
import twins
from torch import Tensor
from twins import gradients

from limbeck import functional


def pearson(a: Tensor, b: Tensor) -> Tensor:
    a, b = a - a.mean(), b - b.mean()
    return (a * b).sum() / (a.square().sum().sqrt() * b.square().sum().sqrt() + 1e-8)


def twin(logits: Tensor, target_logits: Tensor, inter: float, intra: float, temperature: float) -> Tensor:
    q, p = twins.softmax(logits / temperature), twins.softmax(target_logits / temperature)
    rows = torch.stack([1 - pearson(a, b) for a, b in zip(q, p, strict=True)])
    columns = torch.stack([1 - pearson(a, b) for a, b in zip(q.T, p.T, strict=True)])
    return inter * rows + intra * columns.mean()


def batch(samples: int = 7, classes: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    student, target = (2 * torch.randn(samples, classes, generator=generator, dtype=torch.float64) for _ in range(2))
    return student.requires_grad_(), target.requires_grad_()


def test_dist_gives_the_number_of_the_public_code() -> None:
    student, target, _ = golden.inputs()
    golden.holds(
        functional.dist_loss(student, target, intra_weight=0.0, temperature=4.0), student, 14.36346998, 1.19736196
    )


@pytest.mark.parametrize(("samples", "classes"), [(7, 2), (7, 5), (2, 100)])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.0, 1.0), (0.7, 0.0)])
def test_dist_equals_the_papers_formula(
    samples: int, classes: int, temperature: float, weights: tuple[float, float]
) -> None:
    student, target = batch(samples, classes)
    options = {"inter_weight": weights[0], "intra_weight": weights[1], "temperature": temperature}
    plain = twin(student, target, *weights, temperature)
    for t2 in (False, True):
        each = plain * temperature**2 if t2 else plain
        for reduction, expected in (("none", each), ("mean", each.mean()), ("sum", each.sum())):
            value = functional.dist_loss(student, target, **options, scale_by_t2=t2, reduction=reduction)
            assert value.shape == expected.shape
            assert (value - expected).abs().max() < 1e-12 * temperature**2 * samples
            got, wanted = (gradients(x.sum(), student, target) for x in (value, expected))
            assert all((a - b).abs().max() < 1e-11 for a, b in zip(got, wanted, strict=True))


def test_dist_sees_relations_only() -> None:
    """A target mixed with the uniform distribution is as good as the target, and stationary; KL tells them apart."""
    _, target = batch(samples=6, classes=4)
    mixed = (0.3 * twins.softmax(target.detach()) + 0.7 / 4).log().requires_grad_()
    value = functional.dist_loss(mixed, target)
    assert value < 1e-5
    assert functional.kl_divergence(mixed, target) > 0.1
    assert gradients(value, mixed)[0].abs().max() < 1e-5


def test_dist_sees_no_shift_and_no_order_of_the_batch() -> None:
    student, target = batch()
    expected = functional.dist_loss(student, target)
    assert torch.isclose(functional.dist_loss(student + 3, target - 5), expected, rtol=1e-12)
    assert torch.isclose(functional.dist_loss(student.flip(0), target.flip(0)), expected, rtol=1e-12)
    assert torch.isclose(functional.dist_loss(student.flip(1), target.flip(1)), expected, rtol=1e-12)


def test_only_the_intra_part_couples_samples() -> None:
    student, target = batch()
    for weight, coupled in ((0.0, False), (1.0, True)):
        first = functional.dist_loss(student, target, intra_weight=weight, reduction="none")[0]
        assert bool(gradients(first, student)[0][1:].any()) == coupled


def test_derivatives_of_both_orders_agree_with_finite_differences() -> None:
    student, target = batch(samples=3, classes=4)
    temperature = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)

    def function(s: Tensor, t: Tensor, tau: Tensor) -> Tensor:
        return functional.dist_loss(s, t, temperature=tau)

    assert torch.autograd.gradcheck(function, (student, target, temperature))
    assert torch.autograd.gradgradcheck(function, (student, target, temperature))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dist_is_finite_in_any_dtype(dtype: torch.dtype) -> None:
    """Class 2 is 0 for all samples: a constant column, whose norm has no gradient of its own."""
    student = torch.tensor([[1e4, 0.0, -6e4], [0.0, 60.0, -6e4]], dtype=dtype, requires_grad=True)
    target = torch.tensor([[0.0, 1e4, -6e4], [0.0, 40.0, -6e4]], dtype=dtype, requires_grad=True)
    value = functional.dist_loss(student, target, reduction="none")
    assert value.dtype == torch.promote_types(dtype, torch.float32)
    assert value[0].item() == pytest.approx(1.5 + (1 + 1 + 1) / 3, rel=1e-6)  # r of (1, 0, 0) and (0, 1, 0) is -1/2
    for gradient in gradients(value.sum(), student, target):
        assert gradient.dtype == dtype
        assert gradient.isfinite().all()


def test_absent_classes_count_for_nothing() -> None:
    student, target = batch()
    absent = torch.tensor([False, True, False, False, True])
    sides = [x.detach().masked_fill(absent, -torch.inf).requires_grad_() for x in (student, target)]
    small = [x.detach()[:, ~absent].requires_grad_() for x in sides]
    value, expected = functional.dist_loss(*sides), functional.dist_loss(*small)
    assert torch.isclose(value, expected, rtol=1e-12)
    for got, wanted in zip(gradients(value, *sides), gradients(expected, *small), strict=True):
        assert not got[:, absent].any()
        assert (got[:, ~absent] - wanted).abs().max() < 1e-12


def test_one_sample_or_one_class_has_no_relation_to_miss() -> None:
    student, target = batch(samples=1)
    alone = functional.dist_loss(student, target, inter_weight=0.0)
    assert alone == 0
    assert not gradients(alone, student)[0].any()
    assert torch.equal(functional.dist_loss(student, target), functional.dist_loss(student, target, intra_weight=0.0))
    single = functional.dist_loss(student[:, :1], target[:, :1])
    assert single == 0
    assert not gradients(single, student)[0].any()


def test_dist_is_captured_whole() -> None:
    student, target = batch()
    compiled = torch.compile(functional.dist_loss, fullgraph=True, backend="aot_eager")
    assert torch.isclose(compiled(student, target), functional.dist_loss(student, target))


def test_dist_has_leading_axes_and_its_own_dtype_under_autocast() -> None:
    """Segmentation: every position is a sample, and the maps may have the classes' axis moved to the end."""
    student, target = batch(samples=12)
    none = functional.dist_loss(student.view(3, 4, 5), target.view(3, 4, 5), reduction="none")
    assert none.shape == (3, 4)
    assert torch.isclose(none.mean(), functional.dist_loss(student, target))
    moved = functional.dist_loss(*(x.view(3, 4, 5).mT.contiguous().mT for x in (student, target)))
    assert torch.isclose(moved, none.mean())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = functional.dist_loss(student.float(), target.float())
    assert torch.equal(inside, functional.dist_loss(student.float(), target.float()))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"logits": torch.zeros(2, 3, dtype=torch.int64)}, TypeError, "`logits` expected a floating dtype"),
        ({"target_logits": torch.zeros(2, 4)}, ValueError, "one shape"),
        ({"inter_weight": -1.0}, ValueError, "`inter_weight`"),
        ({"intra_weight": float("inf")}, ValueError, "`intra_weight`"),
        ({"temperature": 0.0}, ValueError, "`temperature`"),
        ({"reduction": "batchmean"}, ValueError, "`reduction`"),
    ],
)
def test_bad_input_is_said_in_one_line(change: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        functional.dist_loss(**{"logits": torch.zeros(2, 3), "target_logits": torch.zeros(2, 3), **change})
