"""What the losses between feature maps share: their checks, one size for two maps, and lengths that may be 0."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from limbeck.functional._check import widest

FLOOR = 1e-12  # of the public codes: what is shorter has no direction


def check_maps(features: Tensor, target_features: Tensor, *, same: str = "") -> None:
    """Both (N, D, H, W), floating, not empty, of the same N; `same` names further axes that agree, such as "DHW".

    Raises:
        TypeError: Not tensors, or not floating.
        ValueError: Other shapes.
    """
    for name, value in (("features", features), ("target_features", target_features)):
        if not isinstance(value, Tensor):
            raise TypeError(f"`{name}` expected a tensor, got {type(value).__name__}")
        if not value.is_floating_point():
            raise TypeError(f"`{name}` expected a floating dtype, got {value.dtype}; convert it with `.float()`")
        if value.dim() != 4 or value.numel() == 0:
            raise ValueError(
                f"`{name}` expected a non-empty map (N, D, H, W), got {tuple(value.shape)}; vectors are "
                "`vectors[..., None, None]`, tokens (N, L, D) `tokens.mT.unsqueeze(-1)`"
            )
    axes = ["NDHW".index(axis) for axis in "N" + same]
    if any(features.shape[axis] != target_features.shape[axis] for axis in axes):
        raise ValueError(
            f"`features` and `target_features` expected the same {', '.join('N' + same)} in (N, D, H, W), got "
            f"{tuple(features.shape)} and {tuple(target_features.shape)}; nothing is broadcast"
        )


def in_full(features: Tensor, target_features: Tensor) -> tuple[Tensor, Tensor]:
    """Return both in the dtype of the arithmetic, the target detached."""
    dtype = widest(features, target_features)
    return features.to(dtype), target_features.detach().to(dtype)


def to_smaller(features: Tensor, target_features: Tensor) -> tuple[Tensor, Tensor]:
    """Average-pool each map that is larger, along an axis, to the other's size."""
    size = tuple(min(sides) for sides in zip(features.shape[-2:], target_features.shape[-2:], strict=True))
    return pooled_to(features, size), pooled_to(target_features, size)


def pooled_to(features: Tensor, size: Sequence[int]) -> Tensor:
    """Average-pool a map to (H, W); the map itself where it has that size."""
    height, width = size
    return features if features.shape[-2:] == (height, width) else adaptive_avg_pool2d(features, (height, width))


def unit(x: Tensor, length: Tensor) -> Tensor:
    """Return x / length, and 0, without a gradient, where the length is below the floor: a dead map has no direction.

    The public codes divide by the floor there, which gives a dead map gradients of 1e12.
    """
    alive = length > FLOOR
    return torch.where(alive, x / torch.where(alive, length, 1.0), 0.0)


def norm(x: Tensor, dim: int | tuple[int, ...] = -1) -> Tensor:
    """Euclidean length, the axes kept."""
    length: Tensor = torch.linalg.vector_norm(x, dim=dim, keepdim=True)
    return length


def check_word(name: str, word: str, words: Sequence[str]) -> None:
    """Raise ValueError unless it is one of the words."""
    if word not in words:
        raise ValueError(f"`{name}` expected one of {', '.join(repr(known) for known in words)}, got {word!r}")
