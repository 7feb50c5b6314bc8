"""The zoo: parameters as published, named stages of known shapes, and what training takes for granted."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from limbeck.config import ModelOptions
from limbeck.errors import UserError
from limbeck.models import MODELS, build_model
from limbeck.models.layers import StochasticDepth
from limbeck.models.wide_resnet import SameConvolution, wide_resnet_swish

# Name -> number of classes and parameters, counted in the public code.
PARAMETERS = {
    "resnet8": (100, 83_892),
    "resnet14": (100, 181_108),
    "resnet20": (100, 278_324),
    "resnet32": (100, 472_756),
    "resnet44": (100, 667_188),
    "resnet56": (100, 861_620),
    "resnet110": (100, 1_736_564),
    "resnet8x4": (100, 1_233_540),
    "resnet32x4": (100, 7_433_860),
    "wrn_16_1": (100, 180_916),
    "wrn_16_2": (100, 703_284),
    "wrn_40_1": (100, 569_780),
    "wrn_40_2": (100, 2_255_156),
    "vgg8": (100, 3_965_028),
    "vgg13": (100, 9_462_180),
    "mobilenet_v2": (100, 812_836),
    "shufflenet_v1": (100, 949_258),
    "shufflenet_v2": (100, 1_355_528),
    "resnet18_cifar": (100, 11_220_132),
    "resnet50_cifar": (100, 23_705_252),
    "preact_resnet18": (100, 11_218_340),
    "wrn_28_10": (100, 36_536_884),
    "wrn_34_10": (100, 46_218_164),
    "wrn_34_20": (100, 184_646_964),
    "wrn_28_10_swish": (100, 36_536_884),
    "resnet18": (1000, 11_689_512),
    "resnet34": (1000, 21_797_672),
    "resnet50": (1000, 25_557_032),
    "resnet101": (1000, 44_549_160),
    "resnext101_32x4d": (1000, 44_177_704),
    "mobilenet_v1": (1000, 4_231_976),
}
WITH_10_CLASSES = {
    "preact_resnet18": 11_172_170,
    "wrn_28_10": 36_479_194,
    "wrn_28_10_swish": 36_479_194,
    "wrn_34_10": 46_160_474,
    "wrn_34_20": 184_531_674,
}

# Stage -> (channels, side); `pooled` and, unless it is listed, `neck` have the last stage's channels.
CIFAR = {"stem": (16, 32), "stage1": (16, 32), "stage2": (32, 16), "stage3": (64, 8)}
CIFAR_X4 = {"stem": (32, 32), "stage1": (64, 32), "stage2": (128, 16), "stage3": (256, 8)}
VGG = {"stem": (64, 32), "stage1": (128, 16), "stage2": (256, 8), "stage3": (512, 4), "stage4": (512, 4)}


def wide(k):
    stages = {"stem": (16, 32), "stage1": (16 * k, 32), "stage2": (32 * k, 16), "stage3": (64 * k, 8)}
    return {**stages, "neck": (64 * k, 8)}


def four(stem, stages, sides):
    names = ("stem", "stage1", "stage2", "stage3", "stage4")
    return dict(zip(names, zip((stem, *stages), sides, strict=True), strict=True))


SMALL_SIDES, LARGE_SIDES = (32, 32, 16, 8, 4), (56, 56, 28, 14, 7)
BASIC, BOTTLENECK = (64, 128, 256, 512), (256, 512, 1024, 2048)
STAGES = {
    **dict.fromkeys(("resnet8", "resnet14", "resnet20", "resnet32", "resnet44", "resnet56", "resnet110"), CIFAR),
    **dict.fromkeys(("resnet8x4", "resnet32x4"), CIFAR_X4),
    **dict.fromkeys(("wrn_16_1", "wrn_40_1"), wide(1)),
    **dict.fromkeys(("wrn_16_2", "wrn_40_2"), wide(2)),
    **dict.fromkeys(("wrn_28_10", "wrn_34_10", "wrn_28_10_swish"), wide(10)),
    "wrn_34_20": wide(20),
    **dict.fromkeys(("vgg8", "vgg13"), VGG),
    "mobilenet_v2": {**four(16, (12, 16, 48, 160), (16, 16, 8, 4, 2)), "neck": (1280, 2)},
    "shufflenet_v1": {"stem": (24, 32), "stage1": (240, 16), "stage2": (480, 8), "stage3": (960, 4)},
    "shufflenet_v2": {"stem": (24, 32), "stage1": (116, 16), "stage2": (232, 8), "stage3": (464, 4), "neck": (1024, 4)},
    "resnet18_cifar": four(64, BASIC, SMALL_SIDES),
    "resnet50_cifar": four(64, BOTTLENECK, SMALL_SIDES),
    "preact_resnet18": {**four(64, BASIC, SMALL_SIDES), "neck": (512, 4)},
    **dict.fromkeys(("resnet18", "resnet34"), four(64, BASIC, LARGE_SIDES)),
    **dict.fromkeys(("resnet50", "resnet101", "resnext101_32x4d"), four(64, BOTTLENECK, LARGE_SIDES)),
    "mobilenet_v1": four(32, (128, 256, 512, 1024), (112, 56, 28, 14, 7)),
}
LIGHT = [name for name, (_, parameters) in PARAMETERS.items() if parameters < 2_500_000]
GREY = [name for name, (classes, _) in PARAMETERS.items() if classes == 100 and not name.endswith("swish")]


def on_meta(name, image_shape=(3, 32, 32), classes=100):
    """Build a network without memory for its weights: shapes come out as they would, in no time."""
    with torch.device("meta"):
        return MODELS[name](image_shape, classes)


def build(name, image_shape=(3, 32, 32), classes=100, seed=0):
    return build_model(ModelOptions(name=name), image_shape=image_shape, num_classes=classes, seed=seed)


def images(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


def test_the_tables_hold_the_whole_zoo():
    assert list(PARAMETERS) == [name for name in MODELS if name not in ("mlp", "convnet")]
    assert set(STAGES) == set(PARAMETERS)


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_network_has_the_parameters_of_the_public_code(name):
    classes, parameters = PARAMETERS[name]
    assert count(on_meta(name, classes=classes)) == parameters


@pytest.mark.parametrize("name", WITH_10_CLASSES)
def test_a_robust_network_has_the_parameters_of_the_public_code_with_10_classes(name):
    assert count(on_meta(name, classes=10)) == WITH_10_CLASSES[name]


def test_the_parameters_of_a_preactivation_network_are_those_of_its_layers():
    """Convolutions 9ab, shortcuts ab, norms 2a: by hand for channels 64, 64, 128, 256, 512 and ten classes."""
    stages = 9 * 3 * 64
    for incoming, outgoing in ((64, 64), (64, 128), (128, 256), (256, 512)):
        stages += 2 * incoming + 9 * incoming * outgoing + 2 * outgoing + 9 * outgoing**2  # first block
        stages += incoming * outgoing if incoming != outgoing else 0
        stages += 2 * (2 * outgoing + 9 * outgoing**2)  # second block
    assert stages + 2 * 512 + 10 * 512 + 10 == WITH_10_CLASSES["preact_resnet18"]


@pytest.mark.parametrize("name", PARAMETERS)
def test_stages_have_names_and_shapes(name):
    classes, _ = PARAMETERS[name]
    side = 32 if classes == 100 else 224
    model = on_meta(name, (3, side, side), classes)
    batch = torch.empty(2, 3, side, side, device="meta")
    outputs = {stage: tuple(output.shape) for stage, output in model.forward_stages(batch).items()}
    expected = {stage: (2, channels, side, side) for stage, (channels, side) in STAGES[name].items()}
    last = expected[list(expected)[-1]]
    assert list(outputs) == [*expected, "pooled"]
    assert outputs == {**expected, "pooled": last[:2]}
    assert model(batch).shape == (2, classes)


@pytest.mark.parametrize("image_shape", [(1, 28, 28), (2, 7, 5)])
@pytest.mark.parametrize("name", GREY)
def test_a_cifar_network_takes_images_of_any_size_and_any_number_of_classes(name, image_shape):
    model = on_meta(name, image_shape, classes=7)
    assert model(torch.empty(3, *image_shape, device="meta")).shape == (3, 7)


@pytest.mark.parametrize("name", LIGHT)
@torch.no_grad()
def test_evaluation_is_deterministic_and_the_stages_are_the_forward_pass(name):
    model = build(name).eval()
    batch = images(2, 3, 32, 32)
    stages, logits = model.forward_stages(batch), model(batch)
    assert torch.equal(logits, model(batch))
    assert torch.equal(logits, model.head(stages["pooled"]))
    assert torch.equal(model.forward_features(batch), stages["pooled"])
    assert not torch.equal(logits[0], logits[1])
    torch.testing.assert_close(model(batch[:1]), logits[:1], rtol=1e-3, atol=1e-4 * float(logits.abs().max()))


@pytest.mark.parametrize("name", ["resnet8", "wrn_16_1", "mobilenet_v2"])
@torch.no_grad()
def test_a_hook_on_a_stage_sees_what_forward_stages_returns(name):
    model = build(name).eval()
    seen = {}
    for stage, module in model.features.named_children():
        module.register_forward_hook(lambda _module, _inputs, output, stage=stage: seen.update({stage: output}))
    outputs = model.forward_stages(images(2, 3, 32, 32))
    assert seen.keys() == outputs.keys()
    assert all(seen[stage] is output for stage, output in outputs.items())


@pytest.mark.parametrize("name", LIGHT)
def test_the_same_seed_gives_the_same_weights_and_another_seed_others(name):
    one, same, other = (build(name, seed=seed).state_dict() for seed in (4, 4, 5))
    assert all(torch.equal(one[key], same[key]) for key in one)
    drawn = [key for key in one if key.endswith(".weight") and one[key].ndim > 1]
    assert all(not torch.equal(one[key], other[key]) for key in drawn)


@pytest.mark.parametrize("name", LIGHT)
@torch.no_grad()
def test_channels_last_changes_no_logit(name):
    model = build(name).eval()
    batch = images(2, 3, 32, 32)
    expected = model(batch)
    model.to(memory_format=torch.channels_last)
    logits = model(batch.to(memory_format=torch.channels_last))
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("name", LIGHT)
def test_every_parameter_receives_a_gradient(name):
    model = build(name, (1, 8, 8), classes=10)
    nn.functional.cross_entropy(model(images(8, 1, 8, 8)), torch.arange(8)).backward()
    assert [key for key, parameter in model.named_parameters() if parameter.grad is None] == []
    assert [key for key, parameter in model.named_parameters() if not parameter.grad.abs().max() > 0] == []


@pytest.mark.parametrize("name", ["resnet18", "resnet50_cifar", "vgg8", "wrn_16_1"])
def test_no_activation_writes_its_input_over(name):
    """So that a hook that keeps a map keeps it as it was."""
    activations = [module for module in on_meta(name).modules() if isinstance(module, (nn.ReLU, nn.SiLU))]
    assert activations
    assert not any(module.inplace for module in activations)


PREACTIVATIONS = {
    "resnet8": lambda features: (features.stage2[-1].relu, features.stage2),
    "resnet20": lambda features: (features.stage3[-1].relu, features.stage3),
    "shufflenet_v1": lambda features: (features.stage1[-1].relu, features.stage1),
    "vgg8": lambda features: (features.stage4.relu1, features.stage4),
    "mobilenet_v1": lambda features: (features.stage3[-1].pointwise.relu, features.stage3),
    "wrn_16_2": lambda features: (features.stage3[0].activation1, features.stage3[0].activation1),
}


@pytest.mark.parametrize("name", PREACTIVATIONS)
def test_a_hook_on_a_documented_activation_has_the_map_before_it(name):
    """Its input, rectified, is the stage's map; in a wide network the next block's norm makes it of the stage's map."""
    model = build(name).eval()
    activation, stage = PREACTIVATIONS[name](model.features)
    before, after = [], []
    activation.register_forward_pre_hook(lambda _module, inputs: before.append(inputs[0]))
    stage.register_forward_hook(lambda _module, _inputs, output: after.append(output))
    outputs = model.forward_stages(images(2, 3, 32, 32))
    assert before[0].min() < 0
    assert torch.equal(before[0].relu(), after[0])
    if name.startswith("wrn"):
        assert torch.equal(before[0], model.features.stage3[0].bn1(outputs["stage2"]))


