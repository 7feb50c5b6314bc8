"""Images and labels in memory, as the files have them, and the three parts of a data set."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch

from limbeck.draws import permutation

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor

    from limbeck.data.user import UserTraining


class Pixels(NamedTuple):
    """What a pixel's number stands for.

    Attributes:
        maximum: The largest number, 255 for most images; black is 0.
        mean: Per channel, in units of `maximum`; subtracted.
        std: Per channel, in units of `maximum`; divided by afterwards.
    """

    maximum: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


def normalise(images: Tensor, pixels: Pixels) -> Tensor:
    """Return images as networks see them.

    Args:
        images: uint8 `(N, C, H, W)`.
        pixels: Range, mean and standard deviation.

    Returns:
        float32 `(N, C, H, W)`, in a memory of its own.

    Example:
        >>> normalise(torch.tensor([[[[0, 255]]]], dtype=torch.uint8), Pixels(255, (0.5,), (0.25,))).tolist()
        [[[[-2.0, 2.0]]]]
    """
    mean, std = (torch.tensor(values, device=images.device).view(-1, 1, 1) for values in pixels[1:])
    return images.float().div_(pixels.maximum).sub_(mean).div_(std)


class Samples(Protocol):
    """What validation and testing read: images as the network sees them, in an order that never changes."""

    @property
    def labels(self) -> Tensor:
        """int64 `(N,)`."""

    def __len__(self) -> int: ...

    def batches(self, size: int) -> Iterator[Tensor]:
        """Yield the normalised images, `size` at a time or as the source has them."""


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

    def take(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Return the images, uint8, and labels of `indices`, int64 `(B,)` on any device, as copies."""
        indices = indices.to(self.images.device)
        return self.images.index_select(0, indices), self.labels.index_select(0, indices)

    def order(self, seed: int, epoch: int, *, batch_size: int, steps: int) -> Tensor:
        """Return the indices of an epoch's batches, one after another: each once, in an order of (seed, epoch)."""
        return permutation(seed, epoch, len(self))

    def batches(self, size: int) -> Iterator[Tensor]:
        """Yield the images in order, normalised, `size` at a time."""
        for images in torch.split(self.images, size):
            yield normalise(images, self.pixels)

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
        image_shape: Shape of one sample, `(C, H, W)` for images.
        class_counts: Training samples of each class, int64 `(C,)` on the CPU; empty where a user's loader hides them.
        fingerprint: SHA-256 of all images and labels in hexadecimal; a run resumes on equal data only.
        device: Where the tensors lie.
        groups: Classes by how many training samples they have, see `class_groups`; empty without `data.groups`.
    """

    name: str
    train: Source | UserTraining
    validation: Samples
    test: Samples
    num_classes: int
    image_shape: tuple[int, ...]
    class_counts: Tensor
    fingerprint: str
    device: torch.device
    groups: Mapping[str, Tensor] = field(default_factory=dict)


def fingerprint(*sources: Source) -> str:
    """Return the SHA-256 of images and labels, with their shapes and what the pixels stand for, in hexadecimal."""
    digest = hashlib.sha256()
    for source in sources:
        digest.update(repr(tuple(source.pixels)).encode())
        for tensor in (source.images, source.labels):
            digest.update(f"{tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()
