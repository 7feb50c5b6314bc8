"""What a batch means: weights over the epochs, teachers that never change, one memory per term and teacher."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.config import (
    TERMS,
    ATTerm,
    CRDTerm,
    CrossEntropyTerm,
    DKLTerm,
    FitNetTerm,
    GKLTerm,
    IKLTerm,
    JSTerm,
    KLTerm,
    LogitMSETerm,
    MARTTerm,
    ModelOptions,
    Recipe,
    ReverseKLTerm,
    ReviewKDTerm,
    TeacherOptions,
    TfKDTerm,
    USKDTerm,
    VIDTerm,
    WKDLogitTerm,
    ZipfTerm,
    loss_options,
)
from limbeck.config_tasks import TASK_ONLY
from limbeck.losses import ClassPrior, FitNetLoss, StandardizedLoss
from limbeck.models import build_model
from limbeck.objectives import Distillation, Supervised, build_objective
from limbeck.objectives.build import Facts, build_loss
from limbeck.objectives.terms import cross_entropy, part_names, term_weight

CLASSES = 4


@dataclass
class FakeBatch:
    images: Tensor
    labels: Tensor
    indices: Tensor


def batch(samples: int = 12, seed: int = 0) -> FakeBatch:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(samples, 1, 3, 3, generator=generator)
    labels = torch.randint(CLASSES, (samples,), generator=generator)
    return FakeBatch(images, labels, torch.arange(samples))


def network(seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(9, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, CLASSES))


def distillation(*terms, teachers: int = 1, **options) -> Distillation:
    networks = [network(10 + number) for number in range(teachers)]
    return Distillation(network(0), networks, terms, epochs=10, facts=Facts(CLASSES), **options)


# --- weights ----------------------------------------------------------------------------------------------


def test_weight_rises_over_the_warm_up_and_stays():
    term = KLTerm(weight=3.0, warmup_epochs=4)
    assert [term_weight(term, epoch, 6) for epoch in range(1, 7)] == [0.75, 1.5, 2.25, 3.0, 3.0, 3.0]


@pytest.mark.parametrize("decay", ["linear", "cosine"])
def test_weight_decays_to_nothing_in_the_epoch_after_the_last(decay):
    term = KLTerm(weight=2.0, decay=decay)
    weights = [term_weight(term, epoch, 5) for epoch in range(1, 7)]
    assert weights[0] == 2.0
    assert weights[5] == pytest.approx(0.0, abs=1e-12)
    assert weights == sorted(weights, reverse=True)
    assert weights[4] > 0


@pytest.mark.parametrize("after", [0, 3])
def test_decay_after_an_epoch_is_that_of_wkds_code(after):
    term = KLTerm(weight=2.0, decay="cosine", decay_after_epoch=after)
    weights = [term_weight(term, epoch, 8) for epoch in range(1, 9)]
    published = [
        2.0 if epoch <= after else 1.0 + math.cos(math.pi * (epoch - after) / (8 - after)) for epoch in range(1, 9)
    ]
    assert weights == pytest.approx(published)
    assert weights[-1] == 0.0


def test_decay_after_an_epoch_behind_the_last_never_begins():
    term = KLTerm(decay="linear", decay_after_epoch=9)
    assert [term_weight(term, epoch, 4) for epoch in (1, 4)] == [1.0, 1.0]


def test_decay_starts_at_the_end_of_the_warm_up():
    term = KLTerm(warmup_epochs=2.5, decay="linear")
    weights = [term_weight(term, epoch, 5) for epoch in range(1, 6)]
    assert weights == pytest.approx([0.4, 0.8, 1.0, 2 / 3, 1 / 3])


def test_warm_up_longer_than_the_run_never_decays():
    assert [term_weight(KLTerm(warmup_epochs=8, decay="cosine"), epoch, 2) for epoch in (1, 2)] == [0.125, 0.25]


def test_terms_of_one_name_are_numbered():
    assert part_names([KLTerm(), KLTerm(), GKLTerm(), KLTerm()]) == ("kl", "kl_2", "gkl", "kl_3")


def test_loss_is_the_weighted_sum_of_the_logged_parts():
    terms = CrossEntropyTerm(weight=0.5), KLTerm(weight=2.0, warmup_epochs=4), KLTerm(temperature=3.0)
    objective = distillation(*terms)
    objective.set_epoch(2)
    outcome = objective(batch())
    assert objective.weights == {"cross_entropy": 0.5, "kl": 1.0, "kl_2": 1.0}
    parts = outcome.parts
    torch.testing.assert_close(outcome.loss, 0.5 * parts["cross_entropy"] + parts["kl"] + parts["kl_2"])


# --- labels -----------------------------------------------------------------------------------------------


def test_supervised_is_torchs_cross_entropy_with_smoothing():
    student = network(0).eval()
    outcome = Supervised(student, [CrossEntropyTerm(label_smoothing=0.2)], epochs=1, facts=Facts(CLASSES))(batch())
    expected = F.cross_entropy(student(batch().images), batch().labels, label_smoothing=0.2)
    torch.testing.assert_close(outcome.loss, expected)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("threshold", [None, 0.0, 0.25])
@pytest.mark.parametrize("mixed", [False, True])
def test_binary_cross_entropy_equals_a_loop_over_classes(smoothing, threshold, mixed):
    logits = torch.randn(4, CLASSES, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([0, 2, 1, 2])
    targets = F.one_hot(labels, CLASSES).double()
    if mixed:
        targets = 0.7 * targets + 0.3 * targets.flip(0)
    expected = []
    for row, target in zip(logits.tolist(), targets.tolist(), strict=True):
        for z, mass in zip(row, target, strict=True):
            wanted = mass * (1 - smoothing) + smoothing / CLASSES
            if threshold is not None:
                wanted = float(wanted > threshold)
            expected.append(wanted * math.log1p(math.exp(-z)) + (1 - wanted) * math.log1p(math.exp(z)))
    term = CrossEntropyTerm(binary=True, label_smoothing=smoothing, target_threshold=threshold)
    value = cross_entropy(term, logits, targets if mixed else labels)
    assert value.item() == pytest.approx(sum(expected) / len(expected), rel=1e-12)


def test_a_threshold_of_targets_without_binary_cross_entropy_is_refused():
    with pytest.raises(ValidationError, match="`target_threshold` belongs to `binary: true`"):
        CrossEntropyTerm(target_threshold=0.2)


def test_cross_entropy_of_bf16_logits_is_float32():
    objective = Supervised(network(0), [CrossEntropyTerm()], epochs=1, facts=Facts(CLASSES))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outcome = objective(batch())
    assert outcome.logits.dtype == torch.bfloat16
    assert outcome.loss.dtype == torch.float32


def test_soft_labels_of_one_class_are_the_hard_label():
    objective = distillation(CrossEntropyTerm(), GKLTerm()).eval()
    hard = batch()
    soft = FakeBatch(hard.images, F.one_hot(hard.labels, CLASSES).float(), hard.indices)
    torch.testing.assert_close(objective(soft).loss, objective(hard).loss)
    priors = []
    for view in (hard, soft):
        objective = distillation(GKLTerm())
        objective.after_step(view, objective(view))
        objective.refresh()
        priors.append(objective.class_prior())
    torch.testing.assert_close(*priors)


# --- teachers ---------------------------------------------------------------------------------------------


def test_teachers_stay_frozen_and_in_eval_whatever_is_called():
    objective = distillation(KLTerm(), teachers=2)
    objective.train()
    objective.requires_grad_(True)
    before = [{name: value.clone() for name, value in teacher.state_dict().items()} for teacher in objective.teachers]
    objective(batch()).loss.backward()
    for teacher, state in zip(objective.teachers, before, strict=True):
        assert not any(module.training for module in teacher.modules())
        assert all(not p.requires_grad and p.grad is None for p in teacher.parameters())
        assert all(torch.equal(value, state[name]) for name, value in teacher.state_dict().items())


def test_teachers_run_without_a_graph_even_if_somebody_thaws_them():
    objective = distillation(KLTerm(), GKLTerm(), teachers=2)
    for teacher in objective.teachers:
        teacher.requires_grad_(True)
    outcome = objective(batch())
    assert all(not logits.requires_grad and logits.grad_fn is None for logits in outcome.target_logits)
    outcome.loss.backward()
    assert all(p.grad is None for teacher in objective.teachers for p in teacher.parameters())
    assert all(p.grad is not None for p in objective.student.parameters())


def test_teachers_are_in_neither_the_state_nor_the_parameters():
    objective = distillation(CrossEntropyTerm(), GKLTerm(), teachers=2)
    student = sum(p.numel() for p in objective.student.parameters())
    assert sum(p.numel() for p in objective.parameters()) == student
    assert {key.split(".")[0] for key in objective.state_dict()} == {"student", "losses"}


def test_divergence_is_the_mean_over_the_teachers():
    objective = distillation(KLTerm(temperature=2.0), teachers=3).eval()
    outcome = objective(batch())
    loss = build_loss("loss", KLTerm(temperature=2.0), Facts(CLASSES))
    expected = sum(loss(outcome.logits, teacher(batch().images)) for teacher in objective.teachers) / 3
    torch.testing.assert_close(outcome.loss, expected)


def test_each_term_and_teacher_has_a_prior_of_its_own():
    objective = distillation(GKLTerm(), IKLTerm(prior_temperature=2.0), teachers=2)
    data = batch(200)
    objective.after_step(data, objective(data))
    objective.refresh()
    priors = [module for module in objective.losses.modules() if isinstance(module, ClassPrior)]
    assert len(priors) == 4
    for prior, teacher in zip(priors[:2], objective.teachers, strict=True):
        scores = teacher(data.images).softmax(dim=1)
        means = torch.stack([scores[data.labels == label].mean(dim=0) for label in range(CLASSES)])
        torch.testing.assert_close(prior.prior, means)
    assert not torch.equal(priors[0].prior, priors[1].prior)
    assert not torch.equal(priors[0].prior, priors[2].prior)
    torch.testing.assert_close(objective.class_prior(), priors[0].prior)


def test_prior_changes_at_a_refresh_only():
    objective = distillation(GKLTerm())
    uniform = objective.class_prior().clone()
    objective.after_step(batch(), objective(batch()))
    objective.synchronize()
    assert torch.equal(objective.class_prior(), uniform)
    objective.refresh()
    assert not torch.equal(objective.class_prior(), uniform)


def test_sample_wise_losses_have_no_class_prior():
    assert distillation(KLTerm(), GKLTerm(prior="sample")).class_prior() is None


def test_recorded_logits_stand_for_the_teachers():
    data = batch()
    asked = distillation(KLTerm(), GKLTerm(), teachers=2).eval()
    recorded = [teacher(data.images).flip(0) for teacher in asked.teachers]
    told = distillation(KLTerm(), GKLTerm(), teachers=2, recorded=recorded).eval()
    data.indices = data.indices.flip(0)
    torch.testing.assert_close(told(data).loss, asked(data).loss)


def test_cross_entropy_alone_asks_no_teacher():
    objective = distillation(CrossEntropyTerm())
    objective.teachers[0].forward = None  # calling it would raise
    assert objective(batch()).target_logits == ()


# --- options ----------------------------------------------------------------------------------------------

CHANGED = (
    KLTerm(weight=9.0, temperature=3.0, scale_by_t2=True),
    ReverseKLTerm(temperature=3.0, scale_by_t2=True),
    JSTerm(beta=0.25, temperature=3.0, scale_by_t2=True),
    DKLTerm(prior="class", symmetric=True, mse_weight=2.0, ce_weight=3.0, temperature=4.0, scale_by_t2=True),
    IKLTerm(prior="sample", mse_weight=2.0, ce_weight=3.0, prior_temperature=5.0, ramp_epochs=6, normalizer="row"),
    GKLTerm(mse_weight=2.0, ce_weight=3.0, weight_power=0.5, temperature=4.0, prior_temperature=5.0, ramp_epochs=6),
    MARTTerm(kl_weight=6.0),
    LogitMSETerm(),
)


@pytest.mark.parametrize("term", CHANGED, ids=lambda term: term.name)
def test_every_option_reaches_the_loss(term):
    loss = build_loss("loss", term, Facts(CLASSES))
    for name, value in term.model_dump(include=set(loss_options(type(term))) - {"prior"}).items():
        assert getattr(loss, name) == value, name
    if "prior" in type(term).model_fields:
        assert (loss.prior is not None) == (term.prior == "class")


def test_standardize_puts_the_loss_behind_the_transform():
    loss = build_loss("kl", KLTerm(temperature=2.0, standardize=True), Facts(CLASSES))
    assert isinstance(loss, StandardizedLoss)
    assert loss.loss.temperature == 2.0


def test_objective_is_that_of_the_task():
    student, teacher = network(0), network(1)
    assert type(build_objective(Recipe(), student, [teacher], Facts(CLASSES))) is Supervised
    recipe = Recipe(task="distill", teachers=(TeacherOptions(run="t"),), losses=(KLTerm(),))
    assert type(build_objective(recipe, student, [teacher], Facts(CLASSES))) is Distillation


# --- what terms look at -------------------------------------------------------------------------------------


def zoo(name: str, seed: int) -> nn.Module:
    return build_model(ModelOptions(name=name), image_shape=(3, 8, 8), num_classes=CLASSES, seed=seed)


def small_facts(**changes) -> Facts:
    known = {"example": torch.zeros(1, 3, 8, 8), "train_labels": torch.arange(40) % CLASSES}
    return Facts(CLASSES, **{**known, "costs": lambda position, term: 1 - torch.eye(CLASSES), **changes})


def pictures(samples: int = 6) -> FakeBatch:
    images = torch.randn(samples, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return FakeBatch(images, torch.arange(samples) % CLASSES, torch.arange(samples) + 7)


@pytest.mark.parametrize("name", sorted(TERMS.keys() - TASK_ONLY.keys() - {"cross_entropy", "mart"}))
def test_every_term_can_be_built_and_pulls_the_student_alone(name):
    student, teacher = zoo("resnet8", 0), zoo("resnet14", 1)
    objective = Distillation(student, [teacher], [TERMS[name]()], epochs=3, facts=small_facts())
    outcome = objective(pictures())
    outcome.loss.backward()
    objective.after_step(pictures(), outcome)
    assert any(parameter.grad.abs().sum() > 0 for parameter in student.parameters() if parameter.grad is not None)
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_a_term_gets_the_layers_that_it_names_and_no_others():
    student, teacher = zoo("resnet8", 0).eval(), zoo("resnet14", 1)
    terms = [FitNetTerm(features=("stage1",)), ATTerm(features=("stage3", "stage2"))]
    objective = Distillation(student, [teacher], terms, epochs=3, facts=small_facts())
    seen = {}
    for name in ("fitnet", "at"):
        objective.losses[name][0].register_forward_pre_hook(
            lambda module, arguments, name=name: seen.update({name: arguments})
        )
    objective(pictures())
    stages, targets = (net.forward_stages(pictures().images) for net in (student, teacher))
    for name, asked in (("fitnet", ("stage1",)), ("at", ("stage3", "stage2"))):
        for given, expected in zip(seen[name], (stages, targets), strict=True):
            assert all(torch.equal(feature, expected[stage]) for feature, stage in zip(given, asked, strict=True))
            assert len(given) == len(asked)


def test_a_loss_starts_from_the_seed_of_the_run_and_its_name_alone():
    def weights(seed: int, *terms) -> list[Tensor]:
        objective = Distillation(zoo("resnet8", 0), [zoo("resnet14", 1)], terms, epochs=3, facts=small_facts(seed=seed))
        return [value.clone() for value in objective.losses["fitnet"].parameters()]

    random = torch.random.get_rng_state()
    first = weights(0, FitNetTerm())
    assert all(map(torch.equal, first, weights(0, VIDTerm(), FitNetTerm())))
    assert not all(map(torch.equal, first, weights(1, FitNetTerm())))
    assert torch.equal(torch.random.get_rng_state(), random)


def test_what_a_run_does_not_know_is_said_in_one_line():
    student, teacher = zoo("resnet8", 0), zoo("resnet14", 1)
    for term, missing, message in (
        (CRDTerm(), "train_labels", "`crd` needs the labels of all training images, which a user's loader hides"),
        (WKDLogitTerm(), "costs", "`wkd_logit` needs costs between classes, which this task has none of"),
        (FitNetTerm(), "example", "`fitnet` needs an example of the images, which this run has none of"),
    ):
        with pytest.raises(ValueError, match=message):
            Distillation(student, [teacher], [term], epochs=3, facts=small_facts(**{missing: None}))


def test_a_term_without_a_teacher_trains_in_the_task_supervised():
    for term in (TfKDTerm(), ZipfTerm(), USKDTerm()):
        objective = Supervised(zoo("resnet8", 0), [term], epochs=3, facts=small_facts())
        assert objective(pictures()).loss.requires_grad


def test_a_refresh_reaches_a_loss_behind_the_transform_once():
    term = DKLTerm(prior="class", standardize=True)
    objective = Distillation(network(0), [network(1)], [term], epochs=3, facts=Facts(CLASSES))
    objective.after_step(batch(), objective(batch()))
    objective.refresh()
    assert objective.losses["dkl"][0].loss.prior.status().refreshes == 1


def test_closing_takes_all_hooks_away():
    student, teacher = zoo("resnet8", 0), zoo("resnet14", 1)
    objective = Distillation(student, [teacher], [ATTerm()], epochs=3, facts=small_facts())
    objective.close()
    assert not any(part._forward_hooks for net in (student, teacher) for part in net.modules())


def test_layers_named_for_the_student_stand_for_the_teachers_too():
    assert ReviewKDTerm().target_features == ("stages:preactivation", "pooled")
    assert ReviewKDTerm(features=("2", "5")).target_features is None


def test_a_mistake_names_the_term_the_option_and_the_network():
    facts = small_facts()
    for term, message in (
        (FitNetTerm(features=("stage9",)), "`fitnet`, `features` of the student: the network has no module `stage9`"),
        (FitNetTerm(target_features=("nolayer",)), "`fitnet`, `target_features` of the teacher: the network has no"),
        (
            ATTerm(target_features=("stage1",)),
            r"`at` expected as many layers .* got 3 .* and 1 \(features.stage1\)",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            Distillation(zoo("resnet8", 0), [zoo("resnet14", 1)], [term], epochs=3, facts=facts)


def test_one_shape_in_place_of_a_list_of_them_is_refused():
    with pytest.raises(TypeError, match=r"`shapes` expected one shape per layer, such as \[\(16, 8, 8\)\]"):
        FitNetLoss((16, 8, 8), [(32, 8, 8)])
