"""What images without labels look like to a run, what it says of them, and how many of them count."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from limbeck.analysis.run_files import foreign
from limbeck.analysis.style import Picture, epoch_axis, legend_above, look, new_figure, png

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matplotlib.axes import Axes

    from limbeck.analysis.run_files import Array, Run

COLUMNS = 12
NAMES = ("weak_views", "strong_views", "weak_probabilities")


@dataclass(frozen=True)
class Views:
    """Unlabelled images of a run.

    Attributes:
        weak: (N, C, H, W), as the network saw them.
        strong: (N, C, H, W), of the same images.
        said: (N,), the class of the weak view's largest probability.
        confidence: (N,), that probability.
    """

    weak: Array
    strong: Array
    said: Array
    confidence: Array


def views(run: Run) -> Views | None:
    """Return what a run kept of its pool; None where there was none."""
    path = run.folder / "predictions.npz"
    try:
        with np.load(path, allow_pickle=False) as file:
            if any(name not in file for name in NAMES):
                return None
            weak, strong, probabilities = (file[name] for name in NAMES)
    except (OSError, ValueError) as error:
        raise foreign(path, f"cannot be read ({error})") from error
    return Views(weak, strong, probabilities.argmax(-1), probabilities.max(-1))


def shares(rows: Mapping[str, Run]) -> dict[str, Array]:
    """Return the share of unlabelled images that counted in each epoch, in percent, of the rows that have one."""
    return {
        name: 100 * np.array([line["train"]["mask"] for line in run.epochs])
        for name, run in rows.items()
        if all("mask" in line["train"] for line in run.epochs)
    }


def draw_views(result: Views, axes: Axes, columns: int = COLUMNS) -> Axes:
    """Draw weak views above strong ones, with the class that the weak view says and its probability in percent."""
    count, (height, width) = min(columns, len(result.weak)), result.weak.shape[2:]
    gap = max(1, width // 8)
    low, high = float(result.weak[:count].min()), float(result.weak[:count].max())
    channels = result.weak.shape[1]
    sheet = np.ones((2 * height + gap, count * (width + gap) - gap, 3))
    for place in range(count):
        for row, images in enumerate((result.weak, result.strong)):
            image = np.clip((images[place] - low) / max(high - low, 1e-9), 0, 1).transpose(1, 2, 0)
            top, left = row * (height + gap), place * (width + gap)
            sheet[top : top + height, left : left + width] = image if channels == 3 else image[..., :1]
    axes.imshow(sheet, interpolation="nearest", extent=(0, sheet.shape[1], sheet.shape[0], 0))
    for place in range(count):
        words = f"{result.said[place]}\n{100 * result.confidence[place]:.0f} %"
        axes.text(place * (width + gap) + width / 2, -gap, words, ha="center", va="bottom", fontsize=8)
    axes.set_yticks([height / 2, 1.5 * height + gap], ["weak", "strong"])
    axes.tick_params(length=0)
    axes.set_xticks([])
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    return axes


def draw_shares(result: Mapping[str, Array], axes: Axes) -> Axes:
    """Draw the share of images that count over the epochs."""
    for index, (name, share) in enumerate(result.items()):
        axes.plot(np.arange(1, len(share) + 1), share, label=name, **look(index))
    epoch_axis(axes)
    axes.set_ylabel("images that count, %")
    axes.set_ylim(-3, 103)
    if len(result) > 1:
        legend_above(axes)
    return axes


def pictures(rows: Mapping[str, Run]) -> list[Picture]:
    """Return the picture of the pool: of the first run that has one, and how many images counted in each."""
    shown = {name: run for name, run in rows.items() if "mask" in run.epochs[-1]["train"]}
    if not shown or (seen := views(next(iter(shown.values())))) is None:
        return []
    figure, (top, bottom) = new_figure(4.6, 2, height_ratios=(1.25, 2))
    first = next(iter(shown))
    which = f" ({first})" if len(rows) > 1 else ""
    draw_views(seen, top).set_title(f"Images without labels{which}", pad=36)
    draw_shares(shares(shown), bottom)
    caption = (
        "Above: images of the pool in the last epoch, weakly and strongly augmented; over each the class that the "
        "network says of the weak view after training, and its probability. Below: the share of unlabelled images of "
        "an epoch whose weak view was confident enough to count, at the weights of the time."
    )
    return [Picture("unlabelled", "Images without labels", caption, png(figure))]
