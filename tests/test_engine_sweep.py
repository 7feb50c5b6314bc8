"""A sweep: each point is the run it would be alone, teachers are trained once, and nothing twice."""

from __future__ import annotations

import json
import os
import signal

import pytest
from engine_runs import Hook, assert_same_run, recipe

from limbeck.config_files import dump
from limbeck.config_grid import read_grid
from limbeck.engine import run_folder
from limbeck.engine.fit import fit
from limbeck.engine.sweep import SWEEP, sweep
from limbeck.errors import Interrupted

CE, KL = {"name": "cross_entropy"}, {"name": "kl", "temperature": 2.0}
RATES = "optimizer.learning_rate=0.05,0.1"
RUNS = [f"learning_rate={rate}/seed{seed}" for rate in ("0.05", "0.1") for seed in (0, 1)]


@pytest.fixture
def student(tmp_path):
    """A student's recipe over a teacher that is still to be trained."""
    (tmp_path / "teacher.yaml").write_text(dump(recipe(data={"labels_per_class": None}, train={"epochs": 1})))
    options = recipe(
        title="rates",
        task="distill",
        teachers=[{"recipe": str(tmp_path / "teacher.yaml")}],
        losses=[CE, KL],
        data={"augment": {"crop_padding": 1}},
        train={"epochs": 1},
    )
    (tmp_path / "student.yaml").write_text(dump(options))
    return str(tmp_path / "student.yaml")


def teachers(folder):
    return sorted(path.parent.relative_to(folder).as_posix() for path in folder.glob("teachers/*/config.yaml"))


def test_every_point_and_seed_is_trained_and_described(student, tmp_path):
    content = sweep(read_grid(student, [RATES]), tmp_path / "s", seeds=2)
    assert content == json.loads((tmp_path / "s" / SWEEP).read_text())
    assert content["axes"] == [{"path": "optimizer.learning_rate", "values": [0.05, 0.1]}]
    assert [run for point in content["points"] for run in point["runs"]] == RUNS
    assert content["teachers"] == teachers(tmp_path / "s")
    assert len(content["teachers"]) == 1
    for run in RUNS:
        assert run_folder.read_results(tmp_path / "s" / run)["epochs"] == 1


def test_a_point_is_the_run_alone(student, tmp_path):
    grid = read_grid(student, [RATES])
    content = sweep(grid, tmp_path / "s", seeds=1)
    teacher = tmp_path / "s" / content["teachers"][0]
    alone = grid.points[1].recipe.model_copy(
        update={"teachers": read_grid(student, [RATES, f"teachers=[{{run: {teacher}}}]"]).points[1].recipe.teachers}
    )
    fit(alone, tmp_path / "alone")
    assert_same_run(tmp_path / "alone", tmp_path / "s" / RUNS[2])


def test_points_that_change_the_data_have_teachers_of_their_own(student, tmp_path):
    content = sweep(read_grid(student, ["data.split_seed=0,1"]), tmp_path / "s", seeds=1)
    assert [name.split("-")[0] for name in content["teachers"]] == ["teachers/split0", "teachers/split1"]


def test_values_and_seeds_are_added_without_training_anything_twice(student, tmp_path):
    sweep(read_grid(student, [RATES]), tmp_path / "s", seeds=1)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "s").rglob(run_folder.RESULTS)}
    content = sweep(read_grid(student, ["optimizer.learning_rate=0.02,0.05,0.1"]), tmp_path / "s", seeds=2)
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    assert len(list((tmp_path / "s").rglob(run_folder.RESULTS))) == 1 + 6
    assert [point["values"] for point in content["points"]] == [[0.02], [0.05], [0.1]]


def test_an_interrupted_sweep_goes_on_with_the_same_call(student, tmp_path):
    grid = read_grid(student, [RATES])
    hook = Hook(lambda step: os.kill(os.getpid(), signal.SIGTERM) if step == 3 else None)
    with pytest.raises(Interrupted, match="the same command continues the sweep in "):
        sweep(grid, tmp_path / "s", seeds=2, reporter=hook)
    sweep(grid, tmp_path / "s", seeds=2)
    sweep(grid, tmp_path / "unbroken", seeds=2)
    for run in RUNS:
        assert_same_run(tmp_path / "s" / run, tmp_path / "unbroken" / run)


def test_two_workers_train_the_same_sweep(student, tmp_path):
    grid = read_grid(student, [RATES])
    sweep(grid, tmp_path / "two", seeds=2, workers=2)
    sweep(grid, tmp_path / "one", seeds=2)
    for run in RUNS:
        assert_same_run(tmp_path / "two" / run, tmp_path / "one" / run)


def test_a_point_that_diverges_is_named_and_the_others_go_on(student, tmp_path):
    content = sweep(read_grid(student, ["losses.0.weight=1,1e38"]), tmp_path / "s", seeds=1)
    assert list(content["diverged"]) == ["weight=1e38/seed0"]
    assert (tmp_path / "s" / "weight=1" / "seed0" / run_folder.RESULTS).is_file()
