r"""Divergences between the rows of two similarity matrices, from features, by square tiles of the matrices.

    s = a x y^T + b of the student,  t = a' x' y'^T + b' of the target;  one value per row

A row's statistics (log-partition functions; the weighted mean gap of GKL) come from a first pass over its tiles, in the
manner of an online softmax: a running maximum and what was summed below it, scaled down where the maximum grows. A
second pass sums the values. The backward pass makes each tile once more, and its gradient; it keeps features and
statistics per row, nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from limbeck.functional.gkl import gkl_divergence
from limbeck.functional.kl import js_divergence, kl_divergence

RowDivergence = Literal["kl", "js", "gkl", "sigmoid_kl"]


class RowOptions(NamedTuple):
    """What is computed of each row."""

    divergence: RowDivergence
    temperature: float
    weight_power: float
    mse_weight: float
    ce_weight: float


class Similarities(NamedTuple):
    """One side's matrix, unmade: `scale` * `rows` @ `columns`^T + `bias`; (N, D), (M, D), 0-d and 0-d, of one dtype."""

    rows: Tensor
    columns: Tensor
    scale: Tensor
    bias: Tensor

    def whole(self) -> Tensor:
        """The matrix (N, M)."""
        return self.scale * (self.rows @ self.columns.T) + self.bias

    def tile(self, rows: slice, columns: slice) -> Tensor:
        """One part of it."""
        return (self.rows[rows] @ self.columns[columns].T).mul_(self.scale).add_(self.bias)


def row_divergences(student: Similarities, target: Similarities, options: RowOptions, tile: int | None) -> Tensor:
    """One value per row (N,); plain differentiable operations without `tile`."""
    if tile is None:
        return _composed(student.whole(), target.whole(), options)
    # A teacher under inference_mode makes tensors that autograd refuses to save.
    tensors = [x.clone() if x.is_inference() else x for x in (*student, *target)]
    values: Tensor = _Tiled.apply(*tensors, options, tile)  # type: ignore[no-untyped-call]
    return values


def _composed(s: Tensor, t: Tensor, options: RowOptions) -> Tensor:
    temperature = options.temperature
    if options.divergence == "kl":
        return kl_divergence(s, t, temperature=temperature, reduction="none")
    if options.divergence == "js":
        return js_divergence(s, t, temperature=temperature, reduction="none")
    if options.divergence == "gkl":
        return gkl_divergence(
            s,
            t,
            torch.softmax(options.weight_power * t.detach(), -1),  # softmax(t) ** power, normalised, without underflow
            mse_weight=options.mse_weight,
            ce_weight=options.ce_weight,
            temperature=temperature,
            normalizer="row",
            reduction="none",
        )
    return _bernoulli_kl(s / temperature, t / temperature).sum(-1)


def _bernoulli_kl(s: Tensor, t: Tensor) -> Tensor:
    """KL of each entry's sigmoid; the log-odds cancel no digits, as log-probabilities near 0 would."""
    return torch.sigmoid(t) * (t - s) + logsigmoid(-t) - logsigmoid(-s)


# --- one row of tiles ---------------------------------------------------------------------------------------


class _Running:
    """log sum exp of rows that come in parts, and on demand the softmax mean of something else."""

    def __init__(self, rows: Tensor) -> None:
        self.top = rows.new_full((len(rows), 1), -torch.inf)
        self.mass = rows.new_zeros((len(rows), 1))
        self.weighted = torch.zeros_like(self.mass)

    def add(self, scores: Tensor, gap: Tensor | None = None) -> None:
        top = torch.maximum(self.top, scores.amax(-1, keepdim=True))
        shrink = (self.top - top).exp_()
        powers = (scores - top).exp_()
        self.top = top
        self.mass = self.mass * shrink + powers.sum(-1, keepdim=True)
        if gap is not None:
            self.weighted = self.weighted * shrink + powers.mul_(gap).sum(-1, keepdim=True)

    def partition(self) -> tuple[Tensor, Tensor]:
        """The maximum, and the logarithm of what exceeds it: taken off one after the other they round less."""
        return self.top, self.mass.log()

    def mean(self) -> Tensor:
        return self.weighted / self.mass


def _statistics(student: Similarities, target: Similarities, rows: slice, options: RowOptions, tile: int) -> Tensor:
    """(4, n, 1): partitions of student and target; for GKL (7, n, 1), with that of the weights and their mean gap."""
    if options.divergence == "sigmoid_kl":
        return student.rows.new_zeros((0, len(student.rows[rows]), 1))  # entries, not rows, are distributions
    of_student, of_target, of_weights = (_Running(student.rows[rows]) for _ in range(3))
    for columns in _slices(len(student.columns), tile):
        s, t = student.tile(rows, columns), target.tile(rows, columns)
        of_student.add(s / options.temperature)
        of_target.add(t / options.temperature)
        if options.divergence == "gkl":
            of_weights.add(t * options.weight_power, s - t)
    found = [*of_student.partition(), *of_target.partition()]
    if options.divergence == "gkl":
        found += [*of_weights.partition(), of_weights.mean()]
    return torch.stack(found)


