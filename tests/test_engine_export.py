"""Weights of a run for other programs: the public names, the same function, and nothing else."""

from __future__ import annotations

import pytest
import torch
from engine_runs import recipe
from public_networks import public_logits
from safetensors.torch import load_file

from limbeck.config import ModelOptions
from limbeck.engine.evaluate import open_run
from limbeck.engine.export import export
from limbeck.engine.fit import fit
from limbeck.errors import UserError
from limbeck.models import build_model
from limbeck.models.weights import load_weights


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    changes = {"data": {"labels_per_class": 4}, "train": {"epochs": 1}}
    fit(recipe(**changes, model={"name": "resnet8", "width": None, "depth": None}), folder)
    return folder


@pytest.mark.parametrize("name", ["student.pth", "student.safetensors"])
def test_an_exported_file_gives_the_public_network_the_runs_logits(name, run, tmp_path):
    said = export(run, tmp_path / name, None)
    assert said.endswith(
        f"{name}: 56 tensors of resnet8, 10 classes; it expects pixels standardised as those of digits."
    )
    state = load_file(tmp_path / name) if name.endswith("safetensors") else torch.load(tmp_path / name)
    assert {"conv1.weight", "layer2.0.downsample.1.running_var", "fc.bias"} <= state.keys()
    opened = open_run(run, None)
    images = next(opened.data.test.batches(8))
    with torch.no_grad():
        torch.testing.assert_close(public_logits("resnet8", state, images), opened.model.eval()(images))


def test_an_exported_file_comes_back_as_it_was(run, tmp_path):
    export(run, tmp_path / "student.pth", None)
    model = build_model(ModelOptions(name="resnet8"), image_shape=(1, 8, 8), num_classes=10, seed=1)
    load_weights(tmp_path / "student.pth", model, "resnet8")
    for key, value in open_run(run, None).model.state_dict().items():
        assert torch.equal(value, model.state_dict()[key]), key


def test_what_cannot_be_exported_is_one_line(run, tmp_path):
    for out, which, message in (
        (tmp_path / "student.onnx", None, r"student\.onnx: expected a file that ends with \.safetensors, \.pth or "),
        (tmp_path / "student.pth", "ema", r"ema\.safetensors: no such file; `best` needs a validation split, `ema`"),
        (tmp_path / "no" / "student.pth", None, r"student\.pth: cannot be written \(no such file or directory\)"),
    ):
        with pytest.raises(UserError, match=message):
            export(run, out, which)
    assert list(tmp_path.iterdir()) == []
