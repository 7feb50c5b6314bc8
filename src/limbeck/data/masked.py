"""Images with a class for each pixel: views of both, and parts that are evaluated at the masks' own size.

A view is a random scale, a crop and a flip, the same of image and mask; what a crop sees beyond the image is the mean
colour, and belongs to no class. Each draw is a function of (seed, epoch, sample).
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

import torch
from torch.nn import functional as F

from limbeck.data.loader import Batch, Epochs
from limbeck.data.sources import standardise
from limbeck.draws import permutation, uniform

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch import Tensor

    from limbeck.data.loader import Portion
    from limbeck.data.sources import Pixels
    from limbeck.data.streams import Order

IGNORED = 255  # label of pixels that belong to no class
EVALUATED = 64  # images of a batch in evaluation, where all have one size


class Masks(Protocol):
    """Images and their masks, read by place."""

    @property
    def one_size(self) -> bool:
        """Whether all images have one size."""

    def __len__(self) -> int: ...

    def read(self, place: int) -> tuple[Tensor, Tensor]:
        """Return an image, uint8 `(3, H, W)`, and its mask, uint8 `(H, W)`."""


@dataclass(frozen=True, eq=False)
class MasksInMemory:
    """Images and masks of one size.

    Attributes:
        images: uint8 `(N, 3, H, W)`.
        masks: uint8 `(N, H, W)`.
    """

    images: Tensor
    masks: Tensor
    one_size = True

    def __len__(self) -> int:
        return len(self.masks)

    def read(self, place: int) -> tuple[Tensor, Tensor]:
        """Return an image and its mask."""
        return self.images[place], self.masks[place]


@dataclass(frozen=True, eq=False)
class MaskedPart:
    """A training, validation or test part.

    Attributes:
        source: Images and masks.
        pixels: What an image's numbers stand for.
        side: Of a crop.
        scale: Smallest and largest factor of a view's sides.
        test_side: Shorter side that is evaluated; None is the image's own.
        threads: That read ahead; 0 reads when a batch is asked for.
        device: Where batches go.
    """

    source: Masks
    pixels: Pixels
    side: int
    scale: tuple[float, float] = (1.0, 1.0)
    test_side: int | None = None
    threads: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def __len__(self) -> int:
        return len(self.source)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Shape of one crop, `(3, side, side)`."""
        return len(self.pixels.mean), self.side, self.side

    def to(self, device: torch.device) -> MaskedPart:
        """Return the same part for a device; images stay where they are until a batch is made of them."""
        return replace(self, device=device)

    def order(self, seed: int, epoch: int, *, batch_size: int, steps: int) -> Tensor:
        """Return the indices of an epoch's batches, one after another: each once."""
        return permutation(seed, epoch, len(self))

    def open(self, order: Order) -> MaskedStream:
        """Return the training batches that a run asks for."""
        return MaskedStream(self, order)

    def batches(self, first: int = 0, every: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield every so many batches: images `(N, 3, h, w)` as networks see them, and labels `(N, H, W)`."""
        size = EVALUATED if self.source.one_size else 1
        for start in range(first * size, len(self), every * size):
            places = range(start, min(start + size, len(self)))
            read = [self.source.read(place) for place in places]
            images = torch.stack([image for image, _ in read]).to(self.device)
            yield self._seen(images), torch.stack([mask for _, mask in read]).long().to(self.device)

    def first(self, count: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield the first images one by one: uint8 `(1, 3, H, W)`, as the network sees it, and labels `(1, H, W)`."""
        for place in range(min(count, len(self))):
            image, mask = (each[None].to(self.device) for each in self.source.read(place))
            yield image, self._seen(image), mask.long()

    def _seen(self, images: Tensor) -> Tensor:
        standard = standardise(images, self.pixels)
        if self.test_side is None:
            return standard
        factor = self.test_side / min(images.shape[2:])
        size = [round(length * factor) for length in images.shape[2:]]
        return F.interpolate(standard, size, mode="bilinear", antialias=True)


@dataclass(frozen=True, eq=False)
class MaskedStream:
    """Training batches: labels are int64 `(B, side, side)`, 255 where no class is.

    Attributes:
        part: The training part.
        order: Which batches.
    """

    part: MaskedPart
    order: Order

    @property
    def _epochs(self) -> Epochs:
        order = self.order
        return replace(order, drop_last=order.drop_last or order.repeats > 1).epochs(len(self.part))

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch."""
        return self._epochs.steps

    def batches(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch from a step on; the same batches however often they are asked for."""
        portions = self._epochs.portions(self.part, epoch, start_step)
        threads = self.part.threads
        with ThreadPoolExecutor(threads) if threads else nullcontext() as pool:
            for portion, views in self._read(portions, epoch, pool):
                yield self._batch(portion, views)

    def _read(
        self, portions: Iterable[Portion], epoch: int, pool: ThreadPoolExecutor | None
    ) -> Iterator[tuple[Portion, list[tuple[Tensor, Tensor]]]]:
        """Yield the views of each portion; with threads those of the next one are begun before."""
        if pool is None:
            for portion in portions:
                yield portion, [self._view(*asked) for asked in self._asked(portion, epoch)]
            return
        begun = None
        for portion in portions:
            futures = [pool.submit(self._view, *asked) for asked in self._asked(portion, epoch)]
            if begun is not None:
                yield begun[0], [future.result() for future in begun[1]]
            begun = portion, futures
        if begun is not None:
            yield begun[0], [future.result() for future in begun[1]]

    def _asked(self, portion: Portion, epoch: int) -> list[tuple[int, list[float]]]:
        draws = uniform(self.order.seed, epoch, portion.keys, "masked view", (4,))
        return list(zip(portion.indices.tolist(), draws.tolist(), strict=True))

    def _view(self, place: int, draws: list[float]) -> tuple[Tensor, Tensor]:
        """Return a view of an image, float32 levels, and of its mask."""
        low, high = self.part.scale
        image, mask = self.part.source.read(place)
        pixels = self.part.pixels
        fill = torch.tensor(pixels.mean).mul(pixels.maximum).view(-1, 1, 1)
        image, mask = resized(image, mask, low + draws[0] * (high - low))
        image, mask = cropped(image, mask, self.part.side, draws[1], draws[2], fill)
        flips = self.order.augment.flip and draws[3] < 0.5
        return (image.flip(2), mask.flip(1)) if flips else (image, mask)

    def _batch(self, portion: Portion, views: list[tuple[Tensor, Tensor]]) -> Batch:
        device, shape = self.part.device, self.part.image_shape
        images = torch.stack([image for image, _ in views]) if views else torch.empty(0, *shape)
        masks = torch.stack([mask for _, mask in views]) if views else torch.empty(0, *shape[1:], dtype=torch.uint8)
        images = standardise(images.to(device, non_blocking=True), self.part.pixels)
        labels = masks.to(device, non_blocking=True).long()
        return Batch(images, labels, portion.indices, portion.step, whole=portion.whole)


def resized(image: Tensor, mask: Tensor, factor: float) -> tuple[Tensor, Tensor]:
    """Return an image, uint8 `(3, H, W)`, as float32 levels, and its mask, both sides times a factor."""
    size = [max(1, round(length * factor)) for length in mask.shape]
    if size == list(mask.shape):
        return image.float(), mask
    larger = F.interpolate(image[None].float(), size, mode="bilinear", antialias=True)[0]
    return larger, F.interpolate(mask[None, None], size, mode="nearest-exact")[0, 0]


def cropped(image: Tensor, mask: Tensor, side: int, down: float, right: float, fill: Tensor) -> tuple[Tensor, Tensor]:
    """Return a square of an image and its mask.

    Args:
        image: float32 `(3, H, W)`.
        mask: uint8 `(H, W)`.
        side: Of the square.
        down: In [0, 1), where between the first and the last place it is; of a smaller image, where that lies in it.
        right: As `down`, of the other axis.
        fill: `(3, 1, 1)`, colour beyond the image.
    """
    square = fill.expand(-1, side, side).clone()
    labels = torch.full((side, side), IGNORED, dtype=torch.uint8)
    of_image, of_square = [], []
    for length, draw in zip(mask.shape, (down, right), strict=True):
        offset = int(draw * (abs(length - side) + 1))
        kept = min(length, side)
        inner, outer = slice(offset, offset + kept), slice(0, kept)
        of_image.append(inner if length >= side else outer)
        of_square.append(outer if length >= side else inner)
    square[:, of_square[0], of_square[1]] = image[:, of_image[0], of_image[1]]
    labels[of_square[0], of_square[1]] = mask[of_image[0], of_image[1]]
    return square, labels
