"""The grid of `limbeck sweep`: overrides with several values, and the recipe of each point. Imports no torch."""

from __future__ import annotations

import itertools
import re
from typing import TYPE_CHECKING, Any, NamedTuple

from limbeck.config_files import check_teachers, load_recipe, parse_override
from limbeck.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from limbeck.config import Recipe

OPENING, CLOSING, QUOTES = "[{(", "]})", "\"'"


class Axis(NamedTuple):
    """An option that is swept.

    Attributes:
        path: Of the option.
        texts: Its values as they were typed.
        values: Its values.
    """

    path: str
    texts: tuple[str, ...]
    values: tuple[Any, ...]


class Point(NamedTuple):
    """One combination of values.

    Attributes:
        name: As a folder, `learning_rate=0.1,width=16`.
        values: One of each axis.
        recipe: With these values.
    """

    name: str
    values: tuple[Any, ...]
    recipe: Recipe


class Grid(NamedTuple):
    """All combinations.

    Attributes:
        axes: What is swept.
        points: The combinations; the last axis runs fastest.
    """

    axes: tuple[Axis, ...]
    points: tuple[Point, ...]


def read_grid(name_or_path: str, overrides: Sequence[str]) -> Grid:
    """Read a recipe and the options to sweep.

    Args:
        name_or_path: What `find_recipe` takes.
        overrides: `path=value`, as of `load_recipe`, or `path=value,value,...`. Commas within brackets or quotes belong
            to a value.

    Raises:
        UserError: There is nothing to sweep, or a point is no recipe; the line names the override and the value.
    """
    load_recipe(name_or_path)  # a mistake of the file is not one of the grid
    plain = [text for text in overrides if len(split_values(text)) == 1]
    axes = tuple(_axis(text) for text in overrides if len(split_values(text)) > 1)
    _refuse_clashes(axes, plain)
    if not axes:
        raise UserError("expected an option with several values to sweep, such as --set train.epochs=10,20, got none")
    labels = _labels([axis.path for axis in axes])
    points: dict[str, Point] = {}
    for place in itertools.product(*(range(len(axis.values)) for axis in axes)):
        texts = [axis.texts[index] for axis, index in zip(axes, place, strict=True)]
        settings = [f"{axis.path}={text}" for axis, text in zip(axes, texts, strict=True)]
        recipe = load_recipe(name_or_path, [*plain, *settings])
        check_teachers(recipe)
        name = ",".join(f"{label}={_plain(text)}" for label, text in zip(labels, texts, strict=True))
        if name in points:
            raise UserError(f"--set {' --set '.join(settings)}: expected each combination of values once, got it twice")
        values = tuple(axis.values[index] for axis, index in zip(axes, place, strict=True))
        points[name] = Point(name, values, recipe)
    return Grid(axes, tuple(points.values()))


def split_values(text: str) -> list[str]:
    """Return the values of `path=value,value`; commas within brackets or quotes part nothing.

    >>> split_values("train.epochs=1, 2")
    ['1', '2']
    >>> split_values("schedule.milestones=[10,20],[15]")
    ['[10,20]', '[15]']
    """
    values, depth, quote = [""], 0, ""
    for character in text.partition("=")[2]:
        if quote:
            quote = "" if character == quote else quote
        elif character in QUOTES:
            quote = character
        else:
            depth += (character in OPENING) - (character in CLOSING)
        if character == "," and not depth and not quote:
            values.append("")
        else:
            values[-1] += character
    return [value.strip() for value in values]


def _axis(text: str) -> Axis:
    path = text.partition("=")[0].strip()
    texts = split_values(text)
    if not all(texts):
        raise UserError(f"--set {text}: expected values between the commas, got an empty one")
    if path == "seed":
        raise UserError(f"--set {text}: seeds are no option to choose; --seeds N trains each point with N of them")
    values = tuple(parse_override(f"{path}={value}").value for value in texts)
    if any(value in values[:index] for index, value in enumerate(values)):
        raise UserError(f"--set {text}: expected different values, got one twice")
    return Axis(path, tuple(texts), values)


def _refuse_clashes(axes: Sequence[Axis], plain: Sequence[str]) -> None:
    paths = [axis.path for axis in axes]
    for path in [*paths, *(text.partition("=")[0].strip() for text in plain)]:
        if path in paths and (paths.count(path) > 1 or any(text.partition("=")[0].strip() == path for text in plain)):
            raise UserError(f"--set {path}: expected once, got it twice; put its values into one --set {path}=...,...")


def _labels(paths: Sequence[str]) -> list[str]:
    """Return the last part of each path, where that tells them apart; else all of it."""
    ends = [path.rsplit(".", 1)[-1] for path in paths]
    return ends if len(set(ends)) == len(ends) else list(paths)


def _plain(text: str) -> str:
    """Return a value as a part of a folder's name."""
    return re.sub(r"[^A-Za-z0-9.+-]+", "_", text)
