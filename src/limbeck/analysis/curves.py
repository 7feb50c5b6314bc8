"""Learning curves: training loss and validation metrics over the epochs, their mean and range over seeds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from limbeck.analysis.style import APART, TEACHER, epoch_axis, joined, look
from limbeck.errors import UserError
from limbeck.headlines import main_measure

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes

    from limbeck.analysis.run_files import Array, Run

Quantity = Literal["train_loss", "nll", "main", "robust"]

LABELS: dict[str, str] = {
    "train_loss": "training loss",
    "nll": "validation NLL, nats",
    "robust": "validation robust, %",
}


@dataclass(frozen=True)
class Curve:
    """One row: `epochs` (E,), and each quantity's values (runs, E); validation quantities are absent without one."""

    epochs: Array
    values: Mapping[Quantity, Array]


@dataclass(frozen=True)
class Curves:
    """Learning curves by row.

    Attributes:
        rows: a curve for each.
        teacher: the first teacher's main measure on validation, in percent; None without.
        reported: epoch of the weights that a single run of adversarial training reports; None for others.
        main: title of the main measure.
    """

    rows: Mapping[str, Curve]
    teacher: float | None
    reported: int | None = None
    main: str = "top-1, %"

    def has(self, quantity: Quantity) -> bool:
        """Whether every row has the quantity."""
        return all(quantity in curve.values for curve in self.rows.values())


def compute(rows: Mapping[str, Sequence[Run]]) -> Curves:
    """Return the learning curves of the runs of each row, over the epochs that all runs of the row have reached."""
    curves = {name: _curve(runs) for name, runs in rows.items()}
    run = next(iter(rows.values()))[0]
    teachers = run.results.get("teachers") if run.finished else None
    validated = (teachers[0] or {}).get("validation") if teachers else None
    measure = main_measure(run.epochs[-1]["validation"] or {"top1": None})
    teacher = 100 * float(validated[measure.key]) if validated else None
    return Curves(curves, teacher, _reported(rows), measure.title)


def draw(result: Curves, axes: Axes, quantity: Quantity = "main") -> Axes:
    """Draw one quantity: the mean over the runs of a row as a line, their range as a band; rows may share a line."""
    means = {name: curve.values[quantity].mean(0) for name, curve in result.rows.items()}
    labels = joined(means, APART * float(np.ptp(np.concatenate(list(means.values())))))
    for index, (name, curve) in enumerate(result.rows.items()):
        if name not in labels:
            continue
        values, style = curve.values[quantity], look(index)
        axes.plot(curve.epochs, means[name], label=labels[name], **style)
        if len(values) > 1:
            axes.fill_between(curve.epochs, values.min(0), values.max(0), color=style["color"], alpha=0.12, linewidth=0)
    if quantity == "main" and result.teacher is not None:
        axes.axhline(result.teacher, color=TEACHER, linewidth=1, linestyle=":", label="teacher")
    if result.reported is not None:
        axes.axvline(result.reported, color=TEACHER, linewidth=1, linestyle=":", label="reported")
    epoch_axis(axes)
    axes.set_ylabel(f"validation {result.main}" if quantity == "main" else LABELS[quantity])
    _leave_out_the_first_epochs(result, axes, quantity)
    axes.legend(loc="best" if quantity == "robust" else "lower right" if quantity == "main" else "upper right")
    return axes


def _reported(rows: Mapping[str, Sequence[Run]]) -> int | None:
    runs = [run for group in rows.values() for run in group]
    if len(runs) > 1 or not runs[0].finished or not runs[0].adversarial:
        return None
    epoch = runs[0].metric(runs[0].reported, "epoch")
    return None if epoch is None else int(epoch)


def _leave_out_the_first_epochs(result: Curves, axes: Axes, quantity: Quantity) -> None:
    """Fit the y axis to the last 80 % of the epochs: the first would press all later differences flat."""
    later = [curve.values[quantity][:, len(curve.epochs) // 5 :] for curve in result.rows.values()]
    low, high = min(float(v.min()) for v in later), max(float(v.max()) for v in later)
    if quantity == "main" and result.teacher is not None:
        high = max(high, result.teacher)
    margin = 0.06 * (high - low) or 1.0
    axes.set_ylim(low - margin, high + margin)


def _curve(runs: Sequence[Run]) -> Curve:
    length = min(len(run.epochs) for run in runs)
    if length == 0:
        raise UserError(f"{runs[0].folder / 'metrics.jsonl'}: no epoch is finished yet, so there is nothing to draw")
    lines = [run.epochs[:length] for run in runs]
    try:
        epochs = np.array([line["epoch"] for line in lines[0]])
        values: dict[Quantity, Array] = {
            "train_loss": np.array([[line["train"]["loss"] for line in run] for run in lines])
        }
        if all(line["validation"] is not None for run in lines for line in run):
            if all("nll" in line["validation"] for run in lines for line in run):
                values["nll"] = np.array([[line["validation"]["nll"] for line in run] for run in lines])
            key = main_measure(lines[0][0]["validation"]).key
            values["main"] = 100 * np.array([[line["validation"][key] for line in run] for run in lines])
            if all("robust" in line["validation"] for run in lines for line in run):
                values["robust"] = 100 * np.array([[line["validation"]["robust"] for line in run] for run in lines])
    except (KeyError, TypeError) as error:
        folders = ", ".join(str(run.folder) for run in runs)
        raise UserError(f"metrics.jsonl of {folders}: an epoch lacks {error}; train the run again") from error
    return Curve(epochs, values)
