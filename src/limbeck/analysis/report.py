"""A comparison as one self-contained HTML page: table, pictures, settings, environment, how to read them."""

from __future__ import annotations

import base64
from html import escape
from itertools import repeat
from typing import TYPE_CHECKING, Any

from limbeck.analysis.columns import WORDS, columns, is_best
from limbeck.analysis.comparison import summarise
from limbeck.analysis.pictures import comparison_pictures, draw_comparison, draw_run, save
from limbeck.analysis.published import cells, compare_with_paper, has_published, titles
from limbeck.analysis.published import notes as notes_of_published
from limbeck.analysis.tables import describe_term, notes
from limbeck.analysis.wording import mean_and_std, plural
from limbeck.errors import UserError, reason

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from limbeck.analysis.comparison import Comparison
    from limbeck.analysis.rows import Row
    from limbeck.analysis.style import Picture

__all__ = ["draw_comparison", "draw_run", "html", "write_report"]

STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --paper: #fff; --faint: #62676d; --line: #d9dce0; --good: #00558a;
  --bad: #a04000; --shade: #f4f5f7; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e7e9; --paper: #17191c; --faint: #a0a5ab; --line: #3a3e44;
  --good: #6bbcf0; --bad: #f49a5b; --shade: #212429; } }
body { margin: 2.5rem auto; padding: 0 1rem; max-width: 84rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .25rem; } h2 { font-size: 1.2rem; margin: 2.5rem 0 .75rem; }
.lead, figcaption, .notes { color: var(--faint); } .notes { font-size: .9rem; padding-left: 1.1rem;
  max-width: 56rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .8rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .4rem; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top; }
thead th { border-bottom-width: 2px; vertical-align: bottom; } .text { text-align: left; }
.number { white-space: nowrap; } .best td:nth-child(-n+2) { font-weight: 700; } .better { color: var(--good); }
.worse { color: var(--bad); } .warning { border-left: 4px solid var(--bad); padding: .5rem .8rem;
  background: var(--shade); }
figure { margin: 0 0 2rem; } figcaption strong { color: var(--ink); }
figure img { width: 100%; max-width: 1000px; height: auto; background: #fff; border: 1px solid var(--line);
  border-radius: 6px; padding: 6px; box-sizing: border-box; } figcaption { font-size: .9rem; max-width: 1000px; }
