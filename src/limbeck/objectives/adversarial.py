"""Adversarial training: each batch is attacked, then terms between the clean and the adversarial logits are minimised.

PGD-AT is a cross-entropy on the adversarial images; TRADES one on the clean images and KL; DKL-, IKL- and GKL-AT put
those in KL's place; MART and LBGAT have terms of their own. All are settings of one objective.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from limbeck import functional
from limbeck.adversary.attack_losses import ToClean, clean_logits, cross_entropy, margin
from limbeck.adversary.awp import awp
from limbeck.adversary.modes import frozen_statistics
from limbeck.adversary.pgd import pgd
from limbeck.config import CrossEntropyTerm
from limbeck.objectives import terms as objective_terms
from limbeck.objectives.build import build_loss
from limbeck.objectives.coupled import shared_normalizer, whole_batch
from limbeck.objectives.supervised import Batch, Outcome, Supervised

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from limbeck.config import AdversaryOptions, Term
    from limbeck.losses import DivergenceLoss
    from limbeck.objectives.build import Facts

OTHER_DRAWS = 2**40  # added to the indices of the second view: more than any data set has samples

# Steps and step over radius in the four quarters of a run, arXiv 2503.08038, appendix.
GROWING_STEPS = ((2, 1.0), (3, 2 / 3), (4, 0.5), (5, 0.5))


@dataclass(frozen=True, eq=False)
class AttackedBatch:
    """A batch after the attack. V is the number of views.

    Attributes:
        images: `(V · N, C, H, W)`, the first views of all samples, then the second ones.
        adversarial: The same, attacked, without a graph.
        labels: Integers `(N,)`.
        indices: Integers `(N,)`.
        views: Empty: those of the batch have become part of `images`.
    """

    images: Tensor
    adversarial: Tensor
    labels: Tensor
    indices: Tensor

    views: tuple[Tensor, ...] = ()

    @property
    def views_of_each(self) -> int:
        """V, 1 or 2."""
        return len(self.images) // len(self.labels)

    @property
    def all_labels(self) -> Tensor:
        """Integers `(V · N,)`."""
        return self.labels.repeat(self.views_of_each)


class Adversarial(Supervised):
    """Terms between the labels and the logits of clean and of adversarial images.

    A divergence takes the adversarial logits for its `logits` and the clean ones, which receive their gradient too,
    for its `target_logits`. The adversarial images pass through the network before the clean ones, in two forward
    passes, as published: BatchNorm's running statistics see both.

    Args:
        student: The network that trains; it sees pixels in [0, 1].
        terms: Terms of the loss.
        options: The adversary.
        epochs: Length of the run, which ramps and schedules refer to.
        facts: What losses are built from; its seed is that of the attack's starts too.
        guide: Second network that trains beside the first, for terms with `on: guide`.
    """

    def __init__(
        self,
        student: nn.Module,
        terms: Sequence[Term],
        options: AdversaryOptions,
        *,
        epochs: int,
        facts: Facts,
        guide: nn.Module | None = None,
    ) -> None:
        self.options = options
        super().__init__(student, terms, epochs=epochs, facts=facts)
        self.seed, self.guide = facts.seed, guide
        self.climbs = options.climbs(terms)
        for name, term in self.terms.items():
            if not isinstance(term, CrossEntropyTerm):
                self.losses[name] = build_loss(name, term, facts, self.layers)
        self.set_epoch(1)
        divergences = bool(self.losses)
        self._sees_adversarial = divergences or any(term.on == "adversarial" for term in terms)
        self._sees_clean = any(term.on == "clean" for term in terms)
        self._all_views_alike = False

    def set_epoch(self, epoch: int) -> None:
        """Set the weights of the terms, the radius and the steps of the attack for an epoch, counted from 1."""
        super().set_epoch(epoch)
        self.epoch = epoch
        self.epsilon = self.options.epsilon * (epoch / self.epochs if self.options.epsilon_ramp else 1.0)
        self.steps, ratio = self.options.steps, self.options.step_ratio
        if self.options.growing_steps:
            self.steps, ratio = GROWING_STEPS[-(-4 * epoch // self.epochs) - 1]
        self.step_size = ratio * self.epsilon

    # --- the attack -------------------------------------------------------------------------------------------

    def prepare(self, batch: Batch) -> AttackedBatch:
        """Return the batch with its adversarial images: one clean forward pass without a graph, then the steps.

        Raises:
            AttackNotFinite: A gradient of the attack is not finite.
            ValueError: Pixels lie outside of [0, 1].
        """
        images, labels, indices = batch.images, batch.labels, batch.indices
        for second in batch.views:  # at most one
            images, labels = torch.cat([images, second]), labels.repeat(2)
            indices = torch.cat([indices, indices + OTHER_DRAWS])
        adversarial = pgd(
            self.student,
            images,
            self._attack_loss(images, labels),
            epsilon=self.epsilon,
            steps=self.steps,
            step_size=self.step_size,
            norm=self.options.norm,
            start=self.options.start,
            bn_mode=self.options.bn_mode,
            seed=self.seed,
            epoch=self.epoch,
            indices=indices,
        )
        return AttackedBatch(images, adversarial, batch.labels, batch.indices)

    def _attack_loss(self, images: Tensor, labels: Tensor) -> Callable[[Tensor], Tensor]:
        match self.climbs:
            case "cross_entropy":
                return cross_entropy(labels)
            case "margin":
                return margin(labels)
        clean = clean_logits(self.student, images, self.options.bn_mode)
        if self.climbs == "kl":
            return ToClean(_kl, clean)
        prior = self.class_prior()
        if prior is None:
            rows = clean.softmax(-1, dtype=torch.promote_types(clean.dtype, torch.float32))
        else:
            rows = prior[labels]

        def both_parts(logits: Tensor, target_logits: Tensor) -> Tensor:
            return functional.gkl_divergence(logits, target_logits, rows, reduction="none")

        return ToClean(both_parts, clean)

    def around_step(self, accumulate_gradient: Callable[[], None]) -> AbstractContextManager[None]:
        """Return adversarial weight perturbation from its first epoch on: it must span forward, backward and step."""
        if not self.options.awp or self.epoch < self.options.awp_from_epoch:
            return nullcontext()
        return awp(self.student, lambda: self._as_one_view(accumulate_gradient), size=self.options.awp)

    def _as_one_view(self, accumulate_gradient: Callable[[], None]) -> None:
        """As published, the perturbation's loss takes the views for one batch, whatever the second one's factor."""
        self._all_views_alike = True
        try:
            with frozen_statistics(self.guide) if self.guide is not None else nullcontext():
                accumulate_gradient()
        finally:
            self._all_views_alike = False

    # --- the loss ---------------------------------------------------------------------------------------------

    def forward(self, batch: Batch) -> Outcome:
        """Return the loss of an attacked batch, its parts, and the logits of the clean first views if there are any."""
        attacked = cast("AttackedBatch", batch)
        logits: dict[str, Tensor] = {}
        if self._sees_adversarial:
            logits["adversarial"] = self.student(attacked.adversarial)
        if self._sees_clean:
            logits["clean"] = self.student(attacked.images)
        if self.guide is not None:
            logits["guide"] = self.guide(attacked.images)
        parts = {}
        for name, term in self.terms.items():
            if isinstance(term, CrossEntropyTerm):
                parts[name] = objective_terms.cross_entropy(term, logits[term.on], attacked.all_labels)
            else:
                parts[name] = self._divergence(name, logits["adversarial"], logits[term.on], attacked)
        first = slice(len(attacked.labels))
        targets = tuple(logits[self.terms[name].on][first].detach() for name in self.losses)
        shown = logits["clean"] if self._sees_clean else logits["adversarial"]
        return Outcome(self._total(parts), shown[first], parts, targets)

    def _divergence(self, name: str, logits: Tensor, target_logits: Tensor, batch: AttackedBatch) -> Tensor:
        loss = cast("DivergenceLoss", self.losses[name])
        if batch.views_of_each == 1 or self._all_views_alike:
            return self._value(name, loss, logits, target_logits, batch.all_labels)
        views = zip(logits.chunk(2), target_logits.chunk(2), strict=True)
        first, second = (self._value(name, loss, view, target, batch.labels) for view, target in views)
        return first + self.options.second_view_weight * second

    def _value(self, name: str, loss: DivergenceLoss, logits: Tensor, target_logits: Tensor, labels: Tensor) -> Tensor:
        shared = shared_normalizer(loss, target_logits, labels, self.facts)
        inputs = whole_batch(self.terms[name], (logits, target_logits, labels), len(labels), self.facts)
        return cast("Tensor", loss(*inputs, **shared))

    def after_step(self, batch: Batch, outcome: Outcome) -> None:
        """Let every loss observe what its adversarial logits were drawn to, on the first views."""
        for loss, target in zip(self._divergences(), outcome.target_logits, strict=True):
            loss.observe(target, batch.labels)


def _kl(logits: Tensor, target_logits: Tensor) -> Tensor:
    return functional.kl_divergence(logits, target_logits, reduction="none")
