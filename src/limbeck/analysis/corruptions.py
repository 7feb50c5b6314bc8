"""Views, corruptions, and what is left under them: of runs with AugMix views or corrupted test images."""

from __future__ import annotations

import zipfile
from typing import TYPE_CHECKING

import numpy as np

from limbeck.analysis.run_files import foreign
from limbeck.analysis.style import COLOURS, Picture, legend_above, new_figure, png
from limbeck.errors import UserError, reason

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from matplotlib.axes import Axes

    from limbeck.analysis.run_files import Array, Run

    Rows = Mapping[str, Sequence[Run]]

CLEAN = "clean"


def compute(rows: Rows) -> dict[str, dict[str, float]]:
    """Return row -> corruption -> accuracy, mean over strengths and runs, `clean` first; of rows that measured some."""
    found = {}
    for name, runs in rows.items():
        every = [run.results[run.reported].get("corruptions") for run in runs]
        if not all(every):
            continue
        clean = float(np.mean([run.metric(run.reported, "test", "top1") for run in runs]))
        try:
            means = {kind: float(np.mean([each[kind] for each in every])) for kind in every[0]}
        except (KeyError, TypeError, ValueError) as error:
            raise foreign(runs[0].folder / "results.json", f"`corruptions` cannot be read ({error})") from error
        found[name] = {CLEAN: clean, **means}
    return found


def draw(result: Mapping[str, Mapping[str, float]], axes: Axes) -> Axes:
    """Draw a bar for each corruption and row, percent."""
    kinds = list(next(iter(result.values())))
    width = 0.8 / len(result)
    for index, (name, accuracy) in enumerate(result.items()):
        places = np.arange(len(kinds)) + (index - (len(result) - 1) / 2) * width
        colour = COLOURS[index % len(COLOURS)]
        axes.bar(places, [100 * accuracy[kind] for kind in kinds], width, label=name, color=colour)
    axes.set_xticks(range(len(kinds)), [kind.replace("_", " ") for kind in kinds], rotation=40, ha="right")
    axes.grid(axis="x", visible=False)
    axes.set_ylabel("test accuracy, %")
    legend_above(axes)
    return axes


def pictures(rows: Rows) -> list[Picture]:
    """Return the bars of all rows, and the views and corruptions that the first run kept; nothing without any."""
    return [*_bars(rows), *_grids(next(iter(rows.values()))[0])]


def _bars(rows: Rows) -> Iterator[Picture]:
    result = compute(rows)
    if not result:
        return
    figure, (axes,) = new_figure(4.2)
    draw(result, axes)
    caption = "Accuracy on the clean test images and under each corruption, mean over five strengths and the seeds."
    yield Picture("corruptions", "Accuracy under corruptions", caption, png(figure))


def _grids(run: Run) -> Iterator[Picture]:
    path = run.folder / "predictions.npz"
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in ("view_images", "corrupted_images") if name in file}
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing; train the run again") from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise foreign(path, f"cannot be read ({reason(error)})") from error
    if "view_images" in arrays:
        images = arrays["view_images"]
        titles = ["image", *(f"view {number}" for number in range(1, images.shape[1]))]
        caption = "Training images and their AugMix views in the first epoch."
        # Across the images, down the views: there are more of those.
        yield _grid("views", "Images and their views", caption, images.swapaxes(0, 1), titles)
    if "corrupted_images" in arrays:
        names = list(run.results[run.reported].get("corruptions", {}))
        caption = "The first test image under each corruption, from the weakest strength on the left to the strongest."
        titles = [name.replace("_", " ") for name in names]
        images = arrays["corrupted_images"]
        yield _grid("corrupted_images", "Corruptions", caption, images, titles[: len(images)])


def _grid(name: str, title: str, caption: str, images: Array, titles: Sequence[str]) -> Picture:
    """Return a picture of images (rows, columns, C, H, W), with a title for each row."""
    lines, columns = images.shape[:2]
    figure, panels = new_figure(max(2.2, 0.75 * lines), lines, columns)
    for place, panel in enumerate(panels):
        image = images[place // columns, place % columns].transpose(1, 2, 0)
        panel.imshow(image[..., 0] if image.shape[-1] == 1 else image, cmap="gray", vmin=0, vmax=255)
        panel.set_xticks([])
        panel.set_yticks([])
        panel.grid(visible=False)
        for spine in panel.spines.values():
            spine.set_visible(False)
        if place % columns == 0:
            panel.set_ylabel(titles[place // columns], rotation=0, ha="right", va="center")
    return Picture(name, title, caption, png(figure))
