"""The columns of a comparison's table: titles and texts, in groups that fit the terminal one under another."""

from __future__ import annotations

from typing import TYPE_CHECKING

from limbeck.analysis import tails
from limbeck.analysis.wording import accuracy_text, difference_text, p_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from limbeck.analysis.comparison import Comparison
    from limbeck.analysis.robust import AttackPlan
    from limbeck.analysis.rows import Row
    from limbeck.analysis.statistics import Judged, Spread

    Column = tuple[str, list[str]]  # title, and the text of each row

WORDS = frozenset({"loss", "verdict", "clean verdict"})
"""Columns that hold words: they are aligned to the left."""


def column_groups(comparison: Comparison) -> list[list[Column]]:
    """Return the columns: first what rows are compared by and its test, then what stands beside it.

    Columns that no run can fill are left out, and groups without a column.
    """
    rows = comparison.rows
    headlines = [row.headline for row in rows]
    first: list[Column] = [
        ("loss", [row.name for row in rows]),
        *_tested(comparison, f"{comparison.measure}, %", headlines, [row.judged for row in rows]),
        ("tried", [str(len(row.settings)) for row in rows]),
    ]
    beside = [_beside(comparison)] if comparison.attacks is None else _robust(comparison, comparison.attacks)
    return [first, *filter(None, [tails.columns(comparison), *beside])]


def columns(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Return the column titles and, for each row, the texts under them, all groups side by side."""
    table = [column for group in column_groups(comparison) for column in group]
    return [title for title, _ in table], [list(texts) for texts in zip(*(texts for _, texts in table), strict=True)]


def is_best(row: Row, comparison: Comparison) -> bool:
    """Return whether no row has a higher mean of what rows are compared by."""
    return row.headline.mean == max(other.headline.mean for other in comparison.rows)


def _tested(
    comparison: Comparison, title: str, values: Sequence[Spread], judged: Sequence[Judged], kind: str = ""
) -> list[Column]:
    """Return the columns of an accuracy and of its difference to the baseline."""
    found: list[Column] = [(title, [accuracy_text(value, len(comparison.seeds)) for value in values])]
    baseline = comparison.baseline
    if baseline is None:
        return found
    names = [row.name for row in comparison.rows]
    words = ["baseline" if name == baseline else j.verdict or "-" for name, j in zip(names, judged, strict=True)]
    return [
        *found,
        (f"{kind}vs {baseline}, points [95 % CI]", [difference_text(each) for each in judged]),
        (f"{kind}p (Holm)", [p_text(each) for each in judged]),
        (f"{kind}verdict", words),
    ]


def _beside(comparison: Comparison) -> list[Column]:
    rows, measures = comparison.rows, comparison.headline.beside
    optional: list[tuple[str, int, list[Spread | None]]] = [
        *((measure.title, 2, [row.beside.get(measure.title) for row in rows]) for measure in measures),
        ("top-5, %", 2, [row.top5 for row in rows]),
        ("NLL, nats", 3, [row.nll for row in rows]),
        ("ECE, %", 2, [row.ece for row in rows]),
        ("agreement, %", 2, [row.agreement for row in rows]),
        ("best epoch, %", 2, [row.best_main for row in rows]),
        ("head, %", 1, [row.head for row in rows]),
        ("tail, %", 1, [row.tail for row in rows]),
    ]
    return [
        (title, ["-" if value is None else f"{value.mean:.{digits}f}" for value in values])
        for title, digits, values in optional
        if any(value is not None for value in values)
    ]


def _robust(comparison: Comparison, attacks: AttackPlan) -> list[list[Column]]:
    """Return clean accuracy with its own test, and the other attacks."""
    rows, seeds = comparison.rows, len(comparison.seeds)
    robust = [row.robust for row in rows if row.robust is not None]
    top1 = [row.main for row in rows]
    clean = _tested(comparison, f"{comparison.split} clean top-1, %", top1, [row.clean for row in robust], "clean ")
    others = [name for name in attacks.made if name != attacks.headline]
    optional: dict[str, list[Spread | None]] = {f"{name}, %": [row.attacks[name] for row in robust] for name in others}
    optional["worst, %"] = [row.worst for row in robust]
    optional[f"validation {attacks.validation}, %"] = [row.validation[row.selected] for row in rows]
    beside: list[Column] = [
        (title, [accuracy_text(value, seeds) for value in values])
        for title, values in optional.items()
        if any(value is not None for value in values)
    ]
    return [clean, [*beside, ("epoch", [_epochs(row.epoch) for row in robust])]]


def _epochs(epochs: Spread) -> str:
    """Return the epochs of the reported weights, from the earliest to the latest over the seeds."""
    first, last = min(epochs.values), max(epochs.values)
    return f"{first:.0f}" if first == last else f"{first:.0f}–{last:.0f}"
