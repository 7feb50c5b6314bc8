"""Networks by name. A network maps images to logits, and offers `forward_features` and `head`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch

from limbeck.models.convnet import convnet
from limbeck.models.mlp import mlp
from limbeck.models.network import Network

if TYPE_CHECKING:
    from limbeck.config import ModelOptions

__all__ = ["MODELS", "Network", "build_model"]


class Constructor(Protocol):
    """What an entry of `MODELS` is called with."""

    def __call__(
        self, image_shape: tuple[int, int, int], num_classes: int, *, width: int, depth: int, dropout: float
    ) -> Network: ...


MODELS: dict[str, Constructor] = {"mlp": mlp, "convnet": convnet}


def build_model(options: ModelOptions, *, image_shape: tuple[int, int, int], num_classes: int, seed: int) -> Network:
    """Build a network on the CPU; its weights are a function of the arguments.

    Args:
        options: Name and sizes.
        image_shape: `(C, H, W)`.
        num_classes: Number of classes.
        seed: Seed of the weights.

    Returns:
        The network, in training mode. torch's random state is as before.

    Example:
        >>> from limbeck.config import ModelOptions
        >>> model = build_model(ModelOptions(name="mlp"), image_shape=(1, 8, 8), num_classes=10, seed=0)
        >>> model(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """
    constructor = MODELS[options.name]
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which would seed the accelerators too.
        torch.default_generator.manual_seed(seed)
        return constructor(image_shape, num_classes, width=options.width, depth=options.depth, dropout=options.dropout)
