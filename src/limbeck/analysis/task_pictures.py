"""Pictures of the tasks beyond classification, one of their own for each task, and of what a run did beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

from limbeck.analysis import (
    corruptions,
    detect_pictures,
    image_text_pictures,
    phases,
    segment_pictures,
    semi_supervised_pictures,
)
from limbeck.analysis.run_files import Run

if TYPE_CHECKING:
    from limbeck.analysis.style import Picture

# Called with the first run of each row, by name.
Draw: TypeAlias = Callable[[Mapping[str, Run]], "list[Picture]"]

PICTURES: Mapping[str, Draw] = {
    "detect": detect_pictures.pictures,
    "image_text": image_text_pictures.pictures,
    "segment": segment_pictures.pictures,
    "semi_supervised": semi_supervised_pictures.pictures,
}


def of_task(rows: Mapping[str, Sequence[Run]]) -> list[Picture]:
    """Return the pictures that a task has of what its runs predict; nothing where it has none."""
    first = {name: runs[0] for name, runs in rows.items()}
    task = str(next(iter(first.values())).results.get("task"))
    drawn = PICTURES[task](first) if task in PICTURES else []
    return [*drawn, *phases.pictures(rows), *corruptions.pictures(rows)]