dt { font-weight: 600; } dd { margin: 0 0 .4rem 1.2rem; overflow-wrap: anywhere; }
@media print { :root { color-scheme: light; --ink: #000; --paper: #fff; --faint: #444; --line: #bbb; --good: #00558a;
  --bad: #a04000; --shade: #f4f5f7; } body { margin: 0; max-width: none; font-size: 11px; }
  table { font-size: 9px; } th, td { padding: .2rem .3rem; } figure { break-inside: avoid; }
  .wide { overflow: visible; } }
"""

HOW_TO_READ_ATTACKS = (
    "Robust accuracy is what an attack leaves: the share of the images that are still classified right when each pixel "
    "may be moved within the ball. A stronger attack leaves less, so figures of different attacks, radii or numbers of "
    "images are not compared. An attack bounds robustness from above only.",
    "Robust and clean accuracy are often traded for one another: a row is better than another without doubt where "
    "it is not worse in either.",
)
HOW_TO_READ = (
    "Every row starts from the same weights and sees the same images in the same order for a given seed; only the loss "
    "differs. That is why differences are taken seed by seed, and why their intervals can be narrower than the spread "
    "of either row.",
    "Where several settings were tried, the validation images chose one; test images, if there are any, were looked at "
    "for that one alone.",
    "“No difference seen” is not “equal”: the interval says how large a difference these seeds leave possible.",
    "A row that theory makes equal to another is an A/A control: what they differ by is what rows differ by "
    "without any cause.",
)
HOW_TO_READ_CLASSES = (
    "NLL (nats) and ECE, the calibration error (15 bins, %), are better when lower. Agreement is the share of "
    "images on which student and teacher predict the same class.",
)


def write_report(folder: Path) -> Path:
    """Write report.html and the pictures, as PNG files, into the comparison folder; return the page's path.

    Raises:
        UserError: no comparison there, a damaged or missing file, matplotlib not installed, or the folder cannot be
            written.
    """
    comparison = summarise(folder)
    pictures = comparison_pictures(comparison)
    save(pictures, folder)
    path = folder / "report.html"
    try:
        path.write_text(html(comparison, pictures), encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({reason(error)}); make room, or copy the comparison elsewhere"
        ) from error
    return path


def html(comparison: Comparison, pictures: Sequence[Picture]) -> str:
    """Return the page; it refers to nothing outside itself."""
    title = escape(comparison.title or comparison.folder.name)
    sentences = notes(comparison)
    warning = f'<p class="warning">{escape(sentences.pop(0))}</p>' if comparison.missing else ""
    run = next(iter(comparison.rows[0].runs.values()))
    rows, seeds = len(comparison.rows), ", ".join(map(str, comparison.seeds))
    lead = escape(f"{rows} {plural('row', rows)}, {plural('seed', len(comparison.seeds))} {seeds}")
    parts = [
        f"<h1>{title}</h1>",
        f'<p class="lead">{lead}, same student, data and order.</p>',
        warning,
        f'<div class="wide">{_table(comparison)}</div>',
        _list(sentences, "notes"),
        *_beside_the_paper(comparison),
        "<h2>How to read this</h2>",
        _list(_how_to_read(comparison), "notes"),
        "<h2>Pictures</h2>",
        *map(_figure, pictures),
        "<h2>Settings</h2>",
        f'<div class="wide">{_settings(comparison)}</div>',
        "<h2>Environment</h2>",
        "<p>As the first run recorded it.</p>",
        f"<dl>{''.join(_definitions(run.environment))}</dl>",
    ]
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{STYLE}</style>"
    )
    body = "\n".join(part for part in parts if part)
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n'


def _how_to_read(comparison: Comparison) -> tuple[str, ...]:
    classes = HOW_TO_READ_CLASSES if comparison.rows[0].nll is not None else ()
    return (*HOW_TO_READ, *classes, *(HOW_TO_READ_ATTACKS if comparison.attacks is not None else ()))


def _table(comparison: Comparison) -> str:
    titles, cells = columns(comparison)
    left = [title in WORDS for title in titles]
    lines = ["<table><thead><tr>", *map(_cell, titles, repeat("th"), left)]
    lines.append("</tr></thead><tbody>")
    for row, texts in zip(comparison.rows, cells, strict=True):
        lines.append('<tr class="best">' if is_best(row, comparison) else "<tr>")
        lines.extend(map(_cell, texts, repeat("td"), left))
        lines.append("</tr>")
    return "".join([*lines, "</tbody></table>"])


def _beside_the_paper(comparison: Comparison) -> Iterator[str]:
    """Return the table of the paper whose figures the recipe names, ours beside them; nothing without."""
    if not has_published(comparison.folder):
        return
    table = compare_with_paper(comparison.folder)
    left = [title in ("method", "weights") for title in titles(table)]
    head = "".join(map(_cell, (title.replace("\n", " ") for title in titles(table)), repeat("th"), left))
    body = "".join(f"<tr>{''.join(map(_cell, texts, repeat('td'), left))}</tr>" for texts in cells(table))
    yield f"<h2>{escape(table.source)}</h2>"
    yield f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    yield _list(notes_of_published(table), "notes")


def _cell(text: str, tag: str, left: bool) -> str:
    words = ["text" if left else "", "number" if tag == "td" else "", text if text in ("better", "worse") else ""]
    return f'<{tag} class="{" ".join(filter(None, words))}">{escape(text)}</{tag}>'


def _settings(comparison: Comparison) -> str:
    attacks = comparison.attacks
    chose = comparison.headline.main.short if attacks is None else f"robust ({attacks.validation})"
    head = f'<tr><th class="text">loss</th><th class="text">setting</th><th>validation {chose}, %</th></tr>'
    lines = [line for row in comparison.rows for line in _settings_of(row)]
    return f"<table><thead>{head}</thead><tbody>{''.join(lines)}</tbody></table>"


def _settings_of(row: Row) -> Iterator[str]:
    for index, (terms, validation) in enumerate(zip(row.settings, row.validation, strict=True)):
        chosen = index == row.selected
        text = "<br>".join(escape(describe_term(term)) for term in terms)
        mark = " (chosen)" if chosen and len(row.settings) > 1 else ""
        measured = "-" if validation is None else mean_and_std(validation)
        yield (
            f'<tr{" class=best" if mark else ""}><td class="text number">{escape(row.name)}{mark}</td>'
            f'<td class="text">{text}</td><td class="number">{measured}</td></tr>'
        )


def _figure(picture: Picture) -> str:
    data = base64.b64encode(picture.png).decode("ascii")
    return (
        f'<figure><img alt="{escape(picture.title)}: {escape(picture.caption)}" src="data:image/png;base64,{data}">'
        f"<figcaption><strong>{escape(picture.title)}.</strong> {escape(picture.caption)}</figcaption></figure>"
    )


def _list(sentences: Iterable[str], name: str) -> str:
    return f'<ul class="{name}">{"".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)}</ul>'


def _definitions(values: dict[str, Any]) -> Iterator[str]:
    """Return the entries of a nested object as a definition list's lines."""
    for key, value in values.items():
        yield f"<dt>{escape(str(key))}</dt>"
        if isinstance(value, dict):
            yield f"<dd>{escape(', '.join(f'{name} {entry}' for name, entry in value.items()))}</dd>"
        elif isinstance(value, list):
            yield f"<dd>{escape(', '.join(map(str, value)) or 'none')}</dd>"
        else:
            yield f"<dd>{escape(str(value))}</dd>"
