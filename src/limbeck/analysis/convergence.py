"""Validation accuracy over the epochs by teacher score: which samples a loss learns sooner."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from limbeck.analysis.style import APART, epoch_axis, joined, look

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes

    from limbeck.analysis.run_files import Array, Run

QUARTERS = ("lowest", "second", "third", "highest")


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


def compute(rows: Mapping[str, Sequence[Run]]) -> Convergence:
    """Return accuracy by teacher score over the epochs that all runs of a row have reached."""
    return Convergence({name: _by_score(runs) for name, runs in rows.items()})


def draw(result: Convergence, axes: Axes, quarter: int = 0) -> Axes:
    """Draw the accuracy of one quarter of the samples over the epochs, the mean over the runs of each row."""
    known = {name: values.mean(0) for name, values in result.rows.items() if values is not None}
    labels = joined(known, 100 * APART)  # on all quarters: they have one legend
    for index, name in enumerate(result.rows):
        if name in labels:
            means = known[name][:, quarter]
            axes.plot(np.arange(1, len(means) + 1), means, label=labels[name], **look(index))
    epoch_axis(axes)
    axes.set_ylabel("accuracy, %")
    low, high = axes.get_ylim()
    middle = (low + high) / 2  # at least 10 points high: a quarter that stays at 0 or 100 % would show its rounding
    axes.set_ylim(max(min(low, middle - 5), -2), min(max(high, middle + 5), 102))
    return axes


def _by_score(runs: Sequence[Run]) -> Array | None:
    length = min(len(run.epochs) for run in runs)
    lines = [[epoch.get("accuracy_by_teacher_score") for epoch in run.epochs[:length]] for run in runs]
    if length == 0 or any(values is None for line in lines for values in line):
        return None
    return 100 * np.array(lines, dtype=np.float64)
