"""Time and memory of GKL against the number of classes, as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.measure import BOTH
from limbeck.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row = dict[str, Any]
NAMES = ("GKL, brute force", "GKL, torch", "GKL, kernel")


def write(rows: Sequence[Row], path: Path, device: str) -> str:
    """Draw the sweep; return a line that says where it is, or what is missing."""
    from limbeck.analysis.style import TEACHER, new_figure, png, styled

    try:
        with styled():
            figure, (time, memory) = new_figure(3.4, columns=2)
            _lines(time, rows, lambda row: 1e3 * row["median_us"] / _logits(row))
            time.set(title="time", ylabel="forward + backward, ns per logit")
            _lines(memory, rows, lambda row: row["extra_bytes"] / (4 * _logits(row)))
            memory.set(title="extra memory", ylabel="tensors of logits")
            classes = sorted({row["classes"] for row in rows})
            memory.plot(classes, classes, color=TEACHER, linestyle=":", label="one (N, C, C) tensor")
            memory.legend(loc="upper left")
            figure.suptitle(f"GKL, fp32, teacher frozen, {said(rows)}; {device}", fontsize=9, x=0.01, ha="left")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png(figure))
    except UserError as error:
        return f"no picture: {error}"
    return f"drawn: {path}"


def said(rows: Sequence[Row]) -> str:
    """Say how many logits the batches have."""
    sizes = sorted({_logits(row) for row in rows})
    fewest, most = (f"{size / 1e6:.2g}" for size in (sizes[0], sizes[-1]))
    return f"{fewest} million logits" if fewest == most else f"{fewest} to {most} million logits"


def _logits(row: Row) -> int:
    return row["samples"] * row["classes"]


def _lines(axes: Axes, rows: Sequence[Row], figure: Any) -> None:
    from limbeck.analysis.style import marker

    for place, name in enumerate(NAMES):
        mine = [r for r in rows if (r["contender"], r["what"]) == (name, BOTH) and r.get("median_us")]
        if mine:
            axes.plot([r["classes"] for r in mine], [figure(r) for r in mine], label=name, **marker(place))
    axes.set(xscale="log", yscale="log", xlabel="classes")
