"""An evaluation is what its rows say, by definition, and depends on nothing else."""

from __future__ import annotations

import importlib
import json
import math
from dataclasses import fields

import pyautoattack
import pytest
import torch
from attacked_nets import QuickAutoAttack, Rounded, Scaled, network, samples
from torch import nn

from limbeck.adversary import Robustness, Row, evaluate, perturb, robustbench, start_points
from limbeck.adversary.evaluate import check_attacks

adapter = importlib.import_module("limbeck.adversary.autoattack")
ROBUSTBENCH = {  # of the entries in its `model_info`
    *("link", "name", "authors", "additional_data", "number_forward_passes", "dataset", "venue", "architecture"),
    *("eps", "clean_acc", "reported", "autoattack_acc", "footnote", "unreliable"),
}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(pyautoattack, "AutoAttack", QuickAutoAttack)


def wrong_margin(logits, labels):
    others = logits.masked_fill(nn.functional.one_hot(labels, logits.shape[1]).bool(), -math.inf)
    return others.amax(1) - logits.gather(1, labels[:, None])[:, 0]


# --- the attacks ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("attack", "climbed"),
    [("pgd3", lambda logits, labels: -logits.log_softmax(1).gather(1, labels[:, None])), ("cw3", wrong_margin)],
)
def test_a_row_is_steps_of_a_quarter_from_a_uniform_start(attack, climbed):
    images, labels = samples(60, first=1000)
    model, epsilon, indices = network().double(), 0.12, torch.arange(60)
    images = images.double()
    points = start_points(images, "uniform", epsilon=epsilon, norm="linf", seed=5, epoch=0, indices=indices)
    points = points.clamp(0, 1)
    for _ in range(3):
        points.requires_grad_()
        (gradient,) = torch.autograd.grad(climbed(model(points), labels).sum(), points)
        points = points.detach() + epsilon / 4 * gradient.sign()
        points = torch.minimum(torch.maximum(points, images - epsilon), images + epsilon).clamp(0, 1)
    torch.testing.assert_close(perturb(model, images, labels, attack=attack, epsilon=epsilon, seed=5), points)
    measured = evaluate(network(), images.float(), labels, attacks=[attack], epsilons=[epsilon], seed=5)
    right = model(points).argmax(1) == labels
    assert torch.equal(measured.flags[attack, epsilon], right)
    (row,) = measured.rows
    assert row.accuracy == right.double().mean().item()
    assert 0 < row.accuracy < measured.clean.double().mean()


def test_a_row_states_all_that_it_depends_on():
    images, labels = samples(6, first=1000)
    measured = evaluate(network(), images, labels, attacks=["cw20", "aa"], epsilons=[0.2], norm="l2", seed=1)
    cw, aa = measured.to_dict()["rows"]
    assert list(cw) == [field.name for field in fields(Row)]
    assert cw.pop("seconds") > 0
    assert aa.pop("seconds") > 0
    assert cw.pop("accuracy") >= aa.pop("accuracy")
    assert cw == {
        "attack": "cw20",
        "epsilon": 0.2,
        "step_size": 0.05,
        "steps": 20,
        "start": "uniform",
        "iterate": "last",
        "loss": "margin",
        "norm": "l2",
        "n": 6,
        "seed": 1,
        "library": "limbeck 0.1.0",
        "standard": None,
    }
    unsaid = dict.fromkeys(["step_size", "steps", "start", "iterate", "loss"])
    assert aa == cw | unsaid | {"attack": "aa", "library": "pyautoattack 0.2.0", "standard": True}


def test_batch_size_changes_nothing():
    images, labels = samples(50, first=1000)
    options = {"attacks": ["pgd5", "cw5"], "epsilons": [0.1, 0.2]}
    expected = evaluate(network(), images, labels, **options)
    measured = evaluate(network(), images, labels, batch_size=7, **options)
    assert measured.flags.keys() == expected.flags.keys()
    assert all(torch.equal(measured.flags[key], flags) for key, flags in expected.flags.items())


def test_another_seed_is_another_start():
    images, labels = samples(2)
    first, second = (perturb(network(), images, labels, attack="pgd1", epsilon=0.3, seed=seed) for seed in (0, 1))
    assert not torch.equal(first, second)


