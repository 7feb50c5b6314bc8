"""Recipes that answer an entry: those whose header names it, `# Papers: gkl:table-xvii, ikl:table-13`."""

from __future__ import annotations

import functools
from typing import NamedTuple

from limbeck.config_files import find_recipe, header_fields, load_recipe, read_header, recipe_names


class RecipeRow(NamedTuple):
    """A recipe: how it is run, what the paper has for its rows, and what came out here."""

    recipe: str
    commands: tuple[str, ...]
    paper: str
    ours: str


@functools.cache
def named_in_headers() -> dict[str, tuple[str, ...]]:
    """Return the recipes of each id that a header names; a wrong id is there too, for the tests to find."""
    found: dict[str, tuple[str, ...]] = {}
    for recipe in recipe_names():
        fields = header_fields(read_header(find_recipe(recipe)))
        for entry in fields.get("Papers", "").split(","):
            if entry.strip():
                found[entry.strip()] = (*found.get(entry.strip(), ()), recipe)
    return found


def recipes_of(entry: str) -> list[RecipeRow]:
    """Return the recipes that name an entry, each read from its file.

    A recipe of the papers' protocol expects the paper's figures, those of `compare.published` for the rows that it
    trains (after adversarial training clean / AutoAttack), and says in its header whether they were reproduced. Any
    other recipe expects what came out here.
    """
    return [_row(recipe) for recipe in named_in_headers().get(entry, ())]


def _row(name: str) -> RecipeRow:
    recipe, fields = load_recipe(name), header_fields(read_header(find_recipe(name)))
    published = recipe.compare.published
    commands = tuple(text for text in fields.values() if text.startswith("limbeck "))  # a header may say how
    if not commands:
        verb, option = "compare" if recipe.compare.contenders else "train", " --table" if published else ""
        commands = (f"limbeck {verb} {name}{option}",)
    if recipe.protocol == "holdout":
        return RecipeRow(name, commands, "", fields.get("Expected", ""))
    if published is None:
        return RecipeRow(name, commands, fields.get("Expected", ""), fields.get("Reproduced", ""))
    clean: dict[str, float | None] = {"ce": published.student, **published.rows}
    shown = []
    for row in recipe.compare.contenders:
        both = (clean.get(row), published.robust_rows.get(row))
        figures = [f"{figure:.2f}" for figure in both if figure is not None]
        shown += [f"{row} {' / '.join(figures)}"] if figures else []
    return RecipeRow(name, commands, ", ".join(shown), fields.get("Reproduced", ""))
