"""A sweep from its files: what each point of the grid reached, which one validation chooses, a table, a picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from limbeck.analysis.pictures import Picture
from limbeck.analysis.run_files import Array, Run, read_versioned
from limbeck.analysis.statistics import spread
from limbeck.analysis.style import COLOURS, GRID, legend_above, look, marker, new_figure, png, styled
from limbeck.analysis.wording import mean_and_std
from limbeck.errors import UserError, missing_extra

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from rich.console import Group
    from rich.table import Table

    from limbeck.analysis.statistics import Spread

LINES = 6  # more values of the second axis are drawn as a heat map
BARS_APART = 0.008  # of the width
LOGARITHMIC = 30  # largest over smallest value from which an axis of positive numbers is logarithmic


@dataclass(frozen=True)
class Axis:
    """An option that was swept: its path and values."""

    path: str
    values: tuple[Any, ...]

    @property
    def numeric(self) -> bool:
        """Whether all values are numbers."""
        return all(isinstance(value, int | float) and not isinstance(value, bool) for value in self.values)


@dataclass(frozen=True)
class Point:
    """One combination of values.

    Attributes:
        name: Its folder.
        values: One of each axis.
        validation: Top-1 on validation after the last epoch, in percent; None without a finished run or a split.
        test: Top-1 on test after the last epoch, in percent; None without a finished run or a split.
        finished: Number of finished runs.
        diverged: Number of runs that diverged.
    """

    name: str
    values: tuple[Any, ...]
    validation: Spread | None
    test: Spread | None
    finished: int
    diverged: int


@dataclass(frozen=True)
class Sweep:
    """A sweep, finished or not.

    Attributes:
        title: Of the recipe.
        protocol: "holdout" or "paper".
        axes: What was swept.
        points: In the order of the grid.
        seeds: Seeds of each point.
        vary_split: Whether each seed had its own split and teacher.
    """

    title: str
    protocol: str
    axes: tuple[Axis, ...]
    points: tuple[Point, ...]
    seeds: tuple[int, ...]
    vary_split: bool

    @property
    def split(self) -> str:
        """The split that table and picture show: validation, or test where nothing was held out."""
        return "validation" if any(point.validation for point in self.points) else "test"

    @property
    def chosen(self) -> Point | None:
        """The point with the best mean on validation, of those that no seed is missing of; None without validation."""
        whole = [point for point in self.points if point.validation and point.finished == len(self.seeds)]
        return max(whole, key=lambda point: _mean(point.validation), default=None)

    def shown(self, point: Point) -> Spread | None:
        """Return what table and picture show of a point."""
        return point.validation if self.split == "validation" else point.test


def summarise(folder: Path) -> Sweep:
    """Return the sweep in `folder`.

    Raises:
        UserError: There is none, none of its runs is finished, or a file is damaged.
    """
    path = folder / "sweep.json"
    content = read_versioned(path, way_out="start the sweep again with `limbeck sweep`")
    try:
        points = tuple(_point(folder, point, content["diverged"]) for point in content["points"])
        axes = tuple(Axis(axis["path"], tuple(axis["values"])) for axis in content["axes"])
        sweep = Sweep(
            content["title"],
            content["protocol"],
            axes,
            points,
            tuple(content["seeds"]),
            content["vary_split"],
        )
    except (KeyError, TypeError) as error:
        raise UserError(f"{path}: lacks {error}; start the sweep again with `limbeck sweep`") from error
    if not any(point.finished for point in points):
        raise UserError(f"{folder}: none of the runs of this sweep is finished; the same `limbeck sweep` goes on")
    return sweep


def _point(folder: Path, content: dict[str, Any], diverged: dict[str, str]) -> Point:
    runs = [Run(folder / name) for name in content["runs"] if name not in diverged]
    finished = [run for run in runs if run.finished]
    top1: dict[str, Spread | None] = {}
    for split in ("validation", "test"):
        values = [value for run in finished if (value := run.metric("last", split, "top1")) is not None]
        top1[split] = spread([100 * value for value in values]) if values else None
    gone = sum(name in diverged for name in content["runs"])
    return Point(content["name"], tuple(content["values"]), top1["validation"], top1["test"], len(finished), gone)


def _mean(values: Spread | None) -> float:
    return values.mean if values else float("nan")


def text_of(value: Any) -> str:
    """Return a value as it is written in YAML.

    >>> [text_of(value) for value in (None, True, 0.5, 1e-05, [10, 20], "kl")]
    ['null', 'true', '0.5', '1e-05', '[10, 20]', 'kl']
    """
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case float():
            return f"{value:g}"
        case _:
            return str(value)


# --- table ------------------------------------------------------------------------------------------------


def notes(sweep: Sweep) -> list[str]:
    """Return the sentences that belong under the table."""
    seeds, runs = len(sweep.seeds), sum(point.finished for point in sweep.points)
    reach = "each seed with its own split and teacher" if sweep.vary_split else "one split for all seeds"
    sentences = [f"Last epoch; ± is the standard deviation over n seeds, {reach}."]
    if missing := len(sweep.points) * seeds - runs - sum(point.diverged for point in sweep.points):
        sentences.insert(0, f"Unfinished: {missing} of {len(sweep.points) * seeds} runs are missing.")
    if gone := [f"{point.name} ({point.diverged} of {seeds})" for point in sweep.points if point.diverged]:
        sentences.append(f"Diverged and left out: {', '.join(gone)}.")
    chosen = sweep.chosen
    if sweep.split == "test":
        sentences.append(
            "Nothing was held out: all figures are of the test split, so no setting may be chosen by them. "
            "To choose one, sweep with `protocol: holdout` and `data.validation` above 0."
        )
    elif chosen is None:
        sentences.append("No point has all of its seeds yet, so none is chosen.")
    elif chosen.test is not None:
        sentences.append(
            f"* chosen on validation among {len(sweep.points)} points, the first of equals; only its test accuracy is "
            "shown. Its accuracy on validation is the largest of many, and so too high; that on test is not."
        )
    return sentences


def columns(sweep: Sweep) -> tuple[list[str], list[list[str]]]:
    """Return the column titles and, for each point, the texts under them."""
    chosen, seeds = sweep.chosen, len(sweep.seeds)
    titles = [*(".\n".join(axis.path.rsplit(".", 1)) for axis in sweep.axes), f"{sweep.split} top-1, %", "n"]
    rows = [
        [*map(text_of, point.values), _accuracy(sweep.shown(point)), f"{point.finished}/{seeds}"]
        for point in sweep.points
    ]
    if chosen is not None and chosen.test is not None:
        titles.append("test top-1, %")
        for point, row in zip(sweep.points, rows, strict=True):
            row.append(_accuracy(point.test) + " *" if point is chosen else "")
    return titles, rows


def _accuracy(values: Spread | None) -> str:
    return "-" if values is None else mean_and_std(values)


def marginals(sweep: Sweep, axis: int) -> list[tuple[Any, Spread | None]]:
    """Return for each value of an axis the spread of the points' means, over the values of all other axes."""
    found = []
    for value in sweep.axes[axis].values:
        means = [shown.mean for p in sweep.points if p.values[axis] == value and (shown := sweep.shown(p))]
        found.append((value, spread(means) if means else None))
    return found


