"""CLIP and SigLIP of transformers are networks of two towers, with their own numbers; so is the small one of ours."""

from __future__ import annotations

import json
import math

import pytest
import torch
from tiny_clip import SIZES, write_network

from limbeck.config import ModelOptions
from limbeck.errors import UserError
from limbeck.models import Standardisation, build_model
from limbeck.models.image_text import LARGEST_SCALE
from limbeck.models.prefixed_towers import PrefixedTowers

transformers = pytest.importorskip("transformers")
HALF = Standardisation((0.5,) * 3, (0.25,) * 3)


def towers_of(kind, path, **options):
    made = ModelOptions(name=f"hf:{write_network(path, kind)}", **options)
    return build_model(made, image_shape=(3, 16, 16), num_classes=4, seed=0, data=HALF, task="image_text")


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3, 3, 16, 16, generator=generator), torch.randint(3, 60, (3, 8), generator=generator)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_features_are_those_of_the_library_at_unit_length(kind, tmp_path, batch):
    model, (images, tokens) = towers_of(kind, tmp_path).eval(), batch
    assert isinstance(model, PrefixedTowers)
    found = model(images, tokens)
    whole = model.network(pixel_values=images, input_ids=tokens)
    torch.testing.assert_close(found.images, whole.image_embeds)
    torch.testing.assert_close(found.texts, whole.text_embeds)
    logits = found.scale * found.texts @ found.images.T + found.bias
    torch.testing.assert_close(logits, whole.logits_per_text)
    assert found.scale.shape == found.bias.shape == ()


def test_clip_has_no_bias_and_siglip_starts_where_it_was_published(tmp_path):
    assert float(towers_of("clip", tmp_path).logit_bias) == 0.0
    siglip = towers_of("siglip", tmp_path)
    assert float(siglip.scale().detach()) == pytest.approx(10.0)
    assert float(siglip.logit_bias.detach()) == -10.0
    assert siglip.logit_bias.requires_grad


@pytest.mark.parametrize("name", ["image_text", "image_text_sigmoid"])
def test_our_towers_return_unit_lengths_and_no_pair_sees_another(name, batch):
    options = ModelOptions(name=name, width=4, depth=1)
    model = build_model(options, image_shape=(3, 16, 16), num_classes=4, seed=0)  # in training mode
    images, tokens = batch
    tokens[0, 3:] = 0
    whole, one = model(images, tokens), model(images[:1], tokens[:1, :5])  # padding counts for nothing
    torch.testing.assert_close(whole.images.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(whole.texts[:1], one.texts)
    torch.testing.assert_close(whole.images[:1], one.images)
    assert torch.isfinite(model.encode_texts(torch.zeros(1, 4, dtype=torch.int64))).all()  # an empty caption


def test_the_scale_stays_at_a_hundred_as_clip_has_it():
    model = build_model(ModelOptions(name="image_text", width=4, depth=1), image_shape=(3, 8, 8), num_classes=4, seed=0)
    with torch.no_grad():
        model.logit_scale.fill_(math.log(500.0))
    assert float(model.scale().detach()) == pytest.approx(LARGEST_SCALE)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (torch.zeros(1, 9, dtype=torch.int64), "expected captions of at most 8 tokens, got 9"),
        (torch.full((1, 4), 60), "expected tokens below 60, got 60; choose `data.captions.length` and the `tokenizer`"),
    ],
)
def test_tokens_of_another_tokenizer_are_one_line(tokens, message, tmp_path):
    with pytest.raises(UserError, match=message):
        towers_of("clip", tmp_path).encode_texts(tokens)


@pytest.mark.parametrize("kind", ["vit", "siglip2"])  # that of transformers reads patches, not images
def test_what_is_no_network_of_two_towers_of_images_is_one_line(kind, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind, **SIZES}))
    options = ModelOptions(name=f"hf:{tmp_path}")
    with pytest.raises(UserError, match=f"expected a network among clip, siglip, got {kind}"):
        build_model(options, image_shape=(3, 16, 16), num_classes=4, seed=0, task="image_text")
