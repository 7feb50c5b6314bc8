"""Features by name: hooks that see what passes, survive wrapping, and never fall silent."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from limbeck.config import ModelOptions
from limbeck.models import MODELS, build_model
from limbeck.models.stages import before_activation, layer_norms, layer_paths
from limbeck.models.taps import FeatureTaps, feature_shapes

SMALL = [name for name in MODELS if not name.startswith(("wrn_28", "wrn_34", "resnext"))]


def build(name: str = "resnet8", side: int = 32):
    return build_model(ModelOptions(name=name), image_shape=(3, side, side), num_classes=10, seed=0)


def images(side: int = 32, samples: int = 2) -> Tensor:
    return torch.randn(samples, 3, side, side, generator=torch.Generator().manual_seed(0))


# --- what is captured -------------------------------------------------------------------------------------


def test_taps_return_what_the_stages_return_in_the_order_of_the_names():
    model = build().eval()
    stages = model.forward_stages(images())
    logits, features = FeatureTaps(model, ["features.pooled", "features.stage3", "features.stage1"])(images())
    assert torch.equal(logits, model.head(stages["pooled"]))
    for feature, name in zip(features, ("pooled", "stage3", "stage1"), strict=True):
        assert torch.equal(feature, stages[name])


def test_an_input_is_the_map_before_the_activation():
    _, (before, after) = FeatureTaps(build(), ["features.stage2.0.relu:input", "features.stage2"])(images())
    assert (before < 0).any()
    assert torch.equal(before.relu(), after)


def test_what_goes_into_a_module_that_works_in_place_is_seen_before_it_does():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Conv2d(4, 2, 3))
    _, (before, after) = FeatureTaps(model, ["1:input", "1"])(images())
    assert torch.equal(before, model[0](images()))
    assert torch.equal(before.relu(), after)
    before.sum().backward()
    assert model[0].weight.grad is not None


@pytest.mark.parametrize("grad", [True, False])
def test_a_feature_that_was_overwritten_is_an_error(grad):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Conv2d(4, 2, 3))
    taps, message = FeatureTaps(model, ["0"]), r"`0` was overwritten after .*ReLU\(inplace=True\).*`:input`"
    with torch.set_grad_enabled(grad), pytest.raises(RuntimeError, match=message):
        taps(images())


def test_a_name_that_is_not_there_leaves_no_hook_behind():
    model = build()
    with pytest.raises(ValueError, match="no module `nowhere`"):
        FeatureTaps(model, ["features.stage1", "nowhere"])
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_gradients_reach_the_layers_below_a_tap_and_not_those_above():
    model = build()
    _, (feature,) = FeatureTaps(model, ["features.stage1"])(images())
    feature.square().sum().backward()
    assert model.features.stem.conv.weight.grad is not None
    assert model.features.stage2[0].conv1.weight.grad is None


def test_a_name_may_be_asked_for_twice():
    _, (first, second) = FeatureTaps(build(), ["features.stage1", "features.stage1"])(images())
    assert first is second


def test_a_module_of_tuples_passes_its_first_entry():
    class Pair(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, None]:
            return x + 1, None

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = Pair()

        def forward(self, x: Tensor) -> Tensor:
            return self.block(x)[0]

    _, (feature,) = FeatureTaps(Net(), ["block"])(torch.zeros(2, 3))
    assert torch.equal(feature, torch.ones(2, 3))


def test_nothing_is_kept_outside_of_a_call():
    model = build()
    taps = FeatureTaps(model, ["features.stage1"])
    model(images())
    assert taps._seen == {"features.stage1": []}
    taps(images())
    assert taps._seen == {"features.stage1": []}


def test_closed_taps_leave_no_hook_behind():
    model = build()
    taps = FeatureTaps(model, ["features.stage1", "features.stage2.0.relu:input"])
    taps.close()
    assert not any(module._forward_hooks for module in model.modules())


def test_a_copy_of_a_tapped_network_runs_unheard():
    model = build()
    taps = FeatureTaps(model, ["features.stage1"])
    copied = copy.deepcopy(model)  # as averaged weights are made
    copied(images())
    assert taps._seen == {"features.stage1": []}


# --- wrapping ---------------------------------------------------------------------------------------------


class Wrapper(nn.Module):
    """As DistributedDataParallel holds its module."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x)


@pytest.mark.parametrize(
    "wrap",
    [
        Wrapper,
        lambda model: torch.compile(model, backend="aot_eager", fullgraph=True),
        lambda model: torch.compile(Wrapper(model), backend="aot_eager"),
        lambda model: Wrapper(torch.compile(model, backend="aot_eager")),
    ],
    ids=["module", "compiled", "compiled around", "compiled within"],
)
def test_names_and_features_survive_wrapping(wrap):
    model = build().eval()
    _, (expected,) = FeatureTaps(copy.deepcopy(model), ["features.stage2"])(images())
    wrapped = wrap(model)
    taps = FeatureTaps(wrapped, layer_paths(wrapped, ["hint"]))
    for _ in range(2):  # also when the graph is there
        _, (feature,) = taps(images())
        torch.testing.assert_close(feature, expected)
    feature.sum().backward()
    assert model.features.stem.conv.weight.grad is not None


