r"""The core of DKL, IKL and GKL: a weighted MSE over all pairs of classes, and a soft cross-entropy.

    1/4 sum_jk u_j u_k ((s_j - s_k) - (t_j - t_k))^2  =  1/2 S sum_j u_j (d_j - mu)^2
    d = s - t,   S = sum_j u_j,   mu = sum_j u_j d_j / S

so that no (N, C, C) tensor exists. The centred form has no cancellation; its gradient to s_j is S u_j (d_j - mu).

Two forms of the same function: `_composed`, plain differentiable operations; and `_Fused`, which makes the gradients in
the forward pass, in place, by blocks of rows that stay in the cache, and keeps nothing else. `_Fused` serves eager
first derivatives; where more is asked (transforms, compilation, second derivatives), `_composed` does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from limbeck.functional._check import Reduction, reduce, widest
from limbeck.functional.kl import tempered

Normalizer = Literal["weights", "row", "samples"]
# Elementwise operations on at most so many elements stay on one thread and in the cache of one core. Waking the other
# threads can cost more than computing on all of them; exp() and softmax() wake them for any size, exp2() does not.
BLOCK_ELEMENTS = 2**15
LOG2_E, LOG_2 = 1 / math.log(2), math.log(2)


_Gradients = Sequence[Tensor | None]


class Terms(NamedTuple):
    """What one call computes, besides its tensors."""

    mse_weight: float
    ce_weight: float
    mse_temperature: float | Tensor
    ce_temperature: float | Tensor
    mse_reaches_logits: bool
    normalizer: Normalizer | Tensor
    reduction: Reduction


def pair_divergence(logits: Tensor, target_logits: Tensor, weight: Tensor, mask: Tensor | None, terms: Terms) -> Tensor:
    """Reduce mse_weight * (normalised weighted MSE) + ce_weight * (soft cross-entropy); all (*, C) but `mask` (*)."""
    if not _can_fuse(logits, target_logits, terms):
        return _composed(logits, target_logits, weight, mask, terms)
    if torch.is_grad_enabled() and (logits.requires_grad or target_logits.requires_grad):
        # A teacher under inference_mode makes tensors that autograd refuses to save.
        target_logits, weight = (x.clone() if x.is_inference() else x for x in (target_logits, weight))
        value: Tensor = _Fused.apply(logits, target_logits, weight, mask, terms)  # type: ignore[no-untyped-call]
        return value
    return _evaluate(logits, target_logits, weight, mask, terms, (False, False))[0]


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


def _composed(logits: Tensor, target_logits: Tensor, weight: Tensor, mask: Tensor | None, terms: Terms) -> Tensor:
    dtype = widest(logits, target_logits, weight)
    s, t, u = logits.to(dtype), target_logits.to(dtype), weight.detach().to(dtype)
    if mask is not None:  # before anything else: what is left out may be NaN
        left_out = ~mask.unsqueeze(-1)
        s, t, u = s.masked_fill(left_out, 0.0), t.masked_fill(left_out, 0.0), u.masked_fill(left_out, 1.0)
    u = u.masked_fill(torch.isneginf(s) & torch.isneginf(t), 0.0)
    mass = u.sum(-1)
    values = torch.zeros_like(mass)
    if terms.mse_weight != 0:
        s_mse = s if terms.mse_reaches_logits else s.detach()
        factor = _mse_factor(mass, mask, terms) / terms.mse_temperature**2
        values = values + factor * _half_spread(s_mse, t, u, mass)
    if terms.ce_weight != 0:
        log_q = torch.log_softmax(tempered(s, terms.ce_temperature), -1)
        p = torch.softmax(tempered(t.detach(), terms.ce_temperature), -1)
        values = values - terms.ce_weight * (p * log_q.masked_fill(p == 0, 0.0)).sum(-1)
    if mask is not None:
        values = values.masked_fill(~mask, 0.0)
    return reduce(values, terms.reduction, _count(mass, mask))


def _half_spread(s: Tensor, t: Tensor, u: Tensor, mass: Tensor) -> Tensor:
    """1/2 sum_j u_j (d_j - mu)^2; times S it is the weighted MSE."""
    gap = (s - t).masked_fill(u == 0, 0.0)
    mean = (u * gap).sum(-1) / _positive(mass)
    spread = 0.5 * (u * (gap - mean.unsqueeze(-1)) ** 2).sum(-1)
    return torch.where(torch.isinf(gap).any(-1), torch.inf, spread)  # a class that one side alone excludes


def _positive(x: Tensor) -> Tensor:
    return x.clamp_min(torch.finfo(x.dtype).tiny)


def _count(mass: Tensor, mask: Tensor | None) -> Tensor | float:
    """Samples that take part, at least 1."""
    return float(mass.numel()) if mask is None else mask.sum().clamp_min(1).to(mass.dtype)


def _mse_factor(mass: Tensor, mask: Tensor | None, terms: Terms) -> Tensor:
    """What each sample's half spread is multiplied by, S included, so that the mean over samples is the value."""
    if isinstance(terms.normalizer, Tensor):
        return mass * (terms.mse_weight * _count(mass, mask) / terms.normalizer.detach().to(mass.dtype))
    if terms.normalizer == "weights":
        taking_part = mass if mask is None else mass * mask
        return mass * (terms.mse_weight * _count(mass, mask) / _positive((taking_part * taking_part).sum()))
    if terms.normalizer == "row":
        return terms.mse_weight / _positive(mass)  # S / S^2, without the square, which may underflow
    return mass * terms.mse_weight


