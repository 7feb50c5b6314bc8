"""A multilayer perceptron on the pixels."""

from __future__ import annotations

import math
from collections import OrderedDict

from torch import nn

from limbeck.models.network import Network


def mlp(
    image_shape: tuple[int, int, int], num_classes: int, *, width: int = 16, depth: int = 2, dropout: float = 0.0
) -> Network:
    """Build `depth` hidden layers (linear, BatchNorm, ReLU) of `width` units, and the head.

    Args:
        image_shape: `(C, H, W)`.
        num_classes: Number of classes.
        width: Units of a hidden layer.
        depth: Hidden layers, at least 1.
        dropout: Before the head.

    Returns:
        A network with `width` features. Its stem flattens the images, each hidden layer is a stage.
    """
    stages: dict[str, nn.Module] = {"stem": nn.Flatten()}
    size = math.prod(image_shape)
    for stage in range(1, depth + 1):
        # BatchNorm subtracts the mean, so a bias before it would do nothing.
        linear = nn.Linear(size, width, bias=False)
        stages[f"stage{stage}"] = nn.Sequential(OrderedDict(linear=linear, bn=nn.BatchNorm1d(width), relu=nn.ReLU()))
        size = width
    return Network({**stages, "pooled": nn.Identity()}, size, num_classes, dropout)
