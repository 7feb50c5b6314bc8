"""Float64 twins of the losses between samples, made of loops; see `twins`."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor


def smooth_l1(a: Tensor, b: Tensor) -> Tensor:
    gap = (a - b).abs()
    return torch.where(gap < 1, gap**2 / 2, gap - 0.5)


def distance_twin(s: Tensor, t: Tensor) -> Tensor:
    n = len(s)
    pairs = list(itertools.product(range(n), repeat=2))
    means = [torch.stack([(x[i] - x[j]).norm() for i, j in pairs if i != j]).mean() for x in (s, t)]
    gaps = [smooth_l1((s[i] - s[j]).norm() / means[0], (t[i] - t[j]).norm() / means[1]) for i, j in pairs if i != j]
    return torch.stack(gaps).sum() / n**2


def angle_twin(s: Tensor, t: Tensor) -> Tensor:
    def cosine(x: Tensor, i: int, j: int, k: int) -> Tensor:
        if i in (j, k):
            return x.new_zeros(())
        a, b = x[j] - x[i], x[k] - x[i]
        return (a / a.norm() * (b / b.norm())).sum()

    triplets = itertools.product(range(len(s)), repeat=3)
    return torch.stack([smooth_l1(cosine(s, *ijk), cosine(t, *ijk)) for ijk in triplets]).mean()


def pkt_twin(s: Tensor, t: Tensor) -> Tensor:
    n, total = len(s), s.new_zeros(())
    for i in range(n):
        rows = []
        for x in (s, t):
            unit = [row / (row.norm() + 1e-7) for row in x]
            row = torch.stack([(unit[i] @ unit[j] + 1) / 2 for j in range(n)])
            rows.append(row / row.sum())
        total = total + sum(rows[1][j] * torch.log((rows[1][j] + 1e-7) / (rows[0][j] + 1e-7)) for j in range(n))
    return total / n**2


def sp_twin(s: Tensor, t: Tensor) -> Tensor:
    n, total = len(s), s.new_zeros(())
    for i in range(n):
        rows = [torch.stack([(x[i] * x[j]).sum() for j in range(n)]) for x in (s, t)]
        total = total + ((rows[1] / rows[1].norm() - rows[0] / rows[0].norm()) ** 2).sum()
    return total / n**2


def neighbour_twin(s: Tensor, t: Tensor) -> Tensor:
    d = [(a - b).abs() for a, b in zip(s, t, strict=True)]
    return sum((a * b).sum() for a, b in itertools.pairwise(d)) / (len(d) - 1)


def kernel_twin(
    s: Tensor, t: Tensor, gaussian: bool, gamma: float = 0.4, degree: int = 2, unit: bool = True, power: int = 2
) -> Tensor:
    n, total = len(s), s.new_zeros(())
    for i, j in itertools.product(range(n), repeat=2):
        entries = []
        for x in (s, t):
            product = (x[i] / x[i].norm()) @ (x[j] / x[j].norm()) if unit else x[i] @ x[j]
            if gaussian:
                terms = [(2 * gamma) ** p / math.factorial(p) * product**p for p in range(degree + 1)]
                product = math.exp(-2 * gamma) * sum(terms)
            entries.append(product)
        total = total + (entries[0] - entries[1]) ** 2
    return total ** (power / 2) / n**2


def ipot_twin(cost: Tensor, beta: float, iterations: int) -> Tensor:
    """The published updates as they are printed."""
    n, m = cost.shape
    kernel, plan, sigma = torch.exp(-cost / beta), torch.ones_like(cost), torch.full((m,), 1 / m).to(cost)
    for _ in range(iterations):
        q = kernel * plan
        delta = 1 / (n * (q @ sigma))
        sigma = 1 / (m * (q.T @ delta))
        plan = torch.diag(delta) @ q @ torch.diag(sigma)
    return plan


def transport_twin(s: Tensor, t: Tensor, euclidean: bool = False) -> Tensor:
    if euclidean:
        cost = torch.stack([torch.stack([((a - b) ** 2).mean() for b in t]) for a in s])
    else:
        cost = torch.stack([torch.stack([1 - a @ b / a.norm() / b.norm() for b in t]) for a in s])
    return (ipot_twin(cost.detach(), 1.0, 50) * cost).sum()
