"""Class-mean predicted scores, sorted: how much probability each net leaves to the other classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from limbeck.analysis.style import APART, TEACHER, joined, look

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes

    from limbeck.analysis.run_files import Array, Run


@dataclass(frozen=True)
class PredictedScores:
    """Sorted class-mean scores.

    Attributes:
        rows: for each row the scores (C, C), mean over its runs: line y holds the class-mean probabilities of class y
            from the largest to the smallest.
        teacher: the first teacher's, or None.
    """

    rows: Mapping[str, Array]
    teacher: Array | None


def compute(rows: Mapping[str, Sequence[Run]]) -> PredictedScores:
    """Return the sorted class-mean scores on the reported split, of each row and of the teacher."""
    teacher = next(iter(rows.values()))[0].scores.teacher_class_means
    sorted_rows = {
        name: np.mean([_sorted(run.scores.class_means) for run in runs], axis=0) for name, runs in rows.items()
    }
    return PredictedScores(sorted_rows, None if teacher is None else _sorted(teacher))


def draw(result: PredictedScores, axes: Axes) -> Axes:
    """Draw the median over the classes at each rank, logarithmic; the band holds the teacher's middle half."""
    if result.teacher is not None:
        ranks = np.arange(1, result.teacher.shape[1] + 1)
        low, middle, high = np.nanquantile(result.teacher, [0.25, 0.5, 0.75], axis=0)
        axes.fill_between(ranks, low, high, color=TEACHER, alpha=0.15, linewidth=0, label="teacher, middle half")
        axes.plot(ranks, middle, color=TEACHER, linewidth=3, alpha=0.7, label="teacher")
    medians = {name: np.nanmedian(scores, axis=0) for name, scores in result.rows.items()}
    logarithms = {name: np.log(np.maximum(median, np.finfo(np.float64).tiny)) for name, median in medians.items()}
    labels = joined(logarithms, APART * float(np.ptp(np.stack(list(logarithms.values())))))
    for index, (name, median) in enumerate(medians.items()):
        if name in labels:
            axes.plot(np.arange(1, len(median) + 1), median, label=labels[name], **look(index))
    axes.set_yscale("log")
    axes.set_xlabel("rank of the score among the classes (1: the largest)")
    axes.set_ylabel("class-mean score, median over classes")
    classes = len(median)
    axes.set_xticks(range(1, classes + 1, -(-classes // 20)))
    axes.legend(ncols=2)
    return axes


def _sorted(means: Array) -> Array:
    return -np.sort(-means, axis=-1)
