"""A class for each pixel, from labels and from teachers: each pixel is a sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck import losses
from limbeck.config import CrossEntropyTerm
from limbeck.models.stages import unwrapped
from limbeck.objectives.build import LOSSES, build_loss
from limbeck.objectives.distill import Distillation
from limbeck.objectives.layers import Layers, View, check_pairs
from limbeck.objectives.supervised import Outcome

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from limbeck.config import Recipe, Term
    from limbeck.losses import DivergenceLoss
    from limbeck.objectives.build import Facts
    from limbeck.objectives.supervised import Batch

IGNORED = 255

PER_PIXEL: Mapping[str, type[DivergenceLoss]] = {
    "kl": losses.DenseKLLoss,
    "js": losses.DenseJSLoss,
    "ikl": losses.DenseIKLLoss,
    "gkl": losses.DenseGKLLoss,
}
DENSE: Mapping[str, type[DivergenceLoss]] = {**LOSSES, **PER_PIXEL}


@dataclass(frozen=True, eq=False)
class PixelBatch:
    """A micro-batch, and what its pixels count in the whole step.

    Attributes:
        images: `(N, C, H, W)`.
        labels: int64 `(N, H, W)`; 255 is left out.
        indices: int64 `(N,)`.
        views: Further tensors; none here.
        factor: 0-d: its share of the step's pixels that take part, over its share of the step's images. A mean over
            its own pixels times this adds up, weighted by images, to the mean over all pixels of the step.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor
    views: tuple[Tensor, ...]
    factor: Tensor


@dataclass(frozen=True)
class PixelOutcome(Outcome):
    """An outcome that keeps what the teachers' layers showed.

    Attributes:
        targets: A view of each teacher.
    """

    targets: tuple[View, ...] = ()


