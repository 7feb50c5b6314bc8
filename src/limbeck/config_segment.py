"""Options of the task `segment`. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from limbeck.config_terms import NonNegative, Options

if TYPE_CHECKING:
    from limbeck.config import Recipe


class SegmentOptions(Options):
    """A class for each pixel."""

    auxiliary_weight: NonNegative = Field(
        0.4, description="Factor of the cross-entropy of an auxiliary head, beside the other's; of networks with one."
    )


def check_segment(recipe: Recipe) -> None:
    """Raise ValueError for what pixels do not have."""
    if recipe.task != "segment":
        return
    rows = recipe.compare.contenders.values()
    for term in (term for setting in (recipe.losses, *(s for row in rows for s in row.settings)) for term in setting):
        if getattr(term, "binary", False):
            raise ValueError("task `segment` expected `binary: false` of cross_entropy, got true")
        if term.name == "apd" and recipe.train.accumulate > 1:
            raise ValueError(
                "the loss `apd` has centres of the whole batch and a step of its teacher's adapter for it, so "
                f"`train.accumulate` expected 1, got {recipe.train.accumulate}"
            )
        if getattr(term, "standardize", False):
            raise ValueError(f"task `segment` expected `standardize: false` of `{term.name}`, got true")
