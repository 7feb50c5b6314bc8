"""What the seeds say of each row against the baseline: paired differences of top-1 and their intervals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from limbeck.analysis.style import COLOURS, GRID, TEACHER

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matplotlib.axes import Axes

    from limbeck.analysis.comparison import Comparison
    from limbeck.analysis.statistics import PairedDifference


@dataclass(frozen=True)
class Differences:
    """Difference of each row to the baseline, percentage points of top-1 on `split`, and what it is called in words."""

    baseline: str
    rows: Mapping[str, PairedDifference]
    verdicts: Mapping[str, str]
    split: str


def compute(comparison: Comparison) -> Differences:
    """Return the differences of a summarised comparison; ValueError when it has no baseline."""
    if comparison.baseline is None:
        raise ValueError("`comparison` expected a finished run of its baseline row")
    rows = {row.name: row.difference for row in comparison.rows if row.difference is not None}
    verdicts = {row.name: row.verdict for row in comparison.rows}
    return Differences(comparison.baseline, rows, verdicts, comparison.split)


def draw(result: Differences, axes: Axes) -> Axes:
    """Draw one line per row: a small dot per seed, the mean as a diamond, the 95 % interval as a bar."""
    seen = {"better": COLOURS[0], "worse": COLOURS[1]}
    for height, (name, difference) in enumerate(result.rows.items()):
        colour = seen.get(result.verdicts[name], TEACHER)
        axes.plot(difference.values, [height + 0.22] * difference.n, "o", color=colour, alpha=0.55, markersize=4)
        if difference.low is not None and difference.high is not None:
            axes.plot([difference.low, difference.high], [height, height], color=colour, linewidth=3, alpha=0.6)
        axes.plot(difference.mean, height, "D", color=colour, markersize=7)
    axes.axvline(0, color="black", linewidth=1)
    axes.set_yticks(range(len(result.rows)), [f"{name}\n{result.verdicts[name]}" for name in result.rows])
    axes.set_ylim(len(result.rows) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", color=GRID)
    axes.set_xlabel(f"{result.split} top-1 less that of {result.baseline}, percentage points")
    return axes