class Segmentation(Distillation):
    """Cross-entropy of each pixel, and divergences between the pixels of student and teachers.

    Logits of networks that make maps smaller than the labels are enlarged to them, bilinearly. Where some pixels are
    left out, parts of a batch count by those that are not, so that ranks and micro-batches add up to the whole batch.

    Args:
        student: The network that trains; maps images to logits `(N, K, h, w)`.
        teachers: Networks to learn from; none where no term asks.
        recipe: Its `losses`, `segment` and `train` are read.
        facts: What losses are built from.
    """

    def __init__(self, student: nn.Module, teachers: Sequence[nn.Module], recipe: Recipe, *, facts: Facts) -> None:
        train = recipe.train
        super().__init__(
            student,
            teachers,
            recipe.losses,
            epochs=train.epochs,
            facts=facts,
            precision=train.teacher_precision,
            compiled=train.compile,
        )
        self.auxiliary_weight = recipe.segment.auxiliary_weight
        self._aside: list[Tensor] = []
        head = getattr(unwrapped(student), "auxiliary", None)
        self._hook = None
        if isinstance(head, nn.Module):
            read = self.auxiliary_weight > 0 and any(isinstance(term, CrossEntropyTerm) for term in recipe.losses)
            head.requires_grad_(read)  # ranks wait for the gradients of all that trains
            if read:
                self._hook = head.register_forward_hook(lambda module, inputs, logits: self._aside.append(logits))

    def _build(self) -> None:
        for teacher in self.teachers:
            self.teacher_layers += (Layers(teacher, self.terms, teacher=True),)
        for name, term in self.taught.items():
            for layers in self.teacher_layers:
                check_pairs(name, self.layers, layers)
            self.losses[name] = nn.ModuleList(
                build_loss(name, term, self.facts, self.layers, layers, position, DENSE)
                for position, layers in enumerate(self.teacher_layers)
            )

    def prepare_step(self, parts: list[Batch]) -> list[Batch]:
        """Return the micro-batches of a step with their factors (a collective)."""
        counts = torch.stack([(part.labels != IGNORED).sum().double() for part in parts])
        images = counts.new_tensor([float(len(part.labels)) for part in parts])
        whole = torch.stack([counts.sum(), images.sum()])
        if self.facts.sum_over_ranks is not None:
            whole = self.facts.sum_over_ranks(whole)
        factors = (counts / whole[0].clamp_min(1)) / (images / whole[1]).clamp_min(1e-12)
        return [
            PixelBatch(part.images, part.labels, part.indices, part.views, factor)
            for part, factor in zip(parts, factors.float(), strict=True)
        ]

    def forward(self, batch: Batch) -> Outcome:
        """Return the loss of a batch, its parts and the logits of student and teachers, at the size of the labels."""
        size = tuple(batch.labels.shape[1:])
        targets = tuple(_enlarged(target, size) for target in self._targets(batch))
        self._aside.clear()
        view = _enlarged(self.layers(batch.images), size)
        parts = {}
        for name, term in self.terms.items():
            if name in self.taught:
                parts[name] = self._divergence(name, batch, view, targets)
            else:
                parts[name] = self._own_part(name, term, view, batch)
        if isinstance(batch, PixelBatch):  # what is a mean over images or channels adds up as it is
            of_pixels = [name for name, term in self.terms.items() if term.name in ("cross_entropy", *PER_PIXEL)]
            parts |= {name: parts[name] * batch.factor for name in of_pixels}
        said = tuple(target.logits for target in targets)
        return PixelOutcome(self._total(parts), view.logits, parts, said, targets)

    def after_step(self, batch: Batch, outcome: Outcome) -> None:
        """Let the losses observe, and the teachers' adapters of those that have some learn (a collective)."""
        super().after_step(batch, outcome)
        for name in self.taught:
            for loss, target in zip(self._per_teacher(name), cast("PixelOutcome", outcome).targets, strict=True):
                if isinstance(loss, losses.APDLoss):
                    loss.adapt(target.features[name], batch.labels, self.facts.sum_over_ranks)

    def _own_part(self, name: str, term: Term, view: View, batch: Batch) -> Tensor:
        """Return the cross-entropy of the pixels that take part, that of an auxiliary head beside it."""
        options = cast("CrossEntropyTerm", term)
        value = pixel_cross_entropy(view.logits, batch.labels, options.label_smoothing)
        for logits in self._aside:
            aside = _at_size(logits, tuple(batch.labels.shape[1:]))
            value = value + self.auxiliary_weight * pixel_cross_entropy(aside, batch.labels, options.label_smoothing)
        return value

    def _arguments(
        self,
        name: str,
        term: Term,
        batch: Batch,
        view: View,
        target: View | None = None,
        teacher: Layers | None = None,
    ) -> list[object]:
        """What a term's loss is called with; those of pixels have labels beside, for the pixels that are left out."""
        if target is not None and term.name in PER_PIXEL:
            return [view.logits, target.logits, batch.labels]
        return super()._arguments(name, term, batch, view, target, teacher)

    def score(self, batch: Batch, outcome: Outcome) -> Tensor:
        """Return the share of pixels that are taken for what they are, weighted as the loss is."""
        kept = batch.labels != IGNORED
        right = ((outcome.logits.detach().argmax(dim=1) == batch.labels) & kept).sum()
        share = right.float() / kept.sum().clamp_min(1)
        return share * batch.factor if isinstance(batch, PixelBatch) else share

    def close(self) -> None:
        """Take the hooks away that the networks were given."""
        super().close()
        if self._hook is not None:
            self._hook.remove()


def pixel_cross_entropy(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Return the mean cross-entropy over the pixels that take part, in float32 at least; 0 where none does.

    Args:
        logits: `(N, K, H, W)`.
        labels: int64 `(N, H, W)`; 255 is left out.
        label_smoothing: In [0, 1).
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    total = F.cross_entropy(logits, labels, ignore_index=IGNORED, label_smoothing=label_smoothing, reduction="sum")
    return total / (labels != IGNORED).sum().clamp_min(1)


def _enlarged(view: View, size: tuple[int, ...]) -> View:
    return view._replace(logits=_at_size(view.logits, size))


def _at_size(logits: Tensor, size: tuple[int, ...]) -> Tensor:
    return logits if logits.shape[2:] == size else F.interpolate(logits, size, mode="bilinear")
