"""Consistency: an image and its views go through the network together, and shall be taken for the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, cast

import torch
from torch import Tensor, nn

from limbeck.config import CrossEntropyTerm
from limbeck.objectives import terms as objective_terms
from limbeck.objectives.build import build_loss
from limbeck.objectives.coupled import shared_normalizer
from limbeck.objectives.supervised import Batch, Outcome, Supervised
from limbeck.objectives.terms import asks_teacher

if TYPE_CHECKING:
    from collections.abc import Sequence

    from limbeck.config import ConsistencyOptions, Term
    from limbeck.losses import DivergenceLoss
    from limbeck.objectives.build import Facts


class ManyViews(Batch, Protocol):
    """A batch with further views of its images."""

    @property
    def views(self) -> tuple[Tensor, ...]:
        """Each `(N, C, H, W)`."""


class Consistency(Supervised):
    """Cross-entropy, and a divergence between an image and its views (AugMix, arXiv 1912.02781).

    All views pass through the network in one batch, as published, so BatchNorm sees them together. `multi_js` takes
    the logits of all views; a divergence of two takes those of a view for its `logits`, the clean ones for its
    `target_logits`, and is averaged over the views. Views that no term asks for are not looked at.

    Args:
        student: The network that trains.
        terms: Terms of the loss.
        options: What is classified, and who is moved.
        epochs: Length of the run, which ramps and schedules refer to.
        facts: What losses are built from.
        compiled: See `Supervised`.
    """

    def __init__(
        self,
        student: nn.Module,
        terms: Sequence[Term],
        options: ConsistencyOptions,
        *,
        epochs: int,
        facts: Facts,
        compiled: bool = False,
    ) -> None:
        super().__init__(student, terms, epochs=epochs, facts=facts, compiled=compiled)
        self.options = options
        self.pairs = tuple(name for name, term in self.terms.items() if asks_teacher(term))
        self.compared = options.classified != "clean" or any(
            not isinstance(term, CrossEntropyTerm) for term in self.terms.values()
        )
        for name in self.pairs:
            self.losses[name] = build_loss(name, self.terms[name], facts, self.layers)
        self.set_epoch(1)

    def forward(self, batch: ManyViews) -> Outcome:
        """Return the loss of a batch, its parts and the logits of the clean images."""
        views = batch.views if self.compared else ()
        logits = torch.stack(self.layers(torch.cat([batch.images, *views])).logits.chunk(1 + len(views)))
        parts = {name: self._part(name, term, logits, batch.labels) for name, term in self.terms.items()}
        targets = tuple(logits[0].detach() for _ in self.pairs)
        return Outcome(self._total(parts), logits[0], parts, targets)

    def _part(self, name: str, term: Term, logits: Tensor, labels: Tensor) -> Tensor:
        """The value of a term; logits are `(1 + V, N, C)`, the clean ones first."""
        if isinstance(term, CrossEntropyTerm):
            which = {"clean": logits[:1], "views": logits[1:], "all": logits}[self.options.classified]
            return objective_terms.cross_entropy(term, which.flatten(0, 1), labels.repeat(len(which)))
        if name not in self.pairs:
            return cast("Tensor", self.losses[name](logits))
        loss, clean = cast("DivergenceLoss", self.losses[name]), logits[0]
        target = clean.detach() if self.options.detached == "clean" else clean
        shared = shared_normalizer(loss, target, labels, self.facts)
        return torch.stack([loss(view, target, labels, **shared) for view in logits[1:]]).mean()

    def after_step(self, batch: Batch, outcome: Outcome) -> None:
        """Let every divergence observe the clean logits."""
        for name, target in zip(self.pairs, outcome.target_logits, strict=True):
            cast("DivergenceLoss", self.losses[name]).observe(target, batch.labels)
