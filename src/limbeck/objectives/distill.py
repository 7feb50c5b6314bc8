"""Learning from frozen teachers, and from labels beside them."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from limbeck.config import CrossEntropyTerm
from limbeck.objectives.supervised import Batch, Outcome, Supervised
from limbeck.objectives.terms import build_divergence, cross_entropy

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from limbeck.config import Term
    from limbeck.losses import DivergenceLoss


class Distillation(Supervised):
    """Weighted terms between the student, the labels and one or several teachers.

    The teachers see the images that the student sees. They are frozen and in eval mode, whatever mode this module
    is put in, and belong neither to its parameters nor to its state. A divergence is the mean over the teachers; each
    (term, teacher) has a loss module of its own, because class priors differ from teacher to teacher.

    Args:
        student: The network that trains.
        teachers: At least one.
        terms: Terms of the loss.
        epochs: Length of the run, which the terms' decay refers to.
        num_classes: C.
        recorded: What each teacher says of the whole training split, `(samples, C)`. Where the views are the images
            themselves, this saves the teachers' forward passes.
    """

    def __init__(
        self,
        student: nn.Module,
        teachers: Sequence[nn.Module],
        terms: Sequence[Term],
        *,
        epochs: int,
        num_classes: int,
        recorded: Sequence[Tensor] = (),
    ) -> None:
        super().__init__(student, terms, epochs=epochs)
        # A tuple is not registered, so train(), parameters(), to() and state_dict() pass the teachers by.
        self.teachers = tuple(teacher.eval().requires_grad_(False) for teacher in teachers)
        self.recorded = tuple(recorded)
        for name, term in self.terms.items():
            if not isinstance(term, CrossEntropyTerm):
                self.losses[name] = nn.ModuleList(build_divergence(term, num_classes) for _ in self.teachers)

    def forward(self, batch: Batch) -> Outcome:
        """Return the loss of a batch, its parts and the logits of student and teachers."""
        target_logits = self._target_logits(batch)
        logits = self.student(batch.images)
        parts = {}
        for name, term in self.terms.items():
            if isinstance(term, CrossEntropyTerm):
                parts[name] = cross_entropy(term, logits, batch.labels)
            else:
                parts[name] = self._divergence(name, logits, target_logits, batch.labels)
        return Outcome(self._total(parts), logits, parts, target_logits)

    @torch.no_grad()
    def _target_logits(self, batch: Batch) -> tuple[Tensor, ...]:
        if not self.losses:
            return ()  # only cross-entropies: nobody asks the teachers
        if self.recorded:
            return tuple(logits[batch.indices] for logits in self.recorded)
        return tuple(teacher(batch.images) for teacher in self.teachers)

    def _divergence(self, name: str, logits: Tensor, target_logits: Sequence[Tensor], labels: Tensor) -> Tensor:
        pairs = zip(self._per_teacher(name), target_logits, strict=True)
        values = [loss(logits, target, labels) for loss, target in pairs]
        return values[0] if len(values) == 1 else torch.stack(values).mean()

    def _per_teacher(self, name: str) -> list[DivergenceLoss]:
        return list(cast("Iterable[DivergenceLoss]", self.losses[name]))

    def after_step(self, batch: Batch, outcome: Outcome) -> None:
        """Let every loss observe its teacher's logits and the labels, soft ones as they are."""
        for name in self.losses:
            for loss, target in zip(self._per_teacher(name), outcome.target_logits, strict=True):
                loss.observe(target, batch.labels)
