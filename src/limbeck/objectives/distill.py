"""Learning from frozen teachers, and from labels beside them."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from limbeck.models.running import Precision, arithmetic
from limbeck.objectives.build import build_loss
from limbeck.objectives.coupled import shared_normalizer
from limbeck.objectives.layers import Layers, View, check_pairs
from limbeck.objectives.supervised import Batch, Outcome, Supervised
from limbeck.objectives.terms import asks_teacher

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from limbeck.config import Term
    from limbeck.losses import DivergenceLoss
    from limbeck.objectives.build import Facts


class Distillation(Supervised):
    """Weighted terms between the student, the labels and one or several teachers.

    The teachers see the images that the student sees. They are frozen and in eval mode, whatever mode this module
    is put in, and belong neither to its parameters nor to its state. A divergence is the mean over the teachers; each
    (term, teacher) has a loss module of its own, because class priors and projectors differ from teacher to teacher.

    Args:
        student: The network that trains.
        teachers: At least one.
        terms: Terms of the loss.
        epochs: Length of the run, which the terms' decay refers to.
        facts: What losses are built from.
        recorded: What each teacher says of the whole training split, `(samples, C)`. Where the views are the images
            themselves, this saves the teachers' forward passes; not for terms that look at a teacher's features.
        precision: What the teachers compute in; "same" as the student. What they say is of float32 at least.
        compiled: See `Supervised`.

    Raises:
        ValueError: A term's options do not fit the networks.
    """

    def __init__(
        self,
        student: nn.Module,
        teachers: Sequence[nn.Module],
        terms: Sequence[Term],
        *,
        epochs: int,
        facts: Facts,
        recorded: Sequence[Tensor] = (),
        precision: Precision = "same",
        compiled: bool = False,
    ) -> None:
        super().__init__(student, terms, epochs=epochs, facts=facts, compiled=compiled)
        # A tuple is not registered, so train(), parameters(), to() and state_dict() pass the teachers by.
        self.teachers = tuple(teacher.eval().requires_grad_(False) for teacher in teachers)
        self.teacher_layers: tuple[Layers, ...] = ()
        self.recorded, self.precision = tuple(recorded), precision
        self.taught = {name: term for name, term in self.terms.items() if asks_teacher(term)}
        with ExitStack() as undo:
            undo.callback(self.close)  # the networks may be a user's
            self._build()
            undo.pop_all()
        self.set_epoch(1)

    def _build(self) -> None:
        """Set the teachers' hooks, and build a loss for each of them."""
        for teacher in self.teachers:
            self.teacher_layers += (self._look_at(teacher, teacher=True),)
        for name, term in self.taught.items():
            for layers in self.teacher_layers:
                check_pairs(name, self.layers, layers)
            self.losses[name] = nn.ModuleList(
                build_loss(name, term, self.facts, self.layers, layers, position)
                for position, layers in enumerate(self.teacher_layers)
            )

    def forward(self, batch: Batch) -> Outcome:
        """Return the loss of a batch, its parts and the logits of student and teachers."""
        targets = self._targets(batch)
        view = self.layers(batch.images)
        parts = {}
        for name, term in self.terms.items():
            if name in self.taught:
                parts[name] = self._divergence(name, batch, view, targets)
            else:
                parts[name] = self._own_part(name, term, view, batch)
        return Outcome(self._total(parts), view.logits, parts, tuple(target.logits for target in targets))

    def _targets(self, batch: Batch) -> tuple[View, ...]:
        if not self.taught:
            return ()  # nobody asks the teachers
        if self.recorded:
            return tuple(View(logits[batch.indices], {}) for logits in self.recorded)
        with arithmetic(batch.images.device.type, self.precision):
            return tuple(layers.without_graph(batch.images) for layers in self.teacher_layers)

    def _divergence(self, name: str, batch: Batch, view: View, targets: Sequence[View]) -> Tensor:
        values = [
            loss(
                *self._arguments(name, self.terms[name], batch, view, target, teacher),
                **shared_normalizer(loss, target.logits, batch.labels, self.facts),
            )
            for loss, target, teacher in zip(self._per_teacher(name), targets, self.teacher_layers, strict=True)
        ]
        return values[0] if len(values) == 1 else torch.stack(values).mean()

    def _per_teacher(self, name: str) -> list[DivergenceLoss]:
        return list(cast("Iterable[DivergenceLoss]", self.losses[name]))

    def after_step(self, batch: Batch, outcome: Outcome) -> None:
        """Let every loss observe its teacher's logits and the labels, soft ones as they are."""
        for name in self.taught:
            for loss, target in zip(self._per_teacher(name), outcome.target_logits, strict=True):
                loss.observe(target, batch.labels)

    def close(self) -> None:
        """Take the hooks away that the networks were given."""
        super().close()
        for layers in self.teacher_layers:
            layers.close()
