"""Validation accuracy over the epochs by teacher score: which samples a loss learns sooner."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from limbeck.analysis.statistics import Judged, Spread, judge, paired_difference, spread
from limbeck.analysis.style import APART, epoch_axis, joined, look

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes

    from limbeck.analysis.run_files import Array, Run

QUARTERS = ("lowest", "second", "third", "highest")
BANDED = 3
"""Rows up to which bands about their lines can be told apart."""


@dataclass(frozen=True)
class Convergence:
    """Accuracy in percent by row (runs, E, 4): quarters of the teacher's probability of the true class, lowest first.

    None for a row whose runs did not keep it (no teacher, no validation split).
    """

    rows: Mapping[str, Array | None]

    @property
    def empty(self) -> bool:
        """Whether no row has it."""
        return all(values is None for values in self.rows.values())

    @property
    def spreads(self) -> dict[str, Array]:
        """Standard deviation over the runs, by row (E, 4); rows of one run have none."""
        several = {name: values for name, values in self.rows.items() if values is not None and len(values) > 1}
        return {name: values.std(0, ddof=1) for name, values in several.items()}

    @property
    def banded(self) -> bool:
        """Whether bands show the spread: there are few rows, and several runs of each."""
        return len(self.rows) <= BANDED and len(self.spreads) == len(self.rows)


def compute(rows: Mapping[str, Sequence[Run]]) -> Convergence:
    """Return accuracy by teacher score over the epochs that all runs of a row have reached."""
    return Convergence({name: _by_score(runs) for name, runs in rows.items()})


def draw(result: Convergence, axes: Axes, quarter: int = 0) -> Axes:
    """Draw the accuracy of one quarter of the samples over the epochs, the mean over the runs of each row.

    Bands, where rows are few, reach one standard deviation to either side.
    """
    known = {name: values.mean(0) for name, values in result.rows.items() if values is not None}
    labels = joined(known, 100 * APART)  # on all quarters: they have one legend
    for index, name in enumerate(result.rows):
        if name in labels:
            means, style = known[name][:, quarter], look(index)
            epochs = np.arange(1, len(means) + 1)
            axes.plot(epochs, means, label=labels[name], **style)
            if result.banded:
                deviation = result.spreads[name][:, quarter]
                low, high = (np.clip(means + side * deviation, 0, 100) for side in (-1, 1))
                axes.fill_between(epochs, low, high, color=style["color"], alpha=0.15, linewidth=0)
    epoch_axis(axes)
    axes.set_ylabel("accuracy, %")
    low, high = axes.get_ylim()
    middle = (low + high) / 2  # at least 10 points high: a quarter that stays at 0 or 100 % would show its rounding
    axes.set_ylim(max(min(low, middle - 5), -2), min(max(high, middle + 5), 102))
    return axes


@dataclass(frozen=True)
class Pace:
    """Accuracy of a quarter, the mean over the epochs, by row: who learns it sooner, whatever the end.

    Attributes:
        quarter: one of `QUARTERS`.
        rows: percent, over the runs.
        judged: the second row less the first, paired by run, points; p-values are corrected over the quarters.
    """

    quarter: str
    rows: tuple[Spread, Spread]
    judged: Judged


def paces(result: Convergence) -> list[Pace]:
    """Return the pace of each quarter for the two rows of a result; their runs are paired in order.

    Raises:
        ValueError: there are not two rows that both have accuracies by teacher score, of as many runs.
    """
    values = [each for each in result.rows.values() if each is not None]
    if len(values) != 2 or len(values[0]) != len(values[1]):
        raise ValueError(f"`result` expected two rows of as many runs, got {[len(each) for each in values]}")
    first, second = (each.mean(1) for each in values)  # (runs, 4)
    pairs = [paired_difference(second[:, quarter], first[:, quarter]) for quarter in range(4)]
    return [
        Pace(name, (spread(first[:, quarter]), spread(second[:, quarter])), judged)
        for quarter, (name, judged) in enumerate(zip(QUARTERS, judge(pairs, [False] * 4), strict=True))
    ]


def _by_score(runs: Sequence[Run]) -> Array | None:
    length = min(len(run.epochs) for run in runs)
    lines = [[epoch.get("accuracy_by_teacher_score") for epoch in run.epochs[:length]] for run in runs]
    if length == 0 or any(values is None for line in lines for values in line):
        return None
    return 100 * np.array(lines, dtype=np.float64)
