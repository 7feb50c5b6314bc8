"""The recipes of segmentation: two steps with each row's losses, on files of the published form."""

from __future__ import annotations

import json
import math

import pytest
import torch
from test_data_masked import write_ade20k, write_voc

from limbeck.config import ModelOptions
from limbeck.config_files import load_recipe
from limbeck.engine import run_folder
from limbeck.engine.fit import fit
from limbeck.errors import UserError
from limbeck.models import build_model

SHORT = {
    "train.epochs": 1,
    "train.batch_size": 2,
    "train.threads": 1,
    "save.log_every": 1,
    "save.tensorboard": False,
    "data.image_size": 33,
    "data.workers": 0,
    "data.masks.test_side": 33,
}
SMALL = {"model.name": "pspnet_resnet18"}  # ResNet-101's steps differ in nothing but their number of blocks


def two_steps(name, folder, run, **changes):
    options = {**SHORT, "data.folder": str(folder), **changes}
    content = load_recipe(name, [f"{key}={json.dumps(value)}" for key, value in options.items()])
    fit(content, run)
    lines = [json.loads(line) for line in (run / run_folder.METRICS).read_text().splitlines()]
    losses = [line["loss"] for line in lines if line["kind"] == "step"]
    assert losses
    assert all(map(math.isfinite, losses))
    return run_folder.read_results(run)


@pytest.fixture(scope="module")
def ade20k(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ade20k")
    write_ade20k(folder)
    return folder


@pytest.fixture(scope="module")
def teacher(ade20k, tmp_path_factory):
    run = tmp_path_factory.mktemp("teacher") / "run"
    two_steps("segment/ade20k/pspnet_resnet101", ade20k, run, **SMALL)
    return run


@pytest.mark.parametrize("row", ["gkl", "apd", "cwd"])
def test_rows_of_the_table_take_two_steps(row, ade20k, teacher, tmp_path):
    name = "segment/ade20k/pspnet_resnet18"
    terms = [term.model_dump() for term in load_recipe(name).compare.contenders[row].settings[0]]
    for term in terms:
        if term["name"] == "apd":
            term["width"] = 16
    results = two_steps(name, ade20k, tmp_path / "run", losses=terms, teachers=[{"run": str(teacher)}], compare={})
    assert 0 <= results["last"]["test"]["miou"] <= 1
    assert results["last"]["validation"] is None  # the published protocol


def test_voc_takes_two_steps(tmp_path):
    write_voc(tmp_path)
    results = two_steps("segment/voc2012/pspnet_resnet18", tmp_path, tmp_path / "run")
    assert results["num_classes"] == 21


def test_segformer_takes_two_steps_from_a_folder_of_its_configuration(ade20k, tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.SegformerConfig(
        num_labels=150,
        depths=[1, 1, 1, 1],
        hidden_sizes=[8, 8, 16, 16],
        num_attention_heads=[1, 1, 2, 2],
        decoder_hidden_size=16,
        architectures=["SegformerForSemanticSegmentation"],
    )
    config.save_pretrained(tmp_path / "b0")
    network = transformers.SegformerForSemanticSegmentation(config)
    network.save_pretrained(tmp_path / "b4")
    processor = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "do_rescale": True, "rescale_factor": 1 / 255}
    (tmp_path / "b4" / "preprocessor_config.json").write_text(json.dumps(processor))
    teachers = [{"model": {"name": f"hf:{tmp_path / 'b4'}"}, "weights": "pretrained"}]
    results = two_steps(
        *("segment/ade20k/segformer", ade20k, tmp_path / "run"),
        **{"model.name": f"hf:{tmp_path / 'b0'}", "teachers": teachers, "data.image_size": 64, "data.validation": 0.25},
    )
    assert results["last"]["test"]["samples"] == 2


def test_a_library_is_asked_for_classes_of_pixels_or_of_images_by_the_task(tmp_path):
    transformers = pytest.importorskip("transformers")
    sizes = {"depths": [1] * 4, "hidden_sizes": [8, 8, 16, 16], "num_attention_heads": [1, 1, 2, 2]}
    named = {"decoder_hidden_size": 16, "architectures": ["SegformerForSemanticSegmentation"]}
    transformers.SegformerConfig(**sizes, **named).save_pretrained(tmp_path / "b0")
    wanted = {"image_shape": (3, 64, 64), "num_classes": 5, "seed": 0}
    dimensions = {
        task: build_model(ModelOptions(name=f"hf:{tmp_path / 'b0'}"), task=task, **wanted)(torch.zeros(1, 3, 64, 64))
        for task in ("segment", "supervised")
    }
    assert dimensions["segment"].shape == (1, 5, 16, 16)
    assert dimensions["supervised"].shape == (1, 5)
    with pytest.raises(UserError, match="hf:resnet: Unrecognized configuration class"):
        build_model(ModelOptions(name="hf:resnet"), task="segment", **wanted)