# --- first weights --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet20", "wrn_16_2", "vgg8", "mobilenet_v2"])
def test_convolutions_start_normal_with_variance_2_over_their_outgoing_connections(name):
    for module in build(name).modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 4000:
            std = math.sqrt(2 / (module.kernel_size[0] ** 2 * module.out_channels))
            values = module.weight.flatten() / std
            assert values.std().item() == pytest.approx(1, abs=5 / math.sqrt(2 * len(values)))
            assert values.abs().max() > 3  # a uniform distribution of this variance ends at 1.73
            assert module.bias is None or not module.bias.any()


def test_heads_start_as_published():
    assert not build("wrn_16_1").head.bias.any()
    for name in ("vgg8", "mobilenet_v2"):
        head = build(name).head
        assert not head.bias.any()
        assert head.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert build("resnet20").head.bias.any()  # torch's own: uniform up to 1 / 8
    assert build("resnet20").head.weight.abs().max().item() == pytest.approx(1 / 8, rel=0.01)


# --- the network with SiLU ------------------------------------------------------------------------------------


def test_a_silu_network_standardises_pixels_as_its_data_set_does():
    """With as many classes as CIFAR-100 as that, otherwise as CIFAR-10; and no file holds the constants."""
    means = {100: (0.5071, 0.4865, 0.4409), 10: (0.4914, 0.4822, 0.4465)}
    stds = {100: (0.2673, 0.2564, 0.2762), 10: (0.2471, 0.2435, 0.2616)}
    batch = images(2, 3, 8, 8)
    for classes, mean in means.items():
        model = wide_resnet_swish((3, 8, 8), classes, depth=10, widen=1)
        expected = torch.stack([(batch[:, i] - mean[i]) / stds[classes][i] for i in range(3)], 1)
        torch.testing.assert_close(model.features.stem.standardise(batch), expected)
        assert not [key for key in model.state_dict() if "standardise" in key]


