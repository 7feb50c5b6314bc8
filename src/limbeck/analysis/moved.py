"""How far an attack moves probabilities: those of single images, and the means of the classes.

Section 3.4 of arXiv 2503.08038 prefers class means as weights because they move less. That they do not move more is the
triangle inequality; how much less is what is measured here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from limbeck.analysis.attacked import read_attacked
from limbeck.analysis.style import TEACHER, marker

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes

    from limbeck.analysis.attacked import Attacked
    from limbeck.analysis.run_files import Array, Run


@dataclass(frozen=True)
class MovedRow:
    """Probability mass that the attack moved, in percent, by run and class (runs, C); NaN for a class without images.

    Attributes:
        samples: mean over the images of a class.
        means: of the class's mean probability vector.
    """

    samples: Array
    means: Array

    @property
    def ratio(self) -> float:
        """Movement of a class mean over that of its images, mean over classes and runs; 1 is its largest value."""
        with np.errstate(invalid="ignore"):
            return float(np.nanmean(self.means / self.samples))


@dataclass(frozen=True)
class Moved:
    """The movement by row, the radius of the attack, and how many images the smallest class has.

    The fewer images a mean is made of, the more it moves as they do: of one image, just as much.
    """

    rows: Mapping[str, MovedRow]
    epsilon: float
    smallest: int


def total_variation(first: Array, second: Array) -> Array:
    """Return the share of the mass (...) by which two probability vectors (..., C) differ.

    >>> total_variation(np.array([0.5, 0.5, 0.0]), np.array([0.25, 0.5, 0.25]))
    array(0.25)
    """
    return np.asarray(np.abs(first - second).sum(-1) / 2)


def compute(rows: Mapping[str, Sequence[Run]]) -> Moved | None:
    """Return how far probabilities moved in the runs of each row; None unless all were attacked at one radius."""
    found: dict[str, list[_Movement]] = {}
    for name, runs in rows.items():
        for run in runs:
            attacked = read_attacked(run)
            if attacked is None:
                return None
            found.setdefault(name, []).append(_movement(attacked))
    everything = [each for group in found.values() for each in group]
    radii = {each.epsilon for each in everything}
    if len(radii) != 1:
        return None
    moved = {
        name: MovedRow(100 * np.stack([each.samples for each in group]), 100 * np.stack([each.means for each in group]))
        for name, group in found.items()
    }
    return Moved(moved, radii.pop(), min(each.smallest for each in everything))


def draw(result: Moved, axes: Axes) -> Axes:
    """Draw a marker for each class, mean over the runs of a row; on the dashed line its images move all alike."""
    for index, (name, row) in enumerate(result.rows.items()):
        label = f"{name}: ratio {row.ratio:.2f}"
        samples, means = row.samples.mean(0), row.means.mean(0)
        axes.plot(samples, means, linestyle="none", markersize=5, alpha=0.8, label=label, **marker(index))
    limit = 1.05 * max(float(np.nanmax(row.samples)) for row in result.rows.values()) or 1.0
    axes.plot([0, limit], [0, limit], color=TEACHER, linewidth=1, linestyle="--", label="ratio 1: all images alike")
    axes.set_xlim(0, limit)
    axes.set_ylim(0, limit)
    axes.set_xlabel("probability moved in an image, mean over the class, %")
    axes.set_ylabel("moved in the class mean, %")
    axes.legend(loc="upper left")
    return axes


@dataclass(frozen=True)
class _Movement:
    """Of one run: movement of images and of means by class (C,), as shares of the mass; the rest as in `Moved`."""

    samples: Array
    means: Array
    epsilon: float
    smallest: int


def _movement(attacked: Attacked) -> _Movement:
    clean, adversarial = _softmax(attacked.clean_logits), _softmax(attacked.adversarial_logits)
    classes = clean.shape[1]
    samples, means = np.full(classes, np.nan), np.full(classes, np.nan)
    present, counts = np.unique(attacked.labels, return_counts=True)
    for label in present:
        there = attacked.labels == label
        samples[label] = total_variation(clean[there], adversarial[there]).mean()
        means[label] = total_variation(clean[there].mean(0), adversarial[there].mean(0))
    return _Movement(samples, means, attacked.epsilon, int(counts.min()))


def _softmax(logits: Array) -> Array:
    shifted = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(-1, keepdims=True))
