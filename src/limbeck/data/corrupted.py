"""Corrupted test images: made here, or read from the arrays of CIFAR-10-C and CIFAR-100-C."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from limbeck.data.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from limbeck.data.sources import Source, normalise
from limbeck.errors import UserError, reason

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from limbeck.data.sources import Pixels

LABELS = "labels.npy"
# Four of the 19 in CIFAR-10-C that the mean over the 15 leaves out.
EXTRA = frozenset({"gaussian_blur", "saturate", "spatter", "speckle_noise"})


class Corrupted(Protocol):
    """Test images under several corruptions, each in `SEVERITIES` strengths."""

    @property
    def names(self) -> tuple[str, ...]:
        """The corruptions."""

    def samples(self, name: str, severity: int) -> CorruptedSamples:
        """Return the images under a corruption, severity from 1 on."""

    def to(self, device: torch.device) -> Corrupted:
        """Return the same on a device."""


@dataclass(frozen=True, eq=False)
class CorruptedSamples:
    """Images under one corruption in one strength.

    Attributes:
        source: The images; under those that are made here the clean ones.
        name: Of the corruption that is made here; None where the images are corrupted already.
        severity: 1 to 5.
    """

    source: Source
    name: str | None
    severity: int

    @property
    def labels(self) -> Tensor:
        """int64 `(N,)`."""
        return self.source.labels

    def __len__(self) -> int:
        return len(self.source)

    def image(self, place: int) -> Tensor:
        """Return one of the images, uint8 `(C, H, W)` of 256 levels."""
        image, maximum = self.source.images[place : place + 1], self.source.pixels.maximum
        if self.name is None:
            return image[0]
        return corrupt(image, self.name, self.severity, torch.tensor([place], device=image.device), maximum=maximum)[0]

    def batches(self, size: int, first: int = 0, every: int = 1) -> Iterator[Tensor]:
        """Yield the images in order, normalised, `size` at a time; every so many of these batches."""
        if self.name is None:
            yield from self.source.batches(size, first, every)
            return
        pixels = self.source.pixels
        places = torch.arange(len(self), device=self.source.images.device)
        parts = zip(torch.split(self.source.images, size), torch.split(places, size), strict=True)
        for images, indices in islice(parts, first, None, every):
            changed = corrupt(images, self.name, self.severity, indices, maximum=pixels.maximum)
            yield normalise(changed, pixels._replace(maximum=255))


@dataclass(frozen=True, eq=False)
class MadeHere:
    """Corruptions of test images, made when they are looked at.

    Attributes:
        source: The clean images.
    """

    source: Source

    @property
    def names(self) -> tuple[str, ...]:
        """The corruptions."""
        return tuple(CORRUPTIONS)

    def samples(self, name: str, severity: int) -> CorruptedSamples:
        """Return the images under a corruption."""
        return CorruptedSamples(self.source, name, severity)

    def to(self, device: torch.device) -> MadeHere:
        """Return the same on a device."""
        return MadeHere(self.source.to(device))


@dataclass(frozen=True, eq=False)
class FromArrays:
    """Corruptions in files: one array `(5 N, H, W, C)` for each, the strengths one after another, and the labels.

    Attributes:
        folder: Of `labels.npy` and an array for each corruption.
        names: The corruptions.
        labels: int64 `(N,)`.
        pixels: What the numbers stand for.
        device: Where images go.
    """

    folder: Path
    names: tuple[str, ...]
    labels: Tensor
    pixels: Pixels
    device: torch.device

    def samples(self, name: str, severity: int) -> CorruptedSamples:
        """Return the images under a corruption; a fifth of its file is read."""
        count = len(self.labels)
        array = _read(self.folder / f"{name}.npy")
        images = torch.from_numpy(array[(severity - 1) * count : severity * count].copy()).permute(0, 3, 1, 2)
        source = Source(images.contiguous(), self.labels, self.pixels).to(self.device)
        return CorruptedSamples(source, None, severity)

    def to(self, device: torch.device) -> FromArrays:
        """Return the same on a device."""
        return FromArrays(self.folder, self.names, self.labels, self.pixels, device)


def open_corrupted(folder: Path, like: Source) -> FromArrays:
    """Return the corrupted images of a folder such as CIFAR-10-C.

    Args:
        folder: Holds `labels.npy` of five times the images, and their arrays by the names of the corruptions. Those
            that the authors keep for validation (gaussian_blur, saturate, spatter, speckle_noise) are left out beside
            others.
        like: The clean test images.

    Raises:
        UserError: The folder or a file is missing or other than that.
    """
    found = tuple(sorted(path.stem for path in folder.glob("*.npy") if path.name != LABELS))
    names = tuple(name for name in found if name not in EXTRA) or found
    if not names:
        raise UserError(
            f"{folder}: expected {LABELS} and an array for each corruption, got none; unpack CIFAR-10-C or CIFAR-100-C "
            "there, or set `data.corrupted_tests` to generated"
        )
    labels = _read(folder / LABELS)
    if labels.ndim != 1 or not len(labels) or len(labels) % SEVERITIES:
        raise UserError(f"{folder / LABELS}: expected labels of {SEVERITIES} strengths, got the shape {labels.shape}")
    _, channels, *sides = like.images.shape
    for name in names:
        shape, kind = (array := _read(folder / f"{name}.npy")).shape, array.dtype
        if shape != (len(labels), *sides, channels) or kind != "uint8":
            raise UserError(
                f"{folder / f'{name}.npy'}: expected uint8 {(len(labels), *sides, channels)}, got {kind} {shape}"
            )
    expected = like.labels.cpu()
    if not torch.equal(torch.from_numpy(labels.copy()).long(), expected.repeat(SEVERITIES)):
        raise UserError(
            f"{folder / LABELS}: expected the labels of the {len(expected)} test images, {SEVERITIES} times over, got "
            "others; name the archive of this data set, and leave out `data.class_order` and `incremental`"
        )
    return FromArrays(folder, names, expected, like.pixels, like.images.device)


def _read(path: Path) -> Any:
    """Return an array of numpy without reading it whole."""
    import numpy as np

    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        why = reason(error) if isinstance(error, OSError) else "no array"
        raise UserError(f"{path}: expected an array of numpy ({why}); unpack the archive again") from error
