"""A small convolutional network."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from limbeck.models.layers import conv_bn, conv_bn_relu, global_pool
from limbeck.models.network import Network


def convnet(
    image_shape: tuple[int, int, int], num_classes: int, *, width: int = 16, depth: int = 2, dropout: float = 0.0
) -> Network:
    """Build `depth` stages (3x3 convolution, BatchNorm, ReLU) with pooling between, global pooling, and the head.

    The first stage, which is the stem, has `width` channels, each next one twice as many on half the side.

    Args:
        image_shape: `(C, H, W)`.
        num_classes: Number of classes.
        width: Channels of the first stage.
        depth: Stages, at least 1.
        dropout: Before the head.

    Returns:
        A network with `width * 2 ** (depth - 1)` features.
    """
    stages: dict[str, nn.Module] = {"stem": conv_bn_relu(image_shape[0], width, 3)}
    channels = width
    for stage in range(1, depth):
        # Rounding up keeps one pixel however deep the network is.
        pool = nn.MaxPool2d(2, ceil_mode=True)
        layers = OrderedDict(pool=pool, **conv_bn(channels, 2 * channels, 3), relu=nn.ReLU())
        stages[f"stage{stage}"] = nn.Sequential(layers)
        channels *= 2
    return Network({**stages, "pooled": global_pool()}, channels, num_classes, dropout)
