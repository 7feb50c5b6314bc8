"""The map of the papers, from the data that `limbeck papers` prints: `<!-- papers: gkl -->` stands for one source."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from limbeck import functional, losses
from limbeck.papers import KINDS, Entry, Paper, load_papers, pointer_kind
from limbeck.papers.recipes import recipes_of

ROOMS = Path(__file__).parents[1] / "reference" / "rooms.md"
ID = re.compile(rf"\b(?:{'|'.join(load_papers())}):(?:{'|'.join(KINDS)})-[a-z0-9-]*[a-z0-9]")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace the marks. An unknown source is an error, and so is a failed build."""
    return re.sub(r"<!-- papers: (\w+) -->", lambda mark: "\n\n".join(_paper(load_papers()[mark[1]])), markdown)


def _paper(paper: Paper) -> Iterator[str]:
    counts = ", ".join(f"{number} {status}" for status, number in paper.counts().items())
    yield f"[{paper.title}]({paper.link}), {paper.source}. {_linked(paper.note)}"
    yield f"{len(paper.entries)} entries: {counts}."
    for kind, title in KINDS.items():
        entries = [entry for entry in paper.entries if entry.kind == kind]
        if entries:
            yield f"### {title} {{ #{paper.id}-{kind} }}"
            yield "| id | what | status | where |\n| --- | --- | --- | --- |\n" + "\n".join(map(_line, entries))
            yield from (_details(entry) for entry in entries if _has_details(entry))


def anchor(entry: str) -> str:
    """Return the place of an entry on the page: `gkl-table-xvii`."""
    return entry.replace(":", "-")


def _has_details(entry: Entry) -> bool:
    return bool(entry.paper or entry.rows or entry.ours or entry.needs or entry.why or recipes_of(entry.id))


def _line(entry: Entry) -> str:
    name = f"[`{entry.name}`](#{anchor(entry.id)})"
    if not _has_details(entry):
        name = f'<span id="{anchor(entry.id)}">`{entry.name}`</span>'
    pointers = [_pointer(pointer) for pointer in entry.where if pointer_kind(pointer) != "test"]
    tests = sum(pointer_kind(pointer) == "test" for pointer in entry.where)
    pointers += [f"{tests} test{'s' * (tests > 1)}"] if tests else []
    recipes = len(recipes_of(entry.id))
    pointers += [f"{recipes} recipe{'s' * (recipes > 1)}"] if recipes else []
    return f"| {name} | {entry.title} | {entry.status} | {', '.join(pointers)} |"


def _details(entry: Entry) -> str:
    """Return all of an entry but its first line, folded."""
    texts = (("Why", entry.why), ("Needs", entry.needs), ("Ours", entry.ours), ("Paper", entry.paper))
    parts = [f"**{name}.** {_linked(text)}" for name, text in texts if text]
    if entry.rows:
        head, *rows = (f"| {' | '.join(row)} |" for row in entry.rows)
        parts.append("\n".join([head, "| --- " * len(entry.rows[0]) + "|", *rows]))
    recipes = [
        f"| {'<br>'.join(f'`{command}`' for command in row.commands)} | {row.paper} | {row.ours} |"
        for row in recipes_of(entry.id)
    ]
    if recipes:
        parts.append("\n".join(["| command | paper | ours |", "| --- | --- | --- |", *recipes]))
    tests = [f"- `{pointer}`" for pointer in entry.where if pointer_kind(pointer) == "test"]
    if tests:
        parts.append("\n".join(tests))
    summary = f"<summary>{entry.id}: {html.escape(entry.title)}</summary>"
    return "\n\n".join([f'<details id="{anchor(entry.id)}" markdown="1">{summary}', *parts, "</details>"])


def _linked(text: str) -> str:
    """Turn the ids in a text into links on the page."""
    return ID.sub(lambda found: f"[{found[0]}](#{anchor(found[0])})", text)


def _pointer(pointer: str) -> str:
    """Return a link where the page that it leads to is on the site, else the words."""
    match pointer_kind(pointer):
        case "name" if pointer in _documented():
            return f"[`{pointer.split('.', 2)[2]}`][{pointer}]"
        case "page":
            page = pointer.removeprefix("docs/")
            return f"[{page.split('#')[0].removesuffix('.md').replace('-', ' ')}]({page})"
    return f"`{pointer}`"


def _documented() -> set[str]:
    """Return the names that the reference has an entry for."""
    rooms = {room.__name__: room.__all__ for room in (functional, losses)}
    names = {f"{room}.{name}" for room, public in rooms.items() for name in public}
    return names | {f"{losses.__name__}.GKLLoss.preset", *re.findall(r"^::: (\S+)", ROOMS.read_text("utf-8"), re.M)}
