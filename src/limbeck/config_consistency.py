"""Consistency between an image and its AugMix views. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from limbeck.config_terms import Options, Positive

if TYPE_CHECKING:
    from limbeck.config import Recipe


class AugMixOptions(Options):
    """Views by AugMix (arXiv 1912.02781): chains of operations, mixed with one another, then with the image."""

    views: Annotated[int, Field(ge=1)] = Field(2, description="Of each image, beside the clean one.")
    width: Annotated[int, Field(ge=1)] = Field(3, description="Chains that are mixed, by shares that are drawn.")
    depth: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Operations of a chain; null draws 1, 2 or 3 for each."
    )
    severity: Annotated[Positive, Field(le=10)] = Field(
        3.0, description="Strongest magnitude of an operation, of 10; each draws its own from 0.1 on."
    )


class ConsistencyOptions(Options):
    """The task consistency."""

    classified: Literal["clean", "views", "all"] = Field(
        "clean", description="What the cross-entropy reads: the images, their views, or the mean over all of these."
    )
    detached: Literal["nobody", "clean"] = Field(
        "nobody",
        description="Whether a divergence between a view and the image, its target, moves the clean logits too, as in "
        "AugMix.",
    )


def check_consistency(recipe: Recipe) -> None:
    """Raise ValueError for views without a task that compares them, or the other way."""
    if recipe.task == "consistency" and recipe.data.augmix is None:
        raise ValueError("task `consistency` expected options in `data.augmix`, such as {views: 2}, got none")
    if recipe.task != "consistency" and recipe.data.augmix is not None:
        raise ValueError(f"`data.augmix` belongs to task `consistency`, got task `{recipe.task}`")
    if recipe.task == "consistency" and (recipe.data.augment.mixup or recipe.data.augment.cutmix):
        raise ValueError("task `consistency` compares views of one image, so `mixup` and `cutmix` expected 0")
