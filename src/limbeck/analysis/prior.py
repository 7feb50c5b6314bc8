"""The class prior as a heat map: which classes the teacher holds for alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from limbeck.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from limbeck.analysis.run_files import Array, Run

FLOOR = 0.01
"""Percentages below, or as near to 100, are drawn as this one: they are noise, and 0 and 100 have no logit."""

TICKS = (0.01, 0.1, 1, 10, 50, 90, 99, 99.9)


@dataclass(frozen=True)
class Prior:
    """The class prior (C, C): row y is the mean probability vector of the samples of class y."""

    table: Array


def compute(run: Run) -> Prior:
    """Return the run's class prior; UserError when none of its terms has one."""
    table = run.scores.prior
    if table is None:
        raise UserError(f"{run.folder / 'predictions.npz'}: no class prior; only terms with `prior: class` keep one")
    return Prior(table)


def draw(result: Prior, axes: Axes) -> Axes:
    """Draw the table in percent, as numbers up to 12 classes.

    The colours follow the logit: it tells the small entries off the diagonal apart, and those on it, near 100, too.
    """
    from matplotlib.colors import FuncNorm

    percent = np.clip(100 * result.table, FLOOR, 100 - FLOOR)
    classes = len(percent)
    low, high = float(percent.min()), float(percent.max())
    norm = FuncNorm((_logit, _from_logit), vmin=min(low, 0.99 * high), vmax=high)
    image = axes.imshow(percent, norm=norm, cmap="cividis")
    if classes <= 12:
        for (row, column), value in np.ndenumerate(100 * result.table):
            colour = "black" if norm(percent[row, column]) > 0.5 else "white"
            axes.text(column, row, _short(value), ha="center", va="center", fontsize=7.5, color=colour)
    bar = axes.figure.colorbar(image, ax=axes)
    ticks = [tick for tick in TICKS if low <= tick <= high] or [high]
    bar.set_ticks(ticks, labels=[f"{tick:.3g}" for tick in ticks])
    bar.minorticks_off()
    bar.set_label("mean probability, percent (logit scale)")
    every = max(1, -(-classes // 20))
    axes.set_xticks(range(0, classes, every))
    axes.set_yticks(range(0, classes, every))
    axes.set_xlabel("class the probability is given to")
    axes.set_ylabel("true class")
    axes.grid(visible=False)
    return axes


def _logit(percent: Array) -> Array:
    inside = np.clip(percent, 1e-9, 100 - 1e-9)  # matplotlib probes the ends of its axis
    values: Array = np.log(inside / (100 - inside))
    return values


def _from_logit(values: Array) -> Array:
    percent: Array = 100 / (1 + np.exp(-values))
    return percent


def _short(percent: float) -> str:
    """Return a percentage without its sign, in four characters at most."""
    if percent >= 10:
        return f"{percent:.0f}"
    return f"{percent:.1f}" if percent >= 0.1 else f"{percent:.2f}".lstrip("0") if percent >= 0.005 else "0"
