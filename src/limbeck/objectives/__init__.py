"""What one batch means: images and labels in; loss, logits and the loss's parts out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from limbeck.config import UnlabelledOptions
from limbeck.objectives.adversarial import Adversarial
from limbeck.objectives.build import Facts
from limbeck.objectives.consistency import Consistency
from limbeck.objectives.detection import Detection
from limbeck.objectives.distill import Distillation
from limbeck.objectives.image_text import ImageText
from limbeck.objectives.incremental import Incremental
from limbeck.objectives.segmentation import Segmentation
from limbeck.objectives.semi_supervised import SemiSupervised
from limbeck.objectives.supervised import Batch, Outcome, Supervised

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

    from limbeck.config import Recipe

__all__ = [
    "Adversarial",
    "Batch",
    "Consistency",
    "Detection",
    "Distillation",
    "Facts",
    "ImageText",
    "Incremental",
    "Outcome",
    "Segmentation",
    "SemiSupervised",
    "Supervised",
    "build_objective",
]


def build_objective(
    recipe: Recipe,
    student: nn.Module,
    teachers: Sequence[nn.Module],
    facts: Facts,
    recorded: Sequence[Tensor] = (),
    guide: nn.Module | None = None,
) -> Supervised:
    """Return the objective of a recipe's task.

    Args:
        recipe: Its `task`, `losses`, `adversary` and `train` are read.
        student: The network that trains.
        teachers: Networks to learn from; they are frozen here. For the task `distill`.
        facts: What losses are built from.
        recorded: See `Distillation`.
        guide: See `Adversarial`.
    """
    train = recipe.train
    match recipe.task:
        case "supervised":
            return Supervised(student, recipe.losses, epochs=train.epochs, facts=facts, compiled=train.compile)
        case "distill" if recipe.incremental is not None:
            return Incremental(student, teachers, recipe, facts=facts, recorded=recorded)
        case "distill":
            return Distillation(
                student,
                teachers,
                recipe.losses,
                epochs=train.epochs,
                facts=facts,
                recorded=recorded,
                precision=train.teacher_precision,
                compiled=train.compile,
            )
        case "consistency":
            options, epochs = recipe.consistency, train.epochs
            return Consistency(student, recipe.losses, options, epochs=epochs, facts=facts, compiled=train.compile)
        case "adversarial":
            return Adversarial(
                student,
                recipe.losses,
                recipe.adversary,
                epochs=train.epochs,
                facts=facts,
                guide=guide,
            )
        case "semi_supervised":
            unlabelled = recipe.data.unlabelled or UnlabelledOptions()
            return SemiSupervised(
                student,
                recipe.losses,
                recipe.semi_supervised,
                ratio=unlabelled.ratio,
                epochs=train.epochs,
                facts=facts,
            )
        case "image_text":
            return ImageText(
                student,
                teachers,
                recipe.losses,
                recipe.image_text,
                epochs=train.epochs,
                facts=facts,
                precision=train.teacher_precision,
                compiled=train.compile,
            )
        case "detect":
            return Detection(
                student,
                teachers,
                recipe.losses,
                recipe.detect,
                epochs=train.epochs,
                facts=facts,
                precision=train.teacher_precision,
            )
        case "segment":
            return Segmentation(student, teachers, recipe, facts=facts)
        case _:
            raise ValueError(f"no objective of the task `{recipe.task}`")
