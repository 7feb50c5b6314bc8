r"""The core of DKL, IKL and GKL: a weighted MSE over all pairs of classes, and a soft cross-entropy.

    1/4 sum_jk u_j u_k ((s_j - s_k) - (t_j - t_k))^2  =  1/2 S sum_j u_j (d_j - mu)^2
    d = s - t,   S = sum_j u_j,   mu = sum_j u_j d_j / S

so that no (N, C, C) tensor exists. The centred form has no cancellation; its gradient to s_j is S u_j (d_j - mu).

Two forms of the same function: `_composed`, plain differentiable operations; and `_Fused`, which makes the gradients in
the forward pass, in place, by blocks of rows that stay in the cache, and keeps nothing else. `_Fused` serves eager
first derivatives; where more is asked (transforms, compilation, second derivatives), `_composed` does.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from limbeck.functional._blocks import evaluate
from limbeck.functional._check import reduce, widest
from limbeck.functional._rows import weight_rows
from limbeck.functional._terms import Normalizer, Terms, Weights, count, mse_factor, positive
from limbeck.functional._traced import Traced
from limbeck.functional.kl import tempered

__all__ = ["Normalizer", "Terms", "pair_divergence"]


def pair_divergence(
    logits: Tensor, target_logits: Tensor, weights: Weights, mask: Tensor | None, terms: Terms
) -> Tensor:
    """Reduce mse_weight * (normalised weighted MSE) + ce_weight * (soft cross-entropy); logits (*, C), `mask` (*)."""
    if not _can_fuse(logits, target_logits, terms):
        if _can_trace(terms):
            weight = weight_rows(weights, logits, target_logits, mask, terms.normalizer).detach()
            traced: Tensor = Traced.apply(logits, target_logits, weight, mask, terms)  # type: ignore[no-untyped-call]
            return traced
        return _composed(logits, target_logits, weights, mask, terms)
    if torch.is_grad_enabled() and (logits.requires_grad or target_logits.requires_grad):
        if target_logits.is_inference():  # a teacher's, which autograd refuses to save
            target_logits = target_logits.clone()
        value: Tensor = _Fused.apply(logits, target_logits, weights, mask, terms)  # type: ignore[no-untyped-call]
        return value
    return evaluate(logits, target_logits, weights, mask, terms, (False, False))[0]


def _can_trace(terms: Terms) -> bool:
    """Whether a compiler reads the first derivative of a call, and nothing differentiates inside of what it reads."""
    return (
        torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
        and not isinstance(terms.mse_temperature, Tensor)
        and not isinstance(terms.ce_temperature, Tensor)
    )


def _can_fuse(logits: Tensor, target_logits: Tensor, terms: Terms) -> bool:
    return not (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
        or isinstance(terms.mse_temperature, Tensor)
        or isinstance(terms.ce_temperature, Tensor)
        or type(logits) not in (Tensor, torch.nn.Parameter)
        or type(target_logits) not in (Tensor, torch.nn.Parameter)
    )


# --- plain operations -------------------------------------------------------------------------------------


def _composed(logits: Tensor, target_logits: Tensor, weights: Weights, mask: Tensor | None, terms: Terms) -> Tensor:
    weight = weight_rows(weights, logits, target_logits, mask, terms.normalizer).detach()
    dtype = widest(logits, target_logits, weight)
    s, t, u = logits.to(dtype), target_logits.to(dtype), weight.to(dtype)
    if mask is not None:  # before anything else: what is left out may be NaN
        left_out = ~mask.unsqueeze(-1)
        s, t, u = s.masked_fill(left_out, 0.0), t.masked_fill(left_out, 0.0), u.masked_fill(left_out, 1.0)
    u = u.masked_fill(torch.isneginf(s) & torch.isneginf(t), 0.0)
    mass = u.sum(-1)
    values = torch.zeros_like(mass)
    if terms.mse_weight != 0:
        s_mse = s if terms.mse_reaches_logits else s.detach()
        factor = mse_factor(mass, mask, terms) / terms.mse_temperature**2
        values = values + factor * _half_spread(s_mse, t, u, mass)
    if terms.ce_weight != 0:
        log_q = torch.log_softmax(tempered(s, terms.ce_temperature), -1)
        p = torch.softmax(tempered(t.detach(), terms.ce_temperature), -1)
        values = values - terms.ce_weight * (p * log_q.masked_fill(p == 0, 0.0)).sum(-1)
    if mask is not None:
        values = values.masked_fill(~mask, 0.0)
    return reduce(values, terms.reduction, count(mass, mask))


def _half_spread(s: Tensor, t: Tensor, u: Tensor, mass: Tensor) -> Tensor:
    """1/2 sum_j u_j (d_j - mu)^2; times S it is the weighted MSE."""
    gap = (s - t).masked_fill(u == 0, 0.0)
    mean = (u * gap).sum(-1) / positive(mass)
    spread = 0.5 * (u * (gap - mean.unsqueeze(-1)) ** 2).sum(-1)
    return torch.where(torch.isinf(gap).any(-1), torch.inf, spread)  # a class that one side alone excludes


# --- gradients in the forward pass ------------------------------------------------------------------------


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, target_logits: Tensor, weights: Weights, mask: Tensor | None, terms: Terms
    ) -> Tensor:
        value, ctx.gradients = evaluate(logits, target_logits, weights, mask, terms, ctx.needs_input_grad[:2])
        prior, labels, *ctx.powers = weights
        others = (x.clone() if x is not None and x.is_inference() else x for x in (prior, labels, mask))
        ctx.save_for_backward(logits, target_logits, *others)
        ctx.terms = terms
        ctx.dtypes = (logits.dtype, target_logits.dtype)
        return value

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        needs = ctx.needs_input_grad[:2]
        if torch.is_grad_enabled():
            return *_differentiate(*_saved(ctx), needs, grad_outputs[0]), None, None, None
        gradients, ctx.gradients = ctx.gradients, None  # scaled in place below, so that they serve once
        if gradients is None:
            gradients = evaluate(*_saved(ctx), needs)[1]
        (first, second), (dtype, target_dtype), factor = gradients, ctx.dtypes, grad_outputs[0]
        first = None if first is None else _scaled(first, factor, dtype)
        second = None if second is None else _scaled(second, factor, target_dtype)
        return first, second, None, None, None


def _saved(ctx: Any) -> tuple[Tensor, Tensor, Weights, Tensor | None, Terms]:
    logits, target_logits, prior, labels, mask = ctx.saved_tensors
    return logits, target_logits, Weights(prior, labels, *ctx.powers), mask, ctx.terms


def _scaled(gradient: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """The gradient times that of the value, which is 0-d or has a number per sample; in place, where there is one."""
    if torch._C._functorch.is_legacy_batchedtensor(
        factor
    ):  # `is_grads_batched`, of which vectorized Jacobians are made
        gradient = gradient * (factor.unsqueeze(-1) if factor.dim() != 0 else factor)
    elif factor.dim() != 0:
        gradient.mul_(factor.unsqueeze(-1))
    elif factor.device.type != "cpu" or factor.item() != 1:  # else not read and written once more
        gradient.mul_(factor)
    return gradient if gradient.dtype == dtype else gradient.to(dtype)


def _differentiate(
    logits: Tensor,
    target_logits: Tensor,
    weights: Weights,
    mask: Tensor | None,
    terms: Terms,
    needs: tuple[bool, ...],
    grad_output: Tensor,
) -> list[Tensor | None]:
    """The gradients once more, by operations that can be differentiated again."""
    needed = [x for x, need in zip((logits, target_logits), needs, strict=True) if need]
    value = _composed(logits, target_logits, weights, mask, terms)
    if not value.requires_grad:  # neither part reaches what asks for a gradient
        return [torch.zeros_like(x) if need else None for x, need in zip((logits, target_logits), needs, strict=True)]
    found = iter(torch.autograd.grad(value, needed, grad_output, create_graph=True, materialize_grads=True))
    return [next(found) if need else None for need in needs]
