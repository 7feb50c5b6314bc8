"""The objective of a run, and what its losses are built from."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from limbeck.data import Source
from limbeck.errors import UserError
from limbeck.objectives import Facts, Supervised, build_objective

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

    from limbeck.config import Recipe
    from limbeck.data import DataBundle
    from limbeck.engine.teachers import Teacher


def open_objective(
    recipe: Recipe,
    model: nn.Module,
    data: DataBundle,
    teachers: Sequence[Teacher],
    *,
    recorded: Sequence[Tensor] = (),
    guide: nn.Module | None = None,
) -> Supervised:
    """Return the objective of a run, on the data's device.

    Args:
        recipe: What to do.
        model: The student.
        data: The data.
        teachers: For the task `distill`.
        recorded: The teachers' logits on the training images, if no augmentation makes other views of them.
        guide: Second network that trains, for the task `adversarial`.

    Raises:
        UserError: A loss does not fit the networks or the data.
    """
    facts = Facts(
        num_classes=data.num_classes,
        example=torch.zeros(1, *data.image_shape, device=data.device),
        train_labels=data.train.labels if isinstance(data.train, Source) else None,
        seed=recipe.seed,
    )
    networks = [teacher.model for teacher in teachers]
    try:
        objective = build_objective(recipe, model, networks, facts, recorded, guide)
    except ValueError as error:
        raise UserError(f"`losses`: {error}") from error
    return objective.to(data.device)
