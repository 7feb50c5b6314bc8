"""How images without labels are learned from. Imports no torch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from limbeck.config_terms import Fraction, NonNegative, Options

if TYPE_CHECKING:
    from limbeck.config import Recipe
    from limbeck.config_terms import TermOptions


class SemiSupervisedOptions(Options):
    """Whom the strong view is drawn to, which images count, and how consistency sets in.

    The losses between two predictions are those of `losses` that have a target; their `weight` is that of the
    unlabelled images. A cross-entropy is that of the labelled ones.
    """

    method: Literal["fixmatch", "mean_teacher"] = Field(
        "fixmatch",
        description="Who looks at the weak view: the student itself, or an average of its weights (EMA).",
    )
    confidence: Fraction = Field(
        0.95,
        description="Images count whose weak view has a probability of at least this; the mean is over all, so that "
        "the others count 0. 0 takes all images: Mean-Teacher as published.",
    )
    detach_weak: bool = Field(
        True,
        description="fixmatch: no gradient through the weak view. false as in the GKL authors' code: both views "
        "move, by the pair term of DKL, IKL and GKL, and by all of KL, JS and squared differences.",
    )
    ramp: Literal["none", "sigmoid", "linear"] = Field(
        "none",
        description="How the weight of consistency rises: not, as exp(-5 (1 - t)^2) as in Mean-Teacher, or as t.",
    )
    ramp_epochs: NonNegative = Field(
        0.0, description="t goes from 0 in the first epoch to 1 after so many, and stays there."
    )
    teacher_decay: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.999, description="mean_teacher: decay of the average, min(1 - 1 / (step + 1), this) as published."
    )
    teacher_mode: Literal["train", "eval"] = Field(
        "train",
        description="mean_teacher: train, as published, with dropout, and BatchNorms that see their batch and keep "
        "statistics of their own; eval with statistics averaged as the weights are.",
    )
    forwards: Literal["together", "apart"] = Field(
        "together",
        description="Whether the student sees labelled and unlabelled images in one batch, which a BatchNorm "
        "normalises together, or one after the other.",
    )
    evaluate: Literal["student", "teacher"] = Field(
        "student", description="Which of the two mean_teacher is known for: validated, chosen by, reported."
    )

    @model_validator(mode="after")
    def _belong_together(self) -> SemiSupervisedOptions:
        if (self.ramp == "none") != (self.ramp_epochs == 0):
            raise ValueError(
                f"`ramp` and `ramp_epochs` expected each other, got {self.ramp} and {self.ramp_epochs:g}; set both, or "
                "none and 0"
            )
        if self.method == "fixmatch" and self.evaluate == "teacher":
            raise ValueError("`evaluate: teacher` belongs to `method: mean_teacher`; expected student")
        if self.method == "mean_teacher" and not self.detach_weak:
            raise ValueError("`detach_weak: false` belongs to `method: fixmatch`: no gradient goes through an average")
        return self

    def ramped(self, epoch: int) -> float:
        """Return the factor of consistency in an epoch, counted from 1.

        >>> options = SemiSupervisedOptions(ramp="linear", ramp_epochs=4)
        >>> [options.ramped(epoch) for epoch in (1, 2, 5, 9)]
        [0.0, 0.25, 1.0, 1.0]
        """
        if self.ramp == "none":
            return 1.0
        t = min((epoch - 1) / self.ramp_epochs, 1.0)
        return t if self.ramp == "linear" else math.exp(-5 * (1 - t) ** 2)


def draws_to_a_target(term: TermOptions) -> bool:
    """Whether a term is one of consistency: between two predictions."""
    return "target_logits" in term.inputs


def check_semi_supervised(recipe: Recipe) -> None:
    """Raise ValueError for images or losses that do not fit the task, or that only this task has."""
    pool, task = recipe.data.unlabelled, recipe.task
    if (pool is not None) != (task == "semi_supervised"):
        if pool is not None:
            raise ValueError(f"`data.unlabelled` belongs to task `semi_supervised`, got task `{task}`; set it to null")
        raise ValueError(
            "task `semi_supervised` expected options in `data.unlabelled`, got null; {} takes the defaults, beside a "
            "number of `data.labels_per_class`"
        )
    if task != "semi_supervised":
        return
    rows = (setting for row in recipe.compare.contenders.values() for setting in row.settings)
    for terms in (recipe.losses, *rows):
        if all(map(draws_to_a_target, terms)):
            raise ValueError(
                "task `semi_supervised` expected a cross_entropy, of the labelled images, among its losses, got "
                f"{', '.join(term.name for term in terms)}"
            )
