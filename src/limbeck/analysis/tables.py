"""A comparison as tables: rich for the terminal, plain text, Markdown."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from limbeck.errors import missing_extra

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Group
    from rich.table import Table

    from limbeck.analysis.comparison import Comparison, Row
    from limbeck.analysis.statistics import Spread

WIDTH = 100
"""Columns of the plain-text table; the rich one needs no more."""

TOP1 = "{split} top-1, %"
"""Title of the column that is reported."""

COMMON_TERM_OPTIONS = {"weight": 1.0, "warmup_epochs": 0.0, "decay": "none"}
"""Options of every term, left out of its description at these values."""


def describe_term(term: dict[str, Any]) -> str:
    """Return a loss term as readable text.

    >>> describe_term({"name": "kl", "weight": 2.0, "decay": "none", "temperature": 4.0, "scale_by_t2": True})
    'kl (weight 2, temperature 4, scale_by_t2 yes)'
    """
    options = [
        f"{key} {_value(value)}"
        for key, value in term.items()
        if key != "name" and COMMON_TERM_OPTIONS.get(key) != value
    ]
    return f"{term.get('name', '?')} ({', '.join(options)})" if options else str(term.get("name", "?"))


def describe_setting(terms: Sequence[dict[str, Any]]) -> str:
    """Return a whole setting, term by term."""
    return " + ".join(describe_term(term) for term in terms)


def chosen_options(row: Row) -> str:
    """Return the options of the row's chosen setting that differ among the settings tried, as text; may be empty."""
    flat = [
        {(position, key): value for position, term in enumerate(terms) for key, value in term.items()}
        for terms in row.settings
    ]
    chosen = flat[row.selected]
    return ", ".join(
        f"{key} {_value(value)}"
        for (position, key), value in chosen.items()
        if any(other.get((position, key)) != value for other in flat)
    )


def notes(comparison: Comparison) -> list[str]:
    """Return the sentences that belong under the table: what n, +- and the test are, settings tried, teacher."""
    sentences = []
    if comparison.missing:
        sentences.append(_missing(comparison.missing))
    if comparison.diverged:
        sentences.append(
            f"Diverged and left out: {', '.join(comparison.diverged)}. A setting that diverged on a seed stands back "
            "behind those that did not."
        )
    images = comparison.images
    reach = "one split for all seeds: the intervals cover the randomness of training, not the choice of images"
    if comparison.vary_split:
        reach = "each seed with its own split and teacher: the intervals cover both and the randomness of training"
    counted = ", ".join(f"{count} {split}" for split, count in images.items() if count)
    sentences.append(
        f"n = {len(comparison.seeds)} {_plural('seed', len(comparison.seeds))} per row, {comparison.epochs} epochs, "
        f"last epoch; ± is the standard deviation over seeds. Images: {counted}, {reach}."
    )
    sentences.append(_settings_tried(comparison))
    if comparison.baseline is not None:
        sentences.append(_test(comparison))
    for control in comparison.controls:
        size = "identical" if control.largest == 0 else f"at most {control.largest:.2f} points apart"
        if control.n:
            sentences.append(
                f"A/A control: {control.first} and {control.second} are equal by theory; {comparison.split} top-1 "
                f"{size} on {control.n} {_plural('seed', control.n)}."
            )
    if comparison.teachers:
        teachers = ", ".join(f"{top1:.2f} %" for top1 in comparison.teachers)
        sentences.append(
            f"{comparison.split.capitalize()} top-1 of the {_plural('teacher', len(comparison.teachers))}: {teachers}."
        )
    if any(row.best_top1 is not None for row in comparison.rows):
        sentences.append("best epoch: test top-1 of the epoch that was best on validation.")
    if comparison.rows[0].head is not None:
        sentences.append(_head_and_tail(comparison))
    if any(comparison.seconds.values()):
        times = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in comparison.seconds.items() if seconds)
        sentences.append(f"Training time: {times}.")
    return sentences


def rich_table(comparison: Comparison) -> Group:
    """Return the comparison for `rich.console.Console.print`: two tables and their notes, 100 columns at most."""
    try:
        from rich.console import Group
        from rich.text import Text
    except ImportError as error:
        raise missing_extra("rich", "cli", "the table") from error
    under = [
        Text(sentence, style="bold yellow" if comparison.missing and index == 0 else "dim")
        for index, sentence in enumerate(notes(comparison))
    ]
    titles, cells = columns(comparison)
    split = titles.index("tried") + 1  # accuracy and its test above, what stands beside it below
    above = _table(comparison, titles[:split], [texts[:split] for texts in cells])
    below = _table(comparison, titles[:1] + titles[split:], [texts[:1] + texts[split:] for texts in cells])
    return Group(above, below, Text(), *under)


def plain(comparison: Comparison) -> str:
    """Return the same tables as plain text."""
    try:
        from rich.console import Console
    except ImportError as error:
        raise missing_extra("rich", "cli", "the table") from error
    file = io.StringIO()
    Console(file=file, width=WIDTH, color_system=None, force_terminal=False).print(rich_table(comparison))
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()) + "\n"


def markdown(comparison: Comparison) -> str:
    """Return one Markdown table with every column, and the notes under it as a list."""
    header, cells = columns(comparison)
    lines = ["| " + " | ".join(header) + " |", "|" + "|".join([" --- ", *[" ---: "] * (len(header) - 1)]) + "|"]
    for row, texts in zip(comparison.rows, cells, strict=True):
        if is_best(row, comparison):
            texts = [texts[0], f"**{texts[1]}**", *texts[2:]]
        lines.append("| " + " | ".join(texts) + " |")
    return "\n".join([*lines, "", *(f"- {sentence}" for sentence in notes(comparison))]) + "\n"


