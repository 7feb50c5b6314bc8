"""What a detector finds: boxes on some images, and average precision by class."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from limbeck.analysis.run_files import foreign
from limbeck.analysis.style import COLOURS, Picture, new_figure, png, styled
from limbeck.errors import UserError, reason

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from limbeck.analysis.run_files import Array, Run

SURE = 0.3  # score from which a found box is drawn
OVERLAPS = 0.5  # from which a found box of the class is right
COLUMNS = 6  # images in a line
RIGHT, WRONG, TRUE = COLOURS[2], COLOURS[1], "white"


@dataclass(frozen=True)
class Found:
    """What a run keeps for pictures.

    Attributes:
        images: uint8 `(N, H, W, C)`.
        true: `(G, 6)`: image, class, x0, y0, x1, y1.
        found: `(N, K, 6)`: x0, y0, x1, y1, score, class; class -1 for none.
        class_ap: Average precision of each class, `(C,)`, nan where there is none of it.
    """

    images: Array
    true: Array
    found: Array
    class_ap: Array


def compute(run: Run) -> Found | None:
    """Read predictions.npz; None where its images were too large to be kept.

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
    if "class_ap" not in arrays:
        raise foreign(path, "has no boxes")
    if "pictures" not in arrays:
        return None
    images = arrays["pictures"].transpose(0, 2, 3, 1)
    return Found(images, arrays["true_boxes"], arrays["found_boxes"], arrays["class_ap"])


def right_boxes(found: Found, image: int) -> list[tuple[Array, bool]]:
    """Return the boxes that are drawn in an image, the surest first, and whether each is right.

    A box is right if it overlaps a true box of its class by half that no surer one has taken.
    """
    rows = found.found[image]
    rows = rows[(rows[:, 5] >= 0) & (rows[:, 4] >= SURE)]
    left = [row[1:] for row in found.true[found.true[:, 0] == image]]
    judged = []
    for row in rows[np.argsort(-rows[:, 4], kind="stable")]:
        overlaps = [_overlap(row[:4], true[1:]) if true[0] == row[5] else 0.0 for true in left]
        best = int(np.argmax(overlaps)) if overlaps else -1
        right = best >= 0 and overlaps[best] >= OVERLAPS
        if right:
            left.pop(best)
        judged.append((row, right))
    return judged


def _overlap(box: Array, other: Array) -> float:
    sides = np.minimum(box[2:], other[2:]) - np.maximum(box[:2], other[:2])
    common = float(np.clip(sides, 0, None).prod())
    return common / float((box[2:] - box[:2]).prod() + (other[2:] - other[:2]).prod() - common)


def draw(rows: Mapping[str, Found]) -> Figure:
    """Draw the true boxes of the first images in a line, and below them, a line for each row, what it finds."""
    shown = min(COLUMNS, *(len(found.images) for found in rows.values()))
    figure, axes = new_figure(1.25 * (len(rows) + 1) + 0.15, len(rows) + 1, shown)
    first = next(iter(rows.values()))
    for image in range(shown):
        panel = axes[image]
        _show(panel, first.images[image])
        for row in first.true[first.true[:, 0] == image]:
            _box(panel, row[2:], TRUE, f"{int(row[1])}")
        for line, found in enumerate(rows.values(), start=1):
            panel = axes[line * shown + image]
            _show(panel, found.images[image])
            for row, right in reversed(right_boxes(found, image)):
                _box(panel, row[:4], RIGHT if right else WRONG, f"{int(row[5])}")
    for line, name in enumerate(("truth", *rows)):
        axes[line * shown].set_ylabel(name)
    return figure


def _show(axes: Axes, image: Array) -> None:
    axes.imshow(image)
    axes.set_xlim(-0.5, image.shape[1] - 0.5)
    axes.set_ylim(image.shape[0] - 0.5, -0.5)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _box(axes: Axes, box: Array, colour: str, label: str) -> None:
    from matplotlib.patches import Rectangle

    left, top, right, bottom = (float(side) - 0.5 for side in box)
    axes.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=colour, linewidth=1.4))
    axes.text(
        left + 0.5,
        top + 0.5,
        label,
        color="black" if colour == TRUE else "white",
        fontsize=6,
        ha="left",
        va="top",
        clip_on=True,
        bbox={"facecolor": colour, "edgecolor": "none", "pad": 0.6},
    )


def pictures(rows: Mapping[str, Run]) -> list[Picture]:
    """Return the boxes that the first run of each row finds; nothing where images were too large to be kept."""
    known = {name: found for name, run in rows.items() if (found := compute(run)) is not None}
    if not known:
        return []
    with styled():
        data = png(draw(known))
    caption = (
        "Held-out images. Above, the true boxes with the numbers of their classes; below, the boxes found with a score "
        f"of at least {SURE:g}: green has the right class and an overlap of at least {OVERLAPS:g}, red has not. "
        "A true box that no green one covers was missed."
    )
    return [Picture("boxes", "Boxes", caption, data)]
