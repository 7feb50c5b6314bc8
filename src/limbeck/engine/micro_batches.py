"""The parts of a step that gradients are added up over."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from limbeck.data import Batch

if TYPE_CHECKING:
    from torch import Tensor


def micro_batches(batch: Batch, accumulate: int, batch_size: int, world: int) -> list[Batch]:
    """Return the micro-batches of a rank's part of a step, in order.

    Args:
        batch: The part.
        accumulate: Micro-batches of a whole step.
        batch_size: Samples of a whole step over all ranks.
        world: Number of ranks. Several make as many micro-batches each, since gradients are reduced with the last.
    """
    if accumulate == 1:
        return [batch]

    def split(tensor: Tensor) -> tuple[Tensor, ...]:
        return torch.tensor_split(tensor, accumulate) if world > 1 else torch.split(tensor, batch_size // accumulate)

    pieces = list(zip(*map(split, (batch.images, batch.labels, batch.indices)), strict=True))

    def split_view(view: Tensor) -> tuple[Tensor, ...]:
        return split(view) if len(view) == len(batch.images) else torch.tensor_split(view, len(pieces))

    views = [tuple(split_view(view)[place] for view in batch.views) for place in range(len(pieces))]
    return [
        Batch(images, labels, indices, batch.step, cut)
        for (images, labels, indices), cut in zip(pieces, views, strict=True)
    ]
