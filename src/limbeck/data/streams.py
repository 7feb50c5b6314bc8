"""The training batches of a run, as the network sees them, from any epoch and step on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from limbeck.data.augment import augment
from limbeck.data.loader import Batch, epoch_batches, steps_per_epoch
from limbeck.data.mixing import mix
from limbeck.data.sources import Source
from limbeck.draws import key
from limbeck.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from limbeck.config import AugmentOptions
    from limbeck.data.sources import DataBundle


class Stream(Protocol):
    """What the loop reads."""

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch."""

    def batches(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch from a step on; the same batches however often they are asked for."""


@dataclass(frozen=True, eq=False)
class MemoryStream:
    """Batches of images in memory: order and views are functions of the sample, mixing is one of the step.

    Attributes:
        source: Images and labels.
        options: Augmentations.
        num_classes: C, for the soft labels of mixup and cutmix.
        batch_size: Samples of a batch.
        drop_last: Leave out the last batch of an epoch if it is incomplete.
        seed: Seed of the run.
        second_view: Augmentations of a second view of each batch; None makes none.
        rank: Whose part of each batch.
        world: Number of ranks.
    """

    source: Source
    options: AugmentOptions
    num_classes: int
    batch_size: int
    drop_last: bool
    seed: int
    second_view: AugmentOptions | None = None
    rank: int = 0
    world: int = 1

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch."""
        return steps_per_epoch(len(self.source), self.batch_size, self.drop_last)

    def batches(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """Yield augmented, normalised, mixed batches of an epoch, from `start_step` on."""
        place = {"seed": self.seed, "epoch": epoch}
        mixing = bool(self.options.mixup or self.options.cutmix)
        # Images are mixed with others of the whole batch, so each rank makes all of it and takes its part.
        part = {"rank": 0, "world": 1} if mixing else {"rank": self.rank, "world": self.world}
        for batch in epoch_batches(
            self.source, batch_size=self.batch_size, drop_last=self.drop_last, start_step=start_step, **part, **place
        ):
            images = augment(batch.images, self.options, pixels=self.source.pixels, indices=batch.indices, **place)
            second = self._second(batch, epoch)
            labels = batch.labels
            if mixing:
                images, labels = mix(
                    images, labels, options=self.options, num_classes=self.num_classes, step=batch.step, **place
                )
            mixed = replace(batch, images=images, labels=labels, second=second)
            yield self._part(mixed) if mixing else mixed

    def _part(self, batch: Batch) -> Batch:
        """Return this rank's part of a whole batch."""
        samples = len(batch.labels)
        own = slice(samples * self.rank // self.world, samples * (self.rank + 1) // self.world)
        second = None if batch.second is None else batch.second[own]
        return replace(
            batch, images=batch.images[own], labels=batch.labels[own], indices=batch.indices[own], second=second
        )

    def _second(self, batch: Batch, epoch: int) -> Tensor | None:
        """Return the second view of a batch as the source has it; its draws are independent of the first view's."""
        if self.second_view is None:
            return None
        place = {"seed": key(self.seed, 0, "second view"), "epoch": epoch}
        return augment(batch.images, self.second_view, pixels=self.source.pixels, indices=batch.indices, **place)


def open_stream(
    data: DataBundle,
    options: AugmentOptions,
    *,
    batch_size: int,
    drop_last: bool,
    seed: int,
    second_view: AugmentOptions | None = None,
    rank: int = 0,
    world: int = 1,
) -> Stream:
    """Return the training batches of a data set; a user's own loader decides on batches and views itself.

    Args:
        data: The data set.
        options: Augmentations of images in memory.
        batch_size: Samples of a batch.
        drop_last: Leave out the last batch of an epoch if it is incomplete.
        seed: Seed of the run.
        second_view: Augmentations of a second view of images in memory; None makes none.
        rank: Whose part of each batch.
        world: Number of ranks.

    Raises:
        UserError: A second view of a user's own loader is asked for, or several ranks are to read one.
    """
    if isinstance(data.train, Source):
        return MemoryStream(
            data.train, options, data.num_classes, batch_size, drop_last, seed, second_view, rank, world
        )
    if world > 1:
        raise UserError("several ranks share data that are in memory; your own loader trains in one process")
    if second_view is not None:
        raise UserError("your own loader has one view of each image: set `data.second_view` to null")
    return data.train.stream(seed, data.device)
