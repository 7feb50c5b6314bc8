"""Networks that classify each pixel: sizes, dilation, auxiliary head."""

from __future__ import annotations

import pytest
import torch

from limbeck.config import ModelOptions, ScheduleOptions
from limbeck.engine.schedule import learning_rate_factor
from limbeck.models import build_model
from limbeck.models.dense import PYRAMID, PyramidPooling


def network(name: str, **options) -> torch.nn.Module:
    return build_model(ModelOptions(name=name, **options), image_shape=(3, 32, 32), num_classes=5, seed=0)


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (7, 9)])
@pytest.mark.parametrize("depth", [1, 2, 4])
def test_logits_have_the_size_of_the_images(size, depth):
    assert network("encoder_decoder", width=4, depth=depth)(torch.zeros(2, 3, *size)).shape == (2, 5, *size)


def test_pspnets_maps_have_an_eighth_of_the_side_and_its_logits_the_whole():
    model = network("pspnet_resnet18").eval()
    images = torch.randn(1, 3, 65, 65)
    assert model.features(images).shape == (1, 512, 9, 9)
    assert model(images).shape == (1, 5, 65, 65)
    dilations = {
        stage: {
            m.dilation for m in model.features.get_submodule(stage).modules() if getattr(m, "kernel_size", 0) == (3, 3)
        }
        for stage in ("stage2", "stage3", "stage4")
    }
    assert dilations == {"stage2": {(1, 1)}, "stage3": {(2, 2)}, "stage4": {(4, 4)}}


def test_pyramid_pooling_of_a_constant_map_is_constant():
    pooling = PyramidPooling(8).eval()
    out = pooling(torch.full((1, 8, 6, 6), 2.0))
    assert out.shape == (1, 8 + len(PYRAMID) * 2, 6, 6)
    torch.testing.assert_close(out, out[..., :1, :1].expand_as(out))


def test_poly_falls_from_one_by_the_power_of_what_is_left():
    options = ScheduleOptions(name="poly", power=0.9)
    rates = [learning_rate_factor(options, step, steps_per_epoch=5, epochs=2) for step in range(1, 11)]
    assert rates == pytest.approx([(1 - done / 10) ** 0.9 for done in range(10)])
