"""Paired comparison over seeds: mean and spread, t-test with its confidence interval, Holm's correction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from limbeck.errors import missing_extra

if TYPE_CHECKING:
    from collections.abc import Sequence

ROUNDING = 1e-12
"""Differences that vary by less than this share of the values vary by rounding alone."""


@dataclass(frozen=True)
class Spread:
    """Values of one quantity over the seeds, with their mean and sample standard deviation (None for one seed)."""

    values: tuple[float, ...]
    mean: float
    std: float | None

    @property
    def n(self) -> int:
        """Number of values."""
        return len(self.values)


@dataclass(frozen=True)
class PairedDifference:
    """Mean of the paired differences, their confidence interval and the two-sided p-value.

    `low`, `high` and `p` are None where no test can be made: with one pair, or when all differences are the same.
    """

    values: tuple[float, ...]
    mean: float
    low: float | None
    high: float | None
    p: float | None

    @property
    def n(self) -> int:
        """Number of pairs."""
        return len(self.values)

    @property
    def tied(self) -> bool:
        """Whether both sides are equal in every pair. Accuracies, of which there are few, may be so by chance."""
        return all(value == 0 for value in self.values)


@dataclass(frozen=True)
class Judged:
    """A row's difference to the baseline; nothing for the baseline itself.

    Attributes:
        difference: in percentage points; None where there are no pairs.
        p_holm: p-value after Holm's correction over the rows; None where no test was made.
        verdict: the difference in words, see `verdict`; empty where there is none.
    """

    difference: PairedDifference | None = None
    p_holm: float | None = None
    verdict: str = ""


def spread(values: Sequence[float]) -> Spread:
    """Return the mean and the standard deviation (ddof 1) of `values`; ValueError when there are none.

    >>> spread([1.0, 3.0])
    Spread(values=(1.0, 3.0), mean=2.0, std=1.4142135623730951)
    """
    if len(values) == 0:
        raise ValueError("`values` expected at least one value, got none")
    std = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return Spread(tuple(map(float, values)), float(np.mean(values)), std)


def paired_difference(
    values: Sequence[float], baseline: Sequence[float], *, confidence: float = 0.95
) -> PairedDifference:
    """Return the paired t-test of `values` against `baseline`, pair by pair.

    Args:
        values: one value per seed.
        baseline: the other side, in the same order of seeds.
        confidence: coverage of the interval.

    Returns:
        The test. One pair, or differences without any spread, have no interval and no p-value: the t-statistic does
        not exist there, and a p-value of 0 or 1 would be made up.

    Raises:
        ValueError: no pairs, or sides of different length.
        UserError: scipy is not installed.

    >>> paired_difference([3.0, 5.0], [3.0, 5.0]).tied
    True
    """
    if len(values) != len(baseline) or len(values) == 0:
        raise ValueError(f"expected pairs, got {len(values)} values and {len(baseline)} of the baseline")
    differences = np.subtract(values, baseline, dtype=np.float64)
    n, mean = len(differences), float(np.mean(differences))
    deviation = float(np.std(differences, ddof=1)) if n > 1 else 0.0
    if deviation <= ROUNDING * float(np.max(np.abs([values, baseline]))):
        return PairedDifference(tuple(differences.tolist()), mean, None, None, None)
    try:
        from scipy.special import stdtr, stdtrit
    except ImportError as error:
        raise missing_extra("scipy", "cli", "the paired t-test") from error
    standard_error = deviation / n**0.5
    half = float(stdtrit(n - 1, 0.5 + confidence / 2)) * standard_error
    p = 2 * float(stdtr(n - 1, -abs(mean) / standard_error))
    return PairedDifference(tuple(differences.tolist()), mean, mean - half, mean + half, p)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Return Holm's step-down adjusted p-values, in the order given; None (no test made) stays None, uncounted.

    >>> holm([0.01, 0.04, None, 0.03])
    [0.03, 0.06, None, 0.06]
    """
    tested = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, index) in enumerate(tested):
        largest = max(largest, min(1.0, (len(tested) - rank) * p))
        adjusted[index] = largest
    return adjusted


def verdict(
    difference: PairedDifference, p_adjusted: float | None, *, identical: bool = False, level: float = 0.05
) -> str:
    """Return what may be said of a difference (greater is better) in words.

    "identical", where the caller has seen that more than this quantity agrees; "no test" (one pair, or the same
    difference everywhere); "no difference seen" (the interval covers 0, or all pairs tie); "uncertain" (it does not,
    but the adjusted p-value is at `level` or above); "better"; "worse".
    """
    if identical:
        return "identical"
    if p_adjusted is None:
        return "no test"
    if difference.low is None or difference.high is None or difference.low <= 0 <= difference.high:
        return "no difference seen"
    if p_adjusted >= level:
        return "uncertain"
    return "better" if difference.mean > 0 else "worse"


def judge(differences: Sequence[PairedDifference | None], identical: Sequence[bool]) -> list[Judged]:
    """Return the differences of several rows to one baseline with their verdicts, p-values corrected over the rows.

    A row whose pairs tie without being `identical` counts among the rows, at p = 1: it was compared like the others.
    """
    both = list(zip(differences, identical, strict=True))
    adjusted = holm([None if difference is None or same else _p(difference) for difference, same in both])
    return [
        Judged() if difference is None else Judged(difference, p, verdict(difference, p, identical=same))
        for (difference, same), p in zip(both, adjusted, strict=True)
    ]


def _p(difference: PairedDifference) -> float | None:
    return 1.0 if difference.tied and difference.n > 1 else difference.p
