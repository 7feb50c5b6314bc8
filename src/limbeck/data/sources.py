"""Images and labels in memory, and the three parts of a data set."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class Source:
    """Images in memory, normalised.

    Attributes:
        images: float32 `(N, C, H, W)`.
        labels: int64 `(N,)`.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Return the images and labels of `indices`, int64 `(B,)` on any device, as copies."""
        indices = indices.to(self.images.device)
        return self.images.index_select(0, indices), self.labels.index_select(0, indices)

    @property
    def class_counts(self) -> Tensor:
        """Images of each class, int64; its length is the largest label present plus 1."""
        return self.labels.bincount()


@dataclass(frozen=True, eq=False)
class DataBundle:
    """A data set, split.

    Attributes:
        name: Name of the data set.
        train: What is learned from; holds every class.
        validation: What choices are made on; may be empty.
        test: What is reported.
        num_classes: Number of classes.
        image_shape: `(C, H, W)`.
        black: Value of a black pixel after normalisation, one per channel; crops are padded with it.
        fingerprint: SHA-256 of all images and labels in hexadecimal; a run resumes on equal data only.
    """

    name: str
    train: Source
    validation: Source
    test: Source
    num_classes: int
    image_shape: tuple[int, int, int]
    black: tuple[float, ...]
    fingerprint: str


def fingerprint(*sources: Source) -> str:
    """Return the SHA-256 of images and labels, with their shapes, in hexadecimal."""
    digest = hashlib.sha256()
    for source in sources:
        for tensor in (source.images, source.labels):
            digest.update(f"{tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()
