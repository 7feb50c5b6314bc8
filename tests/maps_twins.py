"""Losses between feature maps in loops over samples, channels and positions, in float64."""

from __future__ import annotations

import math

import torch
from torch import Tensor

Rows = list[Tensor]


def pooled(x: Tensor, height: int, width: int) -> Tensor:
    """(D, H, W) to (D, height, width): cell a of k spans floor(a H / k) to ceil((a + 1) H / k)."""

    def cell(at: int, cells: int, size: int) -> slice:
        return slice(at * size // cells, -(-(at + 1) * size // cells))

    rows = [
        torch.stack([x[:, cell(i, height, x.shape[1]), cell(j, width, x.shape[2])].mean((1, 2)) for j in range(width)])
        for i in range(height)
    ]
    return torch.stack(rows).permute(2, 0, 1)


def same_size(s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    height, width = (min(a, b) for a, b in zip(s.shape[1:], t.shape[1:], strict=True))
    return pooled(s, height, width), pooled(t, height, width)


def length(x: Tensor) -> Tensor:
    return (x * x).sum().sqrt()


def hint(s: Tensor, t: Tensor, mode: str) -> Tensor:
    squares = [(s[:, i, j] - t[:, i, j]).square() for i in range(s.shape[1]) for j in range(s.shape[2])]
    return torch.stack([x.mean() if mode == "code" else x.sum() / 2 for x in squares]).mean()


def attention(s: Tensor, t: Tensor, mode: str, power: float) -> Tensor:
    maps = []
    for x in same_size(s, t):
        q = torch.stack(
            [sum(abs(v) ** power for v in x[:, i, j]) for i in range(x.shape[1]) for j in range(x.shape[2])]
        )
        maps.append(q / length(q))
    difference = maps[0] - maps[1]
    return length(difference) / 2 if mode == "paper" else difference.square().sum() / len(difference)


def selectivity(s: Tensor, t: Tensor) -> Tensor:
    s_rows, t_rows = ([c.flatten() / length(c) for c in x] for x in same_size(s, t))

    def mean_kernel(a: Rows, b: Rows) -> Tensor:
        return torch.stack([(x * y).sum().square() for x in a for y in b]).mean()

    return mean_kernel(t_rows, t_rows) + mean_kernel(s_rows, s_rows) - 2 * mean_kernel(s_rows, t_rows)


def inter_channel(s: Tensor, t: Tensor) -> Tensor:
    grams = []
    for x in (s, t):
        gram = torch.stack([torch.stack([(a * b).sum() for b in x]) for a in x])
        grams.append(torch.stack([row / length(row) for row in gram]))
    return (grams[0] - grams[1]).square().sum() / len(s)


def class_attention(s: Tensor, t: Tensor, w: Tensor, v: Tensor, pool: int, normalize: bool) -> Tensor:
    """The published order: class maps first, pooled afterwards."""
    maps = []
    for x, weight in ((s, w), (t, v)):
        classes = pooled(torch.stack([sum(a * c for a, c in zip(row, x, strict=True)) for row in weight]), pool, pool)
        maps.append(torch.stack([c / length(c) for c in classes]) if normalize else classes)
    return (maps[0] - maps[1]).square().mean()


def variational(s: Tensor, t: Tensor, variance: Tensor) -> Tensor:
    """By the density of torch, the constant taken off."""
    entries = [
        -torch.distributions.Normal(s[d], variance[d].sqrt()).log_prob(t[d]) - math.log(2 * math.pi) / 2
        for d in range(len(s))
    ]
    return torch.stack(entries).mean()


def partial(s: Tensor, t: Tensor, margin: Tensor) -> Tensor:
    total = s.new_zeros(())
    for d in range(len(s)):
        for a, b in zip(s[d].flatten(), t[d].flatten(), strict=True):
            raised = max(b.item(), margin[d].item())
            if a.item() > raised or b.item() > 0:
                total = total + (a - raised) ** 2
    return total


def hierarchical(s: Tensor, t: Tensor) -> Tensor:
    total, weights, weight = (s - t).square().mean(), 1.0, 1.0
    for level in (4, 2, 1):
        if level >= s.shape[1]:
            continue
        weight /= 2
        total = total + weight * (pooled(s, level, level) - pooled(t, level, level)).square().mean()
        weights += weight
    return total / weights
