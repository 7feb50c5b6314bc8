"""Images and labels in memory, as the files have them, and the three parts of a data set."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from torch.nn import functional as F

from limbeck.draws import permutation

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor

    from limbeck.config import AugmentOptions
    from limbeck.data.corrupted import Corrupted
    from limbeck.data.loader import Epochs, Portion
    from limbeck.data.shards import ShardSource
    from limbeck.data.shifted import ShiftedTest
    from limbeck.data.stored import StoredSource
    from limbeck.data.streams import Streaming
    from limbeck.data.user import UserTraining


class Pixels(NamedTuple):
    """What a pixel's number stands for.

    Attributes:
        maximum: The largest number, 255 for most images; black is 0.
        mean: Per channel, in units of `maximum`; subtracted.
        std: Per channel, in units of `maximum`; divided by afterwards.
        side: What images are enlarged to; None leaves them as they are.
    """

    maximum: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    side: int | None = None


def normalise(images: Tensor, pixels: Pixels) -> Tensor:
    """Return images as networks see them: standardised, and enlarged if `pixels` say so.

    Args:
        images: uint8 `(N, C, H, W)`.
        pixels: Range, mean, standard deviation, side.

    Returns:
        float32 `(N, C, H, W)`, or `(N, C, side, side)`, in a memory of its own.

    Example:
        >>> normalise(torch.tensor([[[[0, 255]]]], dtype=torch.uint8), Pixels(255, (0.5,), (0.25,))).tolist()
        [[[[-2.0, 2.0]]]]
    """
    return enlarge(standardise(images, pixels), pixels)


def standardise(images: Tensor, pixels: Pixels) -> Tensor:
    """Return uint8 images `(N, C, H, W)` as float32, less the mean and divided by the standard deviation."""
    mean, std = _per_channel(images, pixels)
    return images.float().div_(pixels.maximum).sub_(mean).div_(std)


def _per_channel(images: Tensor, pixels: Pixels) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation, `(C, 1, 1)`, written by the device: nobody waits for a copy."""
    mean, std = (
        torch.stack([torch.full((1, 1), value, dtype=torch.float32, device=images.device) for value in values])
        for values in (pixels.mean, pixels.std)
    )
    return mean, std


def enlarge(images: Tensor, pixels: Pixels) -> Tensor:
    """Return standardised images `(N, C, H, W)` with the side that `pixels` name: bicubic, as by Pillow.

    What the curve throws beyond black and white is cut off, as where levels are bytes; levels are not rounded.
    """
    if pixels.side is None or images.shape[2:] == (pixels.side, pixels.side):
        return images
    size = (pixels.side, pixels.side)
    # Antialiasing changes nothing of an enlargement but the curve: a of -0.5, which is Pillow's, in place of -0.75.
    larger = F.interpolate(images, size, mode="bicubic", antialias=True)
    mean, std = _per_channel(images, pixels)
    return larger.clamp_(-mean / std, (1 - mean) / std)


class Samples(Protocol):
    """What validation and testing read: images as the network sees them, in an order that never changes."""

    @property
    def labels(self) -> Tensor:
        """int64 `(N,)`."""

    def __len__(self) -> int: ...

    def batches(self, size: int, first: int = 0, every: int = 1) -> Iterator[Tensor]:
        """Yield the normalised images, `size` at a time or as the source has them.

        Of the batches, `first` is yielded and every `every`-th after it; what is passed over costs as little as it can.
        """


@dataclass(frozen=True, eq=False)
class Source:
    """Images in memory.

    Attributes:
        images: uint8 `(N, C, H, W)`.
        labels: int64 `(N,)`.
        pixels: What the numbers stand for.
    """

    images: Tensor
    labels: Tensor
    pixels: Pixels

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Shape of one image as the network sees it, `(C, H, W)`."""
        _, channels, *sides = self.images.shape
        return channels, *([self.pixels.side] * 2 if self.pixels.side else sides)

    def take(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Return the images, uint8, and labels of `indices`, int64 `(B,)` on any device, as copies."""
        indices = indices.to(self.images.device, non_blocking=True)
        return self.images.index_select(0, indices), self.labels.index_select(0, indices)

    def order(self, seed: int, epoch: int, *, batch_size: int, steps: int) -> Tensor:
        """Return the indices of an epoch's batches, one after another: each once, in an order of (seed, epoch)."""
        return permutation(seed, epoch, len(self))

    def read(
        self, epochs: Epochs, epoch: int, start_step: int, views: Sequence[tuple[AugmentOptions, int]]
    ) -> Iterator[tuple[Portion, Tensor, list[Tensor]]]:
        """Yield the portions of an epoch from a step on, their labels, and their images, uint8, once for each view."""
        for portion in epochs.portions(self, epoch, start_step):
            images, labels = self.take(portion.indices)
            yield portion, labels, [images] * len(views)

    def left(self, options: AugmentOptions) -> AugmentOptions:
        """Return which augmentations are left to do when images are read: all of them."""
        return options

    def batches(self, size: int, first: int = 0, every: int = 1) -> Iterator[Tensor]:
        """Yield the images in order, normalised, `size` at a time; every so many of these batches, from `first` on."""
        for images in islice(torch.split(self.images, size), first, None, every):
            yield normalise(images, self.pixels)

    def seen(self, indices: Tensor, size: int) -> Iterator[Tensor]:
        """Yield the images of `indices`, normalised, `size` at a time."""
        for part in torch.split(indices, size):
            yield normalise(self.take(part)[0], self.pixels)

    def to(self, device: torch.device) -> Source:
        """Return the same source on a device."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))


@dataclass(frozen=True, eq=False)
class DataBundle:
    """A data set, split.

    Attributes:
        name: Name of the data set.
        train: What is learned from.
        validation: What choices are made on; may be empty.
        test: What is reported; empty only where a user's own loaders have none.
        num_classes: Number of classes.
        image_shape: Shape of one sample as the network sees it, `(C, H, W)` for images.
        class_counts: Training samples of each class, int64 `(C,)` on the CPU; empty where a user's loader or
            shards hide them.
        fingerprint: SHA-256 of all images and labels in hexadecimal; a run resumes on equal data only. Of images in
            files it is of their names and sizes.
        device: Where the tensors lie.
        groups: Classes by how many training samples they have, see `class_groups`; empty without `data.groups`.
        shifted: Further test images, of another distribution, by name.
        corrupted: The test images under corruptions; None without `data.corrupted_tests`.
    """

    name: str
    train: Source | StoredSource | ShardSource | Streaming | UserTraining
    validation: Samples
    test: Samples
    num_classes: int
    image_shape: tuple[int, ...]
    class_counts: Tensor
    fingerprint: str
    device: torch.device
    groups: Mapping[str, Tensor] = field(default_factory=dict)
    shifted: Mapping[str, ShiftedTest] = field(default_factory=dict)
    corrupted: Corrupted | None = None


def fingerprint(*sources: Source) -> str:
    """Return the SHA-256 of images and labels, with their shapes and what the pixels stand for, in hexadecimal."""
    digest = hashlib.sha256()
    for source in sources:
        pixels = source.pixels if source.pixels.side else source.pixels[:-1]
        digest.update(repr(tuple(pixels)).encode())
        for tensor in (source.images, source.labels):
            digest.update(f"{tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()
