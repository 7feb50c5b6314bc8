"""The training batches of a run, as the network sees them, from any epoch and step on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from limbeck.data.augment import augment
from limbeck.data.loader import Batch, Epochs
from limbeck.data.mixing import draw_mixing
from limbeck.data.shards import ShardSource
from limbeck.data.sources import Source
from limbeck.data.stored import StoredSource
from limbeck.draws import key
from limbeck.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch
    from torch import Tensor

    from limbeck.config import AugmentOptions
    from limbeck.data.loader import Portion
    from limbeck.data.sources import DataBundle, Pixels


class Stream(Protocol):
    """What the loop reads."""

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch."""

    def batches(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch from a step on; the same batches however often they are asked for."""


@dataclass(frozen=True)
class Order:
    """Which batches a run asks its training part for.

    Attributes:
        augment: Augmentations.
        batch_size: Samples of a batch, over all ranks.
        drop_last: Leave out the last batch of an epoch if it is incomplete.
        seed: Seed of the run.
        second_view: Augmentations of a second view of each batch; None makes none.
        repeats: Views that a batch has of each of its images.
        rank: Whose part of each batch.
        world: Number of ranks.
    """

    augment: AugmentOptions
    batch_size: int
    drop_last: bool
    seed: int
    second_view: AugmentOptions | None = None
    repeats: int = 1
    rank: int = 0
    world: int = 1

    def epochs(self, samples: int) -> Epochs:
        """Return which of so many samples each step of each epoch has."""
        return Epochs(
            samples,
            batch_size=self.batch_size,
            seed=self.seed,
            drop_last=self.drop_last,
            repeats=self.repeats,
            rank=self.rank,
            world=self.world,
        )


@runtime_checkable
class Streaming(Protocol):
    """A training part that makes its own batches, as tasks beyond the classification of images have it."""

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Shape of one image as the network sees it, `(C, H, W)`."""

    @property
    def pixels(self) -> Pixels:
        """What the images' numbers stand for."""

    def __len__(self) -> int: ...

    def to(self, device: torch.device) -> Streaming:
        """Return the same part on a device."""

    def open(self, order: Order) -> Stream:
        """Return the batches that a run asks for; draws and order are functions of (seed, epoch, sample)."""


@dataclass(frozen=True, eq=False)
class ImageStream:
    """Batches of images in memory or in files: order and views are functions of the sample, mixing is one of the step.

    Attributes:
        source: Images and labels.
        options: Augmentations.
        num_classes: C, for the soft labels of mixup and cutmix.
        batch_size: Samples of a batch.
        drop_last: Leave out the last batch of an epoch if it is incomplete.
        seed: Seed of the run.
        second_view: Augmentations of a second view of each batch; None makes none.
        repeats: Views that a batch has of each of its images.
        rank: Whose part of each batch.
        world: Number of ranks.
    """

    source: Source | StoredSource | ShardSource
    options: AugmentOptions
    num_classes: int
    batch_size: int
    drop_last: bool
    seed: int
    second_view: AugmentOptions | None = None
    repeats: int = 1
    rank: int = 0
    world: int = 1

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch."""
        return self._epochs.steps

    @property
    def _mixing(self) -> bool:
        return bool(self.options.mixup or self.options.cutmix)

    @property
    def _epochs(self) -> Epochs:
        return Epochs(
            len(self.source),
            batch_size=self.batch_size,
            seed=self.seed,
            drop_last=self.drop_last,
            repeats=self.repeats,
            mixing=self._mixing,
            rank=self.rank,
            world=self.world,
        )

    def batches(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """Yield augmented, normalised, mixed batches of an epoch, from `start_step` on."""
        # The draws of the second view are independent of the first view's.
        asked = [(self.options, self.seed)]
        asked += [] if self.second_view is None else [(self.second_view, key(self.seed, 0, "second view"))]
        for portion, labels, read in self.source.read(self._epochs, epoch, start_step, asked):
            views = [
                augment(
                    images,
                    self.source.left(options),
                    pixels=self.source.pixels,
                    seed=seed,
                    epoch=epoch,
                    indices=portion.keys,
                )
                for images, (options, seed) in zip(read, asked, strict=True)
            ]
            yield self._batch(portion, epoch, labels, *views)

    def _batch(self, portion: Portion, epoch: int, labels: Tensor, images: Tensor, *further: Tensor) -> Batch:
        indices, step, whole = portion.indices, portion.step, portion.whole
        if portion.own is None or portion.partners is None:
            return Batch(images, labels, indices, step, further, whole)
        drawn = draw_mixing(self.options, self.seed, epoch, step, tuple(images.shape[2:]))
        own, partners = (places.to(images.device, non_blocking=True) for places in (portion.own, portion.partners))
        images, labels = drawn.mix(images[own], labels[own], images[partners], labels[partners], self.num_classes)
        return Batch(images, labels, indices[portion.own], step, whole=whole)


def open_stream(
    data: DataBundle,
    options: AugmentOptions,
    *,
    batch_size: int,
    drop_last: bool,
    seed: int,
    second_view: AugmentOptions | None = None,
    repeats: int = 1,
    rank: int = 0,
    world: int = 1,
) -> Stream:
    """Return the training batches of a data set; a user's own loader decides on batches and views itself.

    Args:
        data: The data set.
        options: Augmentations.
        batch_size: Samples of a batch.
        drop_last: Leave out the last batch of an epoch if it is incomplete.
        seed: Seed of the run.
        second_view: Augmentations of a second view of each batch; None makes none.
        repeats: Views that a batch has of each of its images.
        rank: Whose part of each batch.
        world: Number of ranks.

    Raises:
        UserError: A second view of a user's own loader is asked for, or several ranks are to read one.
    """
    if isinstance(data.train, Source | StoredSource | ShardSource):
        full = drop_last or isinstance(data.train, ShardSource)
        return ImageStream(
            data.train, options, data.num_classes, batch_size, full, seed, second_view, repeats, rank, world
        )
    if isinstance(data.train, Streaming):
        return data.train.open(Order(options, batch_size, drop_last, seed, second_view, repeats, rank, world))
    if world > 1:
        raise UserError("several ranks share data that a recipe names; your own loader trains in one process")
    if second_view is not None:
        raise UserError("your own loader has one view of each image: set `data.second_view` to null")
    return data.train.stream(seed, data.device)
