"""Features of clean and of attacked images: how tight the classes are, and a map of them by t-SNE."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from limbeck.analysis.attacked import read_attacked
from limbeck.analysis.style import TEACHER
from limbeck.errors import missing_extra

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes

    from limbeck.analysis.run_files import Array, Run

CLASSES = 20
"""Where there are more classes, so many are drawn at random, as in Figs. 4a and 4b of arXiv 2503.08038."""
IMAGES = 500
"""Images on the map: t-SNE takes seconds for so many, and minutes for all."""
PERPLEXITY = 30.0
SEED = 0


@dataclass(frozen=True)
class Tightness:
    """`class_ratio` of a run's features, on the images as they are and as the attack left them."""

    clean: float
    adversarial: float


@dataclass(frozen=True)
class FeatureMap:
    """A map of features, clean and attacked images on the same one.

    Attributes:
        clean: places (N, 2).
        adversarial: places of the same images after the attack (N, 2).
        labels: (N,).
        tightness: on the map.
    """

    clean: Array
    adversarial: Array
    labels: Array
    tightness: Tightness


def class_ratio(features: Array, labels: Array) -> float:
    """Return the intra-class over the inter-class distance of features (N, D); the smaller, the tighter the classes.

    Intra: mean distance of a sample to the mean of its class. Inter: mean distance between the means of two classes.
    Scaling, shifting and turning all features leaves the ratio as it is. NaN with fewer than two classes.

    >>> class_ratio(np.array([[0.0], [2.0], [9.0], [11.0]]), np.array([0, 0, 1, 1]))
    0.1111111111111111
    """
    present, own = np.unique(labels, return_inverse=True)
    if len(present) < 2:
        return float("nan")
    means = np.stack([features[own == index].mean(0, dtype=np.float64) for index in range(len(present))])
    intra = np.linalg.norm(features - means[own], axis=-1).mean()
    first, second = np.triu_indices(len(present), 1)
    inter = np.linalg.norm(means[first] - means[second], axis=-1).mean()
    return float(intra / inter) if inter > 0 else float("nan")


def tightness(rows: Mapping[str, Sequence[Run]]) -> dict[str, list[Tightness]]:
    """Return the ratio on the features themselves, of all images and classes, for the runs that kept them."""
    found: dict[str, list[Tightness]] = {}
    for name, runs in rows.items():
        for run in runs:
            kept = _features(run)
            if kept is not None:
                clean, adversarial, labels = kept
                found.setdefault(name, []).append(_tightness(clean, adversarial, labels))
    return found


def compute(run: Run) -> FeatureMap | None:
    """Return a map of a run's features; None where it kept none.

    Raises:
        UserError: scikit-learn is not installed, or the file is damaged.
    """
    kept = _features(run)
    if kept is None:
        return None
    clean, adversarial, labels = kept
    present = np.unique(labels)
    if len(present) > CLASSES:
        drawn = np.random.default_rng(SEED).choice(present, CLASSES, replace=False)
        clean, adversarial, labels = (part[np.isin(labels, drawn)] for part in (clean, adversarial, labels))
    clean, adversarial, labels = clean[:IMAGES], adversarial[:IMAGES], labels[:IMAGES]
    places = _embed(np.concatenate([clean, adversarial]).astype(np.float64))
    first, second = places[: len(labels)], places[len(labels) :]
    return FeatureMap(first, second, labels, _tightness(first, second, labels))


def draw(result: FeatureMap, axes: Axes) -> Axes:
    """Draw a dot for each clean image and a cross for what the attack made of it, in the colour of its class."""
    from matplotlib import colormaps

    present, own = np.unique(result.labels, return_inverse=True)
    colours = colormaps["tab10" if len(present) <= 10 else "tab20"](own % CLASSES)
    axes.scatter(result.clean[:, 0], result.clean[:, 1], s=9, c=colours, marker="o", linewidths=0, alpha=0.75)
    axes.scatter(
        result.adversarial[:, 0], result.adversarial[:, 1], s=12, c=colours, marker="x", linewidths=0.8, alpha=0.75
    )
    for mark, label in (("o", "clean"), ("x", "attacked")):
        axes.plot([], [], mark, color=TEACHER, markersize=4, label=label)
    axes.legend(loc="lower right", handletextpad=0.2, borderaxespad=0)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_aspect("equal", adjustable="datalim")
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    return axes


def _features(run: Run) -> tuple[Array, Array, Array] | None:
    """Return clean features, attacked ones and labels."""
    attacked = read_attacked(run)
    if attacked is None or attacked.clean_features is None or attacked.adversarial_features is None:
        return None
    return attacked.clean_features, attacked.adversarial_features, attacked.labels[: len(attacked.clean_features)]


def _tightness(clean: Array, adversarial: Array, labels: Array) -> Tightness:
    return Tightness(class_ratio(clean, labels), class_ratio(adversarial, labels))


def _embed(features: Array) -> Array:
    """Return places (N, 2) by t-SNE, which begins with the two main axes.

    On one thread: on busy cores those of OpenMP wait for one another for minutes, and so few points need no more.
    """
    try:
        from sklearn.manifold import TSNE
        from threadpoolctl import threadpool_limits
    except ImportError as error:
        raise missing_extra("scikit-learn", "data", "a map of features") from error
    perplexity = min(PERPLEXITY, (len(features) - 1) / 3)
    with threadpool_limits(1):
        return np.asarray(TSNE(perplexity=perplexity, init="pca", random_state=SEED).fit_transform(features))
