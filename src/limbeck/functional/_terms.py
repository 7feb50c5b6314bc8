"""What one call of the DKL family computes, besides its logits."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from limbeck.functional._check import Reduction

Normalizer = Literal["weights", "row", "samples"]


class Terms(NamedTuple):
    """The two parts and their factors."""

    mse_weight: float
    ce_weight: float
    mse_temperature: float | Tensor
    ce_temperature: float | Tensor
    mse_reaches_logits: bool
    normalizer: Normalizer | Tensor
    reduction: Reduction


class Weights(NamedTuple):
    """Rows of probabilities, not yet read or powered.

    `prior` is (*, C), or with `labels` the (C, C) table; None is the target's own softmax at `temperature`.
    """

    prior: Tensor | None
    labels: Tensor | None
    power: float
    temperature: float | Tensor


def positive(x: Tensor) -> Tensor:
    """At least the smallest normal number."""
    return x.clamp_min(torch.finfo(x.dtype).tiny)


def count(mass: Tensor, mask: Tensor | None) -> Tensor | float:
    """Samples that take part, at least 1."""
    return float(mass.numel()) if mask is None else mask.sum().clamp_min(1).to(mass.dtype)


def mse_factor(mass: Tensor, mask: Tensor | None, terms: Terms) -> Tensor:
    """What each sample's half spread is multiplied by, S included, so that the mean over samples is the value."""
    if isinstance(terms.normalizer, Tensor):
        return mass * (terms.mse_weight * count(mass, mask) / terms.normalizer.detach().to(mass.dtype))
    if terms.normalizer == "weights":
        taking_part = mass if mask is None else mass * mask
        return mass * (terms.mse_weight * count(mass, mask) / positive((taking_part * taking_part).sum()))
    if terms.normalizer == "row":
        return terms.mse_weight / positive(mass)  # S / S^2, without the square, which may underflow
    return mass * terms.mse_weight
