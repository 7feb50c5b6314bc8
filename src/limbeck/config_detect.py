"""What a training step of the task `detect` draws, and what its losses look at. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from limbeck.config_terms import FeatureTerm, Options
from limbeck.config_terms_detection import PYRAMID, REGIONS, FGFITerm
from limbeck.config_terms_transport import WKDLogitTerm

if TYPE_CHECKING:
    from collections.abc import Sequence

    from limbeck.config import Recipe, Term

OF_IMAGES = ("cka", "rbf", "polynomial", "centroid", "covariance")  # interrelations of whole images' features


class DetectOptions(Options):
    """What a step of detection draws of each image; a quarter of the regions and half of the anchors match objects."""

    anchors: Annotated[int, Field(ge=2)] = Field(
        64, description="Anchors of an image that the first stage learns from; published 256."
    )
    regions: Annotated[int, Field(ge=4)] = Field(
        64, description="Regions of an image that the second stage and the losses between two networks see; 512."
    )
    feature_side: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Side of the pooled maps that losses of features see; null is the box head's; published 18."
    )


def check_detect(recipe: Recipe, settings: Sequence[Sequence[Term]]) -> None:
    """Raise ValueError for what the task `detect` does not have."""
    if recipe.task != "detect":
        if recipe.detect != DetectOptions():
            raise ValueError(f"`detect` belongs to task `detect`, got task `{recipe.task}`")
        return
    for setting in settings:
        if all(term.name != "detection" for term in setting):
            raise ValueError("task `detect` expected `detection`, the boxes' own loss, among the losses, got none")
        for term in setting:
            _check_layers(term)
            if isinstance(term, WKDLogitTerm) and term.interrelations in OF_IMAGES:
                raise ValueError(
                    f"task `detect` expected `interrelations` of classifier, uniform or a file, got "
                    f"{term.interrelations}, which looks at whole images"
                )
    if recipe.train.compile or recipe.train.teacher_compile:
        option = "compile" if recipe.train.compile else "teacher_compile"
        raise ValueError(f"task `detect` calls a network part by part, so `train.{option}` expected false, got true")


def _check_layers(term: Term) -> None:
    if not isinstance(term, FeatureTerm):
        return
    known = (PYRAMID,) if isinstance(term, FGFITerm) else (REGIONS, PYRAMID)
    for option in ("features", "target_features"):
        for name in getattr(term, option) or ():
            if name not in known:
                raise ValueError(
                    f"task `detect` expected `{option}` of the loss `{term.name}` among {', '.join(known)}, "
                    f"got {name}; write {option}: [{known[0]}]"
                )
