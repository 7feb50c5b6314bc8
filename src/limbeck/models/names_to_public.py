"""The way back from `public_names`: the weights of the zoo under the names of torchvision and other public code."""

from __future__ import annotations

import re

from limbeck.models.public_names import SEPARABLE, Rules

_STEM: Rules = ((r"^features\.stem\.conv\.", "conv1."), (r"^features\.stem\.bn\.", "bn1."))
_LAYERS: Rules = ((r"^features\.stage(\d)\.", r"layer\1."),)
_FC: Rules = ((r"^head\.", "fc."),)
_LINEAR: Rules = ((r"^head\.", "linear."),)


def _around(name: str) -> Rules:
    return ((r"\.shortcut\.conv\.", f".{name}.0."), (r"\.shortcut\.bn\.", f".{name}.1."))


RESNET: Rules = (*_STEM, *_LAYERS, *_around("downsample"), *_FC)
RESNET_CIFAR: Rules = (*_STEM, *_LAYERS, *_around("shortcut"), *_LINEAR)
SHUFFLENET: Rules = (
    *_STEM,
    *_LAYERS,
    (r"^features\.neck\.conv\.", "conv2."),
    (r"^features\.neck\.bn\.", "bn2."),
    *_LINEAR,
)
PREACT_RESNET: Rules = (
    *_STEM,
    *_LAYERS,
    (r"\.shortcut\.", ".shortcut.0."),
    (r"^features\.neck\.bn\.", "bn."),
    *_LINEAR,
)
WIDE_RESNET: Rules = (
    *_STEM,
    (r"^features\.stage(\d)\.", r"block\1.layer."),
    (r"\.shortcut\.", ".convShortcut."),
    (r"^features\.neck\.bn\.", "bn1."),
    *_FC,
)
WIDE_RESNET_SWISH: Rules = (
    (r"^features\.stem\.conv\.", "init_conv."),
    (r"\.bn1\.", ".batchnorm_0."),
    (r"\.conv1\.", ".conv_0."),
    (r"\.bn2\.", ".batchnorm_1."),
    (r"\.conv2\.", ".conv_1."),
    *((rf"^features\.stage{stage}\.", f"layer.{stage - 1}.block.") for stage in (1, 2, 3)),
    (r"^features\.neck\.bn\.", "batchnorm."),
    (r"^head\.", "logits."),
)
VGG: Rules = (
    (r"\.conv1\.", ".0."),
    (r"\.bn1\.", ".1."),
    (r"\.conv2\.", ".3."),
    (r"\.bn2\.", ".4."),
    (r"^features\.stem\.", "block0."),
    (r"^features\.stage(\d)\.", r"block\1."),
    (r"^head\.", "classifier."),
)
MOBILENET_V2: Rules = (
    (r"^features\.stem\.conv\.", "conv1.0."),
    (r"^features\.stem\.bn\.", "conv1.1."),
    (r"^features\.neck\.conv\.", "conv2.0."),
    (r"^features\.neck\.bn\.", "conv2.1."),
    (r"\.expand\.conv\.", ".conv.0."),
    (r"\.expand\.bn\.", ".conv.1."),
    (r"\.depthwise\.conv\.", ".conv.3."),
    (r"\.depthwise\.bn\.", ".conv.4."),
    (r"\.project\.conv\.", ".conv.6."),
    (r"\.project\.bn\.", ".conv.7."),
    (r"^features\.stage1\.", "blocks."),
    (r"^features\.stage2\.0\.", "blocks.2."),
    (r"^features\.stage3\.0\.", "blocks.3."),
    (r"^features\.stage3\.1\.", "blocks.4."),
    (r"^features\.stage4\.0\.", "blocks.5."),
    (r"^features\.stage4\.1\.", "blocks.6."),
    (r"^head\.", "classifier.0."),
)
MOBILENET_V1: Rules = (
    (r"^features\.stem\.conv\.", "model.0.0."),
    (r"^features\.stem\.bn\.", "model.0.1."),
    (r"\.depthwise\.conv\.", ".0."),
    (r"\.depthwise\.bn\.", ".1."),
    (r"\.pointwise\.conv\.", ".3."),
    (r"\.pointwise\.bn\.", ".4."),
    *(
        (rf"^features\.stage{stage}\.{index}\.", f"model.{number}.")
        for number, (stage, index) in enumerate(SEPARABLE, 1)
    ),
    *_FC,
)

# The first pattern that an architecture's whole name fits.
FAMILIES: tuple[tuple[str, Rules], ...] = (
    (r"resnet\d+_cifar", RESNET_CIFAR),
    (r"resne.*", RESNET),
    (r"preact_.*", PREACT_RESNET),
    (r"wrn_28_10_swish", WIDE_RESNET_SWISH),
    (r"wrn_.*", WIDE_RESNET),
    (r"vgg.*", VGG),
    (r"mobilenet_v1", MOBILENET_V1),
    (r"mobilenet_v2", MOBILENET_V2),
    (r"shufflenet.*", SHUFFLENET),
    (r"(timm|tv|hf):.*", ((r"^network\.", ""),)),
)


def public_name(ours: str, architecture: str) -> str:
    """Return the name that a weight here has in the public code of its architecture.

    For ImageNet's ResNets these are torchvision's, for a network of timm, torchvision or transformers the library's.

    >>> public_name("features.stage1.0.shortcut.conv.weight", "resnet18")
    'layer1.0.downsample.0.weight'

    An architecture that has no public code keeps its names.

    >>> public_name("features.stem.0.weight", "convnet")
    'features.stem.0.weight'
    """
    rules = next((rules for pattern, rules in FAMILIES if re.fullmatch(pattern, architecture)), ())
    for pattern, replacement in rules:
        ours = re.sub(pattern, replacement, ours)
    return ours
