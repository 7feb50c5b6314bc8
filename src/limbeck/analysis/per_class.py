"""Accuracy on each class beside the number of training images: who pays for a long tail."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from limbeck.analysis.style import class_axis, legend_above, marker

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes

    from limbeck.analysis.run_files import Array, Run


@dataclass(frozen=True)
class PerClass:
    """Accuracy in percent by row (runs, C), columns in `order`: classes from most to fewest training images (C,).

    Where these are not known, `counts` is empty and `order` that of the labels.
    """

    order: Array
    counts: Array
    rows: Mapping[str, Array]
    split: str


def compute(rows: Mapping[str, Sequence[Run]]) -> PerClass:
    """Return the accuracy on each class for the runs of each row."""
    first = next(iter(rows.values()))[0]
    counts = first.scores.train_counts
    order = np.argsort(-counts, kind="stable") if len(counts) else np.arange(len(first.scores.accuracy))
    accuracies = {name: 100 * np.stack([run.scores.accuracy for run in runs])[:, order] for name, runs in rows.items()}
    return PerClass(order, counts[order] if len(counts) else counts, accuracies, first.split)


def draw(result: PerClass, axes: Axes) -> Axes:
    """Draw a marker per row and class with its standard deviation over seeds; the bars behind count the images.

    Whiskers end where accuracies do, at 0 and 100 %.
    """
    classes = len(result.order)
    if len(result.counts):
        _draw_counts(result, axes)
    step = 0.7 / max(len(result.rows), 2)
    for index, (name, accuracy) in enumerate(result.rows.items()):
        place = np.arange(classes) + step * (index - (len(result.rows) - 1) / 2)
        mean, error = accuracy.mean(0), None
        if len(accuracy) > 1:
            error = np.minimum(accuracy.std(0, ddof=1), np.stack([mean, 100 - mean]).clip(min=0))
        size = 5 if classes <= 20 else 2
        axes.errorbar(place, mean, error, label=name, linestyle="none", markersize=size, elinewidth=1, **marker(index))
    sorted_by_count = len(result.counts) > 0 and result.counts.min() < result.counts.max()
    order = "class, from most to fewest training images" if sorted_by_count else "class"
    class_axis(axes, [str(label) for label in result.order], order)
    axes.set_ylabel(f"{result.split} accuracy, %")
    legend_above(axes)
    return axes


def _draw_counts(result: PerClass, axes: Axes) -> None:
    behind = axes.twinx()
    behind.bar(range(len(result.counts)), result.counts, width=0.9, color="#EEEEEE", zorder=0)
    behind.set_ylim(0, result.counts.max() * 1.02)
    behind.locator_params(axis="y", integer=True)
    behind.set_ylabel("training images (bars)", color="#777777")
    behind.tick_params(axis="y", colors="#777777")
    behind.grid(visible=False)
    axes.set_zorder(behind.get_zorder() + 1)
    axes.patch.set_visible(False)
