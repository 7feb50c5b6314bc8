"""The pairs of convolutional networks and transformers of arXiv 2412.08139: names, sizes, and losses that fit them."""

from __future__ import annotations

import pytest
import torch

from limbeck.config import ModelOptions
from limbeck.losses import WKDFeatureLoss
from limbeck.models import FeatureTaps, build_model
from limbeck.models.stages import layer_paths

CLASSES = 100
SWIN_T, VIT_S, CONVNEXT_T = "timm:swin_tiny_patch4_window7_224", "timm:vit_small_patch16_224", "timm:convnext_tiny"
DEIT_T, SWIN_P = "timm:deit_tiny_patch16_224", "timm:swin_pico_patch4_window7_224"
PAIRS = [
    (SWIN_T, "resnet18"),
    (VIT_S, "resnet18"),
    (VIT_S, "timm:mobilenetv2_100"),
    (CONVNEXT_T, DEIT_T),
    (CONVNEXT_T, SWIN_P),
]
# Name -> parameters with 100 classes, and channels of the last stage, whose side is 7 but for ViTs with 14 patches.
NETWORKS = {
    SWIN_T: (27_596_254, 768),
    VIT_S: (21_704_164, 384),
    CONVNEXT_T: (27_897_028, 768),
    DEIT_T: (5_543_716, 192),
    SWIN_P: (5_160_496, 384),
    "resnet18": (11_227_812, 512),
    "timm:mobilenetv2_100": (2_351_972, 320),
}


@pytest.fixture(scope="module")
def networks():
    shape = (3, 224, 224)
    return {
        name: build_model(ModelOptions(name=name), image_shape=shape, num_classes=CLASSES, seed=0).eval()
        for name in NETWORKS
    }


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_of_the_pairs_has_its_parameters(name, networks):
    assert sum(parameter.numel() for parameter in networks[name].parameters()) == NETWORKS[name][0]


def test_swin_p_has_the_parameters_of_its_formula():
    """Width 48, two blocks a stage, 2 to 16 heads, windows of 7."""
    count = 3 * 48 * 4 * 4 + 48 + 2 * 48
    for stage, (width, heads) in enumerate(((48, 2), (96, 4), (192, 8), (384, 16))):
        attention = 3 * width * width + 3 * width + width * width + width + 13 * 13 * heads
        perceptron = 2 * 4 * width * width + 4 * width + width
        count += 2 * (2 * 2 * width + attention + perceptron)
        count += (2 * 2 * width + 2 * width * width) if stage else 0  # four patches of the former width merged
    assert count + 2 * 384 + (384 + 1) * CLASSES == NETWORKS[SWIN_P][0]


@pytest.mark.parametrize(("teacher", "student"), PAIRS)
@torch.no_grad()
def test_a_pair_fits_in_logits_and_in_the_last_stage(teacher, student, networks):
    images = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    views = {}
    for name in (teacher, student):
        taps = FeatureTaps(networks[name], layer_paths(networks[name], ["last"]))
        logits, (last,) = taps(images)
        taps.close()
        assert logits.shape == (1, CLASSES)
        side = 14 if name in (VIT_S, DEIT_T) else 7
        assert last.shape == (1, NETWORKS[name][1], side, side)
        views[name] = last
    shapes = ([tuple(views[name].shape[1:])] for name in (student, teacher))
    loss = WKDFeatureLoss(*shapes, projector="linear")
    assert bool(loss(views[student], views[teacher]).isfinite())
