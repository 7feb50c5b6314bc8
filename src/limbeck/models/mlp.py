"""A multilayer perceptron on the pixels."""

from __future__ import annotations

import math

from torch import nn

from limbeck.models.network import Network


def mlp(image_shape: tuple[int, int, int], num_classes: int, *, width: int, depth: int, dropout: float) -> Network:
    """Build `depth` hidden layers (linear, BatchNorm, ReLU) of `width` units, and the head.

    Args:
        image_shape: `(C, H, W)`.
        num_classes: Number of classes.
        width: Units of a hidden layer.
        depth: Hidden layers, at least 1.
        dropout: Before the head.

    Returns:
        A network with `width` features.
    """
    layers: list[nn.Module] = [nn.Flatten()]
    size = math.prod(image_shape)
    for _ in range(depth):
        # BatchNorm subtracts the mean, so a bias before it would do nothing.
        layers += [nn.Linear(size, width, bias=False), nn.BatchNorm1d(width), nn.ReLU()]
        size = width
    return Network(nn.Sequential(*layers), size, num_classes, dropout)
