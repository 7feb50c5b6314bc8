r"""DKL, IKL and GKL with their gradients in one go: by blocks of rows that stay in the cache, in buffers used again.

With d = s - t, weights u of sum S and mu = sum_j u_j d_j / S, the half spread 1/2 sum_j u_j (d_j - mu)^2 times k has
the gradient k u_j (d_j - mu) to s_j, and minus that to t_j. With exponents z and y of base 2, of which the largest of
each row is 0, and sums Q and P of 2^z and 2^y, the cross-entropy is log Q - (log 2 / P) sum_j 2^(y_j) z_j and its
gradient to the tempered logits 2^z / Q - 2^y / P.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from limbeck.functional._check import widest
from limbeck.functional._rows import LOG2_E, can_fill, checked_weights, fill_rows, weight_rows
from limbeck.functional._terms import Terms, Weights, count, mse_factor, positive

LOG_2 = math.log(2)
# What a thread takes of a block: fits its cache, and is worth a call.
BLOCK_OF_ONE_THREAD = 2**17
SMALL_BATCH = 2**15
# An operation on so many elements stays on one thread. (exp() and softmax() take more for fewer, exp2() does not.)
SERIAL_ELEMENTS = 2**15
# So small a batch takes the time of its calls: both sides go through each together. (Twice as much is on one thread.)
ONE_BLOCK = 2**14
# OpenMP's threads then sleep between any two operations, and waking them costs more than a block.
THREADS_SLEEP = os.environ.get("OMP_WAIT_POLICY", "").upper() == "PASSIVE"

Gradients = Sequence[Tensor | None]


class _Batch(NamedTuple):
    """What is computed, in (N, C); `left_out` is (N, 1)."""

    s: Tensor
    t: Tensor
    weights: Weights
    left_out: Tensor | None
    terms: Terms
    dtype: torch.dtype
    careful: bool  # heed -inf and rows without weight, which otherwise make the value NaN or infinite


class _Factors(NamedTuple):
    """Per sample, (N, 1): S; the half spread's factor; the cross-entropy's, where a mask makes it differ."""

    mass: Tensor
    mse: Tensor
    ce: float
    parts: Tensor | None


def evaluate(
    logits: Tensor, target_logits: Tensor, weights: Weights, mask: Tensor | None, terms: Terms, needs: Sequence[bool]
) -> tuple[Tensor, Gradients]:
    """The value and, for each side that needs it, the gradient of the reduced value ("none": of each sample's)."""
    shape, on_cpu = logits.shape, logits.device.type == "cpu"
    prior = weights.prior
    dtype = widest(logits, target_logits) if prior is None else widest(logits, target_logits, prior)
    written = _written(terms)
    gradients = [_buffer(logits, dtype, written[side]) if needs[side] else None for side in (0, 1)]
    with torch.inference_mode():  # halves the cost of a call
        weights = checked_weights(weights, logits)
        left_out = None if mask is None else ~mask.reshape(-1, 1)
        s, t, flat = logits, target_logits, gradients
        if len(shape) != 2:
            s, t = (x.reshape(-1, shape[-1]) for x in (s, t))
            flat = [None if x is None else x.view(-1, shape[-1]) for x in gradients]
        # Whether anything is infinite cannot be known without waiting for a device.
        batch = _Batch(s, t, weights, left_out, terms, dtype, careful=not on_cpu)
        value = _by_blocks(batch, flat)
        if on_cpu and not math.isfinite((value.sum() if terms.reduction == "none" else value).item()):
            value = _by_blocks(batch._replace(careful=True), flat)
    return (value.reshape(shape[:-1]) if terms.reduction == "none" else value).clone(), gradients


def _written(terms: Terms) -> tuple[bool, bool]:
    """Whether any part has a gradient to the logits, to the target."""
    mse = terms.mse_weight != 0
    return (mse and terms.mse_reaches_logits) or terms.ce_weight != 0, mse


def _buffer(like: Tensor, dtype: torch.dtype, written: bool) -> Tensor:
    # In the dtype of the arithmetic: a half gradient times 1/N would underflow before a loss scale lifts it.
    make = torch.empty if written else torch.zeros
    return make(like.shape, dtype=dtype, device=like.device)


def _by_blocks(batch: _Batch, gradients: Gradients) -> Tensor:
    samples, terms, rows = batch.s.shape[0], batch.terms, _block_rows(batch.s)
    store = next((x for x, kept in zip(gradients, _written(terms), strict=True) if kept and x is not None), None)
    weight, mass = _weights(batch, rows, store)
    factors = _factors(batch, mass)
    if batch.s.numel() <= ONE_BLOCK and _is_plain(batch):
        return _at_once(batch, weight, factors, gradients)
    columns = (batch.s, batch.t, batch.left_out, weight, factors.mass, factors.mse, factors.parts, *gradients)
    work = _Work(batch, rows, factors.ce)
    for parts in zip(*(_split(x, samples, rows) for x in columns), strict=True):
        work.add(*parts)
    values = work.entropies(factors.parts) if terms.ce_weight != 0 else torch.zeros_like(factors.mse)
    if terms.mse_weight != 0:
        values.addcmul_(_join(work.spreads), factors.mse, value=0.5)
    return values.squeeze(-1) if terms.reduction == "none" else values.sum()


def _is_plain(batch: _Batch) -> bool:
    """Whether both parts of all rows are wanted, summed up, and nothing but finite numbers is expected."""
    terms = batch.terms
    return (
        not batch.careful
        and batch.left_out is None
        and terms.reduction != "none"
        and terms.mse_weight != 0
        and terms.ce_weight != 0
        and batch.s.dtype == batch.t.dtype == batch.dtype
    )


def _at_once(batch: _Batch, weight: Tensor | None, factors: _Factors, gradients: Gradients) -> Tensor:
    """What `_Work` does, in the fewest calls. `weight` None: the softmax of the cross-entropy."""
    s, t, terms = batch.s, batch.t, batch.terms
    scale = LOG2_E / float(terms.ce_temperature)
    both = torch.stack((s, t))
    shift = both.amax(-1, True).mul_(_number(-scale, batch.dtype))
    exponents = torch.add(shift, both, alpha=scale)
    powers = torch.exp2(exponents, out=both)
    sums = powers.sum(-1, True)
    q, p = powers.div_(sums).unbind()
    logs, z = sums.select(0, 0).log_(), exponents.select(0, 0)
    entropy = logs.sum().sub_(torch.dot(p.reshape(-1), z.reshape(-1)), alpha=LOG_2)
    to_logits, to_target = gradients
    out = to_logits if terms.mse_reaches_logits else None
    gap, u = s - t, p if weight is None else weight
    gap.sub_((u * gap).sum(-1, True).div_(factors.mass))
    weighted = torch.mul(u, gap, out=to_target if out is None else out).mul_(factors.mse)
    spread = torch.dot(gap.reshape(-1), weighted.reshape(-1))
    if to_target is not None:
        torch.neg(weighted, out=to_target)
    if to_logits is not None:
        step = factors.ce / float(terms.ce_temperature)
        _ = to_logits.add_(q, alpha=step) if out is not None else torch.mul(q, step, out=to_logits)
        to_logits.sub_(p, alpha=step)
    return entropy.mul_(factors.ce).add_(spread, alpha=0.5)


@functools.lru_cache(maxsize=64)
def _number(value: float, dtype: torch.dtype) -> Tensor:
    """A number as a tensor, by which others are multiplied in half the time."""
    return torch.tensor(value, dtype=dtype, device="cpu")


def _split(x: Tensor | None, samples: int, rows: int) -> Sequence[Any]:
    blocks = -(-samples // rows)
    if x is None or blocks == 1:
        return [x] * blocks
    return x.split_with_sizes([rows] * (samples // rows) + [samples % rows] * (samples % rows > 0))


def _join(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(tuple(parts))


def _block_rows(logits: Tensor) -> int:
    samples, classes = logits.shape
    if logits.device.type != "cpu":
        return samples
    # Buffers take three times a block: of half the batch, unless all is small, they stay below twice the logits.
    most = max(1, min(_block_elements(), max(SMALL_BATCH, (samples + 1) // 2 * classes)) // classes)
    blocks = -(-samples // most)
    return -(-samples // blocks)


def _block_elements() -> int:
    threads = torch.get_num_threads()
    return SERIAL_ELEMENTS if threads > 1 and THREADS_SLEEP else BLOCK_OF_ONE_THREAD * threads


def _weights(batch: _Batch, rows: int, store: Tensor | None) -> tuple[Tensor | None, Tensor]:
    """Return the weights (N, C), in the place of a gradient that is written later where that can be, and their sums."""
    s, t, weights, left_out, terms, dtype, careful = batch
    samples = s.shape[0]
    shared = weights.prior is None and weights.power == 1 and weights.temperature == terms.ce_temperature
    if terms.mse_weight == 0 or (shared and terms.ce_weight != 0 and not careful):
        return None, torch.ones((samples, 1), dtype=dtype, device=s.device)
    if not careful and can_fill(weights, s, dtype):
        weight = torch.empty(s.shape, dtype=dtype, device=s.device) if store is None else store
        blocks = zip(_split(weight, samples, rows), _split(t, samples, rows), range(0, samples, rows), strict=True)
        mass = _join([fill_rows(out, weights, targets, start) for out, targets, start in blocks])
        if left_out is not None:  # its logits may be NaN
            weight.masked_fill_(left_out, 1.0)
            mass.masked_fill_(left_out, 1.0)
        return weight, mass
    mask = None if left_out is None else ~left_out.squeeze(-1)
    weight = weight_rows(weights, s, t, mask, terms.normalizer).to(dtype)
    if left_out is not None:
        weight = weight.masked_fill(left_out, 1.0)
    if careful:
        weight = weight.masked_fill(torch.isneginf(s) & torch.isneginf(t), 0.0)
    return weight, _join([x.sum(-1, True) for x in _split(weight, samples, rows)])


def _factors(batch: _Batch, mass: Tensor) -> _Factors:
    """The reduction is in the factors."""
    terms, samples = batch.terms, mass.shape[0]
    scale = terms.mse_temperature**-2
    flat = mass.squeeze(-1)
    if batch.left_out is None:
        share = 1.0 / samples if terms.reduction == "mean" else 1.0
        if terms.normalizer == "weights" and terms.mse_weight != 0 and not batch.careful:  # in the fewest operations
            mse = mass / torch.dot(flat, flat).div_(terms.mse_weight * share * samples * scale)
        else:
            mse = mse_factor(flat, None, terms).unsqueeze(-1) * (share * scale)
        return _Factors(mass, mse, terms.ce_weight * share, None)
    mask = ~batch.left_out
    parts = mask.to(mass.dtype)
    if terms.reduction == "mean":
        parts = parts / count(flat, mask.squeeze(-1))
    mse = mse_factor(flat, mask.squeeze(-1), terms).unsqueeze(-1) * parts * scale
    return _Factors(mass, mse.masked_fill_(batch.left_out, 0.0), terms.ce_weight, parts)


class _Work:
    """What is done to a block, in buffers that all share, and what was found per row."""

    def __init__(self, batch: _Batch, rows: int, ce_factor: float) -> None:
        self.terms, self.careful, self.dtype = batch.terms, batch.careful, batch.dtype
        self.rows, classes = rows, batch.s.shape[-1]
        new = batch.s.new_empty
        self.buffers: tuple[Tensor, ...] = new((3, rows, classes), dtype=batch.dtype).unbind()
        self.largest = new((2, rows, 1), dtype=batch.dtype)
        self.largests = self.largest.unbind()
        self.scale = LOG2_E / float(batch.terms.ce_temperature)
        self.minus_scale = _number(-self.scale, batch.dtype)
        self.ce_gradient = ce_factor / float(batch.terms.ce_temperature)
        self.ce_factor = ce_factor
        self.spreads: list[Tensor] = []
        self.found: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(
        self,
        s: Tensor,
        t: Tensor,
        left_out: Tensor | None,
        weight: Tensor | None,
        mass: Tensor,
        mse: Tensor,
        parts: Tensor | None,
        to_logits: Tensor | None,
        to_target: Tensor | None,
    ) -> None:
        """Note what some rows are worth; write their gradients. `weight` None: the softmax of the cross-entropy."""
        terms = self.terms
        if s.dtype != self.dtype or t.dtype != self.dtype:
            s, t = s.to(self.dtype), t.to(self.dtype)
        if left_out is not None:  # before anything else: what is left out may be NaN
            s, t = s.masked_fill(left_out, 0.0), t.masked_fill(left_out, 0.0)
        if s.shape[0] < self.rows:
            self._shorten(s.shape[0])
        out = to_logits if terms.mse_reaches_logits and terms.mse_weight != 0 else None
        if terms.ce_weight != 0:
            target_share = self._target_powers(s, t)
        if terms.mse_weight != 0:
            gradient = to_target if out is None else out
            if weight is None:
                weight = torch.mul(self.buffers[2], target_share, out=gradient)
            self._spread(s, t, weight, mass, mse, gradient)
            if to_target is not None and gradient is not None:
                torch.neg(gradient, out=to_target)
        if terms.ce_weight != 0:
            share = self._cross_entropy(s, target_share)
            if to_logits is not None:
                self._cross_entropy_gradient(to_logits, share, target_share, parts, fresh=out is None)

    def _shorten(self, rows: int) -> None:
        """The last block may be shorter."""
        self.rows = rows
        self.buffers = tuple(x[:rows] for x in self.buffers)
        self.largest = self.largest[:, :rows]
        self.largests = self.largest.unbind()

    def _target_powers(self, s: Tensor, t: Tensor) -> Tensor:
        """Leave 2^y in the third buffer; return 1/P."""
        for x, largest in zip((s, t), self.largests, strict=True):
            torch.amax(x, -1, True, out=largest)
        self.largest.mul_(self.minus_scale)
        # scale * (t - largest), rounded once
        powers = torch.add(self.largests[1], t, alpha=self.scale, out=self.buffers[2]).exp2_()
        return powers.sum(-1, True).reciprocal_()

    def _spread(self, s: Tensor, t: Tensor, weight: Tensor, mass: Tensor, mse: Tensor, gradient: Tensor | None) -> None:
        """Note sum_j u_j (d_j - mu)^2; leave k u_j (d_j - mu) in `gradient`, where the weights u may be."""
        gap, product, _ = self.buffers
        torch.sub(s, t, out=gap)
        if self.careful:
            gap.masked_fill_(weight == 0, 0.0)
            mass = positive(mass)
            excluded_by_one = torch.isinf(gap).any(-1, True) & (mse != 0)
        gap.sub_(torch.mul(weight, gap, out=product).sum(-1, True).div_(mass))
        weighted = torch.mul(weight, gap, out=product if gradient is None else gradient)
        spread = gap.mul_(weighted).sum(-1, True)
        if gradient is not None:
            gradient.mul_(mse)
        if self.careful:  # one side alone excludes a class that has weight
            spread.masked_fill_(excluded_by_one, torch.inf)
        self.spreads.append(spread)

    def _cross_entropy(self, s: Tensor, target_share: Tensor) -> Tensor:
        """Note the cross-entropy; leave 2^z in the second buffer; return 1/Q."""
        z, powers, target_powers = self.buffers
        torch.add(self.largests[0], s, alpha=self.scale, out=z)
        share = torch.exp2(z, out=powers).sum(-1, True).reciprocal_()
        if self.careful:
            z.masked_fill_(target_powers == 0, 0.0)
        self.found.append((share.log(), z.mul_(target_powers).sum(-1, True), target_share))
        return share

    def _cross_entropy_gradient(
        self, out: Tensor, share: Tensor, target_share: Tensor, parts: Tensor | None, *, fresh: bool
    ) -> None:
        if parts is not None:
            share, target_share = share * parts, target_share * parts
        if fresh:
            out.zero_()
        _, powers, target_powers = self.buffers
        out.addcmul_(powers, share, value=self.ce_gradient)
        out.addcmul_(target_powers, target_share, value=-self.ce_gradient)

    def entropies(self, parts: Tensor | None) -> Tensor:
        """Of all rows, times their factor, (N, 1)."""
        log_share, mean, target_share = (_join(x) for x in zip(*self.found, strict=True))
        values = log_share.addcmul_(mean, target_share, value=LOG_2).mul_(-self.ce_factor)
        return values if parts is None else values.mul_(parts)