# --- gradients in the forward pass ------------------------------------------------------------------------


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, target_logits: Tensor, weight: Tensor, mask: Tensor | None, terms: Terms
    ) -> Tensor:
        value, gradients = _evaluate(logits, target_logits, weight, mask, terms, ctx.needs_input_grad[:2])
        ctx.save_for_backward(logits, target_logits, weight, mask)
        ctx.terms = terms
        ctx.gradients = gradients
        ctx.dtypes = (logits.dtype, target_logits.dtype)
        return value

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            return *_differentiate(ctx, grad_outputs[0]), None, None, None
        gradients, ctx.gradients = ctx.gradients, None  # scaled in place below, so that they serve once
        if gradients is None:
            logits, target_logits, weight, mask = ctx.saved_tensors
            gradients = _evaluate(logits, target_logits, weight, mask, ctx.terms, ctx.needs_input_grad[:2])[1]
        factor = grad_outputs[0].unsqueeze(-1) if ctx.terms.reduction == "none" else grad_outputs[0]
        first, second = (
            None if gradient is None else gradient.mul_(factor).to(dtype)
            for gradient, dtype in zip(gradients, ctx.dtypes, strict=True)
        )
        return first, second, None, None, None


def _differentiate(ctx: Any, grad_output: Tensor) -> list[Tensor | None]:
    """The gradients once more, by operations that can be differentiated again."""
    logits, target_logits, weight, mask = ctx.saved_tensors
    needs = ctx.needs_input_grad[:2]
    needed = [x for x, need in zip((logits, target_logits), needs, strict=True) if need]
    value = _composed(logits, target_logits, weight, mask, ctx.terms)
    if not value.requires_grad:  # neither part reaches what asks for a gradient
        return [torch.zeros_like(x) if need else None for x, need in zip((logits, target_logits), needs, strict=True)]
    found = iter(torch.autograd.grad(value, needed, grad_output, create_graph=True, materialize_grads=True))
    return [next(found) if need else None for need in needs]


def _evaluate(
    logits: Tensor, target_logits: Tensor, weight: Tensor, mask: Tensor | None, terms: Terms, needs: tuple[bool, ...]
) -> tuple[Tensor, _Gradients]:
    """The value and, for each side that needs it, the gradient of the reduced value ("none": of each sample's)."""
    if logits.device.type != "cpu":  # whether anything is infinite cannot be known without waiting for the device
        return _by_blocks(logits, target_logits, weight, mask, terms, needs, careful=True)
    value, gradients = _by_blocks(logits, target_logits, weight, mask, terms, needs, careful=False)
    if not math.isfinite(value.sum().item() if terms.reduction == "none" else value.item()):
        return _by_blocks(logits, target_logits, weight, mask, terms, needs, careful=True)
    return value, gradients


