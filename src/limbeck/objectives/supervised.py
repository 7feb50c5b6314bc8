"""Learning from labels, and from the student itself."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, cast

from torch import Tensor, nn

from limbeck.config import CrossEntropyTerm
from limbeck.losses import ClassPrior, DivergenceLoss
from limbeck.models.running import Compiled
from limbeck.objectives.build import build_loss
from limbeck.objectives.coupled import whole_batch
from limbeck.objectives.layers import Layers
from limbeck.objectives.terms import asks_teacher, cross_entropy, part_names, term_weight

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from limbeck.config import Input, Term
    from limbeck.objectives.build import Facts
    from limbeck.objectives.layers import View


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

    @property
    def views(self) -> tuple[Tensor, ...]:
        """Further tensors of the step, which some tasks have."""


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
    """Weighted terms between the student and the labels: cross-entropy, and losses that make their own targets.

    Args:
        student: The network that trains.
        terms: Terms of the loss; none that asks for a teacher.
        epochs: Length of the run, which the terms' decay refers to.
        facts: What losses are built from.
        compiled: Run the student through `torch.compile` here; whoever calls the network itself runs it as it is.

    Raises:
        ValueError: A term's options do not fit the network.
    """

    def __init__(
        self, student: nn.Module, terms: Sequence[Term], *, epochs: int, facts: Facts, compiled: bool = False
    ) -> None:
        super().__init__()
        self.student = student
        self.terms = dict(zip(part_names(terms), terms, strict=True))
        self.facts = facts
        self.losses = nn.ModuleDict()  # of all terms but cross-entropies; some have a memory or parameters
        self.guide: nn.Module | None = None  # a second network that trains
        self.epochs = epochs
        called = Compiled(student, "train.compile") if compiled else student
        self.layers = self._look_at(called, teacher=False)
        with ExitStack() as undo:
            undo.callback(self.layers.close)  # the network may be a user's
            for name, term in self.terms.items():
                if not isinstance(term, CrossEntropyTerm) and not asks_teacher(term):
                    self.losses[name] = build_loss(name, term, facts, self.layers)
            undo.pop_all()
        self.set_epoch(1)

    @property
    def logged(self) -> tuple[str, ...]:
        """Names of the parts of an outcome, in order."""
        return tuple(self.terms)

    @property
    def reported(self) -> nn.Module:
        """The network that the run is known for."""
        return self.student

    def _look_at(self, network: nn.Module, *, teacher: bool) -> Layers:
        """Return a network with the layers that the terms look at."""
        return Layers(network, self.terms, teacher=teacher)

    def set_epoch(self, epoch: int) -> None:
        """Set the weights of the terms for an epoch, counted from 1, and tell the losses."""
        self.weights = {name: term_weight(term, epoch, self.epochs) for name, term in self.terms.items()}
        for loss in self._divergences():
            loss.set_epoch(epoch)

    def forward(self, batch: Batch) -> Outcome:
        """Return the loss of a batch, its parts and the student's logits."""
        view = self.layers(batch.images)
        parts = {name: self._own_part(name, term, view, batch) for name, term in self.terms.items()}
        return Outcome(self._total(parts), view.logits, parts)

    def _own_part(self, name: str, term: Term, view: View, batch: Batch) -> Tensor:
        """The value of a term that asks for no teacher."""
        if isinstance(term, CrossEntropyTerm):
            return cross_entropy(term, view.logits, batch.labels)
        return cast("Tensor", self.losses[name](*self._arguments(name, term, batch, view)))

    def _arguments(
        self,
        name: str,
        term: Term,
        batch: Batch,
        view: View,
        target: View | None = None,
        teacher: Layers | None = None,
    ) -> list[object]:
        """What a term's loss is called with."""
        known: dict[Input, object] = {
            "logits": view.logits,
            "labels": batch.labels,
            "indices": batch.indices,
            "features": view.features.get(name),
        }
        if target is not None:
            known |= {"target_logits": target.logits, "target_features": target.features.get(name)}
        if "head" in term.inputs:
            known["head"] = self.layers.head(self.facts.num_classes)
        if "target_head" in term.inputs and teacher is not None:
            known["target_head"] = teacher.head(self.facts.num_classes)
        inputs = [known[what] for what in term.inputs]
        return whole_batch(term, inputs, len(batch.labels), self.facts)

    def _total(self, parts: Mapping[str, Tensor]) -> Tensor:
        weighted = [self.weights[name] * value for name, value in parts.items()]
        return sum(weighted[1:], start=weighted[0])

    def prepare(self, batch: Batch) -> Batch:
        """Return what `forward` takes; an objective that attacks the images does it here."""
        return batch

    def prepare_step(self, parts: list[Batch]) -> list[Batch]:
        """Return the micro-batches of a step as `forward` takes them, before the first of them is looked at."""
        return parts

    def score(self, batch: Batch, outcome: Outcome) -> Tensor:
        """Return what the training shows beside the loss, 0-d in [0, 1]: the share of correct predictions."""
        labels = batch.labels if batch.labels.dim() == 1 else batch.labels.argmax(dim=1)  # mixed: the larger share
        return (outcome.logits.detach().argmax(dim=1) == labels).float().mean()

    def around_step(self, accumulate_gradient: Callable[[], None]) -> AbstractContextManager[None]:
        """Return what must span forward, backward and step; nothing here.

        Args:
            accumulate_gradient: Adds the gradient of the whole step's loss to the parameters'.
        """
        return nullcontext()

    def after_step(self, batch: Batch, outcome: Outcome) -> None:
        """Take in what a step has shown; nothing here."""

    def close(self) -> None:
        """Take the hooks away that the networks were given."""
        self.layers.close()

    def synchronize(self) -> None:
        """Sum the losses' statistics over the ranks (a collective)."""
        for loss in self._divergences():
            loss.synchronize()

    def refresh(self) -> None:
        """Let the losses use what they observed (a collective)."""
        for loss in self._divergences():
            loss.refresh()

    def _divergences(self) -> Iterator[DivergenceLoss]:
        return _outermost(self.losses)

    def class_prior(self) -> Tensor | None:
        """Return the class prior `(C, C)` of the first term that has one, for the first teacher, or None."""
        return next((module.prior for module in self.losses.modules() if isinstance(module, ClassPrior)), None)


def _outermost(module: nn.Module) -> Iterator[DivergenceLoss]:
    """The losses in a module, less those that another loss holds, which it tells itself."""
    for child in module.children():
        if isinstance(child, DivergenceLoss):
            yield child
        else:
            yield from _outermost(child)
