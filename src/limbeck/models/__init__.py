"""Networks by name. A network maps images to logits, and offers its stages, `forward_features` and `head`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import nn

from limbeck.errors import UserError
from limbeck.models.convnet import convnet
from limbeck.models.dense import encoder_decoder, pspnet_resnet18, pspnet_resnet101
from limbeck.models.detectors import detector, faster_rcnn
from limbeck.models.image_text import SIGMOID_START, image_text
from limbeck.models.layers import use_group_norm
from limbeck.models.mlp import mlp
from limbeck.models.mobilenet import mobilenet_v1, mobilenet_v2, mobilenet_v2_imagenet
from limbeck.models.network import Network
from limbeck.models.prefixed import PrefixedNetwork, Standardisation
from limbeck.models.resnet import BasicBlock, Bottleneck, resnet_cifar, resnet_imagenet
from limbeck.models.shufflenet import shufflenet_v1, shufflenet_v2
from limbeck.models.taps import FeatureTaps, feature_shapes
from limbeck.models.vgg import vgg
from limbeck.models.wide_resnet import preact_resnet, wide_resnet, wide_resnet_swish
from limbeck.network_names import DEEP_MODELS, PRETRAINED, is_prefixed

if TYPE_CHECKING:
    from limbeck.config import ModelOptions

__all__ = ["MODELS", "FeatureTaps", "Network", "PrefixedNetwork", "Standardisation", "build_model", "feature_shapes"]

# Called with the image's shape (C, H, W), the number of classes, and by name `dropout`; mlp and convnet also with
# `width` and `depth`, ImageNet's ResNets with `stochastic_depth`.
Constructor = Callable[..., nn.Module]

# Channels of the stem and of each stage.
_TIMES_4 = (32, 64, 128, 256)
_BASIC = (64, 64, 128, 256, 512)
_BOTTLENECK = (64, 256, 512, 1024, 2048)

_RESNEXT_BLOCK = partial(Bottleneck, reduction=2, groups=32)

_RESNET18 = partial(resnet_imagenet, blocks=(2, 2, 2, 2), channels=_BASIC, block=BasicBlock)
_RESNET50 = partial(resnet_imagenet, blocks=(3, 4, 6, 3), channels=_BOTTLENECK, block=Bottleneck)
_RESNET101 = partial(resnet_imagenet, blocks=(3, 4, 23, 3), channels=_BOTTLENECK, block=Bottleneck)

MODELS: dict[str, Constructor] = {
    "mlp": mlp,
    "convnet": convnet,
    "resnet8": partial(resnet_cifar, blocks=(1, 1, 1)),
    "resnet14": partial(resnet_cifar, blocks=(2, 2, 2)),
    "resnet20": partial(resnet_cifar, blocks=(3, 3, 3)),
    "resnet32": partial(resnet_cifar, blocks=(5, 5, 5)),
    "resnet44": partial(resnet_cifar, blocks=(7, 7, 7)),
    "resnet56": partial(resnet_cifar, blocks=(9, 9, 9)),
    "resnet110": partial(resnet_cifar, blocks=(18, 18, 18)),
    "resnet8x4": partial(resnet_cifar, blocks=(1, 1, 1), channels=_TIMES_4),
    "resnet32x4": partial(resnet_cifar, blocks=(5, 5, 5), channels=_TIMES_4),
    "wrn_16_1": partial(wide_resnet, depth=16, widen=1),
    "wrn_16_2": partial(wide_resnet, depth=16, widen=2),
    "wrn_40_1": partial(wide_resnet, depth=40, widen=1),
    "wrn_40_2": partial(wide_resnet, depth=40, widen=2),
    "vgg8": partial(vgg, convolutions=1),
    "vgg13": partial(vgg, convolutions=2),
    "mobilenet_v2": mobilenet_v2,
    "shufflenet_v1": shufflenet_v1,
    "shufflenet_v2": shufflenet_v2,
    "resnet18_cifar": partial(resnet_cifar, blocks=(2, 2, 2, 2), channels=_BASIC),
    "resnet50_cifar": partial(resnet_cifar, blocks=(3, 4, 6, 3), channels=_BOTTLENECK, block=Bottleneck),
    "preact_resnet18": partial(preact_resnet, blocks=(2, 2, 2, 2), channels=_BASIC),
    "wrn_28_10": partial(wide_resnet, depth=28, widen=10),
    "wrn_34_10": partial(wide_resnet, depth=34, widen=10),
    "wrn_34_20": partial(wide_resnet, depth=34, widen=20),
    "wrn_28_10_swish": partial(wide_resnet_swish, depth=28, widen=10),
    "resnet18": _RESNET18,
    "resnet34": partial(resnet_imagenet, blocks=(3, 4, 6, 3), channels=_BASIC, block=BasicBlock),
    "resnet50": _RESNET50,
    "resnet101": _RESNET101,
    "resnext101_32x4d": partial(resnet_imagenet, blocks=(3, 4, 23, 3), channels=_BOTTLENECK, block=_RESNEXT_BLOCK),
    "mobilenet_v1": mobilenet_v1,
}
# Networks that return something else than logits of images, by task.
TASK_MODELS: dict[str, Callable[..., nn.Module]] = {
    "detector": detector,
    "faster_rcnn_mobilenet_v2": partial(faster_rcnn, backbone=mobilenet_v2_imagenet, stage_channels=(24, 32, 96, 320)),
    "faster_rcnn_resnet18": partial(faster_rcnn, backbone=_RESNET18, stage_channels=_BASIC[1:]),
    "faster_rcnn_resnet50": partial(faster_rcnn, backbone=_RESNET50, stage_channels=_BOTTLENECK[1:]),
    "faster_rcnn_resnet101": partial(faster_rcnn, backbone=_RESNET101, stage_channels=_BOTTLENECK[1:]),
    "encoder_decoder": encoder_decoder,
    "pspnet_resnet18": pspnet_resnet18,
    "pspnet_resnet101": pspnet_resnet101,
    "image_text": image_text,
    "image_text_sigmoid": partial(image_text, start=SIGMOID_START),
}


def build_model(
    options: ModelOptions,
    *,
    image_shape: tuple[int, int, int],
    num_classes: int,
    seed: int,
    data: Standardisation | None = None,
    pretrained: bool = False,
    task: str = "supervised",
) -> nn.Module:
    """Build a network on the CPU; its weights are a function of the arguments.

    Args:
        options: Name and sizes. A file in `weights` is not read here: see `start_weights`.
        image_shape: `(C, H, W)`.
        num_classes: Number of classes.
        seed: Seed of the weights.
        data: What the images' pixels are standardised by. A network of another library that has `weights` from
            elsewhere sees them standardised as it was trained.
        pretrained: Get such a network's weights from its library, where `weights` say so.
        task: What the network is for, since some libraries' names stand for several.

    Returns:
        The network, in training mode. torch's random state is as before.

    Raises:
        UserError: The network is a user's own, which no name can build, or its library does not know or have it, or
            it cannot look at such images.

    Example:
        >>> from limbeck.config import ModelOptions
        >>> model = build_model(ModelOptions(name="mlp"), image_shape=(1, 8, 8), num_classes=10, seed=0)
        >>> model(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """
    if options.name == "custom":
        raise UserError("the network of this run is the user's own module: call limbeck.fit again")
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which would seed the accelerators too.
        torch.default_generator.manual_seed(seed)
        if not is_prefixed(options.name):
            return _build_own(options, image_shape, num_classes)
        from limbeck.models.libraries import open_network

        pretrained = pretrained and options.weights == PRETRAINED
        return open_network(
            options,
            image_shape=image_shape,
            num_classes=num_classes,
            data=data,
            pretrained=pretrained,
            task=task,
        )


def _build_own(options: ModelOptions, image_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    sizes = {key: size for key, size in (("width", options.width), ("depth", options.depth)) if size is not None}
    rates = {"dropout": options.dropout}
    if options.name in DEEP_MODELS:
        rates["stochastic_depth"] = options.stochastic_depth
    try:
        network = {**MODELS, **TASK_MODELS}[options.name](image_shape, num_classes, **rates, **sizes)
    except ValueError as error:
        raise UserError(f"`model.name` {options.name}: {error}") from error
    if options.norm == "group":
        use_group_norm(network)
    return network
