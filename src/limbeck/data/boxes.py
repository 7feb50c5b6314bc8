"""Images with boxes around their objects: those of scenes that are composed here. Files are in `coco.py`."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple, Protocol, cast

import torch

from limbeck.data.augment import augment
from limbeck.data.loader import Batch, Epochs
from limbeck.data.scenes import CLASSES, render
from limbeck.data.sources import DataBundle, Pixels, normalise
from limbeck.draws import integers, permutation
from limbeck.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from limbeck.config import DataOptions
    from limbeck.data.loader import Portion
    from limbeck.data.scenes import Part
    from limbeck.data.sources import Samples
    from limbeck.data.streams import Order

SCENE_PIXELS = Pixels(255, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
NOTHING = -1.0  # class of a row without an object


class Objects(NamedTuple):
    """The true boxes of a part, in the pixels of the images as they were found. G is their number.

    Attributes:
        images: int64 `(G,)`: places of the images in the part.
        classes: int64 `(G,)`.
        boxes: `(G, 4)`: x0, y0, x1, y1.
        crowd: bool `(G,)`: boxes around more objects than were told apart.
    """

    images: Tensor
    classes: Tensor
    boxes: Tensor
    crowd: Tensor


class Boxed(Protocol):
    """What a detector is judged on."""

    def __len__(self) -> int: ...

    @property
    def objects(self) -> Objects:
        """The true boxes."""

    @property
    def scales(self) -> Tensor:
        """What sides were multiplied by before the detector sees them, `(N,)`."""

    def seen(self, size: int, first: int = 0, every: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield normalised images, padded at the right and below, and their heights and widths `(B, 2)`.

        Of the batches of `size` images, `first` is yielded and every `every`-th after it.
        """

    def pictures(self, count: int) -> Tensor:
        """Return the first images as people see them, uint8 `(count, 3, H, W)`, at the detector's scale."""


@dataclass(frozen=True, eq=False)
class BoxSource:
    """Images in memory, of one size.

    Attributes:
        images: uint8 `(N, C, H, W)`.
        boxes: float32 `(N, M, 5)`: class, x0, y0, x1, y1 in pixels; class -1 for no object.
        pixels: What the images' numbers stand for.
    """

    images: Tensor
    boxes: Tensor
    pixels: Pixels

    def __len__(self) -> int:
        return len(self.images)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Shape of one image as the network sees it, `(C, H, W)`."""
        return tuple(self.images.shape[1:])

    @property
    def objects(self) -> Objects:
        """The true boxes."""
        image, row = (self.boxes[..., 0] >= 0).nonzero(as_tuple=True)
        found = self.boxes[image, row]
        return Objects(image, found[:, 0].long(), found[:, 1:], torch.zeros_like(image, dtype=torch.bool))

    @property
    def scales(self) -> Tensor:
        """All 1: images are seen as they are."""
        return torch.ones(len(self))

    def to(self, device: torch.device) -> BoxSource:
        """Return the same part on a device."""
        return replace(self, images=self.images.to(device), boxes=self.boxes.to(device))

    def order(self, seed: int, epoch: int, *, batch_size: int, steps: int) -> Tensor:
        """Return the indices of an epoch's batches, each once, in an order of (seed, epoch)."""
        return permutation(seed, epoch, len(self))

    def open(self, order: Order) -> BoxStream:
        """Return the batches that a run asks for.

        Raises:
            UserError: Images are to be augmented otherwise than by flipping.
        """
        refuse_other_views(order)
        return BoxStream(self, order)

    def seen(self, size: int, first: int = 0, every: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield normalised images and their sizes; every so many batches, from `first` on."""
        for images in islice(torch.split(self.images, size), first, None, every):
            yield normalise(images, self.pixels), torch.tensor(images.shape[2:]).expand(len(images), 2)

    def pictures(self, count: int) -> Tensor:
        """Return the first images."""
        return self.images[:count]


def refuse_other_views(order: Order) -> None:
    """Raise UserError for augmentations that boxes do not follow."""
    augment = order.augment
    if augment.model_copy(update={"flip": False}) != type(augment)():
        raise UserError("`data.augment` of images with boxes expected `flip` alone; set the others to their defaults")
    if order.second_view is not None or order.repeats > 1:
        raise UserError("images with boxes have one view of each: set `data.second_view` to null and `repeats` to 1")


@dataclass(frozen=True, eq=False)
class BoxStream:
    """Batches of images in memory and their boxes; order and flips are functions of (seed, epoch, sample).

    Attributes:
        source: Images and boxes.
        order: What the run asks for.
    """

    source: BoxSource
    order: Order

    @property
    def _epochs(self) -> Epochs:
        return self.order.epochs(len(self.source))

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch."""
        return self._epochs.steps

    def batches(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """Yield flipped, normalised images of an epoch and their boxes, from `start_step` on."""
        for portion in self._epochs.portions(self.source, epoch, start_step):
            yield self._batch(portion, epoch)

    def _batch(self, portion: Portion, epoch: int) -> Batch:
        source, options = self.source, self.order.augment
        there = portion.indices.to(source.images.device, non_blocking=True)
        images, boxes = source.images.index_select(0, there), source.boxes.index_select(0, there)
        draws = {"seed": self.order.seed, "epoch": epoch, "indices": there}
        views = augment(images, options, pixels=source.pixels, **draws)  # type: ignore[arg-type]
        if options.flip:
            flipped = integers(self.order.seed, epoch, there, "flip", 2).bool()
            boxes = torch.where(flipped.view(-1, 1, 1), mirrored(boxes, images.shape[3]), boxes)
        return Batch(views, boxes, portion.indices, portion.step, whole=portion.whole)


def mirrored(boxes: Tensor, width: Tensor | int) -> Tensor:
    """Return boxes `(*, 5)` of mirrored images; rows without an object stay what they are.

    >>> mirrored(torch.tensor([[2.0, 1.0, 0.0, 4.0, 3.0], [-1.0, 0.0, 0.0, 0.0, 0.0]]), 10).tolist()
    [[2.0, 6.0, 0.0, 9.0, 3.0], [-1.0, 0.0, 0.0, 0.0, 0.0]]
    """
    label, left, top, right, bottom = boxes.unbind(-1)
    turned = torch.stack([label, width - right, top, width - left, bottom], dim=-1)
    return torch.where((label >= 0).unsqueeze(-1), turned, boxes)


def scene_boxes(options: DataOptions) -> DataBundle:
    """Return composed scenes with the boxes of what is in them.

    Args:
        options: `scenes`, `split_seed` and `standardise` are read.

    Raises:
        UserError: The packages that ship emoji and photographs are not installed.
    """
    pixels = SCENE_PIXELS if options.standardise else Pixels(255, (0.0,) * 3, (1.0,) * 3)
    parts = []
    digest = hashlib.sha256(repr(tuple(pixels)).encode())
    names: tuple[Part, ...] = ("train", "validation", "test")
    for part in names:
        scenes = render(options.scenes, options.split_seed, part)
        for tensor in (scenes.images, scenes.boxes):
            digest.update(tensor.contiguous().numpy().data)
        parts.append(BoxSource(scenes.images, scenes.boxes, pixels))
    train, validation, test = parts
    return DataBundle(
        name=options.name,
        train=train,
        validation=cast("Samples", validation),
        test=cast("Samples", test),
        num_classes=len(CLASSES),
        image_shape=train.image_shape,
        class_counts=torch.empty(0, dtype=torch.int64),  # of images: each has several
        fingerprint=digest.hexdigest(),
        device=torch.device("cpu"),
    )
