"""Batches of an epoch, by arithmetic: to resume in mid-epoch is to start at another step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch

from limbeck.draws import permutation

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from limbeck.data.sources import Source

VIEW_STEP = 2**40  # between the keys of two views of one sample; there are fewer samples


@dataclass(frozen=True, eq=False)
class Batch:
    """What one step sees.

    Attributes:
        images: `(B, C, H, W)`: uint8 as they lie in memory, or float32, augmented and normalised.
        labels: int64 `(B,)`, or probabilities `(B, C)` from mixup and cutmix; other tasks have other tensors here, of
            which the first axis is the samples'.
        indices: int64 `(B,)`, positions in the source: with them a sample's draws can be made again. A user's own
            loader does not tell them; there they are positions in the epoch.
        step: Step within the epoch, from 0.
        views: Further tensors of the step, such as a second view `(B, C, H, W)` of the same images, or images without
            labels, of which there may be another number.
        whole: Samples of the step over all ranks; None where this batch is all of it.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor
    step: int
    views: tuple[Tensor, ...] = ()
    whole: int | None = None


def steps_per_epoch(n: int, batch_size: int, drop_last: bool) -> int:
    """Return the number of batches that `n` samples make.

    Args:
        n: Number of samples.
        batch_size: Samples of a batch, over all ranks.
        drop_last: Leave out the last batch if it is incomplete.

    Returns:
        The number of batches; 0 if there are no samples, or fewer than a batch and `drop_last`.

    Example:
        >>> steps_per_epoch(10, 4, drop_last=False), steps_per_epoch(10, 4, drop_last=True)
        (3, 2)
    """
    return n // batch_size if drop_last else -(-n // batch_size)


def epoch_batches(
    source: Source,
    *,
    batch_size: int,
    seed: int,
    epoch: int,
    drop_last: bool,
    start_step: int = 0,
    rank: int = 0,
    world: int = 1,
) -> Iterator[Batch]:
    """Yield the batches of an epoch, in an order that is a function of (seed, epoch) alone.

    The ranks' parts of a batch, put after one another, are the batch of one rank; the sizes of the parts differ by
    at most one. A last batch smaller than `world` leaves some ranks an empty part.

    Args:
        source: Images and labels.
        batch_size: Samples of a batch, over all ranks.
        seed: Seed of the run.
        epoch: Epoch.
        drop_last: Leave out the last batch if it is incomplete.
        start_step: First step to yield; the batches before it are not made.
        rank: Whose part of each batch to yield.
        world: Number of ranks.

    Yields:
        `Batch`, with steps from `start_step` on.

    Example:
        >>> import torch
        >>> from limbeck.data import Pixels, Source
        >>> images = torch.zeros(5, 1, 2, 2, dtype=torch.uint8)
        >>> source = Source(images, torch.arange(5), Pixels(255, (0.5,), (0.5,)))
        >>> [len(b.labels) for b in epoch_batches(source, batch_size=2, seed=0, epoch=1, drop_last=False)]
        [2, 2, 1]
        >>> resumed = epoch_batches(source, batch_size=2, seed=0, epoch=1, drop_last=False, start_step=2)
        >>> [b.step for b in resumed]
        [2]
    """
    epochs = Epochs(len(source), batch_size=batch_size, seed=seed, drop_last=drop_last, rank=rank, world=world)
    for portion in epochs.portions(source, epoch, start_step):
        images, labels = source.take(portion.indices)
        yield Batch(images, labels, portion.indices, portion.step, whole=portion.whole)


class Ordered(Protocol):
    """What has an order of its samples in each epoch."""

    def order(self, seed: int, epoch: int, *, batch_size: int, steps: int) -> Tensor:
        """Return the indices of an epoch's batches, one after another, int64."""


class Portion(NamedTuple):
    """What a rank reads for a step.

    Attributes:
        step: Step within the epoch, from 0.
        indices: Positions in the source, int64 `(R,)`.
        keys: What the draws of each one's view are keyed by, int64 `(R,)`: the index, but for further views of it.
        whole: Samples of the step over all ranks.
        own: Which of the R are the rank's samples, int64 `(B,)`; None where all are, in order.
        partners: Which of the R each of its samples is mixed with, int64 `(B,)`; None where none is.
    """

    step: int
    indices: Tensor
    keys: Tensor
    whole: int
    own: Tensor | None = None
    partners: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Epochs:
    """Which samples each step of each epoch has, on each rank; by arithmetic.

    Attributes:
        samples: Of the source.
        batch_size: Samples of a batch, over all ranks.
        seed: Seed of the run.
        drop_last: Leave out the last batch if it is incomplete.
        repeats: Views that a batch has of each of its images; all batches are full if there are several.
        mixing: Whether images are mixed with others of the whole batch; then a rank reads those as well.
        rank: Whose part of each batch.
        world: Number of ranks.
    """

    samples: int
    batch_size: int
    seed: int
    drop_last: bool
    repeats: int = 1
    mixing: bool = False
    rank: int = 0
    world: int = 1

    @property
    def steps(self) -> int:
        """Batches of an epoch."""
        return steps_per_epoch(self.samples, self.batch_size, self.drop_last)

    def order(self, source: Ordered, epoch: int) -> Tensor:
        """Return the indices of an epoch's samples before they are repeated, one batch after another."""
        order = source.order(self.seed, epoch, batch_size=self.batch_size, steps=self.steps)
        if self.repeats == 1:
            return order
        return order[torch.arange(self.steps * self._images) % len(order)]

    @property
    def _images(self) -> int:
        """Different images of a batch; of some the last view is left out where `repeats` does not divide its size."""
        return -(-self.batch_size // self.repeats)

    def portions(self, source: Ordered, epoch: int, start_step: int = 0) -> Iterator[Portion]:
        """Yield this rank's portions of an epoch from a step on."""
        order = self.order(source, epoch)
        for step in range(start_step, self.steps):
            yield self.portion(order, epoch, step)

    def portion(self, order: Tensor, epoch: int, step: int) -> Portion:
        """Return this rank's portion of a step, given the order of the epoch."""
        distinct = order[step * self._images : (step + 1) * self._images]
        # View after view, so that ranks get different views of an image (Hoffer et al. 2020, Touvron et al. 2021).
        indices = distinct.repeat(self.repeats)[: self.batch_size]
        keys = torch.cat([distinct + view * VIEW_STEP for view in range(self.repeats)])[: self.batch_size]
        whole = len(indices)
        first, last = whole * self.rank // self.world, whole * (self.rank + 1) // self.world
        if not self.mixing:
            return Portion(step, indices[first:last], keys[first:last], whole)
        partners = mixing_partners(self.seed, epoch, step, whole)[first:last]
        own = torch.arange(first, last)
        read = torch.unique(torch.cat([own, partners]))
        return Portion(
            step,
            indices[read],
            keys[read],
            whole,
            own=torch.searchsorted(read, own),
            partners=torch.searchsorted(read, partners),
        )


def mixing_partners(seed: int, epoch: int, step: int, count: int) -> Tensor:
    """Return which sample of a batch each one is mixed with, int64 `(count,)`."""
    return permutation(seed, epoch, count, f"mix partners {step}")
