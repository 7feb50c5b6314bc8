"""Robust against clean accuracy: the rows of a comparison, their settings, the published points beside them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from limbeck.analysis.robust import AUTO_ATTACK, same_radius
from limbeck.analysis.style import TEACHER, legend_above, look, marker

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matplotlib.axes import Axes

    from limbeck.analysis.comparison import Comparison
    from limbeck.analysis.statistics import Spread

PUBLISHED = {"cifar100": "gkl:table-iii", "cifar10": "gkl:table-iv"}
"""Data -> entry of the papers with clean and AutoAttack accuracy, at the radius and norm below."""
RADIUS, NORM = 8 / 255, "linf"


@dataclass(frozen=True)
class Point:
    """Clean and robust accuracy in percent; a published one has no spread."""

    clean: Spread
    robust: Spread


@dataclass(frozen=True)
class PublishedPoint:
    """A line of a paper's table."""

    name: str
    clean: float
    robust: float


@dataclass(frozen=True)
class TradeOff:
    """What `compute` found.

    Attributes:
        chosen: the rows at their chosen settings, on the split that is reported.
        tried: on validation, all settings of the rows that have several, from the most to the least clean accuracy.
        selected: place of the chosen one among them.
        published: points of the papers on the same data, at the same radius and by the same attack; may be empty.
        labels: titles of the axes, (clean, robust), of `chosen` and of `tried`.
    """

    chosen: Mapping[str, Point]
    tried: Mapping[str, tuple[Point, ...]]
    selected: Mapping[str, int]
    published: tuple[PublishedPoint, ...]
    labels: tuple[tuple[str, str], tuple[str, str]]


def compute(comparison: Comparison) -> TradeOff:
    """Return clean and robust accuracy of a comparison of adversarial training; ValueError for another."""
    attacks = comparison.attacks
    if attacks is None:
        raise ValueError("`comparison` expected one of adversarial training")
    tried, selected = {}, {}
    for row in comparison.rows:
        found = [
            (Point(clean, robust), index == row.selected)
            for index, (clean, robust) in enumerate(zip(row.clean_validation, row.validation, strict=True))
            if clean is not None and robust is not None
        ]
        found.sort(key=lambda each: -each[0].clean.mean)
        if len(found) > 1:
            tried[row.name] = tuple(point for point, _ in found)
            selected[row.name] = [chosen for _, chosen in found].index(True)
    return TradeOff(
        chosen={row.name: Point(row.main, row.headline) for row in comparison.rows},
        tried=tried,
        selected=selected,
        published=published_points(comparison),
        labels=(
            (f"{comparison.split} clean top-1, %", f"{comparison.measure}, %"),
            ("validation clean top-1, %", f"validation {attacks.validation}, %"),
        ),
    )


def published_points(comparison: Comparison) -> tuple[PublishedPoint, ...]:
    """Return the papers' points that a comparison may stand among: same data, radius, norm and attack; else none."""
    attacks = comparison.attacks
    data = next(iter(comparison.rows[0].runs.values())).results.get("data", {})
    whole = data.get("imbalance", 1) == 1 and data.get("labels_per_class") is None
    if attacks is None or attacks.headline != AUTO_ATTACK or not whole or data.get("name") not in PUBLISHED:
        return ()
    if attacks.norm != NORM or not same_radius(attacks.epsilon, RADIUS):
        return ()
    from limbeck.papers.entries import load_papers

    entries = {entry.id: entry for paper in load_papers().values() for entry in paper.entries}
    header, *lines = entries[PUBLISHED[data["name"]]].rows
    rows = [dict(zip(header, line, strict=True)) for line in lines]
    generated = data.get("generated") is not None
    return tuple(
        PublishedPoint(f"{row['method']}, {row['augmentation']}", float(row["clean"]), float(row["AA"]))
        for row in rows
        if ("generated" in row["augmentation"]) == generated
    )


def draw(result: TradeOff, axes: Axes) -> Axes:
    """Draw each row's mean with its standard deviations as bars and a small dot per seed; published points in grey."""
    for index, (name, point) in enumerate(result.chosen.items()):
        style = marker(index)
        axes.plot(point.clean.values, point.robust.values, ".", color=style["color"], alpha=0.5, markersize=5)
        bars: dict[str, Any] = {"xerr": point.clean.std or 0.0, "yerr": point.robust.std or 0.0, "linewidth": 1}
        axes.errorbar(point.clean.mean, point.robust.mean, label=name, markersize=8, **bars, **style)
    for place, known in enumerate(result.published):
        label = "published" if place == 0 else None
        axes.plot(known.clean, known.robust, "*", color=TEACHER, markersize=7, label=label)
        axes.annotate(known.name, (known.clean, known.robust), xytext=(5, 3), textcoords="offset points", fontsize=7)
    _label(axes, result.labels[0])
    return axes


def draw_tried(result: TradeOff, axes: Axes) -> Axes:
    """Draw the settings of each row as a line from clean to robust, the chosen one ringed."""
    names = list(result.chosen)
    for name, points in result.tried.items():
        index = names.index(name)
        clean, robust = [p.clean.mean for p in points], [p.robust.mean for p in points]
        axes.plot(clean, robust, label=name, markersize=6, **look(index) | marker(index))
        chosen = result.selected[name]
        axes.plot(clean[chosen], robust[chosen], "o", markersize=13, fillstyle="none", color="black")
    _label(axes, result.labels[1])
    return axes


def _label(axes: Axes, labels: tuple[str, str]) -> None:
    axes.set_xlabel(labels[0])
    axes.set_ylabel(labels[1])
    axes.margins(0.12)
    legend_above(axes)
