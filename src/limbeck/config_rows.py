"""Which rows of a comparison a command line means. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from limbeck.config_terms import did_you_mean
from limbeck.errors import UserError

if TYPE_CHECKING:
    from limbeck.config import Recipe


def select_rows(recipe: Recipe, rows: str | None) -> tuple[str, ...] | None:
    """Return the rows of a comparison that a comma-separated list names; None for all: no list, or `all`.

    Raises:
        UserError: the recipe has no rows, no such row, or the baseline is left out.
    """
    known = recipe.compare.contenders
    if not known:
        raise UserError("the recipe has no rows to compare; `limbeck recipes distill/digits/few-labels` shows some")
    if rows is None or rows.strip() == "all":
        return None
    spelt = {row.replace("-", "_"): row for row in known}  # either way of writing a loss
    words = [row.strip() for row in rows.split(",") if row.strip()]
    chosen = tuple(dict.fromkeys(word if word in known else spelt.get(word.replace("-", "_"), word) for word in words))
    for row in chosen:
        if row not in known:
            raise UserError(f"--losses: unknown row `{row}`; {did_you_mean(row, known)} (rows: {', '.join(known)})")
    if recipe.compare.baseline not in chosen:
        raise UserError(
            f"--losses expected the baseline `{recipe.compare.baseline}` among the rows, got {rows or 'none'}; "
            "add it, or name another: --set compare.baseline=ROW"
        )
    return chosen
