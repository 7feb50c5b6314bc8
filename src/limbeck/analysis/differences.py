"""What the seeds say of each row against the baseline: paired differences of accuracy and their intervals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from limbeck.analysis.style import COLOURS, GRID, TEACHER

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matplotlib.axes import Axes

    from limbeck.analysis.comparison import Comparison
    from limbeck.analysis.statistics import PairedDifference


MANY = 10  # rows from which a picture becomes a list


@dataclass(frozen=True)
class Differences:
    """Difference of each row to the baseline, percentage points of `measure`, and what it is called in words."""

    baseline: str
    rows: Mapping[str, PairedDifference]
    verdicts: Mapping[str, str]
    measure: str


def compute(comparison: Comparison, *, clean: bool = False) -> Differences:
    """Return the differences of a summarised comparison; ValueError when it has no baseline.

    With `clean` they are those of clean accuracy, which a comparison of adversarial training tests beside.
    """
    if comparison.baseline is None:
        raise ValueError("`comparison` expected a finished run of its baseline row")
    judged = {row.name: row.robust.clean if clean and row.robust else row.judged for row in comparison.rows}
    rows = {name: each.difference for name, each in judged.items() if each.difference is not None}
    measure = f"{comparison.split} clean top-1" if clean else comparison.measure
    return Differences(comparison.baseline, rows, {name: each.verdict for name, each in judged.items()}, measure)


def row_height(rows: int) -> float:
    """Return the inches that each of so many rows takes."""
    return 0.62 if rows <= MANY else 0.3


def draw(result: Differences, axes: Axes) -> Axes:
    """Draw one line per row: a small dot per seed, the mean as a diamond, the 95 % interval as a bar.

    Many rows stand closer, the largest difference first.
    """
    many = len(result.rows) > MANY
    order = sorted(result.rows, key=lambda name: -result.rows[name].mean) if many else list(result.rows)
    seen = {"better": COLOURS[0], "worse": COLOURS[1]}
    for height, name in enumerate(order):
        difference, colour = result.rows[name], seen.get(result.verdicts[name], TEACHER)
        axes.plot(difference.values, [height + 0.22] * difference.n, "o", color=colour, alpha=0.55, markersize=4)
        if difference.low is not None and difference.high is not None:
            axes.plot([difference.low, difference.high], [height, height], color=colour, linewidth=3, alpha=0.6)
        axes.plot(difference.mean, height, "D", color=colour, markersize=7)
    axes.axvline(0, color="black", linewidth=1)
    between = ": " if many else "\n"
    axes.set_yticks(range(len(order)), [f"{name}{between}{result.verdicts[name]}" for name in order])
    axes.set_ylim(len(result.rows) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", color=GRID)
    axes.set_xlabel(f"{result.measure} less that of {result.baseline}, percentage points")
    return axes
