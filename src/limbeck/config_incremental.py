"""Class-incremental learning: classes that come one group after another. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from limbeck.config_terms import LogitTerm, Options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from limbeck.config import Recipe, Term

# Divergences in which a class that is absent on both sides counts for nothing, so that old classes are compared alone.
OF_OLD_CLASSES = ("kl", "reverse_kl", "js", "dkl", "ikl", "gkl")
IN_MEMORY = ("digits", "mnist5k", "cifar10", "cifar100")

Classes = Annotated[int, Field(ge=0)]


class PhaseOptions(Options):
    """The part of a data set that one phase of class-incremental learning sees; `limbeck train` fills it in."""

    old: Classes = Field(0, description="So many first classes were learned in the phases before.")
    seen: Annotated[int, Field(ge=1)] = Field(
        description="Old and new classes; images of later ones are in no part, and validation and test have all of "
        "these."
    )
    memory_per_class: Annotated[int, Field(ge=0)] = Field(
        0, description="Training images that are kept of each old class."
    )

    @model_validator(mode="after")
    def _some_are_new(self) -> PhaseOptions:
        if self.old >= self.seen:
            raise ValueError(f"`phase.seen` expected more than the {self.old} old classes, got {self.seen}")
        return self


class IncrementalOptions(Options):
    """A run in phases, each with classes of its own and the network before it for a teacher (LwF, arXiv 1606.09282)."""

    phases: Annotated[int, Field(ge=1)] = Field(
        5,
        description="How many; the first ones have a class more where the classes do not divide. 1 learns all at once.",
    )
    classification: Literal["new", "seen"] = Field(
        "new",
        description="Which logits the cross-entropy sees: those of the phase's own classes, or of old ones as well.",
    )
    memory_per_class: Annotated[int, Field(ge=0)] = Field(
        0, description="Training images that are kept of each old class for later phases; LwF has none."
    )

    @model_validator(mode="after")
    def _old_images_have_a_class(self) -> IncrementalOptions:
        if self.memory_per_class and self.classification == "new":
            raise ValueError("`memory_per_class` expected `classification: seen`, for old images have old classes")
        return self


def check_incremental(recipe: Recipe, terms: Sequence[Term]) -> None:
    """Raise ValueError for what does not go with the phases of a recipe, or belongs to them alone."""
    if recipe.incremental is None:
        return
    phase = recipe.data.phase
    if recipe.task != "distill":
        raise ValueError(f"`incremental` expected task `distill`, got task `{recipe.task}`")
    if recipe.data.name not in IN_MEMORY:
        raise ValueError(f"`incremental` expected one of {', '.join(IN_MEMORY)}, got `{recipe.data.name}`")
    if recipe.data.generated is not None or recipe.data.groups is not None:
        raise ValueError("`incremental` expected null for `data.generated` and `data.groups`, which are of all classes")
    if recipe.teachers and phase is None:
        raise ValueError("`incremental` makes each phase the teacher of the next, so `teachers` expected none")
    if phase is not None and not (phase.old and recipe.teachers):
        raise ValueError("a phase of `incremental` expected old classes and the run of the phase before in `teachers`")
    for term in terms:
        taught = any(what.startswith("target_") for what in term.inputs)
        if taught and term.name not in OF_OLD_CLASSES:
            raise ValueError(
                f"`incremental` compares the logits of old classes, by {', '.join(OF_OLD_CLASSES)}; got `{term.name}`"
            )
        if isinstance(term, LogitTerm) and term.standardize:
            raise ValueError("`incremental` compares some of the logits, so `standardize` expected false, got true")
    if "cross_entropy" not in {term.name for term in recipe.losses}:
        raise ValueError("`incremental` has no teacher in its first phase, so `losses` expected a cross_entropy")
