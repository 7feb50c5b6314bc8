"""What losses between the samples of a batch share: flat features of either side, rows of length one."""

from __future__ import annotations

import torch
from torch import Tensor

from limbeck.functional._check import widest

SMALLEST_NORM = 1e-12  # a row that is shorter has no direction


def flat_pair(
    features: Tensor, target_features: Tensor, *, one_width: bool = False, live_target: bool = False
) -> tuple[Tensor, Tensor]:
    """Both sides as (N, D), in the dtype of the arithmetic; D may differ unless `one_width`. The target is detached."""
    for name, value in (("features", features), ("target_features", target_features)):
        if not isinstance(value, Tensor):
            raise TypeError(f"`{name}` expected a tensor, got {type(value).__name__}")
        if not value.is_floating_point():
            raise TypeError(f"`{name}` expected a floating dtype, got {value.dtype}; convert it with `.float()`")
        if value.dim() < 2 or value.numel() == 0:
            raise ValueError(f"`{name}` expected a non-empty shape (N, D) or (N, D, H, W), got {tuple(value.shape)}")
    if len(features) != len(target_features):
        raise ValueError(
            "`features` and `target_features` expected the same N samples, got the shapes "
            f"{tuple(features.shape)} and {tuple(target_features.shape)}"
        )
    dtype = widest(features, target_features)
    a, b = features.flatten(1).to(dtype), target_features.flatten(1).to(dtype)
    b = b if live_target else b.detach()
    if one_width and a.shape != b.shape:
        raise ValueError(
            f"`features` and `target_features` expected one width D, got {a.shape[1]} and {b.shape[1]}; project the "
            "student's to the teacher's"
        )
    return a, b


def unit_rows(x: Tensor) -> Tensor:
    """Rows of length one; a row without a direction becomes 0 and passes no gradient."""
    norms = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return torch.where(norms > SMALLEST_NORM, x / norms.clamp_min(SMALLEST_NORM), 0.0)
