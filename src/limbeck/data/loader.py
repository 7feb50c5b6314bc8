"""Batches of an epoch, by arithmetic: to resume in mid-epoch is to start at another step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from limbeck.data.sources import Source


@dataclass(frozen=True, eq=False)
class Batch:
    """What one step sees.

    Attributes:
        images: `(B, C, H, W)`: uint8 as they lie in memory, or float32, augmented and normalised.
        labels: int64 `(B,)`, or probabilities `(B, C)` from mixup and cutmix.
        indices: int64 `(B,)`, positions in the source: with them a sample's draws can be made again. A user's own
            loader does not tell them; there they are positions in the epoch.
        step: Step within the epoch, from 0.
        second: `(B, C, H, W)`, another view of the same images, if the recipe asks for one.
        whole: Samples of the step over all ranks; None where this batch is all of it.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor
    step: int
    second: Tensor | None = None
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
    steps = steps_per_epoch(len(source), batch_size, drop_last)
    order = source.order(seed, epoch, batch_size=batch_size, steps=steps)
    for step in range(start_step, steps):
        whole = order[step * batch_size : (step + 1) * batch_size]
        indices = whole[len(whole) * rank // world : len(whole) * (rank + 1) // world]
        images, labels = source.take(indices)
        yield Batch(images, labels, indices, step, whole=len(whole))
