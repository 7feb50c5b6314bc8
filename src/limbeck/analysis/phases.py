"""What is left of earlier classes, phase by phase: of runs of class-incremental learning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from limbeck.analysis.run_files import foreign
from limbeck.analysis.style import Picture, legend_above, look, new_figure, png

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes

    from limbeck.analysis.run_files import Array, Run

SHOWN = 6  # rows whose matrices are drawn


@dataclass(frozen=True)
class Phases:
    """Accuracies after each phase.

    Attributes:
        matrices: row -> accuracy after phase k on the classes of phase j (P, P), mean over its runs; NaN for j > k.
        after: row -> accuracy on all classes seen, after each phase (runs, P).
    """

    matrices: Mapping[str, Array]
    after: Mapping[str, Array]


def compute(rows: Mapping[str, Sequence[Run]]) -> Phases | None:
    """Return the accuracies of the rows that learned in as many phases as the first; None without several phases."""
    kept = {name: [_matrix(run) for run in runs] for name, runs in rows.items() if "incremental" in runs[0].results}
    phases = max((len(matrices[0]) for matrices in kept.values()), default=0)
    kept = {name: matrices for name, matrices in kept.items() if len(matrices[0]) == phases}
    if phases < 2:
        return None
    after = {name: np.array([run.results["incremental"]["after_phase"] for run in rows[name]]) for name in kept}
    return Phases({name: np.mean(matrices, axis=0) for name, matrices in kept.items()}, after)


def _matrix(run: Run) -> Array:
    try:
        lines = run.results["incremental"]["accuracy"]
        matrix = np.full((len(lines), len(lines)), np.nan)
        for number, line in enumerate(lines):
            matrix[number, : number + 1] = line
    except (KeyError, TypeError, ValueError) as error:
        raise foreign(run.folder / "results.json", f"`incremental` cannot be read ({error})") from error
    return matrix


def draw_matrix(matrix: Array, axes: Axes) -> Axes:
    """Draw one row's accuracies, percent: down the phases that were learned, across the classes of each."""
    axes.imshow(matrix, cmap="viridis", vmin=0, vmax=1)
    ticks = range(0, len(matrix), -(-len(matrix) // 10))
    axes.set_xticks(ticks, [str(tick + 1) for tick in ticks])
    axes.set_yticks(ticks, [str(tick + 1) for tick in ticks])
    axes.grid(visible=False)
    if len(matrix) <= 6:
        for (after, number), value in np.ndenumerate(matrix):
            if not np.isnan(value):
                axes.text(
                    number,
                    after,
                    f"{100 * value:.0f}",
                    ha="center",
                    va="center",
                    fontsize=8,
                    color="black" if value > 0.6 else "white",
                )
    return axes


def draw_after(after: Mapping[str, Array], axes: Axes) -> Axes:
    """Draw the accuracy on all classes seen against the phases, percent: the mean over runs, bands their range."""
    for index, (name, values) in enumerate(after.items()):
        phases = np.arange(1, values.shape[1] + 1)
        axes.plot(phases, 100 * values.mean(axis=0), label=name, marker="o", markersize=4, **look(index))
        if len(values) > 1:
            low, high = 100 * values.min(axis=0), 100 * values.max(axis=0)
            axes.fill_between(phases, low, high, color=look(index)["color"], alpha=0.12, linewidth=0)
    axes.set_xticks(phases)
    axes.set_xlabel("phases learned")
    axes.set_ylabel("accuracy on all classes seen, %")
    legend_above(axes)
    return axes


def pictures(rows: Mapping[str, Sequence[Run]]) -> list[Picture]:
    """Return the curve over the phases and the matrices of runs that learned in phases; nothing of others."""
    result = compute(rows)
    if result is None:
        return []
    figure, (axes,) = new_figure(3.8)
    draw_after(result.after, axes)
    several = any(len(values) > 1 for values in result.after.values())
    seeds = " Lines: mean over seeds; bands: their range." if several else ""
    caption = f"Test accuracy on all classes seen so far, which classes an image may have not told.{seeds}"
    curve = Picture("phases", "Accuracy phase by phase", caption, png(figure))
    shown = dict(list(result.matrices.items())[:SHOWN])
    columns = min(len(shown), 3)
    lines = -(-len(shown) // columns)
    figure, panels = new_figure(2.7 * lines if columns > 1 else 4.2, lines, columns)
    for (name, matrix), panel in zip(shown.items(), panels, strict=False):
        draw_matrix(matrix, panel).set_title(name)
    for panel in panels[len(shown) :]:
        panel.set_visible(False)
    panels[0].set_ylabel("after phase")
    panels[0].set_xlabel("classes of phase")
    caption = (
        "Down: after which phase; across: accuracy on the classes of which phase, %. A column that fades is forgotten."
    )
    return [curve, Picture("phase_matrices", "What is left of each phase", caption, png(figure))]
