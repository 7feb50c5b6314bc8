"""Claims about MLKD's parts and their sum, against a float64 twin that goes entry by entry."""

from __future__ import annotations

import statistics

import golden
import pytest
import torch
import twins
from torch import Tensor
from twins import gradients, labelled_batch

from limbeck import functional
from limbeck.functional.multilevel import batch_correlation_loss, class_correlation_loss, mlkd_loss
from limbeck.losses.multilevel import MLKDLoss

PARTS = {"class": class_correlation_loss, "batch": batch_correlation_loss}
every_part = pytest.mark.parametrize("name", PARTS)


def part_twin(name: str, logits: Tensor, target_logits: Tensor, temperature: float, keep: list[bool]) -> Tensor:
    q, p = (twins.softmax(x, temperature) for x in (logits, target_logits.detach()))
    if name == "class":
        q, p = q.T, p.T
    total = torch.zeros((), dtype=q.dtype)
    for i in range(len(q)):
        for j in range(len(q)):
            total = total + keep[i] * ((q[i] * q[j]).sum() - (p[i] * p[j]).sum()) ** 2
    return total / len(q)


def twin(logits: Tensor, target_logits: Tensor, weights: tuple[float, float, float], mask: str) -> Tensor:
    p = twins.softmax(target_logits.detach())
    confidence, mass = p.max(1).values.tolist(), p.sum(0).tolist()
    samples = [c <= statistics.median(confidence) for c in confidence]
    classes = [m <= statistics.median(mass) for m in mass]
    shares = [sum(samples) / len(samples), sum(classes) / len(classes)] if mask == "code" else [1.0, 1.0]
    if mask != "paper":
        samples, classes = [True] * len(samples), [True] * len(classes)
    total = torch.zeros((), dtype=logits.dtype)
    for t in (4.0, 1.5):
        kl = twins.kl(twins.softmax(target_logits.detach(), t), twins.softmax(logits, t)) * t**2
        total = total + shares[0] * weights[0] * (kl * torch.tensor(samples)).mean()
        total = total + shares[1] * weights[1] * part_twin("class", logits, target_logits, t, classes)
        total = total + shares[0] * weights[2] * part_twin("batch", logits, target_logits, t, samples)
    return total


@every_part
@pytest.mark.parametrize(("samples", "classes"), [(7, 5), (5, 7), (6, 6), (1, 4), (4, 1)])
@pytest.mark.parametrize("masked", [False, True])
def test_correlations_equal_their_sums_over_pairs(name: str, samples: int, classes: int, masked: bool) -> None:
    student, target, _ = labelled_batch(samples, classes)
    rows = classes if name == "class" else samples
    keep = [place % 3 != 1 for place in range(rows)] if masked else [True] * rows
    value = PARTS[name](student, target, temperature=2.0, keep=torch.tensor(keep) if masked else None)
    expected = part_twin(name, student, target, 2.0, keep)
    assert value.shape == ()
    assert (value - expected).abs() < 1e-14
    assert (gradients(value, student)[0] - gradients(expected, student)[0]).abs().max() < 1e-14
    assert torch.autograd.grad(value, target, allow_unused=True) == (None,)


@pytest.mark.parametrize("mask", ["code", "paper", "none"])
@pytest.mark.parametrize("weights", [(0.9, 0.5, 2.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0), (0.0, 0.0, 1.0)])
@pytest.mark.parametrize("samples", [6, 7])
def test_mlkd_equals_its_parts_under_each_mask(samples: int, weights: tuple[float, float, float], mask: str) -> None:
    student, target, _ = labelled_batch(samples)
    options = dict(zip(("instance_weight", "class_weight", "batch_weight"), weights, strict=True))
    expected = twin(student, target, weights, mask)
    loss = MLKDLoss(temperatures=[4.0, 1.5], mask=mask, **options)
    for value in (mlkd_loss(student, target, temperatures=(4.0, 1.5), mask=mask, **options), loss(student, target)):
        assert (value - expected).abs() < 1e-13
        assert (gradients(value, student)[0] - gradients(expected, student)[0]).abs().max() < 1e-13


def test_one_temperature_and_no_correlations_give_the_number_of_the_public_kl() -> None:
    student, target, _ = golden.inputs()
    value = mlkd_loss(student, target, temperatures=[4.0], class_weight=0.0, batch_weight=0.0, mask="none")
    golden.holds(value, student, 2.70693290, 0.25457538)


def test_the_codes_mask_is_a_share_of_the_loss_and_nothing_else() -> None:
    student, target, _ = labelled_batch(samples=6, classes=4)
    all_of_it, half = (mlkd_loss(student, target, mask=mask) for mask in ("none", "code"))
    assert torch.isclose(half, 0.5 * all_of_it)
    assert not torch.isclose(mlkd_loss(student, target, mask="paper"), half, rtol=1e-2)


