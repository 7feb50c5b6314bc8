"""A phase of class-incremental learning: new classes from labels, old ones from the network before the phase."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from limbeck.config import CrossEntropyTerm
from limbeck.objectives import terms as objective_terms
from limbeck.objectives.distill import Distillation
from limbeck.objectives.layers import View

if TYPE_CHECKING:
    from collections.abc import Sequence

    from limbeck.config import Recipe, Term
    from limbeck.objectives.build import Facts
    from limbeck.objectives.layers import Layers
    from limbeck.objectives.supervised import Batch


class Incremental(Distillation):
    """Learning without forgetting (Li and Hoiem 2016, arXiv 1606.09282), with any divergence in the place of KL.

    The student has a row of its head for each class seen so far. Of both networks a divergence sees the logits of the
    old classes alone: the others are absent, at -inf on both sides, so that labels keep their meaning for class
    priors. The row of a new class in a prior is what the old network takes its images for.

    Args:
        student: The network that trains; it has learned the old classes.
        teachers: The network before the phase, whose logits of new classes are of no concern.
        recipe: Its `losses`, `incremental`, `data.phase` and `train` are read.
        facts: What losses are built from.
        recorded: See `Distillation`.
    """

    def __init__(
        self,
        student: nn.Module,
        teachers: Sequence[nn.Module],
        recipe: Recipe,
        *,
        facts: Facts,
        recorded: Sequence[Tensor] = (),
    ) -> None:
        if recipe.data.phase is None or recipe.incremental is None:
            raise ValueError("expected a phase, got a recipe of none")
        self.old, self.own_classes_alone = recipe.data.phase.old, recipe.incremental.classification == "new"
        train = recipe.train
        super().__init__(
            student,
            teachers,
            recipe.losses,
            epochs=train.epochs,
            facts=facts,
            recorded=recorded,
            precision=train.teacher_precision,
            compiled=train.compile,
        )

    def _own_part(self, name: str, term: Term, view: View, batch: Batch) -> Tensor:
        if not isinstance(term, CrossEntropyTerm) or not self.own_classes_alone:
            return super()._own_part(name, term, view, batch)
        soft = batch.labels.is_floating_point()
        labels = batch.labels[:, self.old :] if soft else batch.labels - self.old
        return objective_terms.cross_entropy(term, view.logits[:, self.old :], labels)

    def _targets(self, batch: Batch) -> tuple[View, ...]:
        return tuple(view._replace(logits=self._of_old_classes(view.logits)) for view in super()._targets(batch))

    def _arguments(
        self,
        name: str,
        term: Term,
        batch: Batch,
        view: View,
        target: View | None = None,
        teacher: Layers | None = None,
    ) -> list[object]:
        if target is not None:
            view = view._replace(logits=self._of_old_classes(view.logits))
        return super()._arguments(name, term, batch, view, target, teacher)

    def _of_old_classes(self, logits: Tensor) -> Tensor:
        new = torch.arange(logits.shape[-1], device=logits.device) >= self.old
        return logits.masked_fill(new, -torch.inf)
