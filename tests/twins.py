"""Brute-force float64 twins: every pair of classes is written out, nothing is clever. The claims compare with these."""

from __future__ import annotations

import torch
from torch import Tensor


def softmax(x: Tensor, temperature: float = 1.0) -> Tensor:
    powers = torch.exp((x - x.max(-1, keepdim=True).values) / temperature)
    return powers / powers.sum(-1, keepdim=True)


def kl(p: Tensor, q: Tensor) -> Tensor:
    """Between probabilities, per sample."""
    return torch.where(p > 0, p * (p / q).log(), 0.0).sum(-1)


def pairwise_mse(logits: Tensor, target_logits: Tensor, weight: Tensor) -> Tensor:
    """1/4 sum_jk w_j w_k ((t_j - t_k) - (s_j - s_k))^2, with the (N, C, C) tensors in full."""
    student = logits.unsqueeze(-1) - logits.unsqueeze(-2)
    target = target_logits.unsqueeze(-1) - target_logits.unsqueeze(-2)
    weights = weight.unsqueeze(-1) * weight.unsqueeze(-2)
    return (weights * (target - student) ** 2).sum((-2, -1)) / 4


def soft_cross_entropy(logits: Tensor, target: Tensor, temperature: float = 1.0) -> Tensor:
    return -(target * softmax(logits, temperature).log()).sum(-1)


def dkl(logits: Tensor, target_logits: Tensor, *, mse_weight: float = 1.0, ce_weight: float = 1.0) -> Tensor:
    """Theorem 1, with its stop-gradients."""
    p = softmax(target_logits).detach()
    mse = pairwise_mse(logits.detach(), target_logits, p)
    return (mse_weight * mse + ce_weight * soft_cross_entropy(logits, p)).mean()


def gkl(
    logits: Tensor,
    target_logits: Tensor,
    rows: Tensor,
    *,
    mse_weight: float = 1.0,
    ce_weight: float = 1.0,
    weight_power: float = 1.0,
    temperature: float = 1.0,
    normalizer: str | float = "weights",
    mask: Tensor | None = None,
) -> Tensor:
    """The mean over the samples that `mask` keeps; `rows` (N, C) un-powered."""
    keep = torch.ones(len(logits), dtype=torch.bool) if mask is None else mask
    count = int(keep.sum())
    u = rows.detach() ** weight_power
    mse = pairwise_mse(logits, target_logits, u)
    pair_sums = (u.unsqueeze(-1) * u.unsqueeze(-2)).sum((-2, -1))
    if normalizer == "weights":
        mse_mean = mse[keep].sum() / pair_sums[keep].sum()
    elif normalizer == "row":
        mse_mean = (mse / pair_sums)[keep].mean()
    elif normalizer == "samples":
        mse_mean = mse[keep].sum() / count
    else:
        mse_mean = mse[keep].sum() / normalizer
    ce = soft_cross_entropy(logits, softmax(target_logits, temperature).detach(), temperature)
    return mse_weight * mse_mean + ce_weight * ce[keep].mean()


def labelled_batch(samples: int = 7, classes: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of two sides, (N, C) in float64, which take gradients, and labels (N,)."""
    generator = torch.Generator().manual_seed(0)
    sides = [2 * torch.randn(samples, classes, generator=generator, dtype=torch.float64) for _ in range(2)]
    labels = torch.randint(classes, (samples,), generator=generator)
    return sides[0].requires_grad_(), sides[1].requires_grad_(), labels


def gradients(value: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(value, inputs, retain_graph=True)
