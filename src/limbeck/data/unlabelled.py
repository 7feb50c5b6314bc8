"""A few labelled images beside a pool without labels: what one step of semi-supervised learning sees."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Generic, TypeVar

import torch

from limbeck.data.augment import augment
from limbeck.data.loader import VIEW_STEP, Batch, Epochs, Portion
from limbeck.data.sources import Source
from limbeck.data.stored import StoredSource
from limbeck.draws import key, permutation

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from limbeck.config import AugmentOptions, DataOptions, UnlabelledOptions
    from limbeck.data.loader import Ordered
    from limbeck.data.sources import Pixels
    from limbeck.data.streams import Order

In = TypeVar("In", Source, StoredSource)  # where the images lie
UNKNOWN = -1  # in the place of a label that nobody looks at


@dataclass(frozen=True, eq=False)
class PartlyLabelled(Generic[In]):
    """Training images of which few have a label.

    Attributes:
        labelled: Images with labels.
        pool: Images without; its labels are all -1.
        options: How many of them a step has, and how their strong views are made.
    """

    labelled: In
    pool: In
    options: UnlabelledOptions

    def __len__(self) -> int:
        return len(self.pool)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Shape of one image as the network sees it, `(C, H, W)`."""
        return self.labelled.image_shape

    @property
    def pixels(self) -> Pixels:
        """What the images' numbers stand for."""
        return self.labelled.pixels

    def to(self, device: torch.device) -> PartlyLabelled[In]:
        """Return the same part on a device."""
        return replace(self, labelled=self.labelled.to(device), pool=self.pool.to(device))

    def open(self, order: Order) -> PartlyLabelledStream[In]:
        """Return the batches of a run."""
        return PartlyLabelledStream(self, order)


def with_all_labels(options: DataOptions) -> DataOptions:
    """Return options of the same training part before labels were taken away: whatever is not held out."""
    return options.model_copy(update={"labels_per_class": None, "imbalance": 1.0})


def partly_labelled(labelled: In, pool: In, options: UnlabelledOptions) -> PartlyLabelled[In]:
    """Return a training part in which the labels of the pool, whatever they are, are gone.

    Args:
        labelled: Images with labels.
        pool: All training images.
        options: See `PartlyLabelled`.
    """
    return PartlyLabelled(labelled, replace(pool, labels=torch.full_like(pool.labels, UNKNOWN)), options)


@dataclass(frozen=True, eq=False)
class Cycled(Epochs):
    """As many full batches as are asked for: samples come again, in each pass in another order and another view.

    Attributes:
        asked: Steps of an epoch.
        name: Of the draw of the order.
    """

    asked: int = 1
    name: str = "order"

    @property
    def steps(self) -> int:
        """Batches of an epoch."""
        return self.asked

    def order(self, source: Ordered, epoch: int) -> Tensor:
        """Return the keys of an epoch's views, one batch after another: the index, and which pass it is."""
        needed = self.asked * self.batch_size
        passes = [
            permutation(self.seed, epoch, self.samples, f"{self.name} {number}") + number * VIEW_STEP
            for number in range(-(-needed // self.samples))
        ]
        return torch.cat(passes)[:needed]

    def portion(self, order: Tensor, epoch: int, step: int) -> Portion:
        """Return this rank's portion of a step, given the keys of the epoch."""
        whole = self.batch_size
        first, last = whole * self.rank // self.world, whole * (self.rank + 1) // self.world
        keys = order[step * whole + first : step * whole + last]
        return Portion(step, keys % VIEW_STEP, keys, whole)


@dataclass(frozen=True, eq=False)
class PartlyLabelledStream(Generic[In]):
    """Batches whose images have labels, and whose two `views` are those of images without: weak, then strong.

    Attributes:
        part: The images.
        asked: What the run asks for; its batch size is that of the labelled images.
    """

    part: PartlyLabelled[In]
    asked: Order

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch: a pass over the pool, less what fills no step; at least one."""
        given = self.part.options.steps_per_epoch
        return given or max(1, len(self.part.pool) // (self.part.options.ratio * self.asked.batch_size))

    def batches(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch from a step on."""
        asked, options = self.asked, self.part.options
        labelled = self._views(
            self.part.labelled, asked.batch_size, "labelled", epoch, start_step, [(asked.augment, asked.seed)]
        )
        wanted = [
            (asked.augment, key(asked.seed, 0, "unlabelled weak")),
            (options.strong, key(asked.seed, 0, "unlabelled strong")),
        ]
        pool = self._views(self.part.pool, options.ratio * asked.batch_size, "unlabelled", epoch, start_step, wanted)
        for (portion, labels, (images,)), (_, _, (weak, strong)) in zip(labelled, pool, strict=True):
            yield Batch(images, labels, portion.indices, portion.step, (weak, strong), portion.whole)

    def _views(
        self,
        source: In,
        size: int,
        name: str,
        epoch: int,
        start_step: int,
        wanted: list[tuple[AugmentOptions, int]],
    ) -> Iterator[tuple[Portion, Tensor, list[Tensor]]]:
        """Yield a rank's part of each step: where it lies, its labels, and a view for each of those wanted."""
        asked = self.asked
        epochs = Cycled(
            len(source),
            batch_size=size,
            seed=asked.seed,
            drop_last=True,
            rank=asked.rank,
            world=asked.world,
            asked=self.steps_per_epoch,
            name=f"{name} order",
        )
        for portion, labels, read in source.read(epochs, epoch, start_step, wanted):
            views = [
                augment(
                    images,
                    source.left(options),
                    pixels=source.pixels,
                    seed=seed,
                    epoch=epoch,
                    indices=portion.keys,
                )
                for images, (options, seed) in zip(read, wanted, strict=True)
            ]
            yield portion, labels, views
