"""The class prior as a heat map: which classes the teacher holds for alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from limbeck.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from limbeck.analysis.run_files import Array, Run

FLOOR = 1e-6
"""Probabilities below are drawn as this one: they are noise, and 0 has no logarithm."""


@dataclass(frozen=True)
class Prior:
    """The class prior (C, C): row y is the mean probability vector of the samples of class y."""

    table: Array


def compute(run: Run) -> Prior:
    """Return the run's class prior; UserError when none of its terms has one."""
    table = run.test_scores.prior
    if table is None:
        raise UserError(f"{run.folder / 'predictions.npz'}: no class prior; only terms with `prior: class` keep one")
    return Prior(table)


def draw(result: Prior, axes: Axes) -> Axes:
    """Draw the table in logarithmic colour, so that the small entries off the diagonal show; numbers up to 12 classes.

    The colours span the entries off the diagonal: those on it, near 1, would leave the rest one colour.
    """
    from matplotlib.colors import LogNorm

    table = np.maximum(result.table, FLOOR)
    classes = len(table)
    others = table[~np.eye(classes, dtype=bool)]
    low, high = (float(others.min()), float(others.max())) if classes > 1 else (FLOOR, 1.0)
    image = axes.imshow(table, norm=LogNorm(low, max(high, low * 1.01)), cmap="cividis")
    if classes <= 12:
        middle = (low * high) ** 0.5
        for (row, column), value in np.ndenumerate(table):
            colour = "black" if value > middle else "white"
            axes.text(column, row, _percent(value), ha="center", va="center", fontsize=7.5, color=colour)
    bar = axes.figure.colorbar(image, ax=axes, extend="max")
    bar.set_label("mean probability (logarithmic)")
    every = max(1, -(-classes // 20))
    axes.set_xticks(range(0, classes, every))
    axes.set_yticks(range(0, classes, every))
    axes.set_xlabel("class the probability is given to")
    axes.set_ylabel("true class")
    axes.grid(visible=False)
    return axes


def _percent(value: float) -> str:
    """Return a probability as a percentage without its sign, in four characters at most."""
    percent = 100 * value
    if percent >= 10:
        return f"{percent:.0f}"
    return f"{percent:.1f}" if percent >= 0.1 else f"{percent:.2f}".lstrip("0") if percent >= 0.005 else "0"
