"""One look for all pictures: sizes, colours that colour-blind readers tell apart, PNG files of figures."""

from __future__ import annotations

import io
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from limbeck.errors import missing_extra

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from limbeck.analysis.run_files import Array

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette, yellow left out: it is too pale for lines on white."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.2)), (0, (6, 2, 1, 2)), (0, (3, 1.5)), (0, (8, 3)), (0, (2, 3)))
TEACHER = "#555555"
GRID = "#DDDDDD"

APART = 1e-3
"""Share of an axis's range within which two lines look like one."""

WIDTH = 7.0
"""Inches of a picture; drawn at 200 dots per inch, so that it is sharp at 700 pixels and its text readable."""

RC: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.6,
}


@dataclass(frozen=True)
class Picture:
    """A finished picture: `name` of its file without suffix, its title, how to read it, and the PNG."""

    name: str
    title: str
    caption: str
    png: bytes


def look(index: int) -> dict[str, Any]:
    """Return colour and dashes of the row at `index`: lines that coincide stay visible under one another."""
    return {"color": COLOURS[index % len(COLOURS)], "linestyle": DASHES[index % len(DASHES)]}


def marker(index: int) -> dict[str, Any]:
    """Return colour and marker of the row at `index`."""
    return {"color": COLOURS[index % len(COLOURS)], "marker": MARKERS[index % len(MARKERS)]}


def joined(lines: Mapping[str, Array], tolerance: float) -> dict[str, str]:
    """Return the rows to draw and their labels: a row that runs along an earlier one shares its line.

    Args:
        lines: what is drawn of each row.
        tolerance: how far two lines may be apart at any point and still count as one.

    >>> joined({"kl": np.array([1.0, 2.0]), "gkl": np.array([1.0, 3.0]), "dkl": np.array([1.0, 2.0])}, 0.001)
    {'kl': 'kl = dkl', 'gkl': 'gkl'}
    """
    labels: dict[str, str] = {}
    for name, line in lines.items():
        for first in labels:
            if lines[first].shape == line.shape and np.abs(lines[first] - line).max() <= tolerance:
                labels[first] += f" = {name}"
                break
        else:
            labels[name] = name
    return labels


def new_figure(height: float, rows: int = 1, columns: int = 1, **layout: Any) -> tuple[Figure, list[Axes]]:
    """Return a figure 7 inches wide and `height` inches high, and its axes row by row.

    `layout` goes to `Figure.subplots` (sharex, height_ratios, ...). No global state of pyplot is touched; to be called,
    like the drawing on the axes, inside `styled()`.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False, **layout).flat)


@contextmanager
def styled() -> Iterator[None]:
    """Within it, matplotlib (imported here) draws in the look of limbeck's pictures."""
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise missing_extra("matplotlib", "viz", "drawing pictures") from error
    with mpl.rc_context(RC):
        yield


def png(figure: Figure) -> bytes:
    """Return the figure as the bytes of a PNG file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    file = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(file, format="png", dpi=200, metadata={"Software": None}, pil_kwargs={"compress_level": 4})
    return file.getvalue()


def legend_above(axes: Axes) -> None:
    """Put the legend above the axes, on the right of the title, where it hides no data."""
    names = axes.get_legend_handles_labels()[1]
    columns = len(names) if sum(len(name) + 5 for name in names) < 50 else 3
    axes.legend(
        loc="lower right", bbox_to_anchor=(1, 1), ncols=columns, columnspacing=1, handletextpad=0.4, borderaxespad=0.2
    )


def epoch_axis(axes: Axes) -> None:
    """Label the x axis with whole epochs; of a single epoch, lines are dots. To be called when all is drawn."""
    axes.set_xlabel("epoch")
    first, last = axes.dataLim.intervalx
    if last > first:
        axes.locator_params(axis="x", integer=True)
        return
    axes.set_xticks([first])
    for line in axes.lines:
        if np.size(line.get_xdata()) == 1:  # a line from one point to nowhere is not seen
            line.set_marker("o")


def class_axis(axes: Axes, labels: list[str], title: str) -> None:
    """Label the x axis with classes, thinned out so that the labels do not touch."""
    every = max(1, -(-len(labels) // 20))
    axes.set_xticks(range(0, len(labels), every), labels[::every])
    axes.set_xlim(-0.6, len(labels) - 0.4)
    axes.set_xlabel(title)
    axes.grid(axis="x", visible=False)
