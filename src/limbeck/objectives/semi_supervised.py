"""Learning from few labels and from images without: one view of an image is drawn to what another says."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.config_semi_supervised import draws_to_a_target
from limbeck.losses import DivergenceLoss, StandardizedLoss
from limbeck.objectives.averaged import AveragedNetwork
from limbeck.objectives.build import build_loss
from limbeck.objectives.coupled import shared_normalizer
from limbeck.objectives.layers import View
from limbeck.objectives.supervised import Batch, Outcome, Supervised

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from limbeck.config import SemiSupervisedOptions, Term
    from limbeck.objectives.build import Facts

MASK = "mask"  # among the parts: the share of unlabelled images that count


class SemiSupervised(Supervised):
    """Terms with the labels of few images, and terms of consistency between two views of many.

    A batch's `views` are the weak and the strong view of the same unlabelled images. Who looks at the weak view is the
    student itself (FixMatch) or its averaged weights (Mean-Teacher). A term of consistency is computed for each image,
    multiplied by whether the weak view's largest probability reaches `confidence`, and averaged over all images of the
    step, those that do not count too. Without such a term, images without labels are not looked at.

    Args:
        student: The network that trains.
        terms: Those without a target learn from the labelled images, those with one from the others.
        options: Method, mask, ramp.
        ratio: Unlabelled images of a step for each labelled one.
        epochs: Length of the run, which the terms' decay refers to.
        facts: What losses are built from.
        compiled: See `Supervised`.

    Raises:
        ValueError: A term's options do not fit the network.
    """

    def __init__(
        self,
        student: nn.Module,
        terms: Sequence[Term],
        options: SemiSupervisedOptions,
        *,
        ratio: int,
        epochs: int,
        facts: Facts,
        compiled: bool = False,
    ) -> None:
        self.options, self.ratio = options, ratio  # set_epoch, which the base calls, reads them
        super().__init__(student, terms, epochs=epochs, facts=facts, compiled=compiled)
        self.consistent = {name: term for name, term in self.terms.items() if draws_to_a_target(term)}
        for name, term in self.consistent.items():
            self.losses[name] = _per_sample(build_loss(name, term, facts, self.layers))
        if self.consistent and options.method == "mean_teacher":
            self.guide = AveragedNetwork(student, options.teacher_decay, train=options.teacher_mode == "train")
        self.set_epoch(1)

    @property
    def logged(self) -> tuple[str, ...]:
        """Names of the parts: the terms, and the share of images that count."""
        return (*self.terms, MASK) if self.consistent else tuple(self.terms)

    @property
    def reported(self) -> nn.Module:
        """The network that the run is known for."""
        if isinstance(self.guide, AveragedNetwork) and self.options.evaluate == "teacher":
            return self.guide.network
        return self.student

    def set_epoch(self, epoch: int) -> None:
        """Set the weights of the terms for an epoch; those of consistency rise as the ramp says."""
        super().set_epoch(epoch)
        for name, term in self.terms.items():
            if draws_to_a_target(term):
                self.weights[name] *= self.options.ramped(epoch)

    def forward(self, batch: Batch) -> Outcome:
        """Return the loss of a batch, its parts and the student's logits of the labelled images."""
        if not self.consistent:
            return super().forward(batch)
        logits, target, strong = self._look(batch)
        counts, view = self.counts(target), View(logits, {})
        parts = {}
        for name, term in self.terms.items():
            if name in self.consistent:
                each = self._each(name, strong, target)
                # A product would be NaN where an image that does not count has an infinite loss.
                parts[name] = self._mean(torch.where(counts > 0, each, 0.0), batch)
            else:
                parts[name] = self._own_part(name, term, view, batch)
        total = self._total(parts)
        return Outcome(total, logits, parts | {MASK: self._mean(counts, batch)}, (target.detach(),))

    def _look(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Return the student's logits of the labelled images, the target of the others, and its logits of them."""
        weak, strong = batch.views
        if self.guide is not None:
            target = self.guide(weak)
            logits, ours = self._student(batch.images, strong)
            return logits, target, ours
        if self.options.forwards == "together":
            logits, target, ours = self._student(batch.images, weak, strong)
            return logits, target.detach() if self.options.detach_weak else target, ours
        with torch.no_grad() if self.options.detach_weak else nullcontext():
            (target,) = self._student(weak)
        logits, ours = self._student(batch.images, strong)
        return logits, target, ours

    def _student(self, *images: Tensor) -> tuple[Tensor, ...]:
        if self.options.forwards == "apart":
            return tuple(self.layers(each).logits for each in images)
        return torch.split(self.layers(torch.cat(images)).logits, [len(each) for each in images])

    def counts(self, target: Tensor) -> Tensor:
        """Return 1 for each unlabelled image that counts, and 0 for the others.

        Args:
            target: `(N, C)`, logits of the weak view.
        """
        return (target.detach().float().softmax(-1).amax(-1) >= self.options.confidence).float()

    def _each(self, name: str, logits: Tensor, target: Tensor) -> Tensor:
        """Return a term of consistency for each image; class priors go by the class that the weak view says."""
        loss, said = cast("DivergenceLoss", self.losses[name]), target.detach().argmax(-1)
        shared = shared_normalizer(loss, target.detach(), said, self.facts)
        return cast("Tensor", loss(logits, target, said, **shared))

    def _mean(self, values: Tensor, batch: Batch) -> Tensor:
        # By the labelled images, of which the loop knows each part's share of the step.
        return values.sum() / (self.ratio * len(batch.labels))

    @contextmanager
    def around_step(self, accumulate_gradient: Callable[[], None]) -> Iterator[None]:
        """Let the average take in the student's weights after the step."""
        yield
        if isinstance(self.guide, AveragedNetwork):
            self.guide.update(self.student)

    def after_step(self, batch: Batch, outcome: Outcome) -> None:
        """Let class priors observe the weak views that count, by the class that they say."""
        for target in outcome.target_logits:
            said = F.one_hot(target.argmax(-1), target.shape[-1]) * self.counts(target).unsqueeze(-1)
            for name in self.consistent:
                cast("DivergenceLoss", self.losses[name]).observe(target, said)


def _per_sample(loss: DivergenceLoss) -> DivergenceLoss:
    """Let a loss return a value for each sample, which are masked before they are averaged."""
    whole = loss.loss if isinstance(loss, StandardizedLoss) else loss
    whole.reduction = "none"
    return loss
