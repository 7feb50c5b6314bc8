"""What a network takes pixels for: masks beside the truth, and intersection over union by class."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from limbeck.analysis.run_files import foreign
from limbeck.analysis.style import Picture, new_figure, png, styled
from limbeck.errors import UserError, reason

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matplotlib.figure import Figure

    from limbeck.analysis.run_files import Array, Run

COLUMNS = 8  # images in a line
BACKGROUND, IGNORED = (0.93, 0.93, 0.93), (1.0, 1.0, 1.0)
GOLDEN = 0.618034  # of a turn between the hues of two classes, so that neighbours differ


@dataclass(frozen=True)
class Masks:
    """What a run keeps for pictures.

    Attributes:
        images: uint8 `(N, H, W, 3)`.
        true: uint8 `(N, H, W)`; 255 is no class.
        predicted: uint8 `(N, H, W)`.
        teacher: As `predicted`; None without a teacher.
        confusion: `(C, C)`, pixels by label and prediction.
    """

    images: Array
    true: Array
    predicted: Array
    teacher: Array | None
    confusion: Array


def compute(run: Run) -> Masks:
    """Read predictions.npz.

    Raises:
        UserError: It is missing, damaged or another task's.
    """
    path, split = run.folder / "predictions.npz", run.split
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name.removeprefix(f"{split}_"): file[name] for name in file if name.startswith(f"{split}_")}
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing; train the run again") from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise foreign(path, f"cannot be read ({reason(error)})") from error
    if absent := {"images", "masks", "predicted", "confusion"} - arrays.keys():
        raise foreign(path, f"has no {', '.join(sorted(absent))}")
    images = arrays["images"].transpose(0, 2, 3, 1)
    found = arrays["masks"], arrays["predicted"], arrays.get("teacher_predicted")
    return Masks(images, *found, arrays["confusion"])


def class_iou(confusion: Array) -> Array:
    """Return the intersection over union of each class, `(C,)`; NaN of a class that is nowhere.

    >>> class_iou(np.array([[1, 1], [0, 1]])).tolist()
    [0.5, 0.5]
    """
    hits = confusion.diagonal().astype(np.float64)
    union = confusion.sum(axis=0) + confusion.sum(axis=1) - hits
    shares: Array = np.divide(hits, union, out=np.full_like(hits, np.nan), where=union > 0)
    return shares


def coloured(mask: Array) -> Array:
    """Return a mask as a picture, float `(H, W, 3)`: the first class grey, no class white, a hue for each other."""
    import colorsys

    palette = np.ones((256, 3))
    palette[:255] = [colorsys.hsv_to_rgb((number - 1) * GOLDEN % 1, 0.75, 0.85) for number in range(255)]
    palette[0], palette[255] = BACKGROUND, IGNORED
    picture: Array = palette[mask]
    return picture


def draw(rows: Mapping[str, Masks]) -> Figure:
    """Draw images in a line, the true masks below, and below them those of each row, the teacher's last."""
    first = next(iter(rows.values()))
    lines: dict[str, list[Array]] = {
        "image": list(first.images),
        "truth": [coloured(mask) for mask in first.true],
    }
    lines |= {name: [coloured(mask) for mask in masks.predicted] for name, masks in rows.items()}
    if (taught := next((masks.teacher for masks in rows.values() if masks.teacher is not None), None)) is not None:
        lines["teacher"] = [coloured(mask) for mask in taught]
    shown = min(COLUMNS, len(first.images))
    figure, axes = new_figure(0.88 * len(lines) + 0.15, len(lines), shown)
    for line, (name, pictures) in enumerate(lines.items()):
        for column in range(shown):
            panel = axes[line * shown + column]
            panel.imshow(pictures[column], interpolation="nearest")
            panel.set_xticks([])
            panel.set_yticks([])
            panel.grid(visible=False)
            for spine in panel.spines.values():
                spine.set_visible(False)
        axes[line * shown].set_ylabel(name)
    return figure


def pictures(rows: Mapping[str, Run]) -> list[Picture]:
    """Return the masks that the first run of each row finds."""
    known = {name: compute(run) for name, run in rows.items()}
    with styled():
        data = png(draw(known))
    first = next(iter(known.values()))
    shares = [
        f"{number}: {100 * share:.0f}" for number, share in enumerate(class_iou(first.confusion)) if share == share
    ]
    caption = (
        "Held-out images, their true masks, and what each row takes the pixels for; a colour is a class, grey the "
        f"first, white none. Intersection over union by class, %, of {next(iter(known))}: {', '.join(shares)}."
    )
    return [Picture("masks", "Masks", caption, data)]
