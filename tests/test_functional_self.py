"""Claims about Tf-KD, Zipf's label smoothing and USKD, against float64 twins that go sample by sample."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import twins
from torch import Tensor, nn
from twins import gradients, labelled_batch

from limbeck import functional
from limbeck.functional.teacher_free import tf_kd_loss
from limbeck.functional.universal_self import uskd_loss
from limbeck.functional.zipf import dense_votes, ranks, zipf_loss


def uskd_on_its_own_logits(logits: Tensor, labels: Tensor, **options: object) -> Tensor:
    """USKD with the same weak logits for all samples, so that it takes what the others take."""
    weak = torch.linspace(-1, 1, logits.shape[-1], dtype=logits.dtype).expand_as(logits)
    return uskd_loss(logits, weak, labels, **options)


LOSSES: dict[str, Callable[..., Tensor]] = {
    "Tf-KD": tf_kd_loss,
    "Zipf's label smoothing": zipf_loss,
    "USKD": uskd_on_its_own_logits,
}
every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())


# --- what holds for all ---


@every_loss
def test_shift_and_order_of_the_batch_count_for_nothing(loss: Callable[..., Tensor]) -> None:
    logits, _, labels = labelled_batch()
    value = loss(logits, labels)
    assert value.shape == ()
    assert value > 0
    assert torch.isclose(loss(logits + 3, labels), value, rtol=1e-12)
    assert torch.isclose(loss(logits.flip(0), labels.flip(0)), value, rtol=1e-12)


@every_loss
def test_loss_is_captured_whole_and_has_its_own_dtype_under_autocast(loss: Callable[..., Tensor]) -> None:
    logits, _, labels = labelled_batch()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    got, wanted = (gradients(f(logits, labels), logits)[0] for f in (compiled, loss))
    assert torch.isclose(compiled(logits, labels), loss(logits, labels))
    assert torch.allclose(got, wanted)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = loss(logits.float(), labels.to(torch.uint8))
    assert torch.equal(inside, loss(logits.float(), labels))


@every_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_loss_is_finite_at_any_gap_in_any_dtype(loss: Callable[..., Tensor], dtype: torch.dtype) -> None:
    logits = torch.tensor([[6e4, 0.0, -6e4], [-6e4, 0.0, 6e4], [0.0, 0.0, 0.0]], dtype=dtype, requires_grad=True)
    for mode in ({}, {"mode": "paper"}):
        if mode and loss is zipf_loss:
            continue
        value = loss(logits, torch.tensor([0, 0, 1]), **mode)
        (gradient,) = gradients(value, logits)
        assert value.dtype == torch.promote_types(dtype, torch.float32)
        assert value.isfinite()
        assert gradient.dtype == dtype
        assert gradient.isfinite().all()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"labels": torch.full((2, 3), 1 / 3)}, TypeError, "`labels` expected class indices.*{} has no form for soft"),
        ({"labels": torch.tensor([0, 3])}, ValueError, r"\[0, 2\], got 0 to 3"),
        ({"labels": torch.tensor([0])}, ValueError, "shape"),
        ({"logits": torch.zeros(2, 3, dtype=torch.int64)}, TypeError, "`logits` expected a floating dtype"),
        ({"logits": torch.zeros(0, 3)}, ValueError, "non-empty"),
    ],
)
def test_bad_input_is_said_in_one_line(
    name: str, change: dict[str, Tensor], error: type[Exception], message: str
) -> None:
    inputs = {"logits": torch.zeros(2, 3), "labels": torch.tensor([0, 1]), **change}
    with pytest.raises(error, match=message.replace("{}", name)):
        LOSSES[name](**inputs)


@pytest.mark.parametrize("loss", [tf_kd_loss, zipf_loss])
def test_loss_has_leading_axes_and_reductions(loss: Callable[..., Tensor]) -> None:
    logits, _, labels = labelled_batch(samples=12)
    none = loss(logits.view(3, 4, 5), labels.view(3, 4), reduction="none")
    assert none.shape == (3, 4)
    assert torch.isclose(none.mean(), loss(logits, labels))
    assert torch.isclose(none.sum(), loss(logits, labels, reduction="sum"))
    with pytest.raises(ValueError, match="`reduction`"):
        loss(logits, labels, reduction="batchmean")


# --- Tf-KD ---


@pytest.mark.parametrize("mode", ["code", "paper"])
@pytest.mark.parametrize(("correct", "temperature"), [(0.99, 20.0), (0.9, 1.0), (0.6, 3.0)])
def test_tf_kd_equals_its_formula(mode: str, correct: float, temperature: float) -> None:
    logits, _, labels = labelled_batch()
    total = torch.zeros((), dtype=torch.float64)
    for row, y in zip(logits, labels, strict=True):
        u = [correct if k == y else (1 - correct) / 4 for k in range(5)]
        powers = [math.exp(x / temperature) if mode == "code" else x ** (1 / temperature) for x in u]
        target = torch.tensor([x / sum(powers) for x in powers], dtype=torch.float64)
        total = total + twins.kl(target, twins.softmax(row, 1.0 if mode == "code" else temperature))
    value = tf_kd_loss(logits, labels, correct=correct, temperature=temperature, mode=mode)
    assert torch.isclose(value, total / 7, rtol=1e-12)
    assert (gradients(value, logits)[0] - gradients(total / 7, logits)[0]).abs().max() < 1e-13


def test_tf_kd_in_the_codes_mode_is_the_public_number_times_the_classes() -> None:
    """The public loss: kl_div of "mean", over N and C, of softmax(u / T) and the student at temperature 1."""
    logits, _, labels = labelled_batch(classes=10)
    u = torch.full((7, 10), 0.01 / 9, dtype=torch.float64).scatter_(1, labels[:, None], 0.99)
    public = nn.functional.kl_div(logits.log_softmax(1), (u / 20).softmax(1), reduction="none").mean()
    assert torch.isclose(tf_kd_loss(logits, labels), 10 * public, rtol=1e-12)


@pytest.mark.parametrize("mode", ["code", "paper"])
def test_tf_kd_is_0_and_stationary_at_the_virtual_teacher(mode: str) -> None:
    labels = torch.tensor([0, 3])
    u = torch.full((2, 4), 0.2 / 3, dtype=torch.float64).scatter_(1, labels[:, None], 0.8)
    logits = (u / 5 if mode == "code" else u.log()).requires_grad_()
    value = tf_kd_loss(logits, labels, correct=0.8, temperature=5.0, mode=mode)
    assert value.abs() < 1e-15
    assert gradients(value, logits)[0].abs().max() < 1e-15


def test_the_virtual_teacher_of_the_public_code_is_almost_uniform() -> None:
    """Its softmax takes probabilities: the label is e^0.0495 times as likely as another class."""
    classes, labels = 100, torch.tensor([3])
    logits = torch.zeros(1, classes, dtype=torch.float64, requires_grad=True)
    (gradient,) = gradients(tf_kd_loss(logits, labels), logits)
    target = 1 / classes - gradient[0]
    assert (target[3] / target[0]).item() == pytest.approx(math.exp((0.99 - 0.01 / 99) / 20))


def test_tf_kd_at_temperature_1_of_the_paper_is_label_smoothing() -> None:
    """Less the target's entropy, which has no gradient."""
    logits, _, labels = labelled_batch(classes=10)
    smooth = nn.functional.cross_entropy(logits, labels, label_smoothing=0.1)
    value = tf_kd_loss(logits, labels, correct=0.91, temperature=1.0, mode="paper")
    assert (gradients(value, logits)[0] - gradients(smooth, logits)[0]).abs().max() < 1e-15
    assert tf_kd_loss(logits[:, :1], torch.zeros(7, dtype=torch.int64)) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"correct": 1.0}, r"`correct` expected a probability in \(0, 1\)"),
        ({"correct": -0.1}, "`correct`"),
        ({"temperature": 0.0}, "`temperature`"),
        ({"mode": "self"}, "`mode` expected 'code'"),
    ],
)
def test_bad_options_of_tf_kd_are_said_in_one_line(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tf_kd_loss(torch.zeros(2, 3), torch.tensor([0, 1]), **change)


# --- Zipf's label smoothing ---


def zipf_target(scores: list[float], label: int) -> Tensor:
    rank = [1 + sum(other > score for other in scores) for score in scores]
    weights = [0.0 if k == label else 1 / r for k, r in enumerate(rank)]
    return torch.tensor([w / sum(weights) for w in weights], dtype=torch.float64)


def zipf_twin(logits: Tensor, labels: Tensor, votes: Tensor) -> Tensor:
    values = []
    for row, y, vote in zip(logits, labels.tolist(), votes.tolist(), strict=True):
        others = [k for k in range(len(row)) if k != y]
        values.append(twins.kl(zipf_target(vote, y)[others], twins.softmax(row[others])))
    return torch.stack(values)


def test_ranks_count_what_is_larger() -> None:
    scores = torch.randint(0, 6, (4, 3, 9), generator=torch.Generator().manual_seed(0))
    expected = 1 + (scores.unsqueeze(-2) > scores.unsqueeze(-1)).sum(-1)
    assert torch.equal(ranks(scores), expected)
    assert torch.equal(ranks(scores.mT.contiguous().mT), expected)
    assert torch.equal(ranks(torch.tensor([-math.inf, 0.0, math.inf, 0.0])), torch.tensor([4, 2, 1, 2]))


@pytest.mark.parametrize("voted", [True, False])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_zipf_equals_its_formula(voted: bool, reduction: str) -> None:
    logits, _, labels = labelled_batch(classes=6)
    votes = torch.randint(0, 4, (7, 6), generator=torch.Generator().manual_seed(0))
    each = zipf_twin(logits, labels, votes if voted else logits.detach())
    expected = {"none": each, "mean": each.mean(), "sum": each.sum()}[reduction]
    value = zipf_loss(logits, labels, votes if voted else None, reduction=reduction)
    assert (value - expected).abs().max() < 1e-12
    assert (gradients(value.sum(), logits)[0] - gradients(expected.sum(), logits)[0]).abs().max() < 1e-12


def test_zipf_is_0_and_stationary_at_its_own_law() -> None:
    law = torch.tensor([[5.0, 1.0, 1 / 2, 1 / 3, 1 / 4]], dtype=torch.float64)  # the label's, then the ranks 2 to 5
    target = torch.tensor([[5.0, 1 / 2, 1 / 3, 1 / 4, 1 / 5]], dtype=torch.float64)
    logits = target.log().requires_grad_()
    value = zipf_loss(logits, torch.tensor([0]))
    assert value.abs() < 1e-15
    assert gradients(value, logits)[0].abs().max() < 1e-15
    assert zipf_loss(law.log(), torch.tensor([0])) > 1e-3  # ranks from 1 would be another law: the label has rank 1


def test_zipf_spares_the_labels_logit_and_takes_no_gradient_through_the_votes() -> None:
    logits, votes, labels = labelled_batch()
    value = zipf_loss(logits, labels, votes)
    assert not gradients(value, logits)[0].gather(1, labels[:, None]).any()
    assert torch.autograd.grad(value, votes, allow_unused=True) == (None,)


def test_absent_classes_and_lone_classes_count_for_nothing() -> None:
    logits, _, labels = labelled_batch(classes=6)
    logits, labels = logits.detach(), labels.clamp(max=3)
    votes = torch.tensor([[3, 2, 5, 1, 0, 0]]).expand(7, 6)
    absent = logits.clone()
    absent[:, 4:] = -torch.inf
    absent.requires_grad_()
    value = zipf_loss(absent, labels, votes)
    assert torch.isclose(value, zipf_loss(logits[:, :4], labels, votes[:, :4]))
    assert not gradients(value, absent)[0][:, 4:].any()
    assert zipf_loss(logits[:, :1], torch.zeros(7, dtype=torch.int64)) == 0
    assert zipf_loss(logits[:, :2], labels.clamp(max=1)) == 0


@pytest.mark.parametrize("upsample", [1, 2])
@pytest.mark.parametrize("bias", [True, False])
def test_votes_are_the_classifiers_first_choices_at_each_position(upsample: int, bias: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(3, 4, 3, 5, generator=generator)
    head = nn.Linear(4, 6, bias=bias)
    large = nn.functional.interpolate(maps, scale_factor=upsample, mode="bilinear") if upsample > 1 else maps
    expected = torch.zeros(3, 6, dtype=torch.int64)
    for n in range(3):
        for i in range(large.shape[2]):
            for j in range(large.shape[3]):
                expected[n, head(large[n, :, i, j]).argmax()] += 1
    votes = dense_votes(maps.requires_grad_(), head.weight, head.bias, upsample=upsample)
    assert torch.equal(votes, expected)
    assert (votes.sum(1) == 15 * upsample**2).all()
    assert not votes.requires_grad


def test_one_positions_vote_is_the_logits_first_choice() -> None:
    head = nn.Linear(4, 6)
    features = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    votes = dense_votes(features[:, :, None, None], head.weight, head.bias)
    assert torch.equal(votes.argmax(1), head(features).argmax(1))


@pytest.mark.parametrize(
    ("features", "options", "error", "message"),
    [
        (torch.zeros(2, 5, 3, 3), {}, ValueError, r"`features` expected a map \(N, 4, H, W\).*take the last stage"),
        (torch.zeros(2, 4), {}, ValueError, "`features` expected a map"),
        (torch.zeros(2, 4, 3, 3, dtype=torch.int64), {}, TypeError, "`features` expected a floating map"),
        (torch.zeros(2, 4, 3, 3), {"upsample": 0}, ValueError, "`upsample` expected at least 1"),
    ],
)
def test_maps_that_the_classifier_does_not_read_are_refused(
    features: Tensor, options: dict[str, int], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        dense_votes(features, torch.zeros(6, 4), **options)


def test_votes_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"`votes` expected one number per class, \(2, 3\), got \(2, 4\)"):
        zipf_loss(torch.zeros(2, 3), torch.tensor([0, 1]), torch.zeros(2, 4))


# --- USKD ---


def uskd_twin(logits: Tensor, weak: Tensor, labels: Tensor, weights: tuple[float, float, float], mode: str) -> Tensor:
    s, w = twins.softmax(logits), twins.softmax(weak)
    classes = logits.shape[1]
    own = [s[n, y].item() for n, y in enumerate(labels.tolist())]
    total = torch.zeros((), dtype=logits.dtype)
    for n, y in enumerate(labels.tolist()):
        belief = own[n] ** 2 + 1 - sum(x**2 for x in own) / len(own)
        seen = s[n].log() if mode == "code" else s[n]
        score = w[n] / (1 - w[n, y] + 1e-6) + seen / (1 - seen[y] + 1e-6)
        q = zipf_target(score.tolist(), y)
        others = [k for k in range(classes) if k != y]
        smooth = torch.full((classes,), 0.1 / classes, dtype=logits.dtype)
        smooth[y] += 0.9
        total = total - weights[0] * belief * s[n, y].log()
        total = total - weights[1] * (q[others] * twins.softmax(logits[n, others]).log()).sum()
        total = total - weights[2] * (smooth * w[n].log()).sum()
    return total / len(logits)


@pytest.mark.parametrize("mode", ["code", "paper"])
@pytest.mark.parametrize("weights", [(1.0, 0.1, 0.005), (0.3, 2.0, 0.7), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0, 0, 1.0)])
def test_uskd_equals_its_formula(mode: str, weights: tuple[float, float, float]) -> None:
    logits, weak, labels = labelled_batch(samples=9, classes=6)
    options = dict(zip(("target_weight", "rest_weight", "weak_weight"), weights, strict=True))
    value = uskd_loss(logits, weak, labels, mode=mode, **options)
    expected = uskd_twin(logits, weak, labels, weights, mode)
    assert torch.isclose(value, expected, rtol=1e-12)
    got, wanted = (torch.autograd.grad(x, (logits, weak), allow_unused=True) for x in (value, expected))
    for a, b in zip(got, wanted, strict=True):
        assert (a is None and not b.any()) or (a - b).abs().max() < 1e-12


def test_code_and_paper_rank_differently() -> None:
    logits, weak, labels = labelled_batch(samples=9, classes=6)
    options = {"target_weight": 0.0, "rest_weight": 1.0, "weak_weight": 0.0}
    values = [uskd_loss(logits, weak, labels, mode=mode, **options) for mode in ("code", "paper")]
    assert (values[0] - values[1]).abs() > 1e-3


def test_the_weak_part_is_smoothed_cross_entropy_and_the_label_part_of_even_samples_is_cross_entropy() -> None:
    logits, weak, labels = labelled_batch()
    alone = uskd_loss(logits, weak, labels, target_weight=0.0, rest_weight=0.0, weak_weight=1.0)
    assert torch.isclose(alone, nn.functional.cross_entropy(weak, labels, label_smoothing=0.1), rtol=1e-12)
    even, classes = logits[:1].expand(7, 5), labels[:1].expand(7)
    value = uskd_loss(even, weak, classes, rest_weight=0.0, weak_weight=0.0)
    assert torch.isclose(value, nn.functional.cross_entropy(even, classes), rtol=1e-12)


def test_uskd_with_absent_classes_and_with_one_class_is_finite() -> None:
    logits, weak, labels = labelled_batch(classes=6)
    absent = logits.detach().clone()
    absent[:, 5] = -torch.inf
    absent.requires_grad_()
    for mode in ("code", "paper"):
        value = uskd_loss(absent, weak, labels.clamp(max=4), mode=mode)
        (gradient,) = gradients(value, absent)
        assert value.isfinite()
        assert gradient.isfinite().all()
        assert not gradient[:, 5].any()
    assert uskd_loss(logits[:, :1], weak[:, :1], torch.zeros(7, dtype=torch.int64)) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target_weight": -1.0}, "`target_weight`"),
        ({"rest_weight": -1.0}, "`rest_weight`"),
        ({"weak_weight": float("nan")}, "`weak_weight`"),
        ({"mode": "log"}, "`mode` expected 'code'"),
        ({"weak_logits": torch.zeros(2, 4)}, "`logits` and `weak_logits` expected one shape"),
    ],
)
def test_bad_options_of_uskd_are_said_in_one_line(change: dict[str, object], message: str) -> None:
    inputs = {"logits": torch.zeros(2, 3), "weak_logits": torch.zeros(2, 3), "labels": torch.tensor([0, 1])}
    with pytest.raises(ValueError, match=message):
        uskd_loss(**{**inputs, **change})


def test_the_papers_other_form_is_kl_with_a_weight() -> None:
    """Tf-KD's self form: T^2 times kl_div of "mean", which is KL with T^2 over the number of classes."""
    logits, target, _ = labelled_batch()
    public = nn.functional.kl_div((logits / 6).log_softmax(1), (target / 6).softmax(1), reduction="none").mean() * 36
    own = functional.kl_divergence(logits, target, temperature=6.0, scale_by_t2=True)
    assert torch.isclose(own / 5, public, rtol=1e-12)
