"""Claims about learning rates that fall from the head to the stem, and about FixMatch's schedule."""

from __future__ import annotations

import math

import engine_runs
import pytest
import torch
from torch import nn

from limbeck.config import OptimizerOptions, ScheduleOptions
from limbeck.engine.fit import fit
from limbeck.engine.layer_decay import depths
from limbeck.engine.optimizer import build_optimizer
from limbeck.engine.schedule import learning_rate_factor
from limbeck.errors import UserError
from limbeck.models import build_model
from limbeck.models.convnet import convnet


def vit() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 16, "image_size": 4, "patch_size": 2}
    return transformers.ViTForImageClassification(transformers.ViTConfig(num_hidden_layers=3, num_labels=5, **sizes))


def factor_of(network: nn.Module, decay: float) -> dict[str, float]:
    optimizer = build_optimizer(network, OptimizerOptions(name="adamw", layer_decay=decay))
    factors = {id(parameter): group["factor"] for group in optimizer.param_groups for parameter in group["params"]}
    return {name: factors[id(parameter)] for name, parameter in network.named_parameters()}


def test_a_transformers_learning_rate_halves_from_block_to_block():
    for name, factor in factor_of(vit(), 0.5).items():
        if name.startswith(("classifier", "vit.layernorm")):
            assert factor == 1, name
        elif "embeddings" in name:
            assert factor == 0.5**4, name
        else:
            assert factor == 0.5 ** (3 - int(name.split("layers.")[1].split(".")[0])), name


def test_networks_of_stages_go_by_these():
    factors = factor_of(convnet((1, 8, 8), 5, depth=3), 0.1)
    expected = {"features.stem": 1e-3, "features.stage1": 1e-2, "features.stage2": 1e-1, "head": 1.0}
    for name, factor in factors.items():
        prefix = next(prefix for prefix in expected if name.startswith(prefix))
        assert factor == pytest.approx(expected[prefix]), name


def test_no_parameter_is_left_out_and_none_comes_twice():
    network = vit()
    groups = build_optimizer(network, OptimizerOptions(layer_decay=0.5, decay_norms_and_biases=False)).param_groups
    found = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(found) == sorted(map(id, network.parameters()))
    assert {group["weight_decay"] for group in groups} == {0.0, 5e-4}


def test_what_is_not_the_students_has_the_whole_learning_rate():
    student, extra = convnet((1, 8, 8), 5), nn.Linear(2, 2)
    groups = build_optimizer(nn.ModuleList([student, extra]), OptimizerOptions(layer_decay=0.5), student).param_groups
    assert any(extra.weight is parameter for group in groups if group["factor"] == 1 for parameter in group["params"])


def test_a_network_without_blocks_is_refused():
    with pytest.raises(UserError, match="layer_decay"):
        depths(nn.Linear(2, 2))


def test_fixmatchs_schedule_is_a_part_of_a_cosine():
    options = ScheduleOptions(name="fixmatch")
    values = [learning_rate_factor(options, step, steps_per_epoch=1, epochs=101) for step in range(1, 102)]
    assert values == pytest.approx([math.cos(7 / 16 * math.pi * k / 100) for k in range(101)])
    warmed = ScheduleOptions(name="fixmatch", warmup_epochs=10)
    assert learning_rate_factor(warmed, 5, steps_per_epoch=1, epochs=100) == 0.5
    assert learning_rate_factor(warmed, 10, steps_per_epoch=1, epochs=100) == 1
    assert learning_rate_factor(warmed, 100, steps_per_epoch=1, epochs=100) == pytest.approx(math.cos(7 / 16 * math.pi))


def test_the_factor_reaches_the_step(tmp_path):
    made = [
        engine_runs.recipe(
            model={"name": "convnet", "width": 2, "depth": 2},
            optimizer={"layer_decay": decay, "momentum": 0.0, "weight_decay": 0.0},
            train={"epochs": 1, "batch_size": 128},
        )
        for decay in (1.0, 0.5)
    ]
    moved = []
    for number, recipe in enumerate(made):
        fit(recipe, tmp_path / str(number))
        moved.append(torch.load(tmp_path / str(number) / "checkpoint.pt", weights_only=True)["model"])
    start = convnet_start(made[0])
    for name, share in (
        ("head.weight", 1.0),
        ("features.stage1.conv.weight", 0.5),
        ("features.stem.conv.weight", 0.25),
    ):
        whole, decayed = (state[name] - start[name] for state in moved)
        assert torch.allclose(decayed, share * whole, atol=1e-6), name


def convnet_start(recipe) -> dict[str, torch.Tensor]:
    return build_model(
        recipe.model, image_shape=(1, 8, 8), num_classes=10, seed=recipe.seed, data=None, pretrained=False
    ).state_dict()