def test_the_papers_mask_leaves_out_the_samples_that_the_target_is_sure_of() -> None:
    student, target, _ = labelled_batch(samples=6)
    value = mlkd_loss(student, target, class_weight=0.0, batch_weight=0.0, mask="paper")
    (gradient,) = gradients(value, student)
    confidence = twins.softmax(target.detach()).max(1).values
    assert gradient.any(1).tolist() == (confidence <= confidence.median().item()).tolist()


@pytest.mark.parametrize("mask", ["code", "paper", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(9, 4), (4, 9)])
def test_equal_logits_are_0_and_stationary(mask: str, dtype: torch.dtype, shape: tuple[int, int]) -> None:
    student = labelled_batch(*shape)[0].detach().to(dtype).requires_grad_()
    value = mlkd_loss(student, student, mask=mask)
    assert value.abs() < 1e-12 if dtype == torch.float64 else value.abs() < 1e-5
    assert gradients(value, student)[0].abs().max() < 1e-6


@every_part
def test_correlations_see_no_shift_and_no_order_of_the_batch(name: str) -> None:
    student, target, _ = labelled_batch()
    part = PARTS[name]
    expected = part(student, target)
    assert torch.isclose(part(student + 3, target - 5), expected, rtol=1e-12)
    assert torch.isclose(part(student.flip(0), target.flip(0)), expected, rtol=1e-12)
    assert torch.isclose(part(student.flip(1), target.flip(1)), expected, rtol=1e-12)
    axes = part(student[:6].view(2, 3, 5), target[:6].view(2, 3, 5))
    assert torch.isclose(axes, part(student[:6], target[:6]), rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("classes", [3, 30])
def test_mlkd_is_finite_in_any_dtype_and_with_absent_classes(dtype: torch.dtype, classes: int) -> None:
    student = torch.zeros(4, classes, dtype=dtype)
    student[:, 0], student[:, 1] = 6e4, -torch.inf
    student.requires_grad_()
    target = -student.detach().masked_fill(student.detach().isinf(), torch.inf)
    value = mlkd_loss(student, target)
    (gradient,) = gradients(value, student)
    assert value.dtype == torch.float32
    assert value.isfinite()
    assert gradient.dtype == dtype
    assert gradient.isfinite().all()


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("shape", [(2, 3), (3, 2)])
def test_derivatives_of_both_orders_agree_with_finite_differences(name: str, shape: tuple[int, int]) -> None:
    student, target, _ = labelled_batch(*shape)
    assert torch.autograd.gradcheck(lambda s: PARTS[name](s, target), student)
    assert torch.autograd.gradgradcheck(lambda s: PARTS[name](s, target), student)


@pytest.mark.parametrize("mask", ["code", "paper"])
def test_mlkd_is_captured_whole_and_has_its_own_dtype_under_autocast(mask: str) -> None:
    student, target, labels = (x.float() if x.is_floating_point() else x for x in labelled_batch())
    loss = MLKDLoss(temperatures=(4.0,), mask=mask)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    assert torch.isclose(compiled(student, target, labels), loss(student, target, labels))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = loss(student, target)
    assert torch.equal(inside, loss(student, target))


def test_the_loss_is_stationary_where_hintons_is_but_weighs_classes_apart() -> None:
    """The correlations see what KL sees less: two students of equal KL differ in them."""
    target = torch.zeros(4, 4, dtype=torch.float64)
    same, apart = (torch.zeros(4, 4, dtype=torch.float64) for _ in range(2))
    same[:, 0] = 1.0
    apart[torch.arange(4), torch.arange(4)] = 1.0
    kl = [functional.kl_divergence(x, target) for x in (same, apart)]
    correlations = [class_correlation_loss(x, target) for x in (same, apart)]
    assert torch.isclose(*kl)
    assert correlations[0] > 2 * correlations[1]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"temperatures": ()}, ValueError, "`temperatures` expected a sequence"),
        ({"temperatures": (4.0, 0.0)}, ValueError, "`temperatures`"),
        ({"class_weight": -1.0}, ValueError, "`class_weight`"),
        ({"batch_weight": -1.0}, ValueError, "`batch_weight`"),
        ({"instance_weight": float("inf")}, ValueError, "`instance_weight`"),
        ({"mask": "half"}, ValueError, "`mask` expected 'code'"),
    ],
)
def test_bad_options_are_said_in_one_line(change: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        mlkd_loss(torch.zeros(2, 3), torch.zeros(2, 3), **change)
    with pytest.raises(error, match=message):
        MLKDLoss(**change)


@every_part
def test_a_mask_of_another_kind_is_refused(name: str) -> None:
    zeros = torch.zeros(2, 3)
    with pytest.raises(TypeError, match=r"`keep` expected a bool tensor, got torch.float32"):
        PARTS[name](zeros, zeros, keep=torch.ones(2))
    with pytest.raises(ValueError, match=r"`keep` expected the shape \(\d,\), got \(4,\)"):
        PARTS[name](zeros, zeros, keep=torch.ones(4, dtype=torch.bool))
    with pytest.raises(ValueError, match="one shape"):
        PARTS[name](zeros, torch.zeros(2, 4))
