"""Linear maps from flat features, which losses train beside the student."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn


def check_width(name: str, value: int) -> None:
    """A whole number of at least 1."""
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"`{name}` expected a whole number of at least 1, got {value!r}")


def width(shape: Sequence[int]) -> int:
    """D of a sample's features, flattened."""
    return math.prod(shape)


def of_flat(linear: nn.Module, features: Tensor, name: str) -> Tensor:
    """Apply `linear` to features flattened behind N, in the dtype of its weight."""
    assert isinstance(linear, nn.Linear)
    flat = features.flatten(1) if features.dim() > 1 else features.unsqueeze(1)
    if flat.shape[1] != linear.in_features:
        raise ValueError(
            f"`{name}` expected {linear.in_features} numbers per sample, as the shapes given to the constructor have, "
            f"got the shape {tuple(features.shape)}"
        )
    output: Tensor = linear(flat.to(linear.weight.dtype))
    return output