def test_taps_on_a_network_that_was_compiled_and_run_before_say_so():
    torch._dynamo.reset()
    compiled = torch.compile(build(), backend="aot_eager")
    compiled(images())
    with pytest.raises(RuntimeError, match=r"`features.stage2` captured nothing.*hooks that came after its first call"):
        FeatureTaps(compiled, ["features.stage2"])(images())


# --- mistakes ---------------------------------------------------------------------------------------------


def test_an_unknown_name_is_an_error_with_the_nearest_ones():
    with pytest.raises(ValueError, match=r"no module `features.stage9`; expected a path such as features.stage"):
        FeatureTaps(build(), ["features.stage9"])


def test_a_module_that_does_not_run_is_an_error():
    model = build()
    model.spare = nn.Linear(2, 2)
    with pytest.raises(RuntimeError, match=r"`spare` captured nothing: the module did not run"):
        FeatureTaps(model, ["spare"])(images())


def test_a_module_that_runs_twice_is_an_error():
    shared = nn.ReLU()
    model = nn.Sequential(nn.Linear(3, 3), shared, nn.Linear(3, 3), shared)
    with pytest.raises(RuntimeError, match=r"`1` expected to run once .*, ran 2 times"):
        FeatureTaps(model, ["1"])(torch.zeros(2, 3))


def test_an_error_in_the_network_leaves_the_taps_ready():
    model = build().eval()
    taps = FeatureTaps(model, ["features.stem"])
    with pytest.raises(RuntimeError):
        taps(torch.zeros(2, 5, 32, 32))
    assert taps(images())[1][0].shape == (2, 16, 32, 32)


def test_words_of_other_networks_are_refused_with_their_modules():
    with pytest.raises(
        ValueError, match=r"'stages' is known of networks of this library alone.*Sequential.*such as 0, 1"
    ):
        layer_paths(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), ["stages"])


# --- shapes -----------------------------------------------------------------------------------------------


def test_probing_shapes_touches_no_statistic_and_no_mode():
    model = build().train()
    model.features.stage1.eval()
    before = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    random = torch.random.get_rng_state()
    assert feature_shapes(model, ["features.stage2", "features.pooled"], images(samples=1)) == [(32, 16, 16), (64,)]
    assert [module.training for module in model.modules()] == modes
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert torch.equal(torch.random.get_rng_state(), random)
    assert not any(module._forward_hooks for module in model.modules())


# --- words ------------------------------------------------------------------------------------------------


def test_words_stand_for_stages():
    model = build("vgg8")
    assert layer_paths(model, ["stages"]) == [f"features.stage{stage}" for stage in (1, 2, 3, 4)]
    assert layer_paths(model, ["last", "pooled", "hint", "stem"]) == [
        f"features.{stage}" for stage in ("stage4", "pooled", "stage2", "stem")
    ]
    assert layer_paths(model, ["features.stage1.conv1"]) == ["features.stage1.conv1"]


@pytest.mark.parametrize("name", [name for name in SMALL if name not in ("mlp", "shufflenet_v2")])
def test_a_map_before_the_activation_is_the_norms_own_or_becomes_the_stages_map(name):
    side = 64 if name in ("resnet18", "resnet34", "resnet50", "mobilenet_v1") else 32
    model = build(name, side).eval()
    paths, befores = layer_paths(model, ["stages"]), layer_paths(model, ["stages:preactivation"])
    _, features = FeatureTaps(model, [*paths, *befores])(images(side))
    for after, before in zip(features[: len(paths)], features[len(paths) :], strict=True):
        if name.startswith(("wrn", "preact")):  # stages end before the next block's norm
            assert before.shape == after.shape
        else:
            assert torch.equal(before.relu() if name != "mobilenet_v2" else before, after)
    norms = layer_norms(model, ["stages:preactivation"])
    assert [norm.num_features for norm in norms] == [feature.shape[1] for feature in features[len(paths) :]]


def test_the_norm_before_the_activation_is_the_one_whose_output_it_reads():
    model = build("wrn_16_1").eval()
    place = before_activation(model, "stage1")
    seen = []
    place.norm.register_forward_hook(lambda module, arguments, output: seen.append(output))
    _, (feature,) = FeatureTaps(model, [place.path])(images())
    assert torch.equal(feature, seen[0])


@pytest.mark.parametrize("name", ["mlp", "shufflenet_v2"])
def test_a_stage_without_one_activation_of_a_map_is_refused(name):
    with pytest.raises(ValueError, match=r"'stage1:preactivation' expected a stage that ends with one activation"):
        layer_paths(build(name), ["stages:preactivation"])


def test_margins_need_the_words_for_maps_before_the_activation():
    with pytest.raises(ValueError, match=r"whose norm is known, such as `stages:preactivation`.*got 'stages'"):
        layer_norms(build(), ["stages"])


@pytest.mark.parametrize("names", ["features.stage1", []])
def test_names_are_a_list_that_is_not_empty(names):
    with pytest.raises(ValueError, match=r"`names` expected a list of module paths"):
        FeatureTaps(build(), names)
