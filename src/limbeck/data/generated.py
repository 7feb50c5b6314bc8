"""Images of a generative model beside the original ones: a share of each batch, from a file that may outgrow memory.

The file is the field's, an .npz with `image` and `label`, such as the 1 to 50 million images of Wang et al. 2023 (arXiv
2302.04638).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from limbeck.data.npz import map_arrays
from limbeck.data.sources import Source
from limbeck.draws import integers, permutation, uniform
from limbeck.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from torch import Tensor

SAMPLED = 256  # images that are looked at when a file is opened, at equal distances: so many, at most twice
CHUNK = 2**20  # labels that are read at a time


@dataclass(frozen=True, eq=False)
class GeneratedImages:
    """Images and labels in a file, read when they are asked for.

    Attributes:
        images: uint8 `(N, H, W, C)`, mapped from the file.
        labels: Integers `(N,)`, mapped from the file.
        class_counts: Images of each class, int64 `(K,)`.
        fingerprint: SHA-256 in hexadecimal of the shapes, the checksums that the file states, the images of each class
            and some of the images.
    """

    images: np.ndarray[Any, np.dtype[np.uint8]]
    labels: np.ndarray[Any, np.dtype[np.integer[Any]]]
    class_counts: Tensor
    fingerprint: str

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """Return the images, uint8 `(B, C, H, W)`, and labels, int64, at `places`, int64 `(B,)` on the CPU."""
        rows = places.numpy()
        images, labels = torch.from_numpy(self.images[rows]), torch.from_numpy(self.labels[rows].astype("int64"))
        return images.permute(0, 3, 1, 2), labels


@dataclass(frozen=True, eq=False)
class MixedSource(Source):
    """Original images in memory, and generated ones in a file that are a share of each batch.

    Its length, and so that of an epoch, is the number of original images. Generated image `k` has the index
    `len(source) + k`: its draws are its own.

    Attributes:
        generated: The images in the file.
        fraction: Their share: a batch of B samples has round(fraction · B) of them.
    """

    generated: GeneratedImages
    fraction: float

    def take(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Return the images, uint8, and labels of `indices`, int64 `(B,)` on any device, as copies."""
        indices = indices.cpu()
        drawn = indices >= len(self)
        whole = super().take(indices.masked_fill(drawn, 0))
        parts = self.generated.take(indices[drawn] - len(self))
        places = drawn.nonzero().squeeze(1).to(self.images.device, non_blocking=True)
        for tensor, part in zip(whole, parts, strict=True):
            tensor.index_copy_(0, places, part.to(tensor.device, non_blocking=True))
        return whole

    def order(self, seed: int, epoch: int, *, batch_size: int, steps: int) -> Tensor:
        """Return the indices of an epoch's batches, one after another; every batch is full.

        The original images run through permutation after permutation, over the ends of epochs, so that each is seen as
        often as the others. The generated ones are drawn with replacement, by step and position. Each batch is
        shuffled, so that its parts, of micro-batches or ranks, are mixed as well.

        Args:
            seed: Seed of the run.
            epoch: Epoch, from 1.
            batch_size: Samples of a batch.
            steps: Batches of an epoch.

        Returns:
            int64 `(steps * batch_size,)`.

        Raises:
            UserError: One of the two has no place in a batch.
        """
        share = round(self.fraction * batch_size)
        if not 0 < share < batch_size:
            raise UserError(
                f"`data.generated_fraction` expected a share that leaves both kinds of images a place in a batch of "
                f"{batch_size}, got {self.fraction:g}"
            )
        count = steps * (batch_size - share)
        originals = self._originals(seed, start=(epoch - 1) * count, count=count)
        draws = integers(seed, epoch, torch.arange(steps * share), "generated", len(self.generated))
        batches = torch.cat([originals.view(steps, -1), len(self) + draws.view(steps, -1)], dim=1)
        places = uniform(seed, epoch, torch.arange(steps), "places in the batch", (batch_size,)).argsort(dim=1)
        return batches.gather(1, places).flatten()

    def _originals(self, seed: int, start: int, count: int) -> Tensor:
        """Return a stretch of the permutations of the original images, put one after another."""
        first, last = start // len(self), (start + count - 1) // len(self)
        rounds = [permutation(seed, number, len(self)) for number in range(first, last + 1)]
        return torch.cat(rounds)[start - first * len(self) :][:count]


def open_generated(path: Path, *, image_shape: tuple[int, ...], num_classes: int, maximum: int) -> GeneratedImages:
    """Open a file of generated images. Its labels are read once, of its images a few.

    Args:
        path: An .npz file with `image`, uint8 `(N, H, W, C)`, and `label`, integers `(N,)`, not compressed.
        image_shape: `(C, H, W)` of the original images.
        num_classes: K.
        maximum: The largest number that a pixel of the original images may have.

    Raises:
        UserError: The file is missing, damaged or compressed, or its images and labels do not fit the original ones.
    """
    images, labels = map_arrays(path, ("image", "label"))
    _check_shapes(path, images.values, labels.values, image_shape)
    counts = _count(path, labels.values, num_classes)
    sample = images.values[:: max(1, len(images.values) // SAMPLED)]
    if sample.max() > maximum:
        raise UserError(f"{path}: expected pixels up to {maximum} in `image`, as the originals', got {sample.max()}")
    described = f"{images.values.shape} {images.checksum} {labels.checksum} {counts.tolist()}"
    fingerprint = hashlib.sha256(described.encode() + sample.tobytes()).hexdigest()
    return GeneratedImages(images.values, labels.values, counts, fingerprint)


def _check_shapes(path: Path, images: np.ndarray, labels: np.ndarray, image_shape: tuple[int, ...]) -> None:
    channels, *sides = image_shape
    if images.dtype != "uint8" or images.ndim != 4 or images.shape[1:] != (*sides, channels):
        expected = f"(N, {', '.join(map(str, (*sides, channels)))})"
        raise UserError(f"{path}: expected `image` of uint8 {expected}, got {images.dtype} {images.shape}")
    if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1]:
        raise UserError(
            f"{path}: expected `label` of integers ({len(images)},), as there are images, "
            f"got {labels.dtype} {labels.shape}"
        )
    if not len(images):
        raise UserError(f"{path}: expected at least one image, got none")


def _count(path: Path, labels: np.ndarray, num_classes: int) -> Tensor:
    """Return the images of each class, or raise UserError for a label that is none of the classes."""
    counts = torch.zeros(num_classes, dtype=torch.int64)
    for start in range(0, len(labels), CHUNK):
        chunk = torch.from_numpy(labels[start : start + CHUNK].astype("int64"))
        lowest, highest = int(chunk.min()), int(chunk.max())
        if lowest < 0 or highest >= num_classes:
            wrong = lowest if lowest < 0 else highest
            raise UserError(f"{path}: expected `label` of 0 to {num_classes - 1}, got {wrong}")
        counts += chunk.bincount(minlength=num_classes)
    return counts