def test_epsilons_and_attacks_count_once_and_autoattack_comes_last():
    told = []
    images, labels = samples(4)
    evaluate(
        network(),
        images,
        labels,
        attacks=["aa", "pgd2", "clean", "pgd2"],
        epsilons=[0.1, 0.2, 0.1],
        progress=lambda *numbers: told.append(numbers),
    )
    assert list(dict.fromkeys(call[:2] for call in told)) == [("pgd2", 0.1), ("pgd2", 0.2), ("aa", 0.1), ("aa", 0.2)]
    assert [call[2:] for call in told if call[:2] == ("pgd2", 0.1)] == [(0, 4), (4, 4)]
    assert [call[2:] for call in told if call[:2] == ("aa", 0.1)][-1] == (4, 4)


def test_clean_alone_attacks_nothing():
    images, labels = samples(20, first=1000)
    measured = evaluate(network(), images, labels, attacks=["clean"])
    assert measured.rows == ()
    assert measured.to_dict()["clean"] == (network()(images).argmax(1) == labels).double().mean().item()


def test_the_network_is_left_as_it_was():
    model, random = network().train(), torch.get_rng_state()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    evaluate(model, *samples(8), attacks=["pgd2", "aa"], epsilons=[0.1])
    assert all(part.training for part in model.modules())
    assert all(weight.requires_grad and weight.grad is None for weight in model.parameters())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)


# --- masked gradients -------------------------------------------------------------------------------------


def test_a_quantised_defence_is_caught():
    images, labels = samples(30, first=1000)
    sound = evaluate(network(), images, labels, attacks=["pgd20", "aa"], epsilons=[0.15])
    masked = evaluate(Rounded(network()), images, labels, attacks=["pgd20", "aa"], epsilons=[0.15])
    assert sound.warnings == ()
    accuracy = {name: masked.flags[name, 0.15].double().mean() for name in ("pgd20", "aa")}
    assert accuracy["pgd20"] > sound.flags["pgd20", 0.15].double().mean() + 0.2  # looks robust
    assert accuracy["aa"] < accuracy["pgd20"] - 0.1  # is not
    zero, square = masked.warnings
    assert "gradient of the cross-entropy is zero on 30 of 30 images" in zero
    assert square.startswith("at epsilon 0.15 Square breaks")


def test_a_saturated_defence_is_caught():
    images, labels = samples(30, first=1000)
    sound = evaluate(network(), images, labels, attacks=["pgd20"], epsilons=[0.15])
    masked = evaluate(Scaled(network(), 1e5), images, labels, attacks=["pgd20", "cw20"], epsilons=[0.15])
    assert masked.rows[0].accuracy > sound.rows[0].accuracy + 0.2  # PGD's gradient is gone
    assert masked.rows[1].accuracy <= sound.rows[0].accuracy + 0.1  # the margin's is not
    assert "gradient of the cross-entropy is zero on" in masked.warnings[0]


# --- what is made of the rows -----------------------------------------------------------------------------


def row(attack, epsilon, flags):
    return Row(attack, epsilon, sum(flags) / len(flags), None, None, None, None, None, "linf", 4, 0, "x 1", True, 1.0)


def made(clean, flags, warnings=()):
    rows = tuple(row(*key, found) for key, found in flags.items())
    tensors = {key: torch.tensor(found).bool() for key, found in flags.items()}
    return Robustness(torch.tensor(clean).bool(), rows, tensors, warnings, "linf", 0)


def test_the_worst_case_is_of_each_sample():
    measured = made([1, 1, 1, 0], {("pgd20", 0.1): [1, 0, 1, 1], ("aa", 0.1): [0, 1, 1, 1], ("aa", 0.2): [0, 0, 0, 0]})
    assert measured.worst(0.1).tolist() == [False, False, True, False]
    assert measured.to_dict()["worst"] == [
        {"epsilon": 0.1, "accuracy": 0.25, "attacks": ["pgd20", "aa"]},
        {"epsilon": 0.2, "accuracy": 0.0, "attacks": ["aa"]},
    ]


def test_the_average_is_over_the_radii_of_an_attack():
    measured = made([1] * 4, {("aa", 0.1): [1, 1, 1, 0], ("aa", 0.2): [1, 0, 0, 0], ("pgd20", 0.1): [1, 1, 1, 1]})
    assert measured.to_dict()["averages"] == [{"attack": "aa", "epsilons": [0.1, 0.2], "accuracy": 0.5}]


