"""A small convolutional network."""

from __future__ import annotations

from torch import nn

from limbeck.models.network import Network


def convnet(image_shape: tuple[int, int, int], num_classes: int, *, width: int, depth: int, dropout: float) -> Network:
    """Build `depth` stages (3x3 convolution, BatchNorm, ReLU) with pooling between, global pooling, and the head.

    The first stage has `width` channels, each next one twice as many on half the side.

    Args:
        image_shape: `(C, H, W)`.
        num_classes: Number of classes.
        width: Channels of the first stage.
        depth: Stages, at least 1.
        dropout: Before the head.

    Returns:
        A network with `width * 2 ** (depth - 1)` features.
    """
    layers: list[nn.Module] = []
    channels = image_shape[0]
    for stage in range(depth):
        if stage:
            # Rounding up keeps one pixel however deep the network is.
            layers.append(nn.MaxPool2d(2, ceil_mode=True))
        wider = width * 2**stage
        # BatchNorm subtracts the mean, so a bias before it would do nothing.
        layers += [nn.Conv2d(channels, wider, 3, padding=1, bias=False), nn.BatchNorm2d(wider), nn.ReLU()]
        channels = wider
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return Network(nn.Sequential(*layers), channels, num_classes, dropout)