def is_best(row: Row, comparison: Comparison) -> bool:
    """Return whether no row has a higher mean top-1."""
    return row.top1.mean == max(other.top1.mean for other in comparison.rows)


def columns(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Return the column titles and, for each row, the texts under them. Columns that no run can fill are left out."""
    baseline = comparison.baseline
    table: list[tuple[str, list[str]]] = [
        ("loss", [row.name for row in comparison.rows]),
        (TOP1.format(split=comparison.split), [_top1(row, len(comparison.seeds)) for row in comparison.rows]),
    ]
    if baseline is not None:
        table += [
            (f"vs {baseline}, points [95 % CI]", [difference_text(row) for row in comparison.rows]),
            ("p (Holm)", [_p(row) for row in comparison.rows]),
            ("verdict", ["baseline" if row.name == baseline else row.verdict or "-" for row in comparison.rows]),
        ]
    table.append(("tried", [str(len(row.settings)) for row in comparison.rows]))
    optional: list[tuple[str, int, list[Spread | None]]] = [
        ("NLL, nats", 3, [row.nll for row in comparison.rows]),
        ("ECE, %", 2, [row.ece for row in comparison.rows]),
        ("agreement, %", 2, [row.agreement for row in comparison.rows]),
        ("best epoch, %", 2, [row.best_top1 for row in comparison.rows]),
        ("head, %", 1, [row.head for row in comparison.rows]),
        ("tail, %", 1, [row.tail for row in comparison.rows]),
    ]
    for title, digits, values in optional:
        if any(value is not None for value in values):
            table.append((title, ["-" if value is None else f"{value.mean:.{digits}f}" for value in values]))
    return [title for title, _ in table], [list(texts) for texts in zip(*(texts for _, texts in table), strict=True)]


def mean_and_std(values: Spread) -> str:
    """Return a percentage with its standard deviation.

    >>> from limbeck.analysis.statistics import spread
    >>> mean_and_std(spread([90.0, 92.0])), mean_and_std(spread([90.0]))
    ('91.00 ± 1.41', '90.00')
    """
    return f"{values.mean:.2f}" if values.std is None else f"{values.mean:.2f} ± {values.std:.2f}"


def _top1(row: Row, seeds: int) -> str:
    """Return the accuracy, with its own n when runs are missing."""
    return mean_and_std(row.top1) + ("" if row.top1.n == seeds else f" (n={row.top1.n})")


def difference_text(row: Row) -> str:
    """Return the difference to the baseline and its interval, in points; a dash where there is none."""
    if row.difference is None:
        return "-"
    text = f"{row.difference.mean:+.2f}"
    if row.difference.low is None:
        return text
    return f"{text} [{row.difference.low:+.2f}, {row.difference.high:+.2f}]"


def _table(comparison: Comparison, titles: list[str], cells: list[list[str]]) -> Table:
    """Return one rich table: name and accuracy of the best bold; beside the verdicts, rows without a difference dim."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for title in titles:
        left = title in {"loss", "verdict"}
        table.add_column(Text(title.replace(" [", "\n[")), justify="left" if left else "right", overflow="fold")
    styles = {"better": "green", "worse": "red", "uncertain": "yellow"}
    for row, texts in zip(comparison.rows, cells, strict=True):
        best = is_best(row, comparison)
        dim = "verdict" in titles and row.difference is not None and row.verdict not in styles and not best
        marked = [
            Text(
                text,
                "bold" if best and title in {"loss", TOP1.format(split=comparison.split)} else styles.get(text, ""),
            )
            for title, text in zip(titles, texts, strict=True)
        ]
        table.add_row(*marked, style="dim" if dim else "")
    return table


def _missing(missing: Sequence[str]) -> str:
    names = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
    return f"INCOMPLETE: {len(missing)} {_plural('run', len(missing))} not finished ({names}); this table may change."


def _settings_tried(comparison: Comparison) -> str:
    tried = {len(row.settings) for row in comparison.rows}
    if tried == {1}:
        return "tried: one setting per row, so nothing was chosen."
    means = "chosen by mean validation top-1 of the last epoch"
    means += ", never by the test images" if comparison.split == "test" else ", the figure shown: it is optimistic"
    chosen = [f"{row.name} {options}" for row in comparison.rows if (options := chosen_options(row))]
    unequal = "" if len(tried) == 1 else " The rows were not given equal numbers of settings."
    return f"tried: settings per row, {means}: {'; '.join(chosen)}.{unequal}"


def _test(comparison: Comparison) -> str:
    rows = [row for row in comparison.rows if row.p_holm is not None]
    text = f"Differences to {comparison.baseline} are paired by seed: t-interval of 95 %"
    if rows:
        text += f", p two-sided, Holm over {len(rows)} {_plural('row', len(rows))}"
    words = {row.verdict for row in comparison.rows}
    meanings = {
        "no difference seen": "the interval covers 0",
        "uncertain": "it leaves out 0, but p is 0.05 or more",
        "no test": "one seed, or the same difference on every seed",
    }
    return "; ".join([text, *(f'"{word}": {meaning}' for word, meaning in meanings.items() if word in words)]) + "."


def _head_and_tail(comparison: Comparison) -> str:
    counts = comparison.class_counts
    return (
        f"head, tail: mean accuracy on the {len(counts) // 3} largest and smallest of {len(counts)} classes "
        f"(training images per class from {max(counts)} to {min(counts)})."
    )


def _p(row: Row) -> str:
    if row.p_holm is None:
        return "-"
    return "< 0.001" if row.p_holm < 0.001 else f"{row.p_holm:.3f}"


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, int | float) else str(value)


def _plural(word: str, count: int) -> str:
    return word if count == 1 else word + "s"