def test_a_later_evaluation_adds_rows_and_replaces_its_own():
    earlier = made([1] * 4, {("pgd20", 0.1): [1, 1, 1, 0], ("aa", 0.1): [1, 0, 1, 0]}, ("old",))
    later = made([1] * 4, {("aa", 0.1): [0, 1, 1, 1], ("aa", 0.2): [0, 0, 0, 0]}, ("old", "new"))
    both = later.merged(earlier)
    assert [(row.attack, row.epsilon, row.accuracy) for row in both.rows] == [
        ("pgd20", 0.1, 0.75),
        ("aa", 0.1, 0.75),
        ("aa", 0.2, 0.0),
    ]
    assert both.worst(0.1).tolist() == [False, True, True, False]
    assert both.warnings == ("old", "new")


def test_the_figures_are_json():
    measured = evaluate(network(), *samples(6), attacks=["pgd2", "aa"], epsilons=[0.1])
    figures = measured.to_dict()
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures
    assert list(figures) == ["samples", "norm", "seed", "clean", "rows", "worst", "averages", "warnings"]


def test_robustbench_gets_its_own_keys():
    measured = made([1, 1, 1, 0], {("aa", 8 / 255): [1, 1, 0, 0], ("cw20", 8 / 255): [1, 0, 1, 0]})
    entry = robustbench(measured.to_dict(), 8 / 255, dataset="cifar10", architecture="WideResNet-34-10")
    assert entry.keys() == ROBUSTBENCH | {"external"}
    assert (entry["eps"], entry["clean_acc"], entry["autoattack_acc"]) == ("8/255", "75.00", "50.00")
    assert entry["external"] == "25.00"  # the worst case, which ranks
    assert entry["unreliable"] is False
    alone = made([1, 1, 1, 0], {("aa", 0.5): [1, 1, 0, 0]}, ("gradients are masked",))
    entry = robustbench(alone.to_dict(), 0.5, dataset="cifar10", architecture="x", footnote="Generated images.")
    assert entry.keys() == ROBUSTBENCH
    assert (entry["eps"], entry["unreliable"]) == ("0.5", True)
    assert entry["footnote"] == "linf, n = 4. Generated images. gradients are masked."


def test_robustbench_wants_autoattack():
    with pytest.raises(ValueError, match=r"expected AutoAttack at epsilon 0\.2"):
        robustbench(made([1], {("aa", 0.1): [1]}).to_dict(), 0.2, dataset="", architecture="")


# --- mistakes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("attacks", "error", "message"),
    [
        (
            ["pdg20"],
            ValueError,
            "`attacks` expected clean, pgdN, cwN with N steps, or aa, got 'pdg20'; did you mean `pgd20`",
        ),
        (["autoattack"], ValueError, "got 'autoattack'"),
        (["pgd0"], ValueError, "got 'pgd0'"),
        (["pgd"], ValueError, "got 'pgd'; did you mean"),
        ([], ValueError, "expected at least one"),
        ("pgd20", TypeError, "expected a list of names, got the string 'pgd20'"),
    ],
)
def test_an_unknown_attack_is_named(attacks, error, message):
    with pytest.raises(error, match=message):
        check_attacks(attacks)


def untouched(model):
    model.register_forward_hook(lambda *_: pytest.fail("the network was called"))
    return model


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": 2 * samples(4)[0]}, "`images` expected pixels"),
        ({"epsilons": [0]}, "`epsilons` expected numbers above 0"),
        ({"attacks": ["pgd20", "fgsm"]}, "`attacks` expected"),
        ({"norm": "l1"}, "`norm` expected"),
        ({"batch_size": 0}, "`batch_size` expected at least 1"),
        ({"images": samples(4)[0][:0], "labels": samples(4)[1][:0]}, "at least one sample"),
    ],
)
def test_a_mistake_is_told_before_the_network_is_called(changes, message):
    images, labels = samples(4)
    options = {"images": images, "labels": labels, "attacks": ["pgd1"], "epsilons": [0.1]} | changes
    with pytest.raises(ValueError, match=message):
        evaluate(untouched(network()), **options)


def test_a_missing_package_is_told_before_the_first_attack(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyautoattack", None)
    images, labels = samples(4)
    with pytest.raises(ImportError, match=r"limbeck\[autoattack\]"):
        evaluate(untouched(network()), images, labels, attacks=["pgd20", "aa"])


def test_labels_out_of_range_are_told_before_the_first_attack():
    images, labels = samples(4)
    told = []
    with pytest.raises(ValueError, match=r"`labels` expected values from 0 to 9.*got 10"):
        evaluate(network(), images, labels.clamp_min(10), progress=lambda *numbers: told.append(numbers))
    assert told == []


def test_a_function_is_no_network():
    with pytest.raises(TypeError, match=r"`model` expected a torch\.nn\.Module, got function"):
        evaluate(lambda images: images, *samples(4))