def rich_table(sweep: Sweep) -> Group:
    """Return the sweep for `rich.console.Console.print`: the points, with three axes and more the marginals, notes."""
    try:
        from rich.console import Group
        from rich.text import Text
    except ImportError as error:
        raise missing_extra("rich", "cli", "the table") from error
    titles, rows = columns(sweep)
    best = None if sweep.chosen is None else sweep.points.index(sweep.chosen)
    tables = [_table(titles, rows, len(sweep.axes), best)]
    if len(sweep.axes) > 2:
        texts = [
            [axis.path, text_of(value), _accuracy(values)]
            for number, axis in enumerate(sweep.axes)
            for value, values in marginals(sweep, number)
        ]
        mean = f"mean {sweep.split} top-1, %, ± over the other options"
        tables.append(_table(["option", "value", mean], texts, 2, None))
    return Group(*tables, Text(), *(Text(sentence, style="dim") for sentence in notes(sweep)))


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]], names: int, best: int | None) -> Table:
    """Return a table whose first `names` columns are names and the others numbers, the best row bold."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for number, title in enumerate(titles):
        table.add_column(title, justify="left" if number < names else "right", overflow="fold")
    for number, row in enumerate(rows):
        table.add_row(*row, style="bold" if number == best else None)
    return table


# --- picture ----------------------------------------------------------------------------------------------


def picture(sweep: Sweep) -> Picture | None:
    """Return the picture; None with three axes and more, which a plane does not hold.

    Raises:
        UserError: matplotlib is not installed.
    """
    if len(sweep.axes) > 2:
        return None
    with styled():
        figure, (axes,) = new_figure(3.6)
        if len(sweep.axes) == 2 and len(sweep.axes[1].values) > LINES:
            draw_map(sweep, axes)
        else:
            draw_lines(sweep, axes)
        caption = f"Mean {sweep.split} top-1 over {len(sweep.seeds)} seeds, with its standard deviation in a line plot."
        return Picture("sweep", sweep.title, caption, png(figure))


def draw_lines(sweep: Sweep, axes: Axes) -> Axes:
    """Draw the mean over the first axis, a line for each value of the second, with the standard deviation as bars."""
    first = sweep.axes[0]
    places = np.array(first.values if first.numeric else range(len(first.values)), dtype=float)
    order = np.argsort(places)
    seconds = sweep.axes[1].values if len(sweep.axes) == 2 else (None,)
    for number, second in enumerate(seconds):
        points = [p for p in sweep.points if len(sweep.axes) == 1 or p.values[1] == second]
        spreads = [sweep.shown(point) for point in points]
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
    axes.set_ylabel(f"{sweep.split} top-1, %")
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


def draw_map(sweep: Sweep, axes: Axes) -> Axes:
    """Draw the means as a heat map with their figures: the first axis downwards, the second to the right."""
    first, second = sweep.axes
    means = np.array([_mean(sweep.shown(p)) for p in sweep.points]).reshape(len(first.values), len(second.values))
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
    colours = axes.figure.colorbar(image, ax=axes, label=f"{sweep.split} top-1, %")
    colours.outline.set_edgecolor(GRID)
    return axes


def _short(path: str) -> str:
    return path.rsplit(".", 1)[-1]
