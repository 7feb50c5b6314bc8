"""Claims about consistency: what counts, who is moved, who is drawn to whom, and what the parts of a step add up to."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.config import (
    CrossEntropyTerm,
    GKLTerm,
    IKLTerm,
    KLTerm,
    LogitMSETerm,
    ProbabilityMSETerm,
    PseudoLabelTerm,
    SemiSupervisedOptions,
)
from limbeck.data import Batch
from limbeck.objectives import Facts
from limbeck.objectives.averaged import AveragedNetwork
from limbeck.objectives.semi_supervised import SemiSupervised

CLASSES, RATIO = 4, 3
FACTS = Facts(num_classes=CLASSES)


class Net(nn.Module):
    """A linear network with a BatchNorm, or without."""

    def __init__(self, norm: bool = False) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.norm = nn.BatchNorm1d(6) if norm else nn.Identity()
        self.last = nn.Linear(6, CLASSES)
        with torch.no_grad():
            self.last.weight.copy_(torch.randn(CLASSES, 6, generator=generator))
            self.last.bias.zero_()

    def forward(self, images: Tensor) -> Tensor:
        return self.last(self.norm(images.flatten(1)))


def batch(labelled: int = 4, seed: int = 1) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    images, weak, noise = (
        torch.randn(count, 1, 2, 3, generator=generator, dtype=torch.float64)
        for count in (labelled, RATIO * labelled, RATIO * labelled)
    )
    labels = torch.randint(CLASSES, (labelled,), generator=generator)
    return Batch(images, labels, torch.arange(labelled), 0, (weak, weak + 0.3 * noise))


def objective(*terms, net: nn.Module | None = None, **options: object) -> SemiSupervised:
    chosen = SemiSupervisedOptions(**options)
    network = (net or Net()).double()
    return SemiSupervised(network, [CrossEntropyTerm(), *terms], chosen, ratio=RATIO, epochs=9, facts=FACTS).double()


def gradient(made: SemiSupervised, loss: Tensor) -> Tensor:
    return torch.autograd.grad(loss, made.student.last.weight)[0]


# --- FixMatch -----------------------------------------------------------------------------------------------------


def test_fixmatch_is_the_published_sum_over_confident_images_over_all_of_them():
    made, step = objective(PseudoLabelTerm(weight=2.0), confidence=0.7), batch()
    outcome = made(step)
    weak, strong = (made.student(view).log_softmax(-1).tolist() for view in step.views)
    values = [
        -other[row.index(max(row))] if math.exp(max(row)) >= 0.7 else 0.0
        for row, other in zip(weak, strong, strict=True)
    ]
    assert 0 < sum(value > 0 for value in values) < len(values)  # some count, some do not
    supervised = F.cross_entropy(made.student(step.images), step.labels).item()
    assert outcome.parts["pseudo_label"].item() == pytest.approx(sum(values) / len(values), abs=1e-12)
    assert outcome.loss.item() == pytest.approx(supervised + 2 * sum(values) / len(values), abs=1e-12)
    assert outcome.parts["mask"].item() == pytest.approx(sum(value > 0 for value in values) / len(values))


def test_a_confidence_of_zero_takes_all_images():
    assert objective(KLTerm(), confidence=0.0)(batch()).parts["mask"] == 1


@pytest.mark.parametrize("term", [KLTerm(), LogitMSETerm(), ProbabilityMSETerm(), IKLTerm(prior="sample")])
def test_the_weak_view_is_a_constant(term):
    made, step = objective(term, confidence=0.0), batch()
    outcome = made(step)
    frozen = copy.deepcopy(made.student)
    strong, weak = made.student(step.views[1]), frozen(step.views[0]).detach()
    loss = made.losses[term.name](strong, weak, None).mean() + F.cross_entropy(made.student(step.images), step.labels)
    assert torch.allclose(gradient(made, outcome.loss), gradient(made, loss), atol=1e-12)


def test_the_published_variant_moves_both_views_by_the_pair_term():
    step = batch()
    gradients = []
    for detach in (True, False):
        made = objective(IKLTerm(prior="sample", ce_weight=0.0), confidence=0.0, detach_weak=detach)
        gradients.append(gradient(made, made(step).parts["ikl"]))
    made = objective()
    weak, strong = (made.student(view) for view in step.views)
    weights = weak.detach().softmax(-1)
    gap = strong - weak
    pairs = 0.25 * weights.unsqueeze(-1) * weights.unsqueeze(-2) * (gap.unsqueeze(-1) - gap.unsqueeze(-2)) ** 2
    assert torch.allclose(gradients[1], gradient(made, pairs.sum((1, 2)).mean()), atol=1e-12)
    assert not torch.allclose(gradients[0], gradients[1])


def test_soft_pseudo_labels_and_kl_are_one_method():
    step = batch()
    made = [objective(term, confidence=0.6) for term in (PseudoLabelTerm(targets="soft"), KLTerm())]
    assert torch.allclose(*(gradient(one, one(step).loss) for one in made), atol=1e-14)


@pytest.mark.parametrize("forwards", ["together", "apart"])
def test_together_and_apart_differ_by_batch_norm_alone(forwards):
    step = batch()
    with_norm = [objective(KLTerm(), net=Net(True), forwards=way)(step).loss for way in (forwards, "together")]
    without = [objective(KLTerm(), forwards=way)(step).loss for way in (forwards, "together")]
    assert torch.allclose(*without, atol=1e-14)
    assert torch.allclose(*with_norm) == (forwards == "together")


# --- parts of a step -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [[2, 2], [1, 3]])
@pytest.mark.parametrize("unlabelled", [[6, 6], [5, 7]])
def test_parts_of_a_step_add_up_however_it_is_cut(cut, unlabelled):
    made, step = objective(IKLTerm(prior="sample"), confidence=0.6), batch()
    whole = made(step)
    weak, strong = (view.split(unlabelled) for view in step.views)
    parts = [
        made(Batch(images, labels, places, 0, (one, two)))
        for images, labels, places, one, two in zip(
            step.images.split(cut), step.labels.split(cut), step.indices.split(cut), weak, strong, strict=True
        )
    ]
    for name in whole.parts:
        value = sum(part.parts[name] * size / 4 for part, size in zip(parts, cut, strict=True))
        assert torch.isclose(value, whole.parts[name], atol=1e-14), name


def test_a_class_prior_observes_the_confident_pseudo_labels():
    made, step = objective(GKLTerm(), confidence=0.7), batch()
    outcome = made(step)
    made.after_step(step, outcome)
    probabilities = made.student(step.views[0]).softmax(-1)
    sure = probabilities.amax(-1) >= 0.7
    expected = probabilities.argmax(-1)[sure].bincount(minlength=CLASSES).double()
    assert torch.equal(made.losses["gkl"].prior.counts, expected)


def test_without_consistency_nobody_looks_at_the_pool():
    made, step = objective(), batch()
    poisoned = Batch(step.images, step.labels, step.indices, 0, tuple(view * torch.nan for view in step.views))
    assert made(poisoned).loss.isfinite()
    assert made.logged == ("cross_entropy",)


# --- Mean-Teacher --------------------------------------------------------------------------------------------------


def steps_of(made: SemiSupervised, count: int) -> list[Tensor]:
    weights = []
    for number in range(1, count + 1):
        with made.around_step(lambda: None), torch.no_grad():
            made.student.last.weight += number
        weights.append(made.student.last.weight.detach().clone())
    return weights


def test_the_teacher_is_the_published_average():
    made = objective(ProbabilityMSETerm(), method="mean_teacher", teacher_decay=0.7)
    expected = made.student.last.weight.detach().clone()
    for step, weight in enumerate(steps_of(made, 6), start=1):
        decay = min(1 - 1 / (step + 1), 0.7)
        expected = decay * expected + (1 - decay) * weight
    assert torch.allclose(made.guide.network.last.weight, expected, atol=1e-12)


def test_mean_teacher_draws_the_strong_view_to_the_teachers_weak_one():
    made, step = objective(ProbabilityMSETerm(), method="mean_teacher", confidence=0.0), batch()
    steps_of(made, 3)
    weak = made.guide.network(step.views[0]).softmax(-1)
    strong = made.student(step.views[1]).softmax(-1)
    assert torch.isclose(made(step).parts["probability_mse"], ((strong - weak) ** 2).mean(), atol=1e-14)
    assert not any(parameter.requires_grad for parameter in made.guide.parameters())


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_teacher_in_train_mode_keeps_statistics_of_its_own(mode):
    made = objective(ProbabilityMSETerm(), net=Net(True), method="mean_teacher", teacher_mode=mode)
    made.train(), made.guide.train(mode == "train")
    before = made.guide.network.norm.running_mean.clone()
    step = batch()
    made(step)
    statistics = made.guide.network.norm.running_mean
    assert torch.equal(statistics, before) == (mode == "eval")
    with made.around_step(lambda: None):
        pass
    moved = torch.equal(statistics, 0.5 * before + 0.5 * made.student.norm.running_mean)
    assert moved == (mode == "eval")


def test_a_teacher_goes_on_from_its_state():
    network = Net().double()
    teacher = AveragedNetwork(network, 0.9, train=True)
    for _ in range(3):
        teacher.update(network)
    other = AveragedNetwork(Net().double(), 0.9, train=True)
    other.load_state_dict(teacher.state_dict())
    with torch.no_grad():
        network.last.weight += 1
    teacher.update(network), other.update(network)
    assert torch.equal(teacher.network.last.weight, other.network.last.weight)


# --- options -------------------------------------------------------------------------------------------------------


def test_the_sigmoid_ramp_is_the_published_one():
    made = objective(ProbabilityMSETerm(weight=100.0), ramp="sigmoid", ramp_epochs=5)
    for epoch in range(1, 8):
        made.set_epoch(epoch)
        expected = 100 * math.exp(-5 * (1 - min((epoch - 1) / 5, 1)) ** 2)
        assert made.weights["probability_mse"] == pytest.approx(expected)
        assert made.weights["cross_entropy"] == 1


@pytest.mark.parametrize(
    "options",
    [
        {"ramp": "linear"},
        {"ramp_epochs": 3},
        {"evaluate": "teacher"},
        {"method": "mean_teacher", "detach_weak": False},
        {"confidence": 1.5},
    ],
)
def test_options_that_contradict_each_other_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        SemiSupervisedOptions(**options)