def test_a_silu_network_has_silu_and_slow_statistics_everywhere():
    modules = list(on_meta("wrn_28_10_swish").modules())
    assert not [module for module in modules if isinstance(module, nn.ReLU)]
    assert sum(isinstance(module, nn.SiLU) for module in modules) == 25
    assert {module.momentum for module in modules if isinstance(module, nn.BatchNorm2d)} == {0.01}


def test_a_silu_network_refuses_grey_images():
    expected = (
        "`model.name` wrn_28_10_swish: a network with CIFAR's colour means inside expected images of 3 channels, "
        "got 1; choose one without `swish` in its name"
    )
    with pytest.raises(UserError) as caught:
        build("wrn_28_10_swish", (1, 8, 8))
    assert str(caught.value) == expected


@pytest.mark.parametrize("side", [8, 7, 2, 1])
def test_same_padding_is_tensorflows(side):
    """SAME at stride 2: ceil(side / 2) positions, and of the padding that they need, the smaller half before."""
    conv = SameConvolution(1, 1, 3)
    maps = images(1, 1, side, side)
    total = (math.ceil(side / 2) - 1) * 2 + 3 - side
    padded = nn.functional.pad(maps, (total // 2, total - total // 2) * 2)
    assert torch.equal(conv(maps), nn.functional.conv2d(padded, conv.weight, stride=2))


# --- stochastic depth -----------------------------------------------------------------------------------------


def deep(rate):
    options = ModelOptions(name="resnet18", stochastic_depth=rate)
    return build_model(options, image_shape=(3, 32, 32), num_classes=10, seed=0)


def test_the_rate_rises_linearly_from_0_over_the_blocks():
    rates = [layer.rate for layer in deep(0.7).modules() if isinstance(layer, StochasticDepth)]
    assert rates == pytest.approx([0.1 * block for block in range(8)])


def test_stochastic_depth_is_off_in_eval_mode_and_has_no_weights():
    plain, dropping = deep(0.0), deep(0.5)
    assert plain.state_dict().keys() == dropping.state_dict().keys()
    assert torch.equal(plain.eval()(images(2, 3, 32, 32)), dropping.eval()(images(2, 3, 32, 32)))


def test_a_branch_is_dropped_for_whole_samples_and_scaled_for_the_others():
    torch.manual_seed(0)
    branch = StochasticDepth(0.25).train()(torch.ones(4000, 2, 3, 3))
    per_sample = branch.flatten(1)
    assert bool((per_sample == per_sample[:, :1]).all())
    assert sorted(set(per_sample[:, 0].tolist())) == pytest.approx([0.0, 4 / 3])
    assert float(per_sample[:, 0].mean()) == pytest.approx(1, abs=0.03)  # 3.3 deviations
