"""The objective of a run, and what its losses are built from."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from limbeck.config import did_you_mean
from limbeck.data import Batch, Source
from limbeck.engine import ranks
from limbeck.engine.interrelations import compute_interrelations
from limbeck.engine.views import without_memory
from limbeck.errors import UserError
from limbeck.functional.interrelations import cost_from_interrelations, uniform_interrelations
from limbeck.interrelation_files import KINDS, read_interrelations
from limbeck.models.taps import FeatureError
from limbeck.objectives import Facts, Supervised, build_objective

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

    from limbeck.config import Recipe, WKDLogitTerm
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
    example = torch.zeros(1, *data.image_shape, device=data.device)
    facts = Facts(
        num_classes=data.num_classes,
        example=example,
        train_labels=data.train.labels if isinstance(data.train, Source) else None,
        costs=partial(_cost, data, teachers),
        seed=recipe.seed,
        sum_over_ranks=ranks.here().sum if ranks.here().world > 1 else None,
    )
    networks = [teacher.model for teacher in teachers]
    try:
        objective = build_objective(recipe, model, networks, facts, recorded, guide).to(data.device)
    except (TypeError, ValueError, FeatureError) as error:
        raise UserError(f"`losses`: {error}") from error
    if any("features" in term.inputs for term in recipe.losses):
        try:
            _rehearse(objective, example)
        except (TypeError, ValueError, FeatureError) as error:
            objective.close()  # the networks may be a user's
            raise UserError(f"`losses`: {error}") from error
    return objective


def refuse_misfits(recipe: Recipe, model: nn.Module, data: DataBundle, teachers: Sequence[nn.Module]) -> None:
    """Refuse losses of features that do not fit the networks, as long as nothing has been trained for them.

    Args:
        recipe: What to do.
        model: The student; a copy of it is looked at.
        data: The data.
        teachers: Networks like the teachers, trained or not, in the recipe's order.

    Raises:
        UserError: A network has no such layer, or a loss cannot pair its layers.
    """
    example = torch.zeros(1, *data.image_shape, device=data.device)
    facts = Facts(
        num_classes=data.num_classes,
        example=example,
        train_labels=data.train.labels if isinstance(data.train, Source) else None,
        costs=lambda position, term: cost_from_interrelations(uniform_interrelations(data.num_classes).float()),
        seed=recipe.seed,
    )
    try:
        networks = [copy.deepcopy(network).to(data.device) for network in (model, *teachers)]
        _rehearse(build_objective(recipe, networks[0], networks[1:], facts).to(data.device), example)
    except (TypeError, ValueError, FeatureError) as error:
        raise UserError(f"`losses`: {error}") from error


@torch.no_grad()
def _rehearse(objective: Supervised, example: Tensor) -> None:
    """Let the losses look at two empty images, in eval mode, so that layers that do not fit are found at once."""
    modes = [(part, part.training) for part in objective.modules()]
    places = torch.zeros(2, dtype=torch.int64, device=example.device)
    objective.eval()
    try:
        objective(Batch(example.repeat(2, *[1] * (example.dim() - 1)), places, places, step=0))
    finally:
        for part, training in modes:
            part.training = training


def _cost(data: DataBundle, teachers: Sequence[Teacher], position: int, term: WKDLogitTerm) -> Tensor:
    """Return the `(C, C)` cost of transport that a term names: of a file, or computed from a teacher."""
    kind = next((kind for kind in KINDS if kind == term.interrelations), None)
    if term.transport_weight == 0:
        kind = "uniform"  # none is used
    if kind is None:
        if "." not in term.interrelations and not Path(term.interrelations).exists():
            raise UserError(
                f"`interrelations` expected a file or a kind, got {term.interrelations!r}, which is neither; "
                f"{did_you_mean(term.interrelations, KINDS)}"
            )
        found = torch.from_numpy(read_interrelations(Path(term.interrelations)).interrelations)
        if found.shape != (data.num_classes, data.num_classes):
            raise UserError(
                f"{term.interrelations}: expected interrelations of {data.num_classes} classes, as `{data.name}` has, "
                f"got {len(found)}; make them with `limbeck interrelations`"
            )
        return cost_from_interrelations(found, sharpness=term.sharpness)
    if kind == "uniform":
        return cost_from_interrelations(uniform_interrelations(data.num_classes).float(), sharpness=term.sharpness)
    if not teachers:
        raise UserError(
            f"`interrelations: {kind}` are a teacher's, and this task has none; name a file, or take uniform"
        )
    network = without_memory(teachers[position].model)
    found = compute_interrelations(network, data.train, kind=kind, num_classes=data.num_classes)
    return cost_from_interrelations(found, sharpness=term.sharpness)
