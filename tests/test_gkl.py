"""Claims about DKL, IKL and GKL, against brute-force float64 twins."""

from __future__ import annotations

import warnings

import pytest
import torch
import twins
from torch import Tensor

from limbeck import functional
from limbeck.functional import _blocks, _pairs

POWERS = (0.0, 0.05, 0.3, 1.0)
NORMALIZERS = ("weights", "row", "samples", "given")


def batch(samples: int = 7, classes: int = 5, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    """Student, target, class table, labels."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    table = torch.softmax(2 * draw(classes, classes), -1)
    labels = torch.randint(classes, (samples,), generator=generator)
    student, target = (3 * draw(samples, classes)).to(dtype), (3 * draw(samples, classes)).to(dtype)
    return student.requires_grad_(), target.requires_grad_(), table, labels


def gradients(value: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(value, inputs, materialize_grads=True, retain_graph=True)


def assert_equal(value: Tensor, expected: Tensor, inputs: tuple[Tensor, ...], tolerance: float = 1e-12) -> None:
    """Values and gradients to `tolerance` relative to the largest entry."""
    pairs = [(value, expected), *zip(gradients(value, *inputs), gradients(expected, *inputs), strict=True)]
    for got, wanted in pairs:
        assert (got - wanted).abs().max() <= tolerance * max(1.0, wanted.abs().max().item())


@pytest.fixture(params=["at once", "block", "blocks", "composed"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The same claims for gradients made in the forward pass, at once, in one block, in many, and plain operations."""
    if request.param in ("block", "blocks"):
        monkeypatch.setattr(_blocks, "ONE_BLOCK", 0)
    if request.param == "blocks":
        monkeypatch.setattr(_blocks, "_block_elements", lambda: 10)
    if request.param == "composed":
        monkeypatch.setattr(_pairs, "_can_fuse", lambda *_: False)
    return request.param


# --- the weighted mean squared error ----------------------------------------------------------------------


@pytest.mark.parametrize(("samples", "classes"), [(1, 2), (7, 5), (4, 1), (3, 40)])
def test_weighted_mse_equals_the_sum_over_all_pairs(path: str, samples: int, classes: int) -> None:
    student, target, _, _ = batch(samples, classes)
    weight = torch.rand(samples, classes, dtype=torch.float64) * 3
    value = functional.weighted_mse(student, target, weight)
    assert_equal(value, twins.pairwise_mse(student, target, weight).mean(), (student, target))


def test_weighted_mse_is_zero_where_logits_differ_by_a_constant(path: str) -> None:
    student, _, _, _ = batch()
    weight = torch.rand_like(student)
    assert functional.weighted_mse(student, student + 17.0, weight, reduction="none").abs().max() < 1e-24


def test_weighted_mse_has_no_cancellation_far_from_zero(path: str) -> None:
    """The expanded form, sum w d^2 - (sum w d)^2, is pure rounding here in float32."""
    student, target, _, _ = batch(samples=4, classes=50)
    weight = torch.rand_like(student)
    shifted = functional.weighted_mse(student.float() + 1000, target.float(), weight.float())
    assert torch.isclose(shifted.double(), twins.pairwise_mse(student, target, weight).mean(), rtol=1e-3)


def test_weights_receive_no_gradient(path: str) -> None:
    student, target, table, labels = batch()
    weight = torch.rand_like(student).requires_grad_()
    table.requires_grad_()
    for value in (
        functional.weighted_mse(student, target, weight),
        functional.dkl_divergence(student, target, weight),
        functional.gkl_divergence(student, target, weight, weight_power=0.5),
        functional.gkl_divergence(student, target, table, labels=labels, weight_power=0.5),
    ):
        assert not gradients(value, weight)[0].any()
        assert not gradients(value, table)[0].any()


# --- DKL ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("scale_by_t2", [False, True])
def test_dkl_has_the_gradient_of_kl(path: str, temperature: float, scale_by_t2: bool) -> None:
    student, target, _, _ = batch()
    options = {"temperature": temperature, "scale_by_t2": scale_by_t2}
    dkl = gradients(functional.dkl_divergence(student, target, **options), student, target)
    kl = gradients(functional.kl_divergence(student, target, **options), student, target)
    for got, wanted in zip(dkl, kl, strict=True):
        assert (got - wanted).abs().max() < 1e-12


def test_dkl_has_neither_the_value_nor_the_second_derivative_of_kl() -> None:
    student, target, _, _ = batch(samples=1)
    dkl, kl = functional.dkl_divergence(student, target), functional.kl_divergence(student, target)
    assert abs(dkl - kl) > 1e-2
    hessians = [
        torch.autograd.functional.hessian(lambda t, f=f: f(student.detach(), t), target.detach())
        for f in (functional.dkl_divergence, functional.kl_divergence)
    ]
    assert (hessians[0] - hessians[1]).abs().max() > 1e-2


def test_dkl_equals_its_twin(path: str) -> None:
    student, target, _, _ = batch()
    value = functional.dkl_divergence(student, target, mse_weight=3.0, ce_weight=0.7)
    assert_equal(value, twins.dkl(student, target, mse_weight=3.0, ce_weight=0.7), (student, target))


def test_weighted_mse_of_dkl_moves_nothing_when_the_target_is_frozen(path: str) -> None:
    """Eq. 10 of arXiv 2503.08038; breaking the asymmetry gives the student a gradient, Eq. 11."""
    student, target, _, _ = batch()
    frozen = target.detach()
    still = functional.dkl_divergence(student, frozen, ce_weight=0.0)
    assert not still.requires_grad or not gradients(still, student)[0].any()
    moved = functional.dkl_divergence(student, frozen, symmetric=True, ce_weight=0.0)
    assert gradients(moved, student)[0].abs().max() > 1e-3


def test_symmetric_dkl_gradients_are_opposite(path: str) -> None:
    student, target, _, _ = batch()
    first, second = gradients(
        functional.dkl_divergence(student, target, symmetric=True, ce_weight=0.0), student, target
    )
    assert torch.equal(first, -second)
    assert first.any()


def test_asymmetry_and_class_weights_are_independent_switches(path: str) -> None:
    student, target, table, labels = batch()
    weighted = functional.dkl_divergence(student, target, table[labels], ce_weight=0.0)
    to_student, to_target = gradients(weighted, student, target)
    assert not to_student.any()
    expected = gradients(twins.pairwise_mse(student, target, table[labels]).mean(), target)[0]
    assert (to_target - expected).abs().max() < 1e-12


# --- GKL ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("power", POWERS)
@pytest.mark.parametrize("normalizer", NORMALIZERS)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("class_wise", [False, True])
@pytest.mark.filterwarnings("ignore:.*scales the weighted MSE")
def test_gkl_equals_its_twin(path: str, power: float, normalizer: str, masked: bool, class_wise: bool) -> None:
    student, target, table, labels = batch()
    rows = table[labels] if class_wise else twins.softmax(target, 4.0).detach()
    mask = torch.tensor([True, False, True, True, False, True, True]) if masked else None
    denominator = torch.tensor(2.7, dtype=torch.float64) if normalizer == "given" else normalizer
    shared = {"mse_weight": 1.7, "ce_weight": 0.6, "weight_power": power, "temperature": 3.0}
    value = functional.gkl_divergence(
        student,
        target,
        table if class_wise else rows,
        labels=labels if class_wise else None,
        normalizer=denominator,
        mask=mask,
        **shared,
    )
    given = 2.7 if normalizer == "given" else normalizer
    assert_equal(value, twins.gkl(student, target, rows, normalizer=given, mask=mask, **shared), (student, target))


@pytest.mark.parametrize("normalizer", NORMALIZERS)
@pytest.mark.parametrize("masked", [False, True])
def test_mean_of_none_is_mean_and_sum_is_their_sum(path: str, normalizer: str, masked: bool) -> None:
    student, target, table, labels = batch()
    mask = labels != labels[0] if masked else torch.ones_like(labels, dtype=torch.bool)
    options = {
        "labels": labels,
        "normalizer": torch.tensor(3.0) if normalizer == "given" else normalizer,
        "mask": mask if masked else None,
    }
    none, mean, total = (
        functional.gkl_divergence(student, target, table, reduction=word, **options) for word in ("none", "mean", "sum")
    )
    assert not none[~mask].any()
    assert_equal(none[mask].mean(), mean, (student, target))
    assert_equal(none.sum(), total, (student, target))


def test_each_sample_of_none_has_its_own_gradient(path: str) -> None:
    student, target, table, labels = batch()
    factors = torch.rand(len(labels), dtype=torch.float64)
    none = functional.gkl_divergence(student, target, table, labels=labels, normalizer="row", reduction="none")
    rows = [
        functional.gkl_divergence(student[[i]], target[[i]], table, labels=labels[[i]], normalizer="row")
        for i in range(len(labels))
    ]
    assert_equal((factors * none).sum(), sum(f * row for f, row in zip(factors, rows, strict=True)), (student, target))


@pytest.mark.parametrize("class_wise", [False, True])
def test_gkl_at_power_one_is_ikl(path: str, class_wise: bool) -> None:
    student, target, table, labels = batch()
    prior = table if class_wise else twins.softmax(target).detach()
    options = {"labels": labels if class_wise else None, "mse_weight": 5.0, "temperature": 4.0}
    gkl = functional.gkl_divergence(student, target, prior, weight_power=1.0, **options)
    assert_equal(gkl, functional.ikl_divergence(student, target, prior, **options), (student, target))


def test_power_zero_is_the_mean_of_half_variances(path: str) -> None:
    student, target, table, labels = batch()
    value = functional.gkl_divergence(student, target, table, labels=labels, weight_power=0.0, ce_weight=0.0)
    half_variances = (student - target).var(-1, correction=0) / 2
    assert_equal(value, half_variances.mean(), (student, target))


def test_sample_wise_power_is_a_temperature(path: str) -> None:
    """normalise(softmax(t / tau) ** gamma) = softmax(gamma t / tau); of class means it is not."""
    _, target, table, _ = batch()
    powered = twins.softmax(target, 2.0) ** 0.3
    assert (powered / powered.sum(-1, keepdim=True) - twins.softmax(target, 2.0 / 0.3)).abs().max() < 1e-14
    mean = table.mean(0) ** 0.3
    mean_of_powers = (table**0.3 / (table**0.3).sum(-1, keepdim=True)).mean(0)
    assert (mean / mean.sum() - mean_of_powers).abs().max() > 1e-3


def test_one_hot_soft_labels_read_the_row_of_their_class(path: str) -> None:
    student, target, table, labels = batch()
    hard = functional.gkl_divergence(student, target, table, labels=labels, weight_power=0.3)
    one_hot = torch.nn.functional.one_hot(labels, 5).double()
    assert_equal(
        functional.gkl_divergence(student, target, table, labels=one_hot, weight_power=0.3), hard, (student, target)
    )


def test_soft_labels_mix_rows_before_the_power(path: str) -> None:
    student, target, table, _ = batch()
    soft = torch.softmax(torch.randn(7, 5, dtype=torch.float64), -1)
    value = functional.gkl_divergence(student, target, table, labels=soft, weight_power=0.3)
    assert_equal(value, twins.gkl(student, target, soft @ table, weight_power=0.3), (student, target))


def test_row_normalizer_does_not_see_the_rest_of_the_batch(path: str) -> None:
    student, target, table, labels = batch()
    options = {"weight_power": 0.3, "normalizer": "row", "reduction": "none"}
    whole = functional.gkl_divergence(student, target, table, labels=labels, **options)
    parts = [
        functional.gkl_divergence(s, t, table, labels=y, **options)
        for s, t, y in zip(student.split(2), target.split(2), labels.split(2), strict=True)
    ]
    assert (whole - torch.cat(parts)).abs().max() < 1e-13


def test_a_summed_normalizer_makes_shards_exact(path: str) -> None:
    student, target, table, labels = batch(samples=8)
    mask = torch.tensor([True, True, False, True] * 2)
    options = {"weight_power": 0.3, "mse_weight": 2.0}
    whole = functional.gkl_divergence(student, target, table, labels=labels, mask=mask, **options)
    normalizer = sum(
        functional.gkl_normalizer(table, labels=y, weight_power=0.3, mask=m)
        for y, m in zip(labels.split(4), mask.split(4), strict=True)
    )
    shards = [
        functional.gkl_divergence(s, t, table, labels=y, mask=m, normalizer=normalizer / 2, **options)
        for s, t, y, m in zip(*(x.split(4) for x in (student, target, labels, mask)), strict=True)
    ]
    assert_equal(sum(shards) / 2, whole, (student, target))


@pytest.mark.parametrize("kind", ["rows", "labels", "soft"])
def test_gkl_normalizer_is_the_denominator_of_the_whole_batch(kind: str) -> None:
    _, _, table, labels = batch()
    one_hot = torch.nn.functional.one_hot(labels, 5).double()
    prior, given = {"rows": (table[labels], None), "labels": (table, labels), "soft": (table, one_hot)}[kind]
    expected = (table[labels] ** 0.3).sum(-1).square().sum()
    assert torch.isclose(functional.gkl_normalizer(prior, labels=given, weight_power=0.3), expected, rtol=1e-12)


def test_leading_axes_are_samples(path: str) -> None:
    student, target, table, labels = batch(samples=12)
    flat = functional.gkl_divergence(student, target, table, labels=labels, weight_power=0.3)
    folded = functional.gkl_divergence(
        student.view(3, 4, 5), target.view(3, 4, 5), table, labels=labels.view(3, 4), weight_power=0.3
    )
    assert_equal(folded, flat, (student, target))
    single = functional.gkl_divergence(student[0], target[0], table[labels[0]])
    assert torch.isclose(single, functional.gkl_divergence(student[:1], target[:1], table[labels[:1]]))


def test_transposed_inputs_give_the_same(path: str) -> None:
    student, target, table, labels = batch()
    views = [x.detach().t().contiguous().t().requires_grad_() for x in (student, target)]
    got = gradients(functional.gkl_divergence(*views, table, labels=labels), *views)
    wanted = gradients(functional.gkl_divergence(student, target, table, labels=labels), student, target)
    for a, b in zip(got, wanted, strict=True):
        assert (a - b).abs().max() < 1e-14


# --- what is left out ---------------------------------------------------------------------------------------


def test_masked_samples_may_be_nan(path: str) -> None:
    student, target, table, labels = batch()
    mask = torch.arange(7) != 2
    with torch.no_grad():
        student[2], target[2] = torch.nan, torch.inf
    value = functional.gkl_divergence(student, target, table, labels=labels, mask=mask, weight_power=0.3)
    rest = functional.gkl_divergence(student[mask], target[mask], table, labels=labels[mask], weight_power=0.3)
    assert_equal(value, rest, (student, target))


def test_value_and_gradient_are_zero_when_no_sample_takes_part(path: str) -> None:
    student, target, table, labels = batch()
    nobody = torch.zeros(7, dtype=torch.bool)
    value = functional.gkl_divergence(student, target, table, labels=labels, mask=nobody)
    assert value.item() == 0
    assert not gradients(value, student)[0].any()


@pytest.mark.parametrize("power", POWERS)
@pytest.mark.parametrize("normalizer", ["weights", "row"])
def test_a_class_absent_on_both_sides_counts_for_nothing(path: str, power: float, normalizer: str) -> None:
    student, target, table, labels = batch()
    absent = torch.tensor([False, False, True, False, False])
    sides = [x.detach().masked_fill(absent, -torch.inf).requires_grad_() for x in (student, target)]
    rows = table[labels]
    options = {"weight_power": power, "normalizer": normalizer, "temperature": 2.0}
    value = functional.gkl_divergence(*sides, rows, **options)
    small = [x[:, ~absent].detach().requires_grad_() for x in sides]
    expected = functional.gkl_divergence(*small, rows[:, ~absent], **options)
    assert torch.isclose(value, expected, rtol=1e-12)
    for got, wanted in zip(gradients(value, *sides), gradients(expected, *small), strict=True):
        assert not got[:, absent].any()
        assert (got[:, ~absent] - wanted).abs().max() < 1e-12


def test_rows_are_normalised_though_the_square_of_their_sum_underflows(path: str) -> None:
    """As where a class that is absent on both sides had nearly all of the weight, in float32."""
    student, target, table, labels = (x.float() if x.is_floating_point() else x for x in batch())
    options = {"normalizer": "row", "mse_weight": 7.0}
    tiny = functional.gkl_divergence(student, target, table[labels] * 1e-25, **options)
    assert torch.isclose(tiny, functional.gkl_divergence(student, target, table[labels], **options))
    assert all(gradient.isfinite().all() for gradient in gradients(tiny, student, target))


def large_power(classes: int, kind: str) -> tuple[Tensor, ...]:
    """As `batch`, with a table whose powers underflow in float32: uniform, or rows that are less and less so."""
    student, target, table, labels = batch(6, classes)
    sharpness = torch.linspace(0.0, 0.0 if kind == "uniform" else 0.1, classes, dtype=torch.float64).unsqueeze(-1)
    return student, target, torch.softmax(sharpness * table.log(), -1), labels


@pytest.mark.parametrize("normalizer", ["weights", "row"])
@pytest.mark.parametrize("kind", ["uniform", "mixed"])
@pytest.mark.parametrize(("classes", "power"), [(10, 40.0), (100, 20.0), (300, 10.0)])
@pytest.mark.parametrize("masked", [False, True])
def test_large_powers_equal_the_float64_twin_in_float32(
    path: str, normalizer: str, kind: str, classes: int, power: float, masked: bool
) -> None:
    student, target, table, labels = large_power(classes, kind)
    mask = torch.arange(6) > 1 if masked else None
    options = {"weight_power": power, "normalizer": normalizer, "mask": mask}
    expected = twins.gkl(student, target, table[labels], **options)
    wanted = gradients(expected, student, target)
    sides = [x.detach().float().requires_grad_() for x in (student, target)]
    soft = torch.eye(classes)[labels]
    for given in (labels, soft, None):
        rows = table.float() if given is not None else table[labels].float()
        value = functional.gkl_divergence(*sides, rows, labels=given, **options)
        assert torch.isclose(value.double(), expected, rtol=1e-4)
        for got, want in zip(gradients(value, *sides), wanted, strict=True):
            assert (got - want).abs().max() <= 1e-4 * want.abs().max()


def test_a_large_power_heeds_no_row_that_is_left_out() -> None:
    """A left-out row that is sure would otherwise take the factor of the batch, and the others underflow."""
    student, target, _, _ = (x.float() for x in batch(3, 100))
    rows = torch.full((3, 100), 0.01)
    mask = torch.tensor([True, True, False])
    expected = functional.gkl_divergence(student, target, rows, weight_power=20.0, mask=mask)
    rows[2] = torch.eye(100)[0]
    value = functional.gkl_divergence(student, target, rows, weight_power=20.0, mask=mask)
    assert torch.equal(value, expected)
    rows[2] = torch.nan
    assert torch.equal(functional.gkl_divergence(student, target, rows, weight_power=20.0, mask=mask), expected)


def test_a_class_that_the_student_alone_excludes_gives_infinity(path: str) -> None:
    student, target, table, labels = batch()
    student = student.detach().clone()
    student[1, 2] = -torch.inf
    assert functional.gkl_divergence(student, target, table, labels=labels) == torch.inf
    each = functional.weighted_mse(student, target, table[labels], reduction="none")
    assert each.isinf().tolist() == [i == 1 for i in range(7)]


def test_nan_logits_are_not_hidden(path: str) -> None:
    student, target, table, labels = batch()
    student = student.detach().clone()
    student[1, 2] = torch.nan
    assert functional.gkl_divergence(student, target, table, labels=labels).isnan()
    assert functional.weighted_mse(student, target, table[labels]).isnan()


# --- precision ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("power", [0.0, 0.3, 1.0])
def test_logits_of_scale_ten_thousand_stay_finite(path: str, dtype: torch.dtype, power: float) -> None:
    student, target, table, labels = batch()
    sides = [(1e4 * torch.sign(x.detach()) + x.detach()).to(dtype).requires_grad_() for x in (student, target)]
    value = functional.gkl_divergence(*sides, table.float(), labels=labels, weight_power=power, ce_weight=0.01)
    assert value.isfinite()
    assert value.dtype == torch.float32
    for gradient in gradients(value, *sides):
        assert gradient.dtype == dtype
        assert gradient.isfinite().all()


def test_half_gradients_do_not_underflow_before_the_loss_scale(path: str) -> None:
    """As in plain autograd, the scale is applied in float32 and the cast to half comes last."""
    student, target, _, _ = batch(samples=400, classes=50)
    rows = twins.softmax(target, 8.0).detach()
    scaled = []
    for dtype in (torch.float16, torch.float64):
        half = (student.detach() / 100).to(torch.float16).to(dtype).requires_grad_()
        frozen = (target.detach() / 100).to(torch.float16).to(dtype)
        value = functional.gkl_divergence(half, frozen, rows, mse_weight=1e-3, ce_weight=1e-3)
        scaled.append(gradients(value * 65536.0, half)[0].double())
    assert (scaled[0] - scaled[1]).abs().max() <= 1e-3 * scaled[1].abs().max()


@pytest.mark.parametrize("dtypes", [(torch.float16, torch.float32), (torch.bfloat16, torch.float64)])
def test_each_gradient_has_the_dtype_of_its_input(path: str, dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    student, target, table, labels = batch()
    sides = [x.detach().to(dtype).requires_grad_() for x, dtype in zip((student, target), dtypes, strict=True)]
    value = functional.gkl_divergence(*sides, table.float(), labels=labels)
    assert value.dtype == torch.promote_types(*dtypes)
    assert [g.dtype for g in gradients(value, *sides)] == list(dtypes)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_arithmetic_on_half_inputs_is_in_float32(path: str, dtype: torch.dtype) -> None:
    student, target, table, labels = (x.to(dtype) if x.is_floating_point() else x for x in batch())
    half = functional.gkl_divergence(student, target, table, labels=labels, weight_power=0.3)
    single = functional.gkl_divergence(student.float(), target.float(), table.float(), labels=labels, weight_power=0.3)
    assert half.dtype == torch.float32
    assert torch.isclose(half, single, rtol=1e-6)


def test_autocast_changes_nothing(path: str) -> None:
    student, target, table, labels = (x.float() if x.is_floating_point() else x for x in batch())
    soft = torch.nn.functional.one_hot(labels, 5).float() * 0.9 + 0.02
    for given in (labels, soft):
        outside = functional.gkl_divergence(student, target, table, labels=given, weight_power=0.3)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            inside = functional.gkl_divergence(student, target, table, labels=given, weight_power=0.3)
        assert torch.equal(inside, outside)


# --- derivatives, transforms, compilation -------------------------------------------------------------------


def student_only(student: Tensor, target: Tensor, table: Tensor, labels: Tensor) -> Tensor:
    return functional.gkl_divergence(student, target, table, labels=labels, weight_power=0.3, temperature=2.0)


@pytest.mark.parametrize("normalizer", ["weights", "row"])
def test_first_and_second_derivatives_agree_with_finite_differences(normalizer: str) -> None:
    """To the student, and, the cross-entropy off, to the target: where no stop-gradient is in the way."""
    student, target, table, labels = batch(samples=3, classes=4)
    table, labels = table[:4, :4], labels % 4
    options = {"labels": labels, "weight_power": 0.3, "normalizer": normalizer}
    frozen = target.detach()
    to_student = lambda s: functional.gkl_divergence(s, frozen, table, **options)  # noqa: E731
    both = lambda s, t: functional.gkl_divergence(s, t, table, ce_weight=0.0, **options)  # noqa: E731
    assert torch.autograd.gradcheck(to_student, student)
    assert torch.autograd.gradgradcheck(to_student, student)
    assert torch.autograd.gradcheck(both, (student, target))
    assert torch.autograd.gradgradcheck(both, (student, target))


def test_a_second_backward_gives_the_same_gradient(path: str) -> None:
    student, target, table, labels = batch()
    value = 3 * student_only(student, target, table, labels)
    first = torch.autograd.grad(value, (student, target), retain_graph=True)
    second = torch.autograd.grad(value, (student, target))
    for a, b in zip(first, second, strict=True):
        assert (a - b).abs().max() < 1e-14


def test_nothing_is_kept_when_no_gradient_is_needed(path: str) -> None:
    student, target, table, labels = batch()
    with torch.no_grad():
        value = student_only(student, target, table, labels)
    assert not value.requires_grad
    assert torch.isclose(value, student_only(student, target, table, labels))
    assert not student_only(student.detach(), target.detach(), table, labels).requires_grad


def test_inputs_are_not_changed(path: str) -> None:
    student, target, table, labels = batch()
    before = [x.detach().clone() for x in (student, target, table)]
    for prior, given in ((table, labels), (table[labels], None)):
        kept = prior.clone()
        functional.gkl_divergence(student, target, prior, labels=given, weight_power=0.3).backward()
        assert torch.equal(prior, kept)
    for x, copy in zip((student, target, table), before, strict=True):
        assert torch.equal(x.detach(), copy)


def test_function_transforms_agree_with_autograd() -> None:
    student, target, table, labels = batch()
    rows = table[labels]
    frozen = target.detach()
    loss = lambda s, t, r: functional.gkl_divergence(s, t, r, weight_power=0.3)  # noqa: E731
    expected = torch.autograd.grad(loss(student, frozen, rows), student)[0]
    plain = student.detach()
    assert (torch.func.grad(loss)(plain, frozen, rows) - expected).abs().max() < 1e-14
    per_sample = torch.func.vmap(torch.func.grad(loss))(plain, frozen, rows)
    each = torch.stack([torch.func.grad(loss)(plain[i], frozen[i], rows[i]) for i in range(len(plain))])
    assert (per_sample - each).abs().max() < 1e-14
    tangent = torch.func.jvp(lambda s: loss(s, frozen, rows), (plain,), (torch.ones_like(plain),))[1]
    assert torch.isclose(tangent, expected.sum(), atol=1e-12)


def test_forward_mode_agrees_with_backward_mode() -> None:
    student, target, table, labels = batch()
    direction = torch.randn_like(student)
    expected = (gradients(student_only(student, target.detach(), table, labels), student)[0] * direction).sum()
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(student.detach(), direction)
        value = student_only(dual, target.detach(), table, labels)
        assert torch.isclose(torch.autograd.forward_ad.unpack_dual(value).tangent, expected, rtol=1e-12)


@pytest.mark.parametrize(
    "name", ["gkl_labels", "gkl_rows", "gkl_mask", "gkl_soft", "ikl_divergence", "dkl_divergence", "weighted_mse"]
)
def test_functions_are_captured_whole(name: str) -> None:
    student, target, table, labels = batch()
    mask, soft = labels > 0, torch.nn.functional.one_hot(labels, 5).double()
    call = {
        "gkl_labels": lambda s, t: student_only(s, t, table, labels),
        "gkl_rows": lambda s, t: functional.gkl_divergence(s, t, table[labels], weight_power=0.3, normalizer="row"),
        "gkl_mask": lambda s, t: functional.gkl_divergence(s, t, table, labels=labels, mask=mask),
        "gkl_soft": lambda s, t: functional.gkl_divergence(s, t, table, labels=soft, weight_power=0.3),
        "ikl_divergence": lambda s, t: functional.ikl_divergence(s, t, table, labels=labels),
        "dkl_divergence": lambda s, t: functional.dkl_divergence(s, t, temperature=2.0),
        "weighted_mse": lambda s, t: functional.weighted_mse(s, t, table[labels]),
    }[name]
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    assert_equal(compiled(student, target), call(student, target), (student, target), tolerance=1e-10)


@pytest.mark.slow
def test_inductor_gives_the_same_numbers() -> None:
    student, target, table, labels = batch()
    compiled = torch.compile(student_only, fullgraph=True)
    got, wanted = (torch.autograd.grad(f(student, target, table, labels), student)[0] for f in (compiled, student_only))
    assert (got - wanted).abs().max() < 1e-10


def test_a_denominator_of_the_caller_is_a_constant(path: str) -> None:
    student, target, table, labels = batch()
    denominator = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    value = functional.gkl_divergence(student, target, table, labels=labels, normalizer=denominator)
    assert not gradients(value, denominator)[0].any()


def test_a_learning_temperature_meets_absent_classes(path: str) -> None:
    student, target, table, labels = batch()
    sides = [x.detach().index_fill(1, torch.tensor([2]), -torch.inf) for x in (student, target)]
    temperature = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    for value in (
        functional.gkl_divergence(*sides, table, labels=labels, temperature=temperature),
        functional.dkl_divergence(*sides, temperature=temperature),
    ):
        assert gradients(value, temperature)[0].isfinite()


def test_a_temperature_tensor_can_learn(path: str) -> None:
    student, target, table, labels = batch()
    temperature = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    value = functional.gkl_divergence(student, target, table, labels=labels, temperature=temperature)
    assert torch.isclose(value, functional.gkl_divergence(student, target, table, labels=labels, temperature=2.0))
    assert gradients(value, temperature)[0].abs() > 1e-4


# --- bad input ----------------------------------------------------------------------------------------------


def bad_calls() -> dict[str, tuple[type[Exception], str, dict[str, object]]]:
    table, rows = torch.full((5, 5), 0.2), torch.full((7, 5), 0.2)
    labels = torch.zeros(7, dtype=torch.int64)
    return {
        "shapes": (ValueError, "one shape", {"prior": rows, "target_logits": torch.zeros(7, 4)}),
        "broadcast": (ValueError, "nothing is broadcast", {"prior": rows, "target_logits": torch.zeros(1, 5)}),
        "integers": (TypeError, "floating", {"prior": rows, "target_logits": torch.zeros(7, 5, dtype=torch.int64)}),
        "not a tensor": (TypeError, "`target_logits` expected a tensor", {"prior": rows, "target_logits": [1.0]}),
        "rows": (ValueError, "one row per sample", {"prior": table}),
        "table": (ValueError, r"\(C, C\) table", {"prior": rows, "labels": labels}),
        "label range": (
            ValueError,
            r"\[0, 4\], got 0 to 5",
            {"prior": table, "labels": labels + 5 * torch.eye(7)[0].long()},
        ),
        "label sign": (ValueError, r"\[0, 4\]", {"prior": table, "labels": labels - 1}),
        "label shape": (ValueError, "class indices of the shape", {"prior": table, "labels": labels[:3]}),
        "label dtype": (TypeError, "integers", {"prior": table, "labels": labels.bool()}),
        "soft shape": (ValueError, "soft `labels`", {"prior": table, "labels": rows[:3]}),
        "power": (ValueError, "`weight_power`", {"prior": rows, "weight_power": -0.1}),
        "temperature": (ValueError, "`temperature`", {"prior": rows, "temperature": 0.0}),
        "temperature text": (TypeError, "got '4'", {"prior": rows, "temperature": "4"}),
        "temperature shape": (ValueError, "`temperature`", {"prior": rows, "temperature": torch.ones(2)}),
        "normalizer": (ValueError, "'weights', 'row', 'samples'", {"prior": rows, "normalizer": "batch"}),
        "normalizer shape": (ValueError, "0-d", {"prior": rows, "normalizer": torch.ones(2)}),
        "mask dtype": (TypeError, "bool", {"prior": rows, "mask": torch.ones(7)}),
        "mask shape": (ValueError, "`mask`", {"prior": rows, "mask": torch.ones(6, dtype=torch.bool)}),
        "reduction": (ValueError, "'none', 'mean' or 'sum'", {"prior": rows, "reduction": "batchmean"}),
        "empty": (ValueError, "non-empty", {"prior": rows[:0], "logits": rows[:0], "target_logits": rows[:0]}),
    }


@pytest.mark.parametrize("name", bad_calls())
def test_bad_input_is_said_in_one_line(name: str) -> None:
    error, message, changes = bad_calls()[name]
    arguments = {"logits": torch.zeros(7, 5), "target_logits": torch.zeros(7, 5), **changes}
    with pytest.raises(error, match=message) as caught:
        functional.gkl_divergence(**arguments)
    assert "\n" not in str(caught.value)


def test_dividing_by_samples_with_a_power_warns() -> None:
    student, target, table, labels = batch()
    with pytest.warns(UserWarning, match="C squared"):
        functional.gkl_divergence(student, target, table, labels=labels, weight_power=0.3, normalizer="samples")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        functional.gkl_divergence(student, target, table, labels=labels, normalizer="samples")
