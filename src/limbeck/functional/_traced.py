r"""The values and gradients of `_blocks` in plain operations on whole batches, for a compiler to fuse.

Under torch.compile the operations of a row become one loop over it; its derivative, made from these formulas rather
than from a record of the operations, keeps one (N, C) tensor per side.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from limbeck.functional._check import reduce, widest
from limbeck.functional._rows import LOG2_E
from limbeck.functional._terms import Terms, count, mse_factor, positive

LOG_2 = 1 / LOG2_E


class Traced(torch.autograd.Function):
    """(logits, target_logits, weight, mask, terms) -> value; first derivatives to the logits and the target."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, target_logits: Tensor, weight: Tensor, mask: Tensor | None, terms: Terms
    ) -> Tensor:
        """Compute the value, and keep the gradients of each sample's share of it."""
        dtype = widest(logits, target_logits, weight)
        s, t, u = logits.to(dtype), target_logits.to(dtype), weight.to(dtype)
        if mask is not None:  # before anything else: what is left out may be NaN
            left_out = ~mask.unsqueeze(-1)
            s, t, u = s.masked_fill(left_out, 0.0), t.masked_fill(left_out, 0.0), u.masked_fill(left_out, 1.0)
        u = u.masked_fill(torch.isneginf(s) & torch.isneginf(t), 0.0)
        mass = u.sum(-1)
        values, to_logits, to_target = _spread(s, t, u, mass, mse_factor(mass, mask, terms), terms)
        if terms.ce_weight != 0:
            entropies, gradient = _cross_entropy(s, t, float(terms.ce_temperature))
            values, to_logits = values + terms.ce_weight * entropies, to_logits + terms.ce_weight * gradient
        share = 1.0 if terms.reduction != "mean" else 1.0 / count(mass, mask)
        to_logits, to_target = to_logits * share, to_target * share
        if mask is not None:
            values = values.masked_fill(~mask, 0.0)
            to_logits, to_target = to_logits.masked_fill(left_out, 0.0), to_target.masked_fill(left_out, 0.0)
        needs = ctx.needs_input_grad
        ctx.save_for_backward(to_logits if needs[0] else None, to_target if needs[1] else None)
        ctx.dtypes = (logits.dtype, target_logits.dtype)
        ctx.per_sample = terms.reduction == "none"
        return reduce(values, terms.reduction, count(mass, mask))

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        """Scale what was kept."""
        factor = grad_outputs[0].unsqueeze(-1) if ctx.per_sample else grad_outputs[0]
        first, second = ctx.saved_tensors
        to_logits = None if first is None else (first * factor).to(ctx.dtypes[0])
        to_target = None if second is None else (second * factor).to(ctx.dtypes[1])
        return to_logits, to_target, None, None, None


def _spread(
    s: Tensor, t: Tensor, u: Tensor, mass: Tensor, factor: Tensor, terms: Terms
) -> tuple[Tensor, Tensor, Tensor]:
    """Half the weighted variance of the gap times its factor, and its gradients to both sides."""
    if terms.mse_weight == 0:
        return torch.zeros_like(mass), torch.zeros_like(s), torch.zeros_like(t)
    factor = factor / float(terms.mse_temperature) ** 2
    gap = (s - t).masked_fill(u == 0, 0.0)
    centred = gap - ((u * gap).sum(-1) / positive(mass)).unsqueeze(-1)
    weighted = u * centred
    values = 0.5 * factor * (weighted * centred).sum(-1)
    one_sided = torch.isinf(gap.abs().amax(-1))  # a class that one side alone excludes; any() would be slow
    values = torch.where(one_sided, torch.inf, values)
    gradient = factor.unsqueeze(-1) * weighted
    return values, gradient if terms.mse_reaches_logits else torch.zeros_like(s), -gradient


def _cross_entropy(s: Tensor, t: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """-sum p log q per sample, and its gradient to the logits."""
    z = (s - s.amax(-1, keepdim=True)) * (LOG2_E / temperature)
    y = (t - t.amax(-1, keepdim=True)) * (LOG2_E / temperature)
    powers, target_powers = torch.exp2(z), torch.exp2(y)
    total = powers.sum(-1, keepdim=True)
    p = target_powers / target_powers.sum(-1, keepdim=True)
    values = torch.log(total).squeeze(-1) - LOG_2 * (p * z.masked_fill(p == 0, 0.0)).sum(-1)
    return values, (powers / total - p) / temperature