def _by_blocks(
    logits: Tensor,
    target_logits: Tensor,
    weight: Tensor,
    mask: Tensor | None,
    terms: Terms,
    needs: tuple[bool, ...],
    *,
    careful: bool,
) -> tuple[Tensor, _Gradients]:
    """`careful` heeds -inf and rows without weight, which otherwise make the value NaN or infinite."""
    dtype = widest(logits, target_logits, weight)
    shape, classes = logits.shape, logits.shape[-1]
    s, t, u = (x if x.dim() == 2 else x.reshape(-1, classes) for x in (logits, target_logits, weight))
    if mask is not None:  # before anything else: what is left out may be NaN
        mask = mask.reshape(-1)
        left_out = ~mask.unsqueeze(-1)
        s, t, u = s.masked_fill(left_out, 0.0), t.masked_fill(left_out, 0.0), u.masked_fill(left_out, 1.0)
    if careful:
        u = u.masked_fill(torch.isneginf(s) & torch.isneginf(t), 0.0)
    plan = _plan(_cast(u, dtype), mask, terms, careful)
    written = _written(terms)
    gradients = [_buffer(s, dtype, written[side]) if needs[side] else None for side in (0, 1)]
    rows = max(1, BLOCK_ELEMENTS // classes)
    blocks: list[slice | None] = [None]  # all at once, which needs no slicing
    if len(s) > rows and s.device.type == "cpu":
        blocks = [slice(start, start + rows) for start in range(0, len(s), rows)]
    parts = [_block(s, t, u, plan, terms, gradients, block, careful) for block in blocks]
    value = parts[0]
    if len(parts) > 1:
        value = torch.cat(parts) if terms.reduction == "none" else torch.stack(parts).sum()
    if len(shape) != 2:
        gradients = [None if gradient is None else gradient.view(shape) for gradient in gradients]
    return value.view(shape[:-1]) if terms.reduction == "none" else value, gradients


def _rows(x: Tensor, block: slice | None, dtype: torch.dtype) -> Tensor:
    return _cast(x if block is None else x[block], dtype)


def _cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x if x.dtype == dtype else x.to(dtype)


def _written(terms: Terms) -> tuple[bool, bool]:
    """Whether any part has a gradient to the logits, to the target."""
    mse = terms.mse_weight != 0
    return (mse and terms.mse_reaches_logits) or terms.ce_weight != 0, mse


def _buffer(like: Tensor, dtype: torch.dtype, written: bool) -> Tensor:
    # In the dtype of the arithmetic: a half gradient times 1/N would underflow before a loss scale lifts it.
    if like.dtype == dtype and like.is_contiguous() and written:
        return torch.empty_like(like)
    make = torch.empty if written else torch.zeros
    return make(like.shape, dtype=dtype, device=like.device)


class _Plan(NamedTuple):
    """Per sample, (N, 1): S; S times the factor of the weighted MSE. The factor of the cross-entropy, and who counts.

    The reduction is in the factors.
    """

    mass: Tensor
    mse: Tensor
    ce: float | Tensor
    mask: Tensor | None

    def rows(self, block: slice | None) -> _Plan:
        if block is None:
            return self
        return _Plan(self.mass[block], self.mse[block], self.ce, None if self.mask is None else self.mask[block])


def _plan(u: Tensor, mask: Tensor | None, terms: Terms, careful: bool) -> _Plan:
    mass = u.sum(-1)
    if mask is None and not careful and terms.normalizer == "weights":  # the common case, in the fewest operations
        count = mass.numel()
        total = 1 if terms.reduction == "mean" else count
        squares = torch.dot(mass, mass).div_(terms.mse_weight * total / terms.mse_temperature**2)
        mass = mass.unsqueeze(-1)
        return _Plan(mass, mass / squares, terms.ce_weight * total / count, None)
    share = 1.0 / _count(mass, mask) if terms.reduction == "mean" else 1.0
    mse = _mse_factor(mass, mask, terms) * share / terms.mse_temperature**2
    mse, mass = mse.unsqueeze(-1), mass.unsqueeze(-1)
    if mask is None:
        return _Plan(mass, mse, terms.ce_weight * share, None)
    mask = mask.unsqueeze(-1)
    return _Plan(mass, mse.masked_fill(~mask, 0.0), terms.ce_weight * share, mask)


def _block(
    s: Tensor,
    t: Tensor,
    u: Tensor,
    plan: _Plan,
    terms: Terms,
    gradients: _Gradients,
    block: slice | None,
    careful: bool,
) -> Tensor:
    """Return the value of some rows, (N,) for "none", else their sum; write their gradients."""
    dtype = plan.mass.dtype
    s, t = _rows(s, block, dtype), _rows(t, block, dtype)
    to_logits, to_target = (None if gradient is None else _rows(gradient, block, dtype) for gradient in gradients)
    plan = plan.rows(block)
    values: Tensor | None = None
    mse_to_logits = terms.mse_weight != 0 and terms.mse_reaches_logits
    if terms.mse_weight != 0:
        out = to_logits if mse_to_logits else None
        values, gradient = _mse_rows(s, t, _rows(u, block, dtype), plan, out, careful)
        if to_target is not None:
            torch.neg(gradient, out=to_target)
    if terms.ce_weight != 0:
        ce, gradient = _cross_entropy_rows(s, t, plan, terms.ce_temperature, careful)
        values = ce if values is None else values.add_(ce)
        if to_logits is not None:
            _ = to_logits.add_(gradient) if mse_to_logits else to_logits.copy_(gradient)
    if values is None:
        values = plan.mass.new_zeros(len(s))
    return values if terms.reduction == "none" else values.sum()


def _mse_rows(s: Tensor, t: Tensor, u: Tensor, plan: _Plan, out: Tensor | None, careful: bool) -> tuple[Tensor, Tensor]:
    gap = s - t
    mass = plan.mass
    if careful:
        gap.masked_fill_(u == 0, 0.0)
        mass = _positive(mass)
        excluded_by_one = torch.isinf(gap).any(-1) & (plan.mse.squeeze(-1) != 0)
    gradient = torch.mul(u, gap, out=out)
    gap.sub_(gradient.sum(-1, keepdim=True).div_(mass))
    torch.mul(u, gap, out=gradient).mul_(plan.mse)
    values = gap.mul_(gradient).sum(-1).mul_(0.5)
    if careful:  # one side alone excludes a class that has weight
        values.masked_fill_(excluded_by_one, torch.inf)
    return values, gradient


def _cross_entropy_rows(
    s: Tensor, t: Tensor, plan: _Plan, temperature: float | Tensor, careful: bool
) -> tuple[Tensor, Tensor]:
    """-sum p log q, with log q = z log 2 - log sum 2^z."""
    z, q, mass = _powers_of_two(s, temperature)
    _, p, _ = _powers_of_two(t, temperature)
    if careful:
        z.masked_fill_(p == 0, 0.0)
    values = z.mul_(p).sum(-1).mul_(-LOG_2).add_(mass.log_().squeeze(-1)).mul_(plan.ce)
    gradient = q.sub_(p).mul_(plan.ce / temperature)
    if plan.mask is not None:
        values.masked_fill_(~plan.mask.squeeze(-1), 0.0)
        gradient.masked_fill_(~plan.mask, 0.0)
    return values, gradient


def _powers_of_two(logits: Tensor, temperature: float | Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return exponents z, of which the largest is 0; softmax(logits / temperature) = 2^z / sum 2^z; and that sum."""
    z = (logits - logits.amax(-1, keepdim=True)).mul_(LOG2_E / temperature)
    powers = torch.exp2(z)
    mass = powers.sum(-1, keepdim=True)
    return z, powers.div_(mass), mass
