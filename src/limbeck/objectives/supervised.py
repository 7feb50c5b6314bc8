"""Learning from labels alone."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from torch import Tensor, nn

from limbeck.config import CrossEntropyTerm
from limbeck.losses import ClassPrior, DivergenceLoss
from limbeck.objectives.terms import cross_entropy, part_names, term_weight

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from limbeck.config import Term


class Batch(Protocol):
    """What an objective reads of a batch: views of the images and labels of the same samples."""

    @property
    def images(self) -> Tensor:
        """`(N, C, H, W)`, normalised and augmented."""

    @property
    def labels(self) -> Tensor:
        """Integers `(N,)`, or probabilities `(N, C)` from mixup and cutmix."""

    @property
    def indices(self) -> Tensor:
        """Integers `(N,)`: the samples' places in the training split."""


@dataclass(frozen=True)
class Outcome:
    """What an objective makes of a batch.

    Attributes:
        loss: 0-d; the sum of the parts, each times its weight in this epoch.
        logits: `(N, C)` of the student.
        parts: Name of a term -> its 0-d value without the weight.
        target_logits: `(N, C)` of each teacher, without a graph; empty without teachers.
    """

    loss: Tensor
    logits: Tensor
    parts: dict[str, Tensor]
    target_logits: tuple[Tensor, ...] = ()


class Supervised(nn.Module):
    """Weighted cross-entropy terms between the student and the labels.

    Args:
        student: The network that trains.
        terms: Terms of the loss.
        epochs: Length of the run, which the terms' decay refers to.
    """

    def __init__(self, student: nn.Module, terms: Sequence[Term], *, epochs: int) -> None:
        super().__init__()
        self.student = student
        self.terms = dict(zip(part_names(terms), terms, strict=True))
        self.losses = nn.ModuleDict()  # of the divergences; some have a memory
        self.guide: nn.Module | None = None  # a second network that trains
        self.epochs = epochs
        self.set_epoch(1)

    def set_epoch(self, epoch: int) -> None:
        """Set the weights of the terms for an epoch, counted from 1."""
        self.weights = {name: term_weight(term, epoch, self.epochs) for name, term in self.terms.items()}

    def forward(self, batch: Batch) -> Outcome:
        """Return the loss of a batch, its parts and the student's logits."""
        logits = self.student(batch.images)
        parts = {
            name: cross_entropy(term, logits, batch.labels)
            for name, term in self.terms.items()
            if isinstance(term, CrossEntropyTerm)
        }
        return Outcome(self._total(parts), logits, parts)

    def _total(self, parts: Mapping[str, Tensor]) -> Tensor:
        weighted = [self.weights[name] * value for name, value in parts.items()]
        return sum(weighted[1:], start=weighted[0])

    def prepare(self, batch: Batch) -> Batch:
        """Return what `forward` takes; an objective that attacks the images does it here."""
        return batch

    def around_step(self, accumulate_gradient: Callable[[], None]) -> AbstractContextManager[None]:
        """Return what must span forward, backward and step; nothing here.

        Args:
            accumulate_gradient: Adds the gradient of the whole step's loss to the parameters'.
        """
        return nullcontext()

    def after_step(self, batch: Batch, outcome: Outcome) -> None:
        """Take in what a step has shown; nothing here."""

    def synchronize(self) -> None:
        """Sum the losses' statistics over the ranks (a collective)."""
        for loss in self._divergences():
            loss.synchronize()

    def refresh(self) -> None:
        """Let the losses use what they observed (a collective)."""
        for loss in self._divergences():
            loss.refresh()

    def _divergences(self) -> Iterator[DivergenceLoss]:
        return (module for module in self.losses.modules() if isinstance(module, DivergenceLoss))

    def class_prior(self) -> Tensor | None:
        """Return the class prior `(C, C)` of the first term that has one, for the first teacher, or None."""
        return next((module.prior for module in self.losses.modules() if isinstance(module, ClassPrior)), None)
