"""Words for layers in networks of other libraries: which shapes they have, and that they are the right features."""

from __future__ import annotations

import pytest
import torch
from zoo_networks import CONFIGS, build

from limbeck.models import FeatureTaps, feature_shapes
from limbeck.models.stages import layer_paths
from limbeck.models.taps import FeatureError

# Name -> side of the images, (channels, side) of each stage, and features of the classifier.
STAGES = {
    "timm:vit_tiny_patch16_224": (64, [(192, 4)] * 4, 192),
    "timm:deit_tiny_distilled_patch16_224": (64, [(192, 4)] * 4, 192),
    "timm:mixer_s32_224": (64, [(512, 2)] * 4, 512),
    "timm:swin_pico_patch4_window7_224": (64, [(48, 16), (96, 8), (192, 4), (384, 2)], 384),
    "timm:convnext_atto": (64, [(40, 16), (80, 8), (160, 4), (320, 2)], 320),
    "timm:resnet18": (64, [(64, 16), (128, 8), (256, 4), (512, 2)], 512),
    "timm:mobilenetv2_100": (64, [(24, 16), (32, 8), (96, 4), (320, 2)], 1280),
    "tv:resnet18": (64, [(64, 16), (128, 8), (256, 4), (512, 2)], 512),
    "tv:mobilenet_v2": (64, [(24, 16), (32, 8), (96, 4), (320, 2)], 1280),
    "tv:efficientnet_b0": (64, [(24, 16), (40, 8), (112, 4), (320, 2)], 1280),
    "tv:regnet_y_400mf": (64, [(48, 16), (104, 8), (208, 4), (440, 2)], 440),
    "tv:swin_t": (64, [(96, 16), (192, 8), (384, 4), (768, 2)], 768),
    "tv:convnext_tiny": (64, [(96, 16), (192, 8), (384, 4), (768, 2)], 768),
    "hf:vit": (32, [(32, 4)] * 4, 32),
    "hf:beit": (32, [(32, 4)] * 4, 32),
    "hf:swin": (64, [(16, 16), (32, 8), (64, 4), (128, 2)], 128),
    "hf:resnet": (64, [(8, 16), (16, 8), (32, 4), (64, 2)], 64),
    "hf:convnext": (64, [(8, 16), (16, 8), (32, 4), (64, 2)], 64),
}
# Those whose first stage is local: in a quarter of a plain transformer's blocks all patches see each other.
LOCAL = [name for name, (_, stages, _) in STAGES.items() if stages[0][1] > stages[1][1]]


@pytest.mark.parametrize("name", STAGES)
def test_stages_are_maps_and_pooled_is_what_the_classifier_sees(name, tmp_path):
    side, stages, pooled = STAGES[name]
    model, images = build(name, side, tmp_path), torch.zeros(1, 3, side, side)
    expected = [(channels, height, height) for channels, height in stages]
    assert feature_shapes(model, layer_paths(model, ["stages"]), images) == expected
    assert feature_shapes(model, layer_paths(model, ["hint", "last"]), images) == [expected[1], expected[-1]]
    assert feature_shapes(model, layer_paths(model, ["pooled"]), images) == [(pooled,)]


@pytest.mark.parametrize("name", LOCAL)
def test_a_map_has_the_neighbours_of_the_image(name, tmp_path):
    """Where a corner of the image changes, the first stage changes most in that corner."""
    side = STAGES[name][0]
    model = build(name, side, tmp_path).eval()
    images = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    changed = images.clone()
    changed[..., : side // 8, -side // 8 :] += 3  # above, to the right
    taps = FeatureTaps(model, layer_paths(model, ["stage1"]))
    with torch.no_grad():
        difference = (taps(changed)[1][0] - taps(images)[1][0]).square().sum((0, 1))
    row, column = divmod(int(difference.argmax()), difference.shape[1])
    assert row < difference.shape[0] / 4
    assert column >= difference.shape[1] * 3 / 4


def test_a_transformers_map_is_its_patches_in_rows():
    model = build("timm:vit_tiny_patch16_224", 64).eval()
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        _, (last, tokens, raw) = FeatureTaps(model, layer_paths(model, ["last", "last:tokens", "blocks.11"]))(images)
    assert raw.shape == (2, 17, 192)
    assert torch.equal(tokens, raw[:, 1:])
    for place in range(16):
        assert torch.equal(last[:, :, place // 4, place % 4], raw[:, 1 + place])


def test_what_the_classifier_sees_gives_the_logits():
    model = build("timm:swin_pico_patch4_window7_224", 64).eval()
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits, (pooled,) = FeatureTaps(model, layer_paths(model, ["pooled"]))(images)
        torch.testing.assert_close(model.network.head.fc(pooled), logits)


def test_words_that_a_family_does_not_have_say_what_it_has():
    model = build("timm:resnet18", 64)
    for name, message in (
        ("stages:tokens", "expected a network of tokens, got one of maps"),
        ("stage9", "expected a stage from stage1 to stage4"),
        ("last:preactivation", "known of networks of this library alone"),
    ):
        with pytest.raises(ValueError, match=message):
            layer_paths(model, [name])
    with pytest.raises(
        ValueError, match="the stages of MNASNet are not known; name modules by their paths, such as lay"
    ):
        layer_paths(build("tv:mnasnet0_5", 64), ["stages"])
    with pytest.raises(FeatureError, match=r"expected tokens \(N, L, D\) of a square"):
        feature_shapes(model, ["fc:map"], torch.zeros(1, 3, 64, 64))


def test_every_configuration_is_of_a_family_in_the_table():
    assert {f"hf:{kind}" for kind in CONFIGS} <= STAGES.keys()
