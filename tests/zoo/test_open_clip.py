"""Towers of open_clip are networks of two towers, with the library's own features and tokens."""

from __future__ import annotations

import json

import pytest
import torch
from torch.nn.functional import normalize

from limbeck.config import ModelOptions
from limbeck.data.tokenizers import open_tokenizer
from limbeck.errors import UserError
from limbeck.models import build_model

open_clip = pytest.importorskip("open_clip")
TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="module", autouse=True)
def tiny(tmp_path_factory):
    path = tmp_path_factory.mktemp("configs") / "tiny-clip.json"
    path.write_text(json.dumps(TINY))
    open_clip.add_model_config(path)


def towers(name="open_clip:tiny-clip"):
    options = ModelOptions(name=name)
    return build_model(options, image_shape=(3, 32, 32), num_classes=4, seed=0, task="image_text")


def test_features_are_those_of_the_library_at_unit_length():
    model = towers().eval()
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    tokens = open_tokenizer("open_clip:tiny-clip", 77)(["a cat", "a dog", "two cats"])
    with torch.no_grad():
        found = model(images, tokens)
        torch.testing.assert_close(found.images, normalize(model.network.encode_image(images), dim=-1))
        torch.testing.assert_close(found.texts, normalize(model.network.encode_text(tokens), dim=-1))
    assert float(found.scale) == pytest.approx(1 / 0.07, rel=1e-4)
    assert float(found.bias) == 0.0


def test_an_unknown_name_is_one_line():
    with pytest.raises(UserError, match="open_clip has no network `ViT-B-17`; did you mean `open_clip:ViT-B-16"):
        towers("open_clip:ViT-B-17")
