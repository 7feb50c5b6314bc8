"""The rows of CIFAR-100's recipes: the published weights a second time, and one step of each on its real networks."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from recipe_steps import of_another_library
from torch import Tensor

from limbeck.config import ModelOptions
from limbeck.config_files import load_recipe, recipe_names
from limbeck.functional.interrelations import cost_from_interrelations, uniform_interrelations
from limbeck.models import build_model
from limbeck.objectives.build import Facts
from limbeck.objectives.distill import Distillation
from limbeck.objectives.supervised import Supervised
from limbeck.objectives.terms import term_weight

FOLDER = "distill/cifar100/"
WKD = ["wkd-resnet32x4-resnet8x4", "wkd-wrn_40_2-shufflenet_v1"]
OTHERS = [FOLDER + name for name in [*WKD, "born-again-resnet18"]]
PAIRS = [name for name in recipe_names() if name.startswith(FOLDER) and name not in OTHERS]
PAIRS = [name for name in PAIRS if not of_another_library(name)]  # those are in tests/zoo
ABLATIONS = [name for name in recipe_names() if name.startswith("ablations/cifar100/wkd-")]
SELF = "supervised/cifar100/self-distillation"

# DKD's beta (mdistiller's files), ReviewKD's weight (its script; 5 where it has none, mdistiller's), CAT-KD's files.
BY_PAIR = """
    resnet56-resnet20        2  0.6    0.7 2 False
    resnet110-resnet32       2  1.0    1.8 2 False
    resnet32x4-resnet8x4     8  5.0   15   2 False
    wrn_40_2-wrn_16_2        6  5.0   12   2 False
    wrn_40_2-wrn_40_1        6  5.0    1.5 2 False
    vgg13-vgg8               6  5.0    4.5 2 False
    resnet32x4-shufflenet_v1 8  5.0  600   4 True
    wrn_40_2-shufflenet_v1   8  5.0   80   4 True
    vgg13-mobilenet_v2       6  5.0   15   2 True
    resnet50-mobilenet_v2    8  5.0   40   2 True
    resnet32x4-shufflenet_v2 8  8.0  600   4 True
