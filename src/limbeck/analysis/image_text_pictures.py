"""What a network of two towers finds: images for captions, and classes for images."""

from __future__ import annotations

import textwrap
import zipfile
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from limbeck.analysis.run_files import foreign
from limbeck.analysis.style import COLOURS, Picture, new_figure, png
from limbeck.errors import UserError, reason

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from limbeck.analysis.run_files import Array, Run

RIGHT = COLOURS[2]
LONGEST = 22  # characters of a caption's line


@dataclass(frozen=True)
class Found:
    """What a run keeps for pictures; the first five are empty where held-out images have no captions.

    Attributes:
        captions: Some captions of held-out images.
        places: At which place each finds its own image, `(N,)`, from 1.
        own: Their images, `(N, C, H, W)`.
        nearest: The nearest images to each, from the nearest on, `(N, K, C, H, W)`.
        right: Whether these are of the caption, `(N, K)`.
        classes: Names of the classes.
        confusion: Images of a class (rows) that zero-shot classification takes for one (columns), `(C, C)`.
    """

    captions: tuple[str, ...]
    places: Array
    own: Array
    nearest: Array
    right: Array
    classes: tuple[str, ...]
    confusion: Array


def compute(run: Run) -> Found:
    """Read predictions.npz.

    Raises:
        UserError: It is missing or damaged.
    """
    path, split = run.folder / "predictions.npz", run.split
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name.removeprefix(f"{split}_"): file[name] for name in file if name.startswith(f"{split}_")}
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing; train the run again") from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise foreign(path, f"cannot be read ({reason(error)})") from error
    if "confusion" not in arrays or "class_names" not in arrays:
        raise foreign(path, "has no classes of zero-shot classification")
    none = np.empty(0)
    return Found(
        _texts(arrays.get("captions", np.empty((0, 0), np.uint8))),
        arrays.get("caption_places", none),
        arrays.get("caption_images", none),
        arrays.get("retrieved_images", none),
        arrays.get("retrieved_right", none),
        _texts(arrays["class_names"]),
        arrays["confusion"],
    )


def _texts(rows: Array) -> tuple[str, ...]:
    return tuple(bytes(row.tolist()).rstrip(b"\0").decode(errors="replace") for row in rows.astype(np.uint8))


def draw_retrieval(found: Found) -> Figure:
    """Draw a line for each caption: its own image, and those that are nearest to it; a right one has a frame."""
    lines, columns = found.right.shape
    # An empty column stands between a caption's own image and what was found.
    figure, axes = new_figure(0.82 * lines, lines, columns + 2, width_ratios=[1, 0.25, *[1] * columns])
    for line, caption in enumerate(found.captions):
        own, gap, *others = axes[line * (columns + 2) : (line + 1) * (columns + 2)]
        _show(own, found.own[line])
        told = f"\n(place {int(found.places[line])})"
        own.set_ylabel(textwrap.fill(caption, LONGEST) + told, rotation=0, ha="right", va="center")
        gap.set_axis_off()
        for place, panel in enumerate(others):
            _show(panel, found.nearest[line, place], framed=bool(found.right[line, place]))
        if line == 0:
            own.set_title("own", fontsize=9, loc="center")
            others[0].set_title("nearest", fontsize=9, loc="center")
    return figure


def _show(axes: Axes, image: Array, *, framed: bool = False) -> None:
    axes.imshow(image.transpose(1, 2, 0))
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(framed)
        spine.set_color(RIGHT)
        spine.set_linewidth(3)


def draw_confusion(found: Found, axes: Axes) -> Axes:
    """Draw the share of each class's images that is taken for each class, percent."""
    totals = found.confusion.sum(1, keepdims=True)
    shares = 100 * found.confusion / np.maximum(totals, 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=100, aspect="auto")
    for (row, column), share in np.ndenumerate(shares):
        axes.text(column, row, f"{share:.0f}", ha="center", va="center", color="white" if share > 55 else "black")
    names = [textwrap.fill(name, 16) for name in found.classes]
    axes.set_xticks(range(len(names)), names, rotation=40, ha="right", fontsize=8)
    labels = [f"{name} ({int(total)})" for name, total in zip(found.classes, totals[:, 0], strict=True)]
    axes.set_yticks(range(len(names)), labels, fontsize=8)
    axes.grid(visible=False)
    return axes


def pictures(rows: Mapping[str, Run]) -> list[Picture]:
    """Return the pictures of each run; those of several have its number in their names."""
    return [
        picture
        for number, (name, run) in enumerate(rows.items(), start=1)
        for picture in _of_run(name, run, f"_{number}" if len(rows) > 1 else "")
    ]


def _of_run(name: str, run: Run, suffix: str) -> Iterator[Picture]:
    found, whose = compute(run), f" {name}:" if suffix else ""
    if found.captions:
        caption = (
            f"{whose} Captions of held-out images, from the best found to the worst, each with its own image, the "
            f"place of that, and the nearest of all {run.split} images, from the nearest on; the right one is framed."
        )
        yield Picture(f"retrieval{suffix}", "Images found for captions", caption.strip(), png(draw_retrieval(found)))
    if len(found.classes) <= 20:
        figure, (axes,) = new_figure(4.6)
        draw_confusion(found, axes)
        caption = f"{whose} Rows: the class of an image. Columns: what its nearest prompt says, percent of the row."
        yield Picture(f"zero_shot{suffix}", "Zero-shot classification", caption.strip(), png(figure))
