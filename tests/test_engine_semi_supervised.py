"""Claims about semi-supervised runs: they resume to the bit, ranks share them, and mistakes are told in one line."""

from __future__ import annotations

import json

import engine_runs
import pytest
import torch

from limbeck.config import Recipe
from limbeck.config_files import override
from limbeck.engine import run_folder
from limbeck.engine.fit import fit
from limbeck.errors import UserError

MEAN_TEACHER = {"method": "mean_teacher", "teacher_decay": 0.9, "evaluate": "teacher", "confidence": 0.2}


def recipe(**changes) -> Recipe:
    base = {
        "task": "semi_supervised",
        "data": {
            "labels_per_class": 3,
            "augment": {"crop_padding": 1},
            "unlabelled": {"ratio": 2, "strong": {"crop_padding": 2, "cutout": 3}, "steps_per_epoch": 7},
        },
        "losses": [{"name": "cross_entropy"}, {"name": "gkl", "weight_power": 0.5}],
        "semi_supervised": {"confidence": 0.2},
    }
    return engine_runs.recipe(**engine_runs.merge(base, changes))


class Stop(Exception):
    pass


@pytest.mark.parametrize("options", [{"confidence": 0.2}, MEAN_TEACHER], ids=["fixmatch", "mean_teacher"])
def test_resume_equals_an_unbroken_run(tmp_path, options):
    # With dropout, BatchNorm, a teacher in train mode and a class prior, all of which have a state.
    made = recipe(
        semi_supervised=options,
        model={"name": "convnet", "width": 2, "depth": 1, "dropout": 0.3},
        save={"every_steps": 3},
    )

    def break_off(step: int) -> None:
        if step == 11:
            raise Stop

    with pytest.raises(Stop):
        fit(made, tmp_path / "broken", reporter=engine_runs.Hook(break_off))
    fit(made, tmp_path / "broken", resume=True)
    fit(made, tmp_path / "whole")
    engine_runs.assert_same_run(tmp_path / "broken", tmp_path / "whole")


def test_the_teacher_is_what_a_run_reports_if_asked(tmp_path):
    made = recipe(semi_supervised=MEAN_TEACHER)
    fit(made, tmp_path / "run")
    state = torch.load(tmp_path / "run" / run_folder.CHECKPOINT, weights_only=True)
    teacher = {name.removeprefix("network."): value for name, value in state["guide"].items()}
    assert state["guide"]["steps"] == 14
    from safetensors.torch import load_file

    kept = load_file(tmp_path / "run" / run_folder.WEIGHTS["last"])
    assert all(torch.equal(kept[name], teacher[name]) for name in kept)
    assert any(not torch.equal(kept[name], state["model"][name]) for name in kept)


def test_the_share_of_images_that_count_is_logged(tmp_path):
    fit(recipe(), tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / run_folder.METRICS).read_text("utf-8").splitlines()]
    shares = [line["parts"]["mask"] for line in lines if line["kind"] == "step"]
    assert all(0 <= share <= 1 for share in shares)
    assert any(share > 0 for share in shares)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("data.unlabelled=null", "`data.unlabelled`, got null"),
        ("data.labels_per_class=null", "labels_per_class"),
        ("losses=[{name: kl}]", "cross_entropy, of the labelled images"),
        ("losses.1.name=dkd", "expected losses among"),
        ("semi_supervised.ramp=linear", "`ramp_epochs`"),
        ("semi_supervised.confidense=0.5", "confidence"),
    ],
)
def test_mistakes_in_a_recipe_are_one_line(change, words):
    with pytest.raises(UserError) as error:
        override(recipe(losses=[{"name": "cross_entropy"}, {"name": "kl"}]), [change])
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_a_pool_belongs_to_the_task():
    with pytest.raises(UserError, match=r"`data.unlabelled` belongs to task `semi_supervised`, got task `supervised`"):
        override(recipe(losses=[{"name": "cross_entropy"}]), ["task=supervised"])
