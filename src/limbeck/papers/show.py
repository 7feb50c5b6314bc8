"""What `limbeck papers` prints: the whole map, one source of it, or one entry."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from limbeck.papers.entries import Entry, Paper, Status, find, load_papers, pointer_kind
from limbeck.papers.recipes import named_in_headers, recipes_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import RenderableType

MARKS: dict[Status, tuple[str, str]] = {
    "reproduced": ("●", "green"),
    "same code, small data": ("◐", "cyan"),
    "not reproduced": ("○", "yellow"),
    "not built": ("·", "dim"),
}


def print_papers(word: str | None = None) -> None:
    """Print the map.

    Args:
        word: What `find` takes; None prints every source.

    Raises:
        UserError: Nothing is called so.
    """
    found = None if word is None else find(word)
    console = Console(markup=False, highlight=False)
    lines = _entry(found) if isinstance(found, Entry) else _map(found, console.width)
    for line in lines:
        console.print(line, soft_wrap=isinstance(line, str))  # what may be copied is never broken


def _map(only: Paper | None, width: int) -> Iterator[RenderableType]:
    for paper in (only,) if only else load_papers().values():
        yield Text(f"{paper.id}  {paper.title}", style="bold")
        yield f"{paper.source}; {paper.link}"
        yield count_line(paper)
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
        table.add_column("")
        table.add_column("id", no_wrap=True)
        table.add_column("what", ratio=1)
        table.add_column("where", no_wrap=True, overflow="ellipsis", max_width=width // 4)
        for entry in paper.entries:
            table.add_row(Text(*MARKS[entry.status]), entry.name, entry.title, where_in_short(entry))
        yield table
        yield ""
    yield "limbeck papers ID shows one entry: figures, recipes, commands, what is missing."


def count_line(paper: Paper) -> Text:
    """Return how many entries there are of each status, which is the table's legend too."""
    words = []
    for status, number in paper.counts().items():
        mark, style = MARKS[status]
        words.append(Text(f"{mark} {number} {status}", style))
    return Text("  ").join(words)


def where_in_short(entry: Entry) -> str:
    """Return the first thing that answers an entry, recipes before all else, and how many more there are."""
    recipes = len(named_in_headers().get(entry.id, ()))
    words = [f"{recipes} recipe{'s' * (recipes > 1)}"] if recipes else []
    words += [_in_short(pointer) for pointer in entry.where]
    return f"{words[0]} +{len(words) - 1}" if len(words) > 1 else "".join(words)


def _in_short(pointer: str) -> str:
    """Return a name without its room, a page without its anchor, a test's file, a command without its arguments."""
    match pointer_kind(pointer):
        case "name":
            return pointer.split(".", 2)[2]
        case "command":
            return " ".join(pointer.split()[:2])
    return pointer.split("#")[0].split("::")[0]


def _entry(entry: Entry) -> Iterator[RenderableType]:
    paper = load_papers()[entry.id.split(":")[0]]
    yield Text(f"{entry.id}  {entry.title}", style="bold")
    yield f"{paper.name}: {paper.source}; {paper.link}"
    yield Text(f"\n{MARKS[entry.status][0]} {entry.status}", style=MARKS[entry.status][1])
    for name, text in (("Why", entry.why), ("Needs", entry.needs), ("Ours", entry.ours), ("Paper", entry.paper)):
        if text:
            yield Text(f"{name}: {text}")
    if entry.rows:
        yield Padding(_rows(entry.rows), (1, 0, 0, 2))
    recipes = recipes_of(entry.id)
    if recipes:
        yield Text("\nRecipes", style="bold")
    for recipe in recipes:
        yield from (f"  {command}" for command in recipe.commands)
        told = [f"{name}: {text}" for name, text in (("paper", recipe.paper), ("ours", recipe.ours)) if text]
        yield Padding(Text("\n".join(told)), (0, 0, 0, 4))
    if entry.where:
        yield Text("\nWhere", style="bold")
        yield "\n".join(f"  {pointer}" for pointer in entry.where)


def _rows(rows: tuple[tuple[str, ...], ...]) -> Table:
    """Return the paper's figures, all columns but the first at the right if they hold numbers."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    for position, title in enumerate(rows[0]):
        cells = [row[position] for row in rows[1:]]
        numbers = all(cell[:1] in "+-0123456789" for cell in cells)
        table.add_column(title, justify="right" if numbers and position else "left")
    for row in rows[1:]:
        table.add_row(*row)
    return table
