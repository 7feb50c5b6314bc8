"""The objective of a run, and what its losses are built from."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from limbeck.config import did_you_mean
from limbeck.config_tasks import CLASSIFIED
from limbeck.data import Batch, Source, StoredSource
from limbeck.engine import ranks
from limbeck.engine.gathered import gather_parts
from limbeck.engine.interrelations import compute_interrelations
from limbeck.engine.views import RememberingTeacher, without_memory
from limbeck.errors import UserError
from limbeck.functional.interrelations import cost_from_interrelations, uniform_interrelations
from limbeck.interrelation_files import KINDS, read_interrelations
from limbeck.models.running import Compiled
from limbeck.models.taps import FeatureError
from limbeck.objectives import Facts, Supervised, build_objective

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

    from limbeck.config import Recipe, WKDLogitTerm
    from limbeck.data import DataBundle
    from limbeck.engine.progress import Reporter
    from limbeck.engine.teachers import Teacher
    from limbeck.objectives.build import Costs


def open_objective(
    recipe: Recipe,
    model: nn.Module,
    data: DataBundle,
    teachers: Sequence[Teacher],
    *,
    recorded: Sequence[Tensor] = (),
    guide: nn.Module | None = None,
    reporter: Reporter | None = None,
) -> Supervised:
    """Return the objective of a run, on the data's device.

    Args:
        recipe: What to do.
        model: The student.
        data: The data.
        teachers: For the task `distill`.
        recorded: The teachers' logits on the training images, if no augmentation makes other views of them.
        guide: Second network that trains, for the task `adversarial`.
        reporter: Whom to tell of a pass over the training images, which costs between classes may need.

    Raises:
        UserError: A loss does not fit the networks or the data.
    """
    facts = _facts(recipe, data, partial(_cost, data, _columns(recipe, data), teachers, reporter))
    networks = [teacher.model for teacher in teachers]
    if recipe.train.teacher_compile:
        networks = [_compiled(network) for network in networks]
    return _fitting(recipe, model, data, networks, facts, recorded, guide)


def _compiled(teacher: nn.Module) -> nn.Module:
    """Return a teacher that runs through `torch.compile`, where it has a memory behind that."""
    network = Compiled(without_memory(teacher), "train.teacher_compile")
    return teacher.through(network) if isinstance(teacher, RememberingTeacher) else network


def refuse_misfits(recipe: Recipe, model: nn.Module, data: DataBundle, teachers: Sequence[nn.Module]) -> None:
    """Refuse losses of features that do not fit the networks, as long as nothing has been trained for them.

    Args:
        recipe: What to do.
        model: The student, which is left as it is.
        data: The data.
        teachers: Networks like the teachers, trained or not, in the recipe's order.

    Raises:
        UserError: A network has no such layer, or a loss cannot pair its layers.
    """
    uniform = cost_from_interrelations(uniform_interrelations(_columns(recipe, data)).float())
    facts = _facts(recipe, data, lambda position, term: uniform)
    _fitting(recipe, model, data, [teacher.to(data.device) for teacher in teachers], facts).close()


def _columns(recipe: Recipe, data: DataBundle) -> int:
    """Return how many logits a sample of the losses has: a detector's regions have one for the background."""
    return data.num_classes + (recipe.task == "detect")


def _facts(recipe: Recipe, data: DataBundle, costs: Costs) -> Facts:
    place = ranks.here()
    return Facts(
        num_classes=data.num_classes,
        example=torch.zeros(1, *data.image_shape, device=data.device),
        train_labels=data.train.labels if isinstance(data.train, Source | StoredSource) else None,
        costs=costs,
        seed=recipe.seed,
        sum_over_ranks=place.sum if place.world > 1 else None,
        gather=gather_parts if place.world > 1 and (recipe.train.gather or recipe.task == "image_text") else None,
    )


def _fitting(
    recipe: Recipe,
    model: nn.Module,
    data: DataBundle,
    teachers: Sequence[nn.Module],
    facts: Facts,
    recorded: Sequence[Tensor] = (),
    guide: nn.Module | None = None,
) -> Supervised:
    """Return an objective whose losses of features have looked at the networks once; no hook stays if one does not fit.

    Raises:
        UserError: A loss does not fit.
    """
    try:
        with _nothing_compiled(recipe):
            objective = build_objective(recipe, model, teachers, facts, recorded, guide).to(data.device)
            looks = any("features" in term.inputs for term in recipe.losses)
            if looks and facts.example is not None and recipe.task in CLASSIFIED:
                with ExitStack() as undo:
                    undo.callback(objective.close)  # the networks may be a user's
                    _rehearse(objective, facts.example)
                    undo.pop_all()
    except (TypeError, ValueError, FeatureError) as error:
        raise UserError(f"`losses`: {error}") from error
    return objective


def _nothing_compiled(recipe: Recipe) -> AbstractContextManager[None]:
    """Run networks as they are while losses look for shapes: a batch of two is not worth its compilation."""
    if not (recipe.train.compile or recipe.train.teacher_compile):
        return nullcontext()
    stance: AbstractContextManager[None] = torch.compiler.set_stance("force_eager")
    return stance


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


def _cost(
    data: DataBundle,
    classes: int,
    teachers: Sequence[Teacher],
    reporter: Reporter | None,
    position: int,
    term: WKDLogitTerm,
) -> Tensor:
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
        if found.shape != (classes, classes):
            raise UserError(
                f"{term.interrelations}: expected interrelations of {classes} classes, as `{data.name}` has, "
                f"got {len(found)}; make them with `limbeck interrelations`"
            )
        return cost_from_interrelations(found, sharpness=term.sharpness)
    if kind == "uniform":
        return cost_from_interrelations(uniform_interrelations(classes).float(), sharpness=term.sharpness)
    if not teachers:
        raise UserError(
            f"`interrelations: {kind}` are a teacher's, and this task has none; name a file, or take uniform"
        )
    known = teachers[position].interrelations
    if kind not in known:
        network = without_memory(teachers[position].model)
        # One rank looks at the images for all, as one process does.
        known[kind] = ranks.here().first_tells(
            lambda: compute_interrelations(network, data.train, kind=kind, num_classes=classes, reporter=reporter)
        )
    return cost_from_interrelations(known[kind], sharpness=term.sharpness)
