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
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from limbeck.functional._check import Reduction, reduce, widest

Normalizer = Literal["weights", "row", "samples"]
# Operations on at most so many elements stay on one thread and in the cache of one core.
BLOCK_ELEMENTS = 32768


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
        s, t = (x.masked_fill(~mask.unsqueeze(-1), 0.0) for x in (s, t))
    u = u.masked_fill(torch.isneginf(s) & torch.isneginf(t), 0.0)
    mass = u.sum(-1)
    values = torch.zeros_like(mass)
    if terms.mse_weight != 0:
        s_mse = s if terms.mse_reaches_logits else s.detach()
        factor = _mse_factor(mass, mask, terms) / terms.mse_temperature**2
        values = values + factor * _centred_mse(s_mse, t, u, mass)
    if terms.ce_weight != 0:
        log_q = torch.log_softmax(s / terms.ce_temperature, -1)
        p = torch.softmax(t.detach() / terms.ce_temperature, -1)
        values = values - terms.ce_weight * (p * log_q.masked_fill(p == 0, 0.0)).sum(-1)
    if mask is not None:
        values = values.masked_fill(~mask, 0.0)
    return reduce(values, terms.reduction, _count(mass, mask))


def _centred_mse(s: Tensor, t: Tensor, u: Tensor, mass: Tensor) -> Tensor:
    gap = (s - t).masked_fill(u == 0, 0.0)
    mean = (u * gap).sum(-1) / _positive(mass)
    mse = 0.5 * mass * (u * (gap - mean.unsqueeze(-1)) ** 2).sum(-1)
    return torch.where(torch.isinf(gap).any(-1), torch.inf, mse)  # a class that one side alone excludes


def _positive(x: Tensor) -> Tensor:
    return x.clamp_min(torch.finfo(x.dtype).tiny)


def _count(mass: Tensor, mask: Tensor | None) -> Tensor | float:
    """Samples that take part, at least 1."""
    return float(mass.numel()) if mask is None else mask.sum().clamp_min(1).to(mass.dtype)


def _mse_factor(mass: Tensor, mask: Tensor | None, terms: Terms) -> Tensor | float:
    """What each sample's weighted MSE is multiplied by, such that the mean over samples is the normalised value."""
    if isinstance(terms.normalizer, Tensor):
        return terms.mse_weight * _count(mass, mask) / terms.normalizer.detach().to(mass.dtype)
    if terms.normalizer == "weights":
        taking_part = mass if mask is None else mass * mask
        return terms.mse_weight * _count(mass, mask) / _positive((taking_part * taking_part).sum())
    if terms.normalizer == "row":
        return terms.mse_weight / _positive(mass * mass)
    return terms.mse_weight


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
        return value

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None or torch.is_grad_enabled():
            return *_differentiate(ctx, grad_outputs[0]), None, None, None
        factor = grad_outputs[0].unsqueeze(-1) if ctx.terms.reduction == "none" else grad_outputs[0]
        inputs = ctx.saved_tensors[:2]
        # In place: they are spent here, and a second backward computes them anew.
        first, second = (
            None if gradient is None else gradient.mul_(factor).to(x.dtype)
            for gradient, x in zip(gradients, inputs, strict=True)
        )
        return first, second, None, None, None


def _differentiate(ctx: Any, grad_output: Tensor) -> list[Tensor | None]:
    """The backward of `_composed`, for a second backward or for derivatives of the gradient."""
    logits, target_logits, weight, mask = ctx.saved_tensors
    create_graph = torch.is_grad_enabled()
    inputs = [logits, target_logits]
    if not create_graph:
        inputs = [x.detach().requires_grad_(x.requires_grad) for x in inputs]
    needed = [x for x, need in zip(inputs, ctx.needs_input_grad, strict=False) if need]
    with torch.enable_grad():
        value = _composed(inputs[0], inputs[1], weight, mask, ctx.terms)
    found = iter(
        torch.autograd.grad(value, needed, grad_output, create_graph=create_graph, materialize_grads=True)
        if value.requires_grad
        else [torch.zeros_like(x) for x in needed]
    )
    return [next(found) if need else None for need in ctx.needs_input_grad[:2]]


def _evaluate(
    logits: Tensor, target_logits: Tensor, weight: Tensor, mask: Tensor | None, terms: Terms, needs: tuple[bool, bool]
) -> tuple[Tensor, tuple[Tensor | None, Tensor | None]]:
    """The value and, for each side that needs it, the gradient of the reduced value ("none": of each sample's)."""
    if logits.device.type != "cpu":  # whether anything is infinite cannot be known without waiting for the device
        return _by_blocks(logits, target_logits, weight, mask, terms, needs, infinities=True)
    value, gradients = _by_blocks(logits, target_logits, weight, mask, terms, needs, infinities=False)
    if not math.isfinite(value.sum().item() if terms.reduction == "none" else value.item()):
        return _by_blocks(logits, target_logits, weight, mask, terms, needs, infinities=True)
    return value, gradients


