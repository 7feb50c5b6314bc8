"""The picture of a sweep: lines or a heat map over one or two options."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from limbeck.analysis.style import COLOURS, GRID, Picture, legend_above, look, marker, new_figure, png, styled
from limbeck.analysis.sweep import text_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from limbeck.analysis.run_files import Array
    from limbeck.analysis.statistics import Spread
    from limbeck.analysis.sweep import Axis, Sweep

LINES = 6  # more values of the second axis are drawn as a heat map
BARS_APART = 0.008  # of the width
LOGARITHMIC = 30  # largest over smallest value from which an axis of positive numbers is logarithmic


def picture(sweep: Sweep) -> Picture | None:
    """Return the picture; None with three axes and more, which a plane does not hold.

    Raises:
        UserError: matplotlib is not installed.
    """
    if len(sweep.axes) > 2:
        return None
    draw = draw_map if len(sweep.axes) == 2 and len(sweep.axes[1].values) > LINES else draw_lines
    shown = sweep.measure(sweep.split)
    with styled():
        figure, panels = new_figure(6.4 if sweep.adversarial else 3.6, 2 if sweep.adversarial else 1)
        for axes, clean in zip(panels, (False, True), strict=False):
            draw(sweep, axes, clean=clean)
        if sweep.adversarial:
            shown += " and, below, clean top-1"
        caption = f"Mean {shown} over {len(sweep.seeds)} seeds, with its standard deviation in a line plot."
        return Picture("sweep", sweep.title, caption, png(figure))


def draw_lines(sweep: Sweep, axes: Axes, *, clean: bool = False) -> Axes:
    """Draw the mean over the first axis, a line for each value of the second, with the standard deviation as bars.

    With `clean` it is clean top-1 instead of the robust accuracy that points are compared by.
    """
    first = sweep.axes[0]
    places = np.array(first.values if first.numeric else range(len(first.values)), dtype=float)
    order = np.argsort(places)
    seconds = sweep.axes[1].values if len(sweep.axes) == 2 else (None,)
    for number, second in enumerate(seconds):
        points = [p for p in sweep.points if len(sweep.axes) == 1 or p.values[1] == second]
        spreads = [sweep.clean(point) if clean else sweep.shown(point) for point in points]
        means = np.array([_mean(values) for values in spreads])
        errors = np.array([values.std or 0.0 if values else 0.0 for values in spreads])
        label = f"{_short(sweep.axes[1].path)} {text_of(second)}" if len(sweep.axes) == 2 else None
        aside = _aside(places, number - (len(seconds) - 1) / 2)
        style = look(number) | marker(number)
        axes.errorbar(aside[order], means[order], errors[order], label=label, capsize=3, **style)
        if sweep.chosen in points:
            index = points.index(sweep.chosen)
            ring: dict[str, Any] = {"markersize": 13, "fillstyle": "none", "color": COLOURS[-1]}
            axes.plot(aside[index], means[index], "o", label="chosen on validation", zorder=3, **ring)
    _label_first_axis(first, places, axes)
    axes.set_ylabel(_label(sweep, clean))
    if axes.get_legend_handles_labels()[1]:
        legend_above(axes)
    return axes


def _logarithmic(places: Array) -> bool:
    return bool(places.min() > 0 and places.max() / places.min() >= LOGARITHMIC)


def _aside(places: Array, steps: float) -> Array:
    """Return places moved to the side a little, so that the bars of several lines stay apart."""
    if _logarithmic(places):
        return np.asarray(places * (places.max() / places.min()) ** (BARS_APART * steps))
    return np.asarray(places + np.ptp(places) * BARS_APART * steps)


def _label_first_axis(axis: Axis, places: Array, axes: Axes) -> None:
    """Set ticks at the values, on a logarithmic scale where they span much."""
    if axis.numeric and _logarithmic(places):
        axes.set_xscale("log")
    axes.set_xticks(places, [text_of(value) for value in axis.values])
    axes.minorticks_off()
    axes.set_xlabel(axis.path)


def draw_map(sweep: Sweep, axes: Axes, *, clean: bool = False) -> Axes:
    """Draw the means as a heat map with their figures: the first axis downwards, the second to the right.

    `clean` as in `draw_lines`.
    """
    first, second = sweep.axes
    shown = [sweep.clean(point) if clean else sweep.shown(point) for point in sweep.points]
    means = np.array(list(map(_mean, shown))).reshape(len(first.values), len(second.values))
    image = axes.imshow(means, cmap="cividis", aspect="auto")
    middle = (np.nanmin(means) + np.nanmax(means)) / 2
    for (row, column), mean in np.ndenumerate(means):
        if np.isfinite(mean):
            is_chosen = sweep.points[row * len(second.values) + column] is sweep.chosen
            colour = "black" if mean > middle else "white"
            weight = "bold" if is_chosen else "normal"
            axes.text(
                column, row, f"{mean:.1f}" + "*" * is_chosen, color=colour, weight=weight, ha="center", va="center"
            )
    for ticks, axis in ((axes.set_yticks, first), (axes.set_xticks, second)):
        ticks(range(len(axis.values)), [text_of(value) for value in axis.values])
    axes.set_ylabel(first.path)
    axes.set_xlabel(second.path)
    axes.grid(visible=False)
    colours = axes.figure.colorbar(image, ax=axes, label=_label(sweep, clean))
    colours.outline.set_edgecolor(GRID)
    return axes


def _label(sweep: Sweep, clean: bool) -> str:
    return f"{sweep.split} clean top-1, %" if clean else f"{sweep.measure(sweep.split)}, %"


def _mean(values: Spread | None) -> float:
    return values.mean if values else float("nan")


def _short(path: str) -> str:
    return path.rsplit(".", 1)[-1]
