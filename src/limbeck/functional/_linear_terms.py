r"""What linear losses sum over the classes of a token, and the gradients that follow, from blocks of both logits.

A divergence is told each block once per sweep, as the classes come; its gradients take the same blocks again.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from limbeck.functional._linear_sums import Partition, Spread, tiny, total
from limbeck.functional._pairs import Normalizer


class Block(NamedTuple):
    """Logits of some tokens and classes, both (n, c), and which they are."""

    s: Tensor
    t: Tensor
    tokens: slice
    classes: slice


class Divergence(Protocol):
    """A divergence between the softmaxes of tokens; its state belongs to a block's tokens."""

    @property
    def sweeps(self) -> int:
        """How often it has to see the logits before it knows its values."""

    @property
    def temperature(self) -> float:
        """What divides the logits of the softmaxes."""

    def state(self, column: Tensor) -> Any:
        """Return what is summed; `column` is (n, 1), of the dtype of the arithmetic."""

    def add(self, state: Any, block: Block, sweep: int) -> None:
        """Take a block in."""

    def finish(self, state: Any) -> tuple[list[Tensor], list[Tensor]]:
        """Return parts of the values and what the gradients need, (n, 1) each."""

    def factors(self, parts: Tensor, statistics: Tensor, mask: Tensor | None) -> Tensor:
        """Return what each part (P, N, 1) of a token's value is multiplied by."""

    def gradients(
        self, block: Block, statistics: Tensor, factors: Tensor, to_target: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Return those of sum factors * parts to the logits and, when asked, to the target's."""


def _softmax(logits: Tensor, temperature: float, statistics: Tensor) -> Tensor:
    return _log_softmax(logits, temperature, statistics).exp_()


def _log_softmax(logits: Tensor, temperature: float, statistics: Tensor) -> Tensor:
    return (logits / temperature).sub_(statistics[0]).sub_(statistics[1])


def _where_mass(x: Tensor, powers: Tensor, careful: bool) -> Tensor:
    """0 where a class is absent; 0 * inf is NaN."""
    return x.masked_fill(powers == 0, 0.0) if careful else x


# --- KL and the soft cross-entropy --------------------------------------------------------------------------


class _Softmaxes:
    """Partitions of both sides at one temperature, and the target's mean of a number."""

    def __init__(self, column: Tensor) -> None:
        self.student, self.target = Partition(column), Partition(column)
        self.weighted = torch.zeros_like(column)

    def add(self, block: Block, temperature: float, number: Tensor, careful: bool) -> None:
        self.student.add(block.s / temperature)
        powers, shrink = self.target.add(block.t / temperature)
        number = _where_mass(number, powers, careful)
        # a sum below a maximum that has grown out of reach may be infinite
        earlier = (self.weighted * shrink).masked_fill(shrink == 0, 0.0)
        self.weighted = earlier + total(powers.mul_(number))

    def statistics(self) -> list[Tensor]:
        return [*self.student.logarithm(), *self.target.logarithm()]


class KL(NamedTuple):
    """KL(target || student), or without the target's entropy the soft cross-entropy; the target is no constant."""

    temperature: float
    scale: float
    entropy: bool
    careful: bool
    sweeps: int = 1

    def state(self, column: Tensor) -> _Softmaxes:
        """See `Divergence`."""
        return _Softmaxes(column)

    def add(self, state: _Softmaxes, block: Block, sweep: int) -> None:
        """See `Divergence`."""
        number = block.t - block.s if self.entropy else block.s
        state.add(block, self.temperature, number, self.careful)

    def finish(self, state: _Softmaxes) -> tuple[list[Tensor], list[Tensor]]:
        """See `Divergence`."""
        statistics = state.statistics()
        s_top, s_log, t_top, t_log = statistics
        mean = state.weighted / (state.target.mass * self.temperature)
        value = (mean + (s_top - t_top)) + (s_log - t_log) if self.entropy else (s_top - mean) + s_log
        return [value], [*statistics, value]

    def factors(self, parts: Tensor, statistics: Tensor, mask: Tensor | None) -> Tensor:
        """See `Divergence`."""
        return torch.full_like(parts, self.scale)

    def gradients(
        self, block: Block, statistics: Tensor, factors: Tensor, to_target: bool
    ) -> tuple[Tensor, Tensor | None]:
        """See `Divergence`."""
        factor = factors[0] / self.temperature
        log_q = _log_softmax(block.s, self.temperature, statistics[:2])
        log_p = _log_softmax(block.t, self.temperature, statistics[2:4])
        p = log_p.exp()
        to_logits = (log_q.exp() - p).mul_(factor)
        if not to_target:
            return to_logits, None
        number = log_p.sub_(log_q) if self.entropy else log_q.neg_()
        return to_logits, _where_mass(number.sub_(statistics[4]), p, self.careful).mul_(p).mul_(factor)


class Swapped(NamedTuple):
    """A divergence with the sides exchanged."""

    of: Divergence
    sweeps: int = 1

    @property
    def temperature(self) -> float:
        """See `Divergence`."""
        return self.of.temperature

    def state(self, column: Tensor) -> Any:
        """See `Divergence`."""
        return self.of.state(column)

    def add(self, state: Any, block: Block, sweep: int) -> None:
        """See `Divergence`."""
        self.of.add(state, block._replace(s=block.t, t=block.s), sweep)

    def finish(self, state: Any) -> tuple[list[Tensor], list[Tensor]]:
        """See `Divergence`."""
        return self.of.finish(state)

    def factors(self, parts: Tensor, statistics: Tensor, mask: Tensor | None) -> Tensor:
        """See `Divergence`."""
        return self.of.factors(parts, statistics, mask)

    def gradients(
        self, block: Block, statistics: Tensor, factors: Tensor, to_target: bool
    ) -> tuple[Tensor, Tensor | None]:
        """See `Divergence`."""
        first, second = self.of.gradients(block._replace(s=block.t, t=block.s), statistics, factors, True)
        assert second is not None
        return second, first


# --- Jensen-Shannon -----------------------------------------------------------------------------------------


class _Mixed(_Softmaxes):
    def __init__(self, column: Tensor) -> None:
        super().__init__(column)
        self.from_student, self.from_target = torch.zeros_like(column), torch.zeros_like(column)


class JS(NamedTuple):
    """beta KL(p || m) + (1 - beta) KL(q || m) with m = beta p + (1 - beta) q, beta inside (0, 1).

    The mixture needs both partitions, hence a sweep of their own.
    """

    temperature: float
    scale: float
    beta: float
    careful: bool
    sweeps: int = 2

    def state(self, column: Tensor) -> _Mixed:
        """See `Divergence`."""
        return _Mixed(column)

    def add(self, state: _Mixed, block: Block, sweep: int) -> None:
        """See `Divergence`."""
        if sweep == 0:
            state.student.add(block.s / self.temperature)
            state.target.add(block.t / self.temperature)
            return
        q, from_q, p, from_p = self._ratios(block, torch.stack(state.statistics()))
        state.from_student = state.from_student + total(q.mul_(from_q))
        state.from_target = state.from_target + total(p.mul_(from_p))

    def _ratios(self, block: Block, statistics: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return q, log q / m, p, log p / m."""
        log_q = _log_softmax(block.s, self.temperature, statistics[:2])
        log_p = _log_softmax(block.t, self.temperature, statistics[2:4])
        log_m = torch.logaddexp(log_p + math.log(self.beta), log_q + math.log1p(-self.beta))
        q, p = log_q.exp(), log_p.exp()
        from_q, from_p = log_q.sub_(log_m), log_p.sub_(log_m)
        return q, _where_mass(from_q, q, self.careful), p, _where_mass(from_p, p, self.careful)

    def finish(self, state: _Mixed) -> tuple[list[Tensor], list[Tensor]]:
        """See `Divergence`."""
        value = self.beta * state.from_target + (1 - self.beta) * state.from_student
        return [value], [*state.statistics(), state.from_student, state.from_target]

    def factors(self, parts: Tensor, statistics: Tensor, mask: Tensor | None) -> Tensor:
        """See `Divergence`."""
        return torch.full_like(parts, self.scale)

    def gradients(
        self, block: Block, statistics: Tensor, factors: Tensor, to_target: bool
    ) -> tuple[Tensor, Tensor | None]:
        """See `Divergence`."""
        q, from_q, p, from_p = self._ratios(block, statistics)
        factor = factors[0] / self.temperature
        to_logits = q.mul_(from_q.sub_(statistics[4])).mul_(factor * (1 - self.beta))
        if not to_target:
            return to_logits, None
        return to_logits, p.mul_(from_p.sub_(statistics[5])).mul_(factor * self.beta)


# --- GKL ----------------------------------------------------------------------------------------------------


class Weighting(NamedTuple):
    """Where GKL's weights come from: exp(scores), scores being power * log of the rows.

    `rows` is (C,), or with `labels` the (C, C) table; None is the target's softmax at `temperature`.
    """

    rows: Tensor | None
    labels: Tensor | None
    power: float
    temperature: float

    def scores(self, t: Tensor, tokens: slice, classes: slice) -> Tensor:
        """(n, c), or (1, c) where they are the same for all tokens; without the target's partition."""
        if self.power == 0:
            return t.new_zeros(t.shape)  # 0 to the power of 0 is 1
        if self.rows is None:
            return t * (self.power / self.temperature)
        rows = self.rows[..., classes]
        rows = rows.unsqueeze(0) if self.labels is None else rows.index_select(0, self.labels[tokens])
        return rows.to(t.dtype).log().mul_(self.power)

    def needs_partition(self) -> bool:
        """Whether a token's sum of weights depends on the target's partition at `temperature`."""
        return self.rows is None and self.power not in (0, 1)

    def log_mass(self, of_scores: list[Tensor], of_target: list[Tensor]) -> Tensor:
        """Logarithm of a token's sum of weights, (n, 1)."""
        if self.rows is None and self.power == 1:
            return torch.zeros_like(of_scores[0])
        if not self.needs_partition():
            return of_scores[0] + of_scores[1]
        return (of_scores[0] - self.power * of_target[0]) + (of_scores[1] - self.power * of_target[1])


class _PairSums:
    def __init__(self, column: Tensor, careful: bool) -> None:
        self.softmaxes, self.partition = _Softmaxes(column), Partition(column)
        self.spread = Spread(column, careful)


class GKL(NamedTuple):
    """The weighted MSE, whose weights are constants, and the soft cross-entropy, whose target is one."""

    weighting: Weighting
    normalizer: Normalizer | Tensor
    mse_weight: float
    ce_weight: float
    temperature: float
    careful: bool
    sweeps: int = 1

    def state(self, column: Tensor) -> _PairSums:
        """See `Divergence`."""
        return _PairSums(column, self.careful)

    def add(self, state: _PairSums, block: Block, sweep: int) -> None:
        """See `Divergence`."""
        if self.ce_weight != 0:
            state.softmaxes.add(block, self.temperature, block.s, self.careful)
        if self.mse_weight == 0:
            return
        if self._needs_own_partition():
            state.partition.add(block.t / self.weighting.temperature)
        state.spread.add(self._scores(block), block.s - block.t)

    def _needs_own_partition(self) -> bool:
        if not self.weighting.needs_partition() or self.normalizer == "row":
            return False
        return self.ce_weight == 0 or self.temperature != self.weighting.temperature

    def _scores(self, block: Block) -> Tensor:
        scores = self.weighting.scores(block.t, block.tokens, block.classes)
        if self.careful:
            absent = torch.isneginf(block.s) & torch.isneginf(block.t)
            scores = torch.where(absent, -torch.inf, scores)
        return scores

    def finish(self, state: _PairSums) -> tuple[list[Tensor], list[Tensor]]:
        """See `Divergence`."""
        softmaxes, spread = state.softmaxes, state.spread
        mean = softmaxes.weighted / (softmaxes.target.mass * self.temperature)
        cross_entropy = (softmaxes.student.top - mean) + softmaxes.student.mass.log()
        if self.ce_weight == 0:
            cross_entropy = torch.zeros_like(mean)
        of_scores = spread.weights.logarithm()
        partition = state.partition if self._needs_own_partition() else softmaxes.target
        log_mass = self.weighting.log_mass(of_scores, partition.logarithm())
        return [spread.half_variance(), cross_entropy], [*softmaxes.statistics(), *of_scores, spread.mean, log_mass]

    def factors(self, parts: Tensor, statistics: Tensor, mask: Tensor | None) -> Tensor:
        """See `Divergence`."""
        if self.mse_weight == 0:
            of_mse = torch.zeros_like(parts[0])
        else:
            of_mse = _over_normalizer(statistics[7], self.normalizer, mask) * self.mse_weight
        return torch.stack([of_mse, torch.full_like(parts[1], self.ce_weight)])

    def gradients(
        self, block: Block, statistics: Tensor, factors: Tensor, to_target: bool
    ) -> tuple[Tensor, Tensor | None]:
        """See `Divergence`."""
        to_logits = to_other = None
        if self.mse_weight != 0:
            weights = (self._scores(block) - statistics[4]).exp_()
            gap = (block.s - block.t).sub_(statistics[6])
            gap = _where_mass(gap, weights, self.careful)
            to_logits = gap.mul_(weights).mul_(factors[0] / statistics[5].exp().clamp_min(tiny(weights)))
            to_other = to_logits.neg() if to_target else None
        if self.ce_weight != 0:
            difference = _softmax(block.s, self.temperature, statistics[:2])
            difference.sub_(_softmax(block.t, self.temperature, statistics[2:4]))
            difference.mul_(factors[1] / self.temperature)
            to_logits = difference if to_logits is None else to_logits.add_(difference)
        if to_logits is None:
            to_logits = torch.zeros_like(block.s)
        return to_logits, torch.zeros_like(block.t) if to_target and to_other is None else to_other


def _over_normalizer(log_mass: Tensor, normalizer: Normalizer | Tensor, mask: Tensor | None) -> Tensor:
    """S^2 over the normaliser, so that the mean over tokens is the value; (N, 1)."""
    if isinstance(normalizer, Tensor):
        return (2 * log_mass).exp() * (count(log_mass, mask) / normalizer.detach().to(log_mass.dtype))
    if normalizer == "row":
        return torch.ones_like(log_mass)
    if normalizer == "samples":
        return (2 * log_mass).exp()
    if mask is not None:
        log_mass = log_mass.masked_fill(~mask, -torch.inf)
    largest = log_mass.amax().clamp_min(torch.finfo(log_mass.dtype).min)  # a common factor cancels, and may underflow
    squares = (2 * (log_mass - largest)).exp()
    return squares / squares.sum().clamp_min(tiny(squares)) * count(log_mass, mask)


def count(like: Tensor, mask: Tensor | None) -> Tensor | float:
    """Tokens that take part, at least 1."""
    return float(like.shape[0]) if mask is None else mask.sum().clamp_min(1).to(like.dtype)
