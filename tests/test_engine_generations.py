"""Born-again networks: a chain of runs, each with the one before for its teacher."""

from __future__ import annotations

import json
import signal

import numpy as np
import pytest
import torch
from engine_runs import Hook, assert_same_run, recipe

from limbeck.config_files import load_recipe
from limbeck.engine import run_folder
from limbeck.engine.fit import fit
from limbeck.engine.generations import GENERATIONS, train_generations
from limbeck.errors import Interrupted, UserError


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    run = tmp_path_factory.mktemp("teacher") / "run"
    fit(recipe(train={"epochs": 1}), run)
    return recipe(
        task="distill",
        teachers=[{"run": str(run)}],
        losses=[{"name": "cross_entropy"}, {"name": "dkd", "temperature": 2.0}],
        train={"epochs": 1},
    )


@pytest.fixture(scope="module")
def family(student, tmp_path_factory):
    folder = tmp_path_factory.mktemp("family") / "family"
    return folder, train_generations(student, folder, 3)


def test_each_generation_learns_from_the_one_before_from_weights_of_its_own(student, family):
    folder, _ = family
    recipes = [load_recipe(str(folder / f"generation{number}" / run_folder.CONFIG)) for number in (1, 2, 3)]
    assert [each.seed for each in recipes] == [0, 1, 2]
    assert recipes[0].teachers == student.teachers
    assert [each.teachers[0].run for each in recipes[1:]] == [str(folder / f"generation{n}") for n in (1, 2)]
    assert len({tuple(each.losses) for each in recipes}) == 1


def test_a_generation_is_the_run_alone(family, tmp_path):
    folder, _ = family
    options = load_recipe(str(folder / "generation2" / run_folder.CONFIG))
    fit(options, tmp_path / "alone")
    assert_same_run(folder / "generation2", tmp_path / "alone")


def test_the_ensemble_averages_probabilities(family):
    folder, content = family
    assert content == json.loads((folder / GENERATIONS).read_text())
    mean = torch.zeros(())
    for number in (1, 2, 3):
        arrays = np.load(folder / f"generation{number}" / run_folder.PREDICTIONS)
        mean = mean + torch.from_numpy(arrays["test_logits"]).double().softmax(-1) / 3
    labels = torch.from_numpy(arrays["test_labels"])
    measured = content["generations"][2]["ensemble"]
    assert measured["top1"] == pytest.approx((mean.argmax(-1) == labels).double().mean().item())
    assert measured["nll"] == pytest.approx(-mean.gather(1, labels[:, None]).log().mean().item(), abs=1e-5)
    first = content["generations"][0]
    assert first["ensemble"]["top1"] == first["test"]["top1"]


def test_an_interrupted_family_goes_on_where_it_stopped(student, family, tmp_path):
    steps = []

    def interrupt(step: int) -> None:
        steps.append(step)
        if len(steps) == 10:  # within the second generation
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted):
        train_generations(student, tmp_path / "f", 3, reporter=Hook(interrupt))
    assert not (tmp_path / "f" / GENERATIONS).exists()
    resumed = train_generations(student, tmp_path / "f", 3)
    assert resumed["generations"][2]["test"] == family[1]["generations"][2]["test"]


def test_another_task_has_no_generations(tmp_path):
    with pytest.raises(UserError, match="--generations expected a recipe of task `distill`, got task `supervised`"):
        train_generations(recipe(), tmp_path / "f", 2)
    assert not (tmp_path / "f").exists()
