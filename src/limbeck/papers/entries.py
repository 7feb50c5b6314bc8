"""Entries of the map, one file of YAML per source, and how one is found by a word of the command line."""

from __future__ import annotations

import difflib
import functools
import re
from pathlib import Path
from typing import Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

from limbeck.errors import UserError

SOURCES = ("gkl", "ikl", "wkd", "slides")
KINDS = {
    "eq": "Equations",
    "theorem": "Theorems",
    "algorithm": "Algorithms",
    "table": "Tables",
    "figure": "Figures",
    "claim": "Claims",
}
WRITTEN = {
    "equation": "eq",
    "fig": "figure",
    "tab": "table",
    "alg": "algorithm",
    "thm": "theorem",
}  # how papers write kinds
Status = Literal["reproduced", "same code, small data", "not reproduced", "not built"]
STATUSES: tuple[Status, ...] = get_args(Status)
REQUIRED: dict[Status, tuple[str, ...]] = {
    "reproduced": ("where",),
    "same code, small data": ("ours",),
    "not reproduced": ("needs",),
    "not built": ("why",),
}


class Entry(BaseModel):
    """One numbered thing of a source, or one claim, and what answers it here."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(pattern=rf"^({'|'.join(SOURCES)}):({'|'.join(KINDS)})-[a-z0-9][a-z0-9-]*$")
    title: str = Field(min_length=1)
    status: Status
    where: tuple[str, ...] = ()
    paper: str = ""
    rows: tuple[tuple[str, ...], ...] = ()
    ours: str = ""
    needs: str = ""
    why: str = ""

    @property
    def name(self) -> str:
        """The id without its source: `table-xvii`."""
        return self.id.split(":")[1]

    @property
    def kind(self) -> str:
        """One of `KINDS`."""
        return self.name.split("-")[0]

    @property
    def number(self) -> str:
        """The name without its kind: `xvii`."""
        return self.name.split("-", 1)[1]

    @model_validator(mode="after")
    def _says_what_its_status_promises(self) -> Entry:
        given = self.model_dump()
        missing = [field for field in REQUIRED[self.status] if not given[field]]
        if missing:
            raise ValueError(f"{self.id} is {self.status}, so it needs `{missing[0]}`")
        if self.why and self.status != "not built":
            raise ValueError(f"{self.id} is {self.status}, but `why` says why it is not built")
        if len({len(row) for row in self.rows}) > 1:
            raise ValueError(f"{self.id}: rows of different lengths")
        return self


class Paper(BaseModel):
    """A source with its entries. `inventory` lists the numbers that it has, kind by kind."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    name: str
    title: str
    source: str
    link: str
    note: str
    inventory: dict[str, tuple[str, ...]]
    entries: tuple[Entry, ...]

    @model_validator(mode="after")
    def _has_its_entries(self) -> Paper:
        ids = [entry.id for entry in self.entries]
        if foreign := [name for name in ids if not name.startswith(f"{self.id}:")]:
            raise ValueError(f"{foreign[0]} stands in the file of `{self.id}`")
        if twice := [name for name in ids if ids.count(name) > 1]:
            raise ValueError(f"{twice[0]} stands there twice")
        numbered = [f"{self.id}:{kind}-{number}" for kind, numbers in self.inventory.items() for number in numbers]
        if missing := [name for name in numbered if name not in ids]:
            raise ValueError(f"{missing[0]} is in the inventory and has no entry")
        if unknown := [entry.id for entry in self.entries if entry.kind != "claim" and entry.id not in numbered]:
            raise ValueError(f"{unknown[0]} is not in the inventory")
        return self

    def counts(self) -> dict[Status, int]:
        """Return how many entries have each status, those with none left out."""
        found = [entry.status for entry in self.entries]
        return {status: found.count(status) for status in STATUSES if status in found}


def read_paper(path: Path) -> Paper:
    """Read one source. Every scalar is text, so that `64.60` keeps its last digit and `no` is a word."""
    loader = yaml.CBaseLoader if yaml.__with_libyaml__ else yaml.BaseLoader
    return Paper.model_validate(yaml.load(path.read_text(encoding="utf-8"), loader))


@functools.cache
def load_papers() -> dict[str, Paper]:
    """Return the sources by their short names, in the order of `SOURCES`."""
    return {source: read_paper(Path(__file__).parent / f"{source}.yaml") for source in SOURCES}


def find(word: str) -> Paper | Entry:
    """Return what a word of the command line means.

    Args:
        word: A source (`gkl`), an id (`gkl:table-xvii`), or the end of an id where it is the only one (`table-xvii`,
            `XVII`), as papers write it too (`Table XVII`, `Eq. (13)`). Upper and lower case are the same.

    Raises:
        UserError: No such thing, or several.

    >>> find("XVII").id, find("Table XVII").id
    ('gkl:table-xvii', 'gkl:table-xvii')
    """
    papers = load_papers()
    wanted = _as_in_ids(word)
    if wanted in papers:
        return papers[wanted]
    entries = {entry.id: entry for paper in papers.values() for entry in paper.entries}
    if wanted in entries:
        return entries[wanted]
    found = [entry for entry in entries.values() if wanted in (entry.name, entry.number)]
    if len(found) == 1:
        return found[0]
    if found:
        shown = [f"`{entry.id}`" for entry in found[:4]] + [f"{len(found) - 4} others"] * (len(found) > 4)
        raise UserError(f"`{word}` could be {' or '.join(shown)}")
    ends = {end: entry.id for entry in entries.values() for end in (entry.number, entry.name, entry.id)}
    nearest = difflib.get_close_matches(wanted, [*papers, *ends], n=1, cutoff=0.5)
    hint = f"did you mean `{ends.get(nearest[0], nearest[0])}`?" if nearest else "`limbeck papers` lists all"
    raise UserError(f"nothing in the papers is called `{word}`; {hint}")


def _as_in_ids(word: str) -> str:
    """Return a word as ids are written, whatever a paper makes of it.

    >>> _as_in_ids("Eq. (13)"), _as_in_ids("GKL Table XVII"), _as_in_ids("Fig. 2")
    ('eq-13', 'gkl:table-xvii', 'figure-2')
    """
    parts = re.split(r"[\s.()-]+", word.strip(" \t.()").lower())
    parts = [WRITTEN.get(part, part) for part in parts]
    if parts[0] in SOURCES and len(parts) > 1:
        return f"{parts[0]}:{'-'.join(parts[1:])}"
    return "-".join(parts)


def pointer_kind(pointer: str) -> str:
    """Return what a pointer of `where` points to: name, command, recipe, test, page or script.

    >>> pointer_kind("limbeck.losses.GKLLoss"), pointer_kind("docs/theory.md#kl-is-two-losses")
    ('name', 'page')
    """
    starts = {"limbeck.": "name", "limbeck ": "command", "tests/": "test", "docs/": "page"}
    starts |= {"examples/": "script", "benchmarks/": "script"}
    return next((kind for start, kind in starts.items() if pointer.startswith(start)), "recipe")
