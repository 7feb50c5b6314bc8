"""A teacher is a run, a recipe, or a file of weights: with the same weights it teaches the same."""

from __future__ import annotations

import pytest
import torch
from engine_runs import recipe
from safetensors.torch import load_file

from limbeck.config import Recipe
from limbeck.config_files import dump
from limbeck.engine.evaluate import evaluate, evaluate_file
from limbeck.engine.fit import fit
from limbeck.errors import UserError


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher") / "run"
    fit(recipe(), folder)
    return folder


def student(teacher) -> Recipe:
    return recipe(task="distill", teachers=[teacher], losses=[{"name": "kl"}], model={"width": 4})


MLP = {"name": "mlp", "width": 8, "depth": 1}


def test_a_run_its_weights_and_its_recipe_with_its_weights_teach_the_same(tmp_path, run):
    weights = str(run / "weights.safetensors")
    (tmp_path / "teacher.yaml").write_text(dump(recipe()))
    teachers = {
        "run": {"run": str(run)},
        "model": {"model": MLP, "weights": weights},
        "recipe": {"recipe": str(tmp_path / "teacher.yaml"), "weights": weights},
    }
    for name, teacher in teachers.items():
        fit(student(teacher), tmp_path / name)
    states = [load_file(tmp_path / name / "weights.safetensors") for name in teachers]
    for state in states[1:]:
        assert all(torch.equal(value, states[0][key]) for key, value in state.items())


def test_a_recipe_with_weights_is_not_trained(tmp_path, run):
    (tmp_path / "teacher.yaml").write_text(dump(recipe()))
    teacher = {"recipe": str(tmp_path / "teacher.yaml"), "weights": str(run / "weights.safetensors")}
    fit(student(teacher), tmp_path / "run")
    assert not (tmp_path / "run" / "teacher0").exists()


def test_a_file_is_worth_what_its_run_is_worth(run):
    options = Recipe.model_validate({"model": MLP, "data": recipe().data.model_dump()})
    found, expected = evaluate_file(options, run / "weights.safetensors"), evaluate(run)
    assert found["test"] == expected["test"]
    assert found["validation"] == expected["validation"]


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        ({"model": MLP, "weights": "nowhere.safetensors"}, r"nowhere\.safetensors"),
        ({"model": {"name": "resnet8"}, "weights": "WEIGHTS"}, "resnet8"),
        ({"model": {**MLP, "width": 9}, "weights": "WEIGHTS"}, "weights.safetensors"),
        ({"run": "nowhere"}, "nowhere: expected the folder of a finished run, got no run"),
        ({"module": "Net"}, r"a user's own Net: call limbeck\.fit with it again"),
    ],
)
def test_a_teacher_that_does_not_fit_is_one_line_before_anything_is_written(tmp_path, run, teacher, message):
    teacher = {key: str(run / "weights.safetensors") if value == "WEIGHTS" else value for key, value in teacher.items()}
    with pytest.raises(UserError, match=message) as error:
        fit(student(teacher), tmp_path / "run")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run" / "config.yaml").exists()