"""
# Row: weights of its terms, the cross-entropy's first, and what else is published; the same for all pairs.
ROWS = {
    "kd": ([0.1, 0.9], {"temperature": 4.0, "scale_by_t2": True, "standardize": False}),
    "nkd": ([1.0, 1.0], {"target_weight": 1.0, "rest_weight": 3.5, "temperature": 3.0, "scale_by_t2": True}),
    "ctkd": ([0.1, 0.9], {"min_temperature": 1.0, "temperature_range": 20.0, "ramp_epochs": 10.0}),
    "dist": ([1.0, 2.0], {"inter_weight": 1.0, "intra_weight": 1.0, "temperature": 4.0, "scale_by_t2": True}),
    "ttm": ([1.0, 45.0], {"power": 0.1, "weighted": False}),
    "wttm": ([1.0, 4.0], {"power": 0.2, "weighted": True}),
    "mlkd": ([0.1, 0.9], {"temperatures": (4.0, 2.0, 3.0, 5.0, 6.0), "mask": "code", "scale_by_t2": True}),
    "lskd": ([0.1, 9.0], {"temperature": 2.0, "scale_by_t2": True, "standardize": True}),
    "fitnet": ([1.0, 100.0], {"mode": "code", "features": ("hint",)}),
    "at": ([1.0, 1000.0], {"mode": "code", "power": 2.0}),
    "nst": ([1.0, 50.0], {}),
    "vid": ([1.0, 1.0], {"initial_variance": 5.0}),
    "ofd": ([1.0, 0.001], {}),
    "ickd": ([1.0, 1.0, 2.5], {}),
    "rkd": ([1.0, 1.0], {"distance_weight": 25.0, "angle_weight": 50.0}),
    "cc": ([1.0, 0.02], {"form": "neighbour", "dim": 128}),
    "pkt": ([1.0, 30000.0], {}),
    "sp": ([1.0, 3000.0], {}),
    "crd": ([1.0, 0.8], {"dim": 128, "negatives": 16384, "temperature": 0.07, "momentum": 0.5, "positive": "exact"}),
}


class Images(NamedTuple):
    images: Tensor
    labels: Tensor
    indices: Tensor


def rows_of(name):
    return {row: contender.settings[0] for row, contender in load_recipe(name).compare.contenders.items()}


# --- values -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PAIRS)
def test_every_published_row_has_a_contender_and_every_pair_the_same_rows(name):
    recipe = load_recipe(name)
    own = {"crd_wttm"} if name.endswith("vgg13-vgg8") else set()
    by_pair = {"ce", "dkd", "reviewkd", "cat", "ikl", "gkl"}
    assert recipe.compare.contenders.keys() == ROWS.keys() | by_pair | own
    assert recipe.compare.published.rows.keys() <= recipe.compare.contenders.keys()


@pytest.mark.parametrize("name", PAIRS)
def test_weights_equal_the_second_transcription(name):
    rows = rows_of(name)
    for row, (weights, published) in ROWS.items():
        assert [term.weight for term in rows[row]] == weights, row
        assert rows[row][0].name == "cross_entropy"
        chosen = rows[row][-1].model_dump()
        assert {key: chosen[key] for key in published} == published, row
        assert {term.warmup_epochs for term in rows[row]} == {0.0}


@pytest.mark.parametrize("line", BY_PAIR.strip().splitlines(), ids=lambda line: line.split()[0])
def test_weights_of_a_pair_equal_the_second_transcription(line):
    pair, beta, review, weight, pool, normalize = line.split()
    rows = rows_of(FOLDER + pair)
    dkd, reviewed, cat = rows["dkd"][1], rows["reviewkd"][1], rows["cat"][1]
    assert (dkd.weight, dkd.target_weight, dkd.rest_weight, dkd.temperature) == (1.0, 1.0, float(beta), 4.0)
    assert reviewed.weight == float(review)
    assert dkd.warmup_epochs == reviewed.warmup_epochs == 20
    assert (cat.weight, cat.pool, str(cat.normalize)) == (float(weight), int(pool), normalize)


# Learning rate; L: tau, lambda; F: weight, gamma, grid; L+F: tau, lambda, weight, gamma; the README's accuracies.
@pytest.mark.parametrize(
    ("name", "rate", "only_l", "only_f", "both", "published"),
    [
        (WKD[0], 0.05, (8, 600), (0.08, 4, 1), (8, 200, 0.08, 8), (76.53, 76.77, 77.28)),
        (WKD[1], 0.01, (6, 200), (0.3, 3, 4), (4, 60, 0.5, 3), (76.72, 77.36, 77.50)),
    ],
)
def test_wkd_has_the_values_of_the_public_code(name, rate, only_l, only_f, both, published):
    recipe, rows = load_recipe(FOLDER + name), rows_of(FOLDER + name)
    for row, (tau, factor) in (("wkd_l", only_l), ("wkd_l_f", both[:2])):
        transport, target = (term for term in rows[row] if term.name == "wkd_logit")
        assert (transport.temperature, transport.transport_weight, transport.target_weight) == (tau, factor, 0.0)
        assert (transport.sharpness, transport.reg, transport.iterations) == (1.0, 0.05, 10)
        assert (transport.interrelations, transport.separate_target) == ("cka", True)
        assert (target.transport_weight, target.target_weight, target.weight) == (0.0, 1.0, 1.0)
    for row, (weight, gamma) in (("wkd_f", only_f[:2]), ("wkd_l_f", both[2:])):
        term = rows[row][-1]
        assert (term.name, term.weight, term.mean_weight, term.grid) == ("wkd_feature", weight, gamma, only_f[2])
        assert (term.projector, term.covariance, term.features) == ("conv1x1", "diagonal", ("last",))
        assert term.unbiased
    assert recipe.losses == rows["wkd_l_f"]
    assert tuple(recipe.compare.published.rows.values()) == published
    assert (recipe.optimizer.learning_rate, recipe.optimizer.nesterov) == (rate, True)


@pytest.mark.parametrize("name", WKD)
def test_transport_and_features_decay_after_150_epochs_and_the_target_term_never(name):
    terms = [term for term in rows_of(FOLDER + name)["wkd_l_f"] if term.name != "cross_entropy"]
    transport, target, features = terms
    assert [term_weight(target, epoch, 240) for epoch in (1, 151, 240)] == [1.0, 1.0, 1.0]
    for term in (transport, features):
        assert [term_weight(term, epoch, 240) for epoch in (1, 150, 240)] == [term.weight, term.weight, 0.0]
        assert term_weight(term, 195, 240) == pytest.approx(term.weight / 2)


def test_self_distillation_has_the_published_settings_of_cifar_100():
    rows = rows_of(SELF)
    assert rows["smoothing"][0].label_smoothing == 0.1
    # alpha 0.1, multiplier 100, and the public code's KL is a mean over the 100 classes
    assert [term.weight for term in rows["tf_kd"]] == [0.9, 0.1 * 100 / 100]
    assert (rows["tf_kd"][1].temperature, rows["tf_kd"][1].correct, rows["tf_kd"][1].mode) == (20.0, 0.99, "code")
    assert (rows["zipf"][1].weight, rows["zipf"][1].upsample, rows["zipf"][1].dense) == (0.1, 2, True)
    uskd = rows["uskd"][1]
    assert (uskd.target_weight, uskd.rest_weight, uskd.weak_weight) == (0.1, 0.1, 0.1)
    alone = rows_of(FOLDER + "born-again-resnet18")["tf_kd_self"]
    assert [term.weight for term in alone] == [0.05, 0.95 * 50 / 100]


@pytest.mark.parametrize("name", ["teacher/cifar100/resnet18", SELF, FOLDER + "born-again-resnet18"])
def test_self_distillation_trains_as_the_code_of_tf_kd(name):
    recipe = load_recipe(name)
    assert (recipe.train.epochs, recipe.train.batch_size, recipe.optimizer.learning_rate) == (200, 128, 0.1)
    assert (recipe.optimizer.nesterov, recipe.optimizer.weight_decay) == (False, 5e-4)
    assert (recipe.schedule.milestones, recipe.schedule.decay_factor) == ((60, 120, 160), 0.2)
    assert (recipe.protocol, recipe.data.validation, recipe.model.name) == ("paper", 0, "resnet18_cifar")


# --- one step -----------------------------------------------------------------------------------------------

LABELS = torch.arange(400) % 100  # of the images that CRD remembers


def network(name, seed):
    return build_model(ModelOptions(name=name), image_shape=(3, 32, 32), num_classes=100, seed=seed)


def settled(model):
    """The network with the statistics of noise: untrained ones let the logits of 110 layers grow without bound."""
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        model(torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(3)))
    return model


def uniform_cost(position, term):
    return cost_from_interrelations(uniform_interrelations(100).float(), sharpness=term.sharpness)


def terms_of(name):
    """The terms of all rows, each once."""
    terms = {repr(term): term for setting in rows_of(name).values() for term in setting}
    return list(terms.values())


def batch_of(count=4):
    images = torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(5))
    places = torch.tensor([7, 150, 301, 42][:count])
    return Images(images, LABELS[places], places)


def assert_each_part_reaches_the_student(objective, batch):
    """Every term has a finite value, and a gradient at the student's first layer that is finite and not 0."""
    outcome = objective(batch)
    first = next(parameter for parameter in objective.student.parameters() if parameter.dim() > 1)
    for name, part in outcome.parts.items():
        assert part.isfinite(), name
        (gradient,) = torch.autograd.grad(part, first, retain_graph=True)
        assert gradient.isfinite().all(), name
        assert gradient.abs().max() > 0, name


@pytest.mark.parametrize("name", [*PAIRS, *OTHERS, *ABLATIONS])
def test_every_row_trains_the_student_of_its_pair(name):
    recipe = load_recipe(name)
    teacher = settled(network(load_recipe(recipe.teachers[0].recipe).model.name, seed=1))
    student = network(recipe.model.name, seed=2)
    facts = Facts(100, torch.zeros(1, 3, 32, 32), LABELS, costs=uniform_cost)
    objective = Distillation(student, [teacher], terms_of(name), epochs=recipe.train.epochs, facts=facts)
    assert_each_part_reaches_the_student(objective.train(), batch_of())


def test_every_self_distillation_row_trains_without_a_teacher():
    recipe = load_recipe(SELF)
    facts = Facts(100, torch.zeros(1, 3, 32, 32), LABELS)
    objective = Supervised(network(recipe.model.name, seed=2), terms_of(SELF), epochs=200, facts=facts)
    assert_each_part_reaches_the_student(objective.train(), batch_of())
