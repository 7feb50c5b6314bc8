"""The networks that have a width and a depth, and what `build_model` promises of every network."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from limbeck.config import ModelOptions
from limbeck.errors import UserError
from limbeck.models import MODELS, build_model
from limbeck.models.weights import load_weights
from limbeck.network_names import ZOO

SMALL, LARGE = (1, 8, 8), (3, 32, 32)
SIZED = ["mlp", "convnet"]


def build(name="convnet", *, image_shape=SMALL, num_classes=10, seed=0, **sizes):
    return build_model(ModelOptions(name=name, **sizes), image_shape=image_shape, num_classes=num_classes, seed=seed)


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_every_name_of_the_configuration_has_a_network():
    assert tuple(MODELS) == ZOO


def test_a_users_own_module_has_no_name_to_build_it_from():
    with pytest.raises(UserError, match=r"^the network of this run is the user's own module: call limbeck\.fit again$"):
        build("custom")


@pytest.mark.parametrize(("width", "depth"), [(16, 1), (16, 2), (5, 3)])
def test_the_mlp_has_the_parameters_of_its_formula(width, depth):
    hidden = 64 * width + (depth - 1) * width * width + depth * 2 * width
    model = build("mlp", width=width, depth=depth)
    assert parameters(model) == hidden + (width + 1) * 10
    assert model.head.in_features == width


@pytest.mark.parametrize(("width", "depth"), [(16, 1), (16, 2), (4, 3)])
def test_the_convnet_has_the_parameters_of_its_formula(width, depth):
    channels = [3] + [width * 2**stage for stage in range(depth)]
    convolutions = sum(9 * a * b for a, b in itertools.pairwise(channels))
    model = build(image_shape=LARGE, width=width, depth=depth)
    assert parameters(model) == convolutions + sum(2 * c for c in channels[1:]) + (channels[-1] + 1) * 10
    assert model.head.in_features == channels[-1]


@pytest.mark.parametrize(("name", "expected"), [("mlp", 1514), ("convnet", 5178)])
def test_the_default_width_is_16_and_the_default_depth_2(name, expected):
    assert parameters(build(name)) == parameters(build(name, width=16, depth=2)) == expected


@pytest.mark.parametrize("name", SIZED)
@pytest.mark.parametrize("image_shape", [SMALL, LARGE, (1, 28, 28), (2, 7, 5)])
@pytest.mark.parametrize("depth", [1, 2, 4])
def test_logits_are_the_head_of_the_features(name, image_shape, depth):
    model = build(name, image_shape=image_shape, num_classes=7, width=4, depth=depth, dropout=0.5).eval()
    images = torch.rand(6, *image_shape, generator=torch.Generator().manual_seed(0))
    features = model.forward_features(images)
    assert features.shape == (6, model.head.in_features)
    assert model(images).shape == (6, 7)
    assert torch.equal(model(images), model.head(features))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mlp", {"stem": (2, 784), "stage1": (2, 16), "stage2": (2, 16), "stage3": (2, 16), "pooled": (2, 16)}),
        ("convnet", {"stem": (2, 16, 28, 28), "stage1": (2, 32, 14, 14), "stage2": (2, 64, 7, 7), "pooled": (2, 64)}),
    ],
)
def test_stages_have_names_and_shapes(name, expected):
    model = build(name, image_shape=(1, 28, 28), depth=3)
    outputs = model.forward_stages(torch.rand(2, 1, 28, 28, generator=torch.Generator().manual_seed(0)))
    assert {stage: tuple(output.shape) for stage, output in outputs.items()} == expected


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_with_their_file(value, tmp_path):
    network = build("mlp")
    broken = {**network.state_dict(), "head.bias": torch.full_like(network.state_dict()["head.bias"], value)}
    torch.save(broken, tmp_path / "mlp.pth")
    with pytest.raises(UserError, match=r"mlp.pth: expected finite weights, got NaN or infinity in head.bias; take"):
        load_weights(tmp_path / "mlp.pth", network, "mlp")
    assert all(bool(tensor.isfinite().all()) for tensor in network.state_dict().values())


@pytest.mark.parametrize("name", [*SIZED, "resnet8"])
def test_the_same_seed_gives_the_same_weights_and_another_seed_others(name):
    one, same, other = (
        build(name, seed=4).state_dict(),
        build(name, seed=4).state_dict(),
        build(name, seed=5).state_dict(),
    )
    assert all(torch.equal(one[k], same[k]) for k in one)
    assert not torch.equal(one["head.weight"], other["head.weight"])
    assert any(not torch.equal(one[k], other[k]) for k in one if k.startswith("features"))


@pytest.mark.parametrize("name", [*SIZED, "resnet8"])
def test_weights_do_not_depend_on_the_random_state_and_leave_it_alone(name):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        first = build(name).state_dict()
        torch.manual_seed(2)
        state = torch.get_rng_state()
        second = build(name).state_dict()
        assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[k], second[k]) for k in first)


@pytest.mark.parametrize("name", [*SIZED, "resnet8"])
def test_dropout_acts_on_the_head_in_training_only(name):
    model = build(name, dropout=0.5)
    images = torch.rand(6, *SMALL, generator=torch.Generator().manual_seed(0))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        assert torch.equal(model.forward_features(images), model.forward_features(images))
        assert not torch.equal(model(images), model(images))
        assert bool((model(images) != 0).all())  # features are dropped, logits are not
    model.eval()
    assert torch.equal(model(images), model(images))


@pytest.mark.parametrize("name", [*SIZED, "resnet8"])
def test_without_dropout_training_draws_nothing(name):
    """So that a run does not depend on torch's random state unless it asks to."""
    model = build(name, dropout=0.0)
    state = torch.get_rng_state()
    model(torch.zeros(4, *SMALL)).sum().backward()
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", [*SIZED, "resnet8"])
def test_every_parameter_receives_a_gradient(name):
    model = build(name)
    images = torch.rand(8, *SMALL, generator=torch.Generator().manual_seed(0))
    nn.functional.cross_entropy(model(images), torch.arange(8)).backward()
    assert all(p.grad is not None and bool(p.grad.abs().max() > 0) for p in model.parameters())