def _log_softmaxes(s: Tensor, t: Tensor, statistics: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Of a tile of the student's matrix and of the target's."""
    log_q = (s / temperature).sub_(statistics[0]).sub_(statistics[1])
    log_p = (t / temperature).sub_(statistics[2]).sub_(statistics[3])
    return log_q, log_p


def _weights_and_gap(s: Tensor, t: Tensor, statistics: Tensor, power: float) -> tuple[Tensor, Tensor]:
    """GKL's weights, which sum to 1 over a row, and the gap of the similarities, less its mean."""
    return (t * power).sub_(statistics[4]).sub_(statistics[5]).exp_(), (s - t).sub_(statistics[6])


def _sums(s: Tensor, t: Tensor, statistics: Tensor, options: RowOptions) -> Tensor:
    """(2, n, 1), what a tile adds to the two sums that a row's value consists of."""
    if options.divergence == "sigmoid_kl":
        values = _bernoulli_kl(s / options.temperature, t / options.temperature).sum(-1, keepdim=True)
        return torch.stack([values, torch.zeros_like(values)])
    log_q, log_p = _log_softmaxes(s, t, statistics, options.temperature)
    p = log_p.exp()
    if options.divergence == "js":
        log_m = torch.logaddexp(log_p, log_q) - math.log(2)
        parts = (0.5 * p * (log_p - log_m), 0.5 * log_q.exp() * (log_q - log_m))
    elif options.divergence == "gkl":
        weight, gap = _weights_and_gap(s, t, statistics, options.weight_power)
        spread = weight.mul_(gap.square_()).mul_(0.5 * options.mse_weight)
        parts = (spread, -options.ce_weight * p * log_q)
    else:
        parts = (p * (log_p - log_q), torch.zeros_like(p))
    return torch.stack([part.sum(-1, keepdim=True) for part in parts])


def _gradients(
    s: Tensor, t: Tensor, statistics: Tensor, sums: Tensor, options: RowOptions, to_target: bool
) -> tuple[Tensor, Tensor | None]:
    """Of the rows' values to a tile of either matrix."""
    temperature = options.temperature
    if options.divergence == "sigmoid_kl":
        p = torch.sigmoid(t / temperature)
        gradient = (torch.sigmoid(s / temperature) - p) / temperature
        return gradient, p * (1 - p) * (t - s) / temperature**2 if to_target else None
    log_q, log_p = _log_softmaxes(s, t, statistics, temperature)
    q, p = log_q.exp(), log_p.exp()
    if options.divergence == "js":
        log_m = torch.logaddexp(log_p, log_q) - math.log(2)
        gradient = q * (0.5 * (log_q - log_m) - sums[1]) / temperature
        return gradient, p * (0.5 * (log_p - log_m) - sums[0]) / temperature if to_target else None
    if options.divergence == "gkl":
        weight, gap = _weights_and_gap(s, t, statistics, options.weight_power)
        spread = weight.mul_(gap).mul_(options.mse_weight)
        return spread + (q - p) * (options.ce_weight / temperature), -spread if to_target else None
    return (q - p) / temperature, p * (log_p - log_q - sums[0]) / temperature if to_target else None


# --- all rows -----------------------------------------------------------------------------------------------


def _slices(length: int, tile: int) -> Iterator[slice]:
    return (slice(start, min(start + tile, length)) for start in range(0, length, tile))


class _Gathered:
    """Gradients of one side's features, scale and bias, added up over tiles."""

    def __init__(self, side: Similarities) -> None:
        self.side = side
        self.gradients = Similarities(*(torch.zeros_like(x) for x in side))

    def add(self, gradient: Tensor, rows: slice, columns: slice) -> None:
        """`gradient` belongs to a tile of the matrix; it is used up."""
        side, gathered = self.side, self.gradients
        gathered.bias.add_(gradient.sum())
        from_rows = gradient @ side.columns[columns]
        gathered.scale.add_((from_rows * side.rows[rows]).sum())  # sum of gradient times x y^T, without another tile
        gathered.rows[rows].add_(from_rows.mul_(side.scale))
        gathered.columns[columns].add_((gradient.T @ side.rows[rows]).mul_(side.scale))


class _Tiled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        *tensors, options, tile = arguments
        student, target = Similarities(*tensors[:4]), Similarities(*tensors[4:])
        all_statistics, all_sums = [], []
        for rows in _slices(len(student.rows), tile):
            statistics = _statistics(student, target, rows, options, tile)
            sums = statistics.new_zeros((2, statistics.shape[1], 1))
            for columns in _slices(len(student.columns), tile):
                sums += _sums(student.tile(rows, columns), target.tile(rows, columns), statistics, options)
            all_statistics.append(statistics)
            all_sums.append(sums)
        kept = torch.cat(all_sums, 1)
        ctx.save_for_backward(*tensors, torch.cat(all_statistics, 1), kept)
        ctx.options, ctx.tile = options, tile
        return kept.sum(0).squeeze(-1)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError("second derivatives expected `tile=None`, got a tile; leave `tile` out to make them")
        needed = ctx.needs_input_grad[:8]
        with torch.autocast(grad_outputs[0].device.type, enabled=False):  # as in the forward pass
            gradients = _all_gradients(ctx, grad_outputs[0], any(needed[4:]))
        return *(x if need else None for x, need in zip(gradients, needed, strict=True)), None, None


def _all_gradients(ctx: Any, grad_output: Tensor, to_target: bool) -> list[Tensor | None]:
    *tensors, statistics, sums = ctx.saved_tensors
    options, tile = ctx.options, ctx.tile
    student, target = Similarities(*tensors[:4]), Similarities(*tensors[4:])
    to_student, to_other = _Gathered(student), _Gathered(target) if to_target else None
    for rows in _slices(len(student.rows), tile):
        factor = grad_output[rows].unsqueeze(-1)
        for columns in _slices(len(student.columns), tile):
            s, t = student.tile(rows, columns), target.tile(rows, columns)
            first, second = _gradients(s, t, statistics[:, rows], sums[:, rows], options, to_target)
            to_student.add(first.mul_(factor), rows, columns)
            if to_other is not None and second is not None:
                to_other.add(second.mul_(factor), rows, columns)
    return [*to_student.gradients, *([None] * 4 if to_other is None else to_other.gradients)]
