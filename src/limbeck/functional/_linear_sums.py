"""Sums over a token's classes that come in parts: log-partition functions, weighted means and variances.

In the manner of an online softmax: a running maximum, and sums below it that shrink where it grows. Means and variances
by the merge of Chan, Golub and LeVeque.
"""

from __future__ import annotations

import torch
from torch import Tensor


def tiny(x: Tensor) -> float:
    return torch.finfo(x.dtype).tiny


def total(x: Tensor) -> Tensor:
    return x.sum(-1, keepdim=True)


class Partition:
    """log sum exp of scores that come in parts, and sums weighted by their exponentials."""

    def __init__(self, column: Tensor) -> None:
        self.top = torch.full_like(column, torch.finfo(column.dtype).min)  # not -inf, of which differences are NaN
        self.mass = torch.zeros_like(column)

    def add(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Return exp(scores - maximum), and the factor by which earlier sums shrink."""
        top = torch.maximum(self.top, scores.amax(-1, keepdim=True))
        shrink = (self.top - top).exp_()
        powers = (scores - top).exp_()
        self.top, self.mass = top, self.mass * shrink + total(powers)
        return powers, shrink

    def logarithm(self) -> list[Tensor]:
        """The maximum, and the logarithm of what exceeds it: taken off one after the other they round less."""
        return [self.top, self.mass.log()]


class Spread:
    """Weighted mean and variance of numbers that come in parts, with weights exp(scores)."""

    def __init__(self, column: Tensor, careful: bool) -> None:
        self.weights = Partition(column)
        self.mean, self.squares = torch.zeros_like(column), torch.zeros_like(column)
        self.unequal = torch.zeros_like(column, dtype=torch.bool)
        self.careful = careful

    def add(self, scores: Tensor, gap: Tensor) -> None:
        """`gap` is used up."""
        before = self.weights.mass
        powers, shrink = self.weights.add(scores)
        if self.careful:
            gap.masked_fill_(powers == 0, 0.0)
            infinite = torch.isinf(gap)
            self.unequal |= infinite.any(-1, keepdim=True)
            gap.masked_fill_(infinite, 0.0)
        before, here = before * shrink, total(powers)
        mean = total(powers * gap) / here.clamp_min(tiny(here))
        squares = total(gap.sub_(mean).square_().mul_(powers))
        step = mean - self.mean
        share = here / self.weights.mass.clamp_min(tiny(here))
        self.squares = self.squares * shrink + squares + step.square() * before * share
        self.mean = self.mean + step * share

    def half_variance(self) -> Tensor:
        """Infinite where one side alone excludes a class that has weight."""
        values = 0.5 * self.squares / self.weights.mass.clamp_min(tiny(self.mean))
        return values.masked_fill(self.unequal, torch.inf)
