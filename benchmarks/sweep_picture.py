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
    from limbeck.analysis.style import new_figure, png, styled

    try:
        with styled():
            figure, (time, memory) = new_figure(3.4, columns=2)
            cells = max(row["samples"] * row["classes"] for row in rows)
            _lines(time, rows, lambda row: row["median_us"] / 1e3)
            time.set(title="time", ylabel="forward + backward, ms")
            _lines(memory, rows, lambda row: row["extra_bytes"] / (4 * row["samples"] * row["classes"]))
            memory.set(title="extra memory", ylabel="tensors of logits")
            time.legend(loc="best")
            figure.suptitle(f"{cells / 1e6:.1f} million logits, fp32, {device}", fontsize=9, x=0.01, ha="left")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png(figure))
    except UserError as error:
        return f"no picture: {error}"
    return f"drawn: {path}"


def _lines(axes: Axes, rows: Sequence[Row], figure: Any) -> None:
    from limbeck.analysis.style import marker

    for place, name in enumerate(NAMES):
        mine = [r for r in rows if (r["contender"], r["what"]) == (name, BOTH) and r.get("median_us")]
        if mine:
            axes.plot([r["classes"] for r in mine], [figure(r) for r in mine], label=name, **marker(place))
    axes.set(xscale="log", yscale="log", xlabel="classes")
