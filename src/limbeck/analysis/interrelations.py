"""How alike classes are to a teacher: a heat map, alike ones side by side, and the nearest classes of each."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from limbeck.analysis.style import RC, WIDTH, styled
from limbeck.errors import UserError, missing_extra, reason

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from limbeck.analysis.run_files import Array
    from limbeck.interrelation_files import InterrelationFile

LISTED = 26  # classes that have a place beside the heat map
FEW = 15  # classes that have room for larger letters
NEAREST = 3
LONGEST = 64  # letters of a title
FORMATS = (".png", ".svg")
NO_NUMBER = "#BBBBBB"  # the diagonal, which is 1 by definition


@dataclass(frozen=True)
class Relations:
    """What is drawn of a file.

    Attributes:
        title: What the similarities are, and of which teacher and data.
        similarities: (C, C), 1 on the diagonal.
        order: (C,), the classes, those that are alike beside one another.
        nearest: (C, K), the most alike classes of each, the nearest first; K may be 0.
        alike: Whether all pairs are equally alike, so that none is nearest.
    """

    title: str
    similarities: Array
    order: Array
    nearest: Array
    alike: bool


def off_diagonal(matrix: Array) -> Array:
    """Return the entries of a (C, C) matrix between different classes.

    >>> off_diagonal(np.array([[0, 1, 2], [3, 4, 5], [6, 7, 8]])).tolist()
    [1, 2, 3, 5, 6, 7]
    """
    return matrix[~np.eye(len(matrix), dtype=bool)]


def nearest_classes(similarities: Array, count: int = NEAREST) -> Array:
    """Return the `count` most alike classes of each, (C, count), fewer where there are not so many; ties by number.

    >>> nearest_classes(np.array([[1.0, 0.2, 0.7], [0.2, 1.0, 0.2], [0.7, 0.2, 1.0]]), 1).ravel().tolist()
    [2, 0, 0]
    """
    others = similarities.astype(np.float64)
    np.fill_diagonal(others, -np.inf)
    return np.argsort(-others, axis=1, kind="stable")[:, : min(count, len(others) - 1)]


def compute(content: InterrelationFile) -> Relations:
    """Order the classes by average linkage of 1 - similarity, leaves turned so that neighbours are alike.

    Raises:
        UserError: scipy is not installed.
    """
    similarities = content.interrelations.astype(np.float64)
    values = off_diagonal(similarities)
    alike = not len(values) or bool(np.ptp(values) < 1e-9)
    title = f"{content.kind}: classes of {content.data}, teacher {content.teacher}"
    return Relations(
        title=title if len(title) <= LONGEST else f"{title[: LONGEST - 1]}…",
        similarities=similarities,
        order=np.arange(len(similarities)) if alike else _clustered(similarities),
        nearest=nearest_classes(similarities),
        alike=alike,
    )


def _clustered(similarities: Array) -> Array:
    if len(similarities) < 3:
        return np.arange(len(similarities))
    try:
        from scipy.cluster.hierarchy import leaves_list, linkage
        from scipy.spatial.distance import squareform
    except ImportError as error:
        raise missing_extra("scipy", "cli", "ordering the classes by likeness") from error
    distances = squareform(1 - similarities, checks=False)
    return np.asarray(leaves_list(linkage(distances, "average", optimal_ordering=True)))


def draw(result: Relations, axes: Axes) -> Axes:
    """Draw the heat map in the order of the clusters; its colours span the pairs, and the diagonal is grey."""
    shown = result.similarities[np.ix_(result.order, result.order)].copy()
    np.fill_diagonal(shown, np.nan)
    axes.set_facecolor(NO_NUMBER)
    values = off_diagonal(result.similarities)
    low, high = (0.0, 1.0) if result.alike else (values.min(), values.max())
    axes.imshow(shown, cmap="viridis", vmin=low, vmax=high, interpolation="nearest", aspect="auto")
    classes = len(result.order)
    every = max(1, -(-classes // LISTED))
    places, labels = range(0, classes, every), [str(c) for c in result.order[::every]]
    axes.set_xticks(places, labels, fontsize=_size(classes), rotation=0 if classes <= FEW else 90)
    axes.set_yticks(places, labels, fontsize=_size(classes))
    axes.tick_params(length=0 if every == 1 else 2)
    axes.grid(visible=False)
    axes.set_xlabel("class, alike ones side by side" + (f"; one in {every} is named" if every > 1 else ""))
    axes.set_ylabel("class")
    return axes


def draw_nearest(result: Relations, axes: Axes) -> Axes:
    """List the nearest classes of each class, beside its row of the heat map; of many, those with the nearest ones."""
    axes.set_axis_off()
    classes, count = result.nearest.shape
    if result.alike or not count:
        axes.text(0, 1, "All classes are equally unlike:\nnone is nearest.", va="top", transform=axes.transAxes)
        return axes
    rows, title = result.order, "nearest classes, and how alike"
    if classes > LISTED:
        best = result.similarities[np.arange(classes), result.nearest[:, 0]]
        rows = np.argsort(-best, kind="stable")[:LISTED]
        title = f"the {LISTED} classes with the nearest ones"
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_title(title, fontsize=9, fontweight="normal")
    digits = len(str(classes - 1))
    for place, c in enumerate(rows):
        line = f"{c:>{digits}}:  " + "   ".join(
            f"{other:>{digits}} {result.similarities[c, other]:.2f}" for other in result.nearest[c]
        )
        axes.text(0, place, line, va="center", family="DejaVu Sans Mono", fontsize=_size(classes))
    return axes


def _size(classes: int) -> float:
    return 9 if classes <= FEW else 7


def save_picture(content: InterrelationFile, out: Path) -> None:
    """Draw heat map and list of a file into `out`, whose ending says .png or .svg.

    Raises:
        UserError: Another ending, a file that cannot be written, or matplotlib or scipy is not installed.
    """
    check_ending(out)
    with styled():
        figure = _figure(compute(content))
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_bytes(_encoded(figure, out.suffix.lower()[1:]))
        except OSError as error:
            raise UserError(f"{out} cannot be written ({reason(error)}); choose another --plot") from error


def check_ending(out: Path) -> None:
    """Raise UserError unless a picture's file ends with .png or .svg."""
    if out.suffix.lower() not in FORMATS:
        raise UserError(f"--plot expected a file that ends with {' or '.join(FORMATS)}, got {out}")


def _figure(result: Relations) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, 5.2), layout="constrained")
    panels = figure.subplots(1, 2, width_ratios=(1.45, 1))
    figure.suptitle(result.title, x=0.01, ha="left", fontsize=RC["axes.titlesize"], fontweight="bold")
    image = draw(result, panels[0]).images[0]
    draw_nearest(result, panels[1])
    bar = figure.colorbar(image, ax=list(panels), location="bottom", shrink=0.6, aspect=35, pad=0.02)
    bar.set_label("similarity of two classes: dark is far, light is near")
    return figure


def _encoded(figure: Figure, kind: str) -> bytes:
    """Return the bytes of the file, the same for the same figure."""
    import matplotlib as mpl

    file = io.BytesIO()
    stamp = {"Software": None} if kind == "png" else {"Date": None}
    with mpl.rc_context({"svg.hashsalt": "limbeck"}):
        figure.savefig(file, format=kind, dpi=200, metadata=stamp)
    return file.getvalue()