def _by_blocks(
    logits: Tensor,
    target_logits: Tensor,
    weight: Tensor,
    mask: Tensor | None,
    terms: Terms,
    needs: tuple[bool, bool],
    *,
    infinities: bool,
) -> tuple[Tensor, tuple[Tensor | None, Tensor | None]]:
    shape, classes = logits.shape, logits.shape[-1]
    dtype = widest(logits, target_logits, weight)
    s, t, u = (x.detach().reshape(-1, classes) for x in (logits, target_logits, weight))
    keep = None if mask is None else mask.reshape(-1)
    if keep is not None:  # before anything else: what is left out may be NaN
        s, t = (x.masked_fill(~keep.unsqueeze(-1), 0.0) for x in (s, t))
    if infinities:
        u = u.masked_fill(torch.isneginf(s) & torch.isneginf(t), 0.0)
    plan = _plan(u.to(dtype) if u.dtype != dtype else u, keep, terms)
    values = torch.empty_like(plan.mass)
    gradients = tuple(
        _buffer(s, dtype, written) if need else None for need, written in zip(needs, _written(terms), strict=True)
    )
    rows = max(1, BLOCK_ELEMENTS // classes) if s.device.type == "cpu" else len(s)
    for start in range(0, len(s), rows):
        block = slice(start, start + rows)
        outs = tuple(None if gradient is None else gradient[block] for gradient in gradients)
        sides = (s[block].to(dtype), t[block].to(dtype))
        values[block] = _block(sides, u[block].to(dtype), plan.rows(block), terms, outs, infinities)
    value = values.view(shape[:-1]) if terms.reduction == "none" else values.sum()
    first, second = (None if gradient is None else gradient.view(shape) for gradient in gradients)
    return value, (first, second)


def _written(terms: Terms) -> tuple[bool, bool]:
    """Whether any part has a gradient to the logits, to the target."""
    mse = terms.mse_weight != 0
    return (mse and terms.mse_reaches_logits) or terms.ce_weight != 0, mse


def _buffer(like: Tensor, dtype: torch.dtype, written: bool) -> Tensor:
    # In the dtype of the arithmetic: a half gradient times 1/N would underflow before a loss scale lifts it.
    return torch.empty(like.shape, dtype=dtype, device=like.device) if written else torch.zeros_like(like, dtype=dtype)


class _Plan(NamedTuple):
    """Per sample: S; S times the factor of the weighted MSE; the factor of the cross-entropy. Reduction included."""

    mass: Tensor
    mse: Tensor
    ce: Tensor | float

    def rows(self, block: slice) -> _Plan:
        return _Plan(self.mass[block], self.mse[block], self.ce[block] if isinstance(self.ce, Tensor) else self.ce)


def _plan(u: Tensor, keep: Tensor | None, terms: Terms) -> _Plan:
    mass = u.sum(-1)
    share: Tensor | float = 1.0 / _count(mass, keep) if terms.reduction == "mean" else 1.0
    mse = mass * (_mse_factor(mass, keep, terms) * share / terms.mse_temperature**2)
    ce = terms.ce_weight * share
    if keep is None:
        return _Plan(mass, mse, ce)
    zero = mass.new_zeros(())
    return _Plan(mass, torch.where(keep, mse, zero), torch.where(keep, ce, zero).to(mass.dtype))


def _block(
    sides: tuple[Tensor, Tensor],
    u: Tensor,
    plan: _Plan,
    terms: Terms,
    outs: tuple[Tensor | None, ...],
    infinities: bool,
) -> Tensor:
    """Return the values of some rows and write their gradients to `outs`."""
    s, t = sides
    to_logits, to_target = outs
    values = torch.zeros_like(plan.mass)
    mse_to_logits = terms.mse_weight != 0 and terms.mse_reaches_logits
    if terms.mse_weight != 0:
        mse, gradient = _mse_rows(s, t, u, plan, to_logits if mse_to_logits else None, infinities)
        values += mse
        if to_target is not None:
            torch.neg(gradient, out=to_target)
    if terms.ce_weight != 0:
        ce, gradient = _cross_entropy_rows(s, t, plan, terms.ce_temperature, infinities)
        values += ce
        if to_logits is not None:
            _ = to_logits.add_(gradient) if mse_to_logits else to_logits.copy_(gradient)
    return values


def _mse_rows(
    s: Tensor, t: Tensor, u: Tensor, plan: _Plan, out: Tensor | None, infinities: bool
) -> tuple[Tensor, Tensor]:
    gap = s - t
    if infinities:
        gap.masked_fill_(u == 0, 0.0)
        excluded_by_one = torch.isinf(gap).any(-1)
    mean = torch.linalg.vecdot(u, gap).div_(_positive(plan.mass))
    gap.sub_(mean.unsqueeze(-1))
    gradient = torch.mul(u, gap, out=out)
    value = torch.linalg.vecdot(gradient, gap).mul_(plan.mse).mul_(0.5)
    if infinities:
        value.masked_fill_(excluded_by_one & (plan.mse != 0), torch.inf)
    return value, gradient.mul_(plan.mse.unsqueeze(-1))


def _cross_entropy_rows(
    s: Tensor, t: Tensor, plan: _Plan, temperature: float | Tensor, infinities: bool
) -> tuple[Tensor, Tensor]:
    z = s - s.amax(-1, keepdim=True)
    if temperature != 1:
        z, t = z.div_(temperature), t / temperature
    p, q = torch.softmax(t, -1), torch.softmax(z, -1)
    if infinities:
        z.masked_fill_(p == 0, 0.0)
    # log q = z - log sum exp(z), and the largest z is 0, so that log sum exp(z) = -log max(q): no second exponential.
    value = torch.linalg.vecdot(p, z).add_(q.amax(-1).log_()).neg_().mul_(plan.ce)
    factor = plan.ce.unsqueeze(-1) if isinstance(plan.ce, Tensor) else plan.ce
    return value, q.sub_(p).mul_(factor / temperature)
