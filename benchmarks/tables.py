"""Plain text tables, at most 120 columns wide."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmarks.measure import BOTH, FORWARD

Row = Mapping[str, object]
TARGET_SHARE = 0.80


def table(head: Sequence[str], lines: Sequence[Sequence[str]], left: int = 1) -> str:
    """Return columns as wide as they need to be; the first `left` of them to the left, figures to the right."""
    cells = [list(head), *map(list, lines)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(head))]
    written = []
    for line in cells:
        pairs = enumerate(zip(line, widths, strict=True))
        written.append("  ".join(c.ljust(w) if column < left else c.rjust(w) for column, (c, w) in pairs).rstrip())
    rule = "  ".join("-" * width for width in widths)
    return "\n".join([written[0], rule, *written[1:]])


def of_shape(rows: Sequence[Row]) -> str:
    """Return one batch shape: a line for each contender, forward beside forward and backward, then what has no time."""
    shape = f"({rows[0]['samples']:,}, {rows[0]['classes']:,}) {rows[0]['dtype']}"
    copy = next(row for row in rows if row["what"] == "copy")
    pairs: dict[tuple[object, object], dict[object, Row]] = {}
    for row in rows:
        if row.get("median_us") and row is not copy:
            pairs.setdefault((row["contender"], row["teacher"]), {})[row["what"]] = row
    timed = {key: found for key, found in pairs.items() if FORWARD in found and BOTH in found}
    lines = [_line(name, teacher, found[FORWARD], found[BOTH]) for (name, teacher), found in timed.items()]
    head = ("", "teacher", "forward", "copy", "both", "spread", "GB/s", "copy", "wall", "extra", "error", "how")
    said = [f"  {row['contender']}, teacher {row['teacher']}: {row['note']}" for row in rows if row["note"]]
    where = "device time in CUDA graphs" if copy["how"] == "graph" else "time of eager calls"
    title = f"{shape}: {where}, microseconds; a copy moves {copy['gb_s']:,.0f} GB/s"
    return "\n".join([title, table(head, lines, 2), *said])


def _line(name: object, teacher: object, forward: Row, both: Row) -> list[str]:
    one = 2 * both["samples"] * both["classes"] if both["dtype"] != "fp32" else 4 * both["samples"] * both["classes"]
    spread = (both["q3_us"] - both["q1_us"]) / both["median_us"]
    return [
        str(name),
        str(teacher),
        _figure(forward["median_us"]),
        f"{forward['share_of_copy']:.0%}",
        _figure(both["median_us"]),
        f"{spread:.0%}",
        f"{both['gb_s']:,.0f}",
        f"{both['share_of_copy']:.0%}",
        _figure(both["wall_us"]),
        f"{both['extra_bytes'] / one:.2f}x",
        f"{both['error']:.0e}",
        f"{both['how']}{', waits' if both['waits'] else ''}",
    ]


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


LEGEND = """\
both = forward + backward, median; spread = interquartile range over it; GB/s = bytes that the mathematics must move
(each logit tensor read twice, each wanted gradient written once; class rows twice more where weights are class-wise)
over the median; copy = that over a copy's bytes read and written; wall = an eager call until its gradients are there;
extra = peak memory above inputs and returned gradients, in tensors of logits; error = largest relative error of value
and gradients, against float64 on the rows that fit, and against torch; waits = makes the host wait for the device."""


# --- the verdict --------------------------------------------------------------------------------------------------


def verdict(rows: Sequence[Row], shapes: Sequence[tuple[int, int]]) -> str:
    """Return targets, what was measured, and whether it was met; a target without a measurement says so."""
    lines = []
    for samples, classes in shapes:
        for dtype in ("bf16", "fp32"):
            mine = [
                r
                for r in rows
                if (r["samples"], r["classes"], r["dtype"], r["what"]) == (samples, classes, dtype, BOTH)
            ]
            lines += _verdicts(f"({samples:,}, {classes:,}) {dtype}", mine)
    return table(("forward + backward, device time", "target", "measured", "verdict"), lines, 2)


def _verdicts(shape: str, rows: Sequence[Row]) -> list[list[str]]:
    lines = []
    for name in ("GKL, kernel", "GKL class-wise, kernel"):
        for teacher in ("frozen", "learning"):
            row = _found(rows, name, teacher)
            share = f"at least {TARGET_SHARE:.0%} of copy"
            met = row is not None and row["share_of_copy"] >= TARGET_SHARE
            measured = "not measured" if row is None else f"{row['share_of_copy']:.1%}"
            lines.append([f"{shape}  {name}, teacher {teacher}", share, measured, _word(row, met)])
    ours = _found(rows, "GKL, kernel", "frozen")
    for peer in ("Liger KL", "Liger JSD"):
        row = _found(rows, peer, "frozen")
        either = ours if row is not None else None
        ratio = ours["median_us"] / row["median_us"] if ours is not None and row is not None else float("nan")
        measured = "not measured" if either is None else f"{ratio:.2f} x its time"
        lines.append(
            [f"{shape}  GKL, kernel, beside {peer}", "at most 1 x its time", measured, _word(either, ratio <= 1)]
        )
    return lines


def _found(rows: Sequence[Row], name: str, teacher: str) -> Row | None:
    same = (r for r in rows if r["contender"] == name and r["teacher"] == teacher and r.get("median_us"))
    return next(same, None)


def _word(row: Row | None, met: bool) -> str:
    return "-" if row is None else ("met" if met else "NOT MET")
