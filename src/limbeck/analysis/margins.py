"""Boundary margins of the classes (Eq. 14 of arXiv 2503.08038), and how they differ between two rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from limbeck.analysis.style import TEACHER, class_axis, legend_above, marker

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes

    from limbeck.analysis.run_files import Array, Run


@dataclass(frozen=True)
class Margins:
    """Margin of each class, in probability, by row (runs, C); the first teacher's (C,), or None."""

    rows: Mapping[str, Array]
    teacher: Array | None


@dataclass(frozen=True)
class MarginDifference:
    """Mean margin of each row (C,) less that of the row `baseline`, which is there too, as zeros."""

    baseline: str
    rows: Mapping[str, Array]


def class_margins(means: Array) -> Array:
    """Return mean_y[y] - max over k != y of mean_y[k] (C,) from class-mean probabilities (C, C).

    >>> class_margins(np.array([[0.75, 0.25], [0.5, 0.5]]))
    array([0.5, 0. ])
    """
    others = np.where(np.eye(len(means), dtype=bool), -np.inf, means)
    margins: Array = np.diagonal(means) - others.max(-1)
    return margins


def compute(rows: Mapping[str, Sequence[Run]]) -> Margins:
    """Return the margins on the reported split of the runs of each row, and of the teacher."""
    teacher = next(iter(rows.values()))[0].scores.teacher_class_means
    margins = {name: np.stack([class_margins(run.scores.class_means) for run in runs]) for name, runs in rows.items()}
    return Margins(margins, None if teacher is None else class_margins(teacher))


def difference(result: Margins, baseline: str) -> MarginDifference:
    """Return every row's margins less those of `baseline`; KeyError when there is no such row."""
    reference = result.rows[baseline].mean(0)
    return MarginDifference(baseline, {name: margins.mean(0) - reference for name, margins in result.rows.items()})


def draw(result: Margins, axes: Axes) -> Axes:
    """Draw the margin of each class, mean over seeds, one marker per row; the teacher's as a dash."""
    classes = next(iter(result.rows.values())).shape[1]
    if result.teacher is not None:
        axes.plot(
            range(classes),
            result.teacher,
            "_",
            color=TEACHER,
            markersize=max(3, min(18, 320 / classes)),
            markeredgewidth=2,
            label="teacher",
        )
    for index, (name, margins) in enumerate(result.rows.items()):
        place = _places(index, len(result.rows), classes)
        axes.plot(
            place,
            margins.mean(0),
            label=name,
            linestyle="none",
            markersize=5 if classes <= 20 else 2.5,
            **marker(index),
        )
    class_axis(axes, [str(label) for label in range(classes)], "class")
    axes.set_ylabel("margin, probability")
    legend_above(axes)
    return axes


def draw_difference(result: MarginDifference, axes: Axes) -> Axes:
    """Draw the difference of each class's margin to the baseline's, one bar per row."""
    shown = [name for name in result.rows if name != result.baseline]
    classes = len(result.rows[result.baseline])
    for place, name in enumerate(shown):
        colour = marker(list(result.rows).index(name))["color"]
        centres = _places(place, len(shown), classes, 0.8)
        axes.bar(centres, result.rows[name], 0.72 / len(shown), label=name, color=colour)
    axes.axhline(0, color="black", linewidth=0.8)
    class_axis(axes, [str(label) for label in range(classes)], "class")
    axes.set_ylabel("difference of margins")
    legend_above(axes)
    return axes


def _places(index: int, rows: int, classes: int, width: float = 0.6) -> Array:
    """Return the x places of a row's marks, beside those of the other rows."""
    places: Array = np.arange(classes) + width / rows * (index - (rows - 1) / 2)
    return places
