"""A comparison as tables: rich for the terminal, plain text, Markdown."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any, Literal

from limbeck.analysis import tails
from limbeck.analysis.columns import WORDS, column_groups, columns, is_best
from limbeck.analysis.robust_notes import sentences, weights
from limbeck.analysis.wording import plural, value_text
from limbeck.errors import missing_extra

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Group
    from rich.table import Table

    from limbeck.analysis.columns import Column
    from limbeck.analysis.comparison import Comparison
    from limbeck.analysis.rows import Row

WIDTH = 100
"""Columns of the plain-text table; the rich one needs no more."""

COMMON_TERM_OPTIONS = {"weight": 1.0, "warmup_epochs": 0.0, "decay": "none", "on": "clean", "impl": "auto"}
"""Options of many terms, left out of its description at these values."""


def describe_term(term: dict[str, Any]) -> str:
    """Return a loss term as readable text.

    >>> describe_term({"name": "kl", "weight": 2.0, "decay": "none", "temperature": 4.0, "scale_by_t2": True})
    'kl (weight 2, temperature 4, scale_by_t2 yes)'
    """
    options = [
        f"{key} {value_text(value)}"
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
        f"{key} {value_text(value)}"
        for (position, key), value in chosen.items()
        if any(other.get((position, key)) != value for other in flat)
    )


def notes(comparison: Comparison) -> list[str]:
    """Return the sentences that belong under the table: what n, +- and the test are, settings tried, teacher."""
    found = []
    if comparison.missing:
        found.append(_missing(comparison.missing))
    if comparison.diverged:
        found.append(
            f"Diverged and left out: {', '.join(comparison.diverged)}. A setting that diverged on a seed stands back "
            "behind those that did not."
        )
    found += [_sizes(comparison), _settings_tried(comparison)]
    if comparison.baseline is not None:
        found.append(_test(comparison))
    if comparison.attacks is not None:
        found += sentences(comparison, comparison.attacks)
    for control in comparison.controls:
        size = "identical" if control.largest == 0 else f"at most {control.largest:.2f} points apart"
        if control.n:
            found.append(
                f"A/A control: {control.first} and {control.second} are equal by theory; {comparison.measure} "
                f"{size} on {control.n} {plural('seed', control.n)}."
            )
    if comparison.teachers:
        teachers = ", ".join(f"{top1:.2f} %" for top1 in comparison.teachers)
        word = plural("teacher", len(comparison.teachers))
        found.append(f"{comparison.split.capitalize()} {comparison.headline.main.short} of the {word}: {teachers}.")
    if comparison.attacks is None and any(row.best_main is not None for row in comparison.rows):
        found.append(f"best epoch: test {comparison.headline.main.short} of the epoch that was best on validation.")
    found += tails.sentences(comparison)
    if any(comparison.seconds.values()):
        times = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in comparison.seconds.items() if seconds)
        found.append(f"Training time: {times}.")
    return found


def _sizes(comparison: Comparison) -> str:
    """Return how many seeds, epochs and images there are."""
    reach = "one split for all seeds: the intervals cover the randomness of training, not the choice of images"
    if comparison.vary_split:
        others = " and teacher" if comparison.teachers else ""
        reach = f"each seed with its own split{others}: the intervals cover both and the randomness of training"
    counted = ", ".join(f"{count} {split}" for split, count in comparison.images.items() if count)
    of = "last epoch"
    if comparison.attacks is not None:
        of = f"weights {weights(comparison.attacks)}; column epoch: from the earliest seed to the latest"
    return (
        f"n = {len(comparison.seeds)} {plural('seed', len(comparison.seeds))} per row, "
        f"{comparison.epochs} {plural('epoch', comparison.epochs)}, "
        f"{of}; ± is the standard deviation over seeds. Images: {counted}, {reach}."
    )


def rich_table(comparison: Comparison) -> Group:
    """Return the comparison for `rich.console.Console.print`: its tables and their notes, 100 columns at most."""
    try:
        from rich.console import Group
        from rich.text import Text
    except ImportError as error:
        raise missing_extra("rich", "cli", "the table") from error
    under = [
        Text(sentence, style="bold yellow" if comparison.missing and index == 0 else "dim")
        for index, sentence in enumerate(notes(comparison))
    ]
    first, *others = column_groups(comparison)
    tables = [_table(comparison, group) for group in (first, *([first[0], *group] for group in others))]
    return Group(*tables, Text(), *under)


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


def _table(comparison: Comparison, group: Sequence[Column]) -> Table:
    """Return one rich table: name and accuracy of the best bold; beside the verdicts, rows without a difference dim."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    titles = [title for title, _ in group]
    for title in titles:
        justify: Literal["left", "right"] = "left" if title in WORDS else "right"
        table.add_column(Text(title.replace(" [", "\n[")), justify=justify, overflow="fold")
    styles = {"better": "green", "worse": "red", "uncertain": "yellow"}
    for row, texts in zip(comparison.rows, zip(*(texts for _, texts in group), strict=True), strict=True):
        best = is_best(row, comparison)
        dim = "verdict" in titles and row.difference is not None and row.verdict not in styles and not best
        strong = {"loss", f"{comparison.measure}, %"} if best else set()
        marked = [
            Text(text, "bold" if title in strong else styles.get(text, ""))
            for title, text in zip(titles, texts, strict=True)
        ]
        table.add_row(*marked, style="dim" if dim else "")
    return table


def _missing(missing: Sequence[str]) -> str:
    names = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
    return f"INCOMPLETE: {len(missing)} {plural('run', len(missing))} not finished ({names}); this table may change."


def _settings_tried(comparison: Comparison) -> str:
    tried = {len(row.settings) for row in comparison.rows}
    if tried == {1}:
        return "tried: one setting per row, so nothing was chosen."
    means = f"chosen by mean validation {comparison.headline.main.short} of the last epoch"
    if comparison.attacks is not None:
        means = f"chosen by mean robust accuracy on validation ({comparison.attacks.validation})"
    means += ", never by the test images" if comparison.split == "test" else ", the figure shown: it is optimistic"
    chosen = [f"{row.name} {options}" for row in comparison.rows if (options := chosen_options(row))]
    unequal = "" if len(tried) == 1 else " The rows were not given equal numbers of settings."
    return f"tried: settings per row, {means}: {'; '.join(chosen)}.{unequal}"


def _test(comparison: Comparison) -> str:
    rows = [row for row in comparison.rows if row.p_holm is not None]
    text = f"Differences to {comparison.baseline} are paired by seed: t-interval of 95 %"
    if rows:
        text += f", p two-sided, Holm over {len(rows)} {plural('row', len(rows))}"
    words = {row.verdict for row in comparison.rows}
    tied = any(
        row.verdict == "no difference seen" and row.difference and row.difference.tied for row in comparison.rows
    )
    meanings = {
        "no difference seen": "the interval covers 0" + (", or all seeds tie" if tied else ""),
        "uncertain": "it leaves out 0, but p is 0.05 or more",
        "no test": "one seed, or the same difference on every seed",
        "identical": "NLL agrees on every seed too",
    }
    return "; ".join([text, *(f'"{word}": {meaning}' for word, meaning in meanings.items() if word in words)]) + "."
