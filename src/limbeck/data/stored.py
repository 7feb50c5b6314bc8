"""Images that stay in their files, as a source: decoded when a batch needs them, by other processes."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from limbeck.data.decode import CHANNELS, Crop, MiddleView, flips_here, middle_views, train_views
from limbeck.data.decoding import PIECE, in_order
from limbeck.data.loader import Epochs, Portion
from limbeck.data.sources import Pixels, normalise
from limbeck.draws import permutation

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from limbeck.config import AugmentOptions
    from limbeck.data.image_files import ImageFiles


@dataclass(frozen=True, eq=False)
class StoredSource:
    """Images in files.

    Attributes:
        files: All files of a folder or list.
        places: Which of them, int64 `(N,)` on the CPU.
        labels: int64 `(N,)`.
        pixels: What the numbers stand for.
        view: The test view; its size is also that of training images.
        workers: Processes that decode.
        device: Where images are moved.
    """

    files: ImageFiles
    places: Tensor
    labels: Tensor
    pixels: Pixels
    view: MiddleView
    workers: int
    device: torch.device

    def __len__(self) -> int:
        return len(self.places)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape of one image."""
        return CHANNELS, self.view.size, self.view.size

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the names, sizes and labels of the files, of which of them are meant, and of how they are seen."""
        said = f"{self.files.fingerprint} {tuple(self.pixels)} {tuple(vars(self.view).values())} {len(self)}"
        return hashlib.sha256(said.encode() + self.places.numpy().tobytes()).hexdigest()

    def to(self, device: torch.device) -> StoredSource:
        """Return the same source with its labels on a device, where its images will go too."""
        return replace(self, labels=self.labels.to(device), device=device)

    def order(self, seed: int, epoch: int, *, batch_size: int, steps: int) -> Tensor:
        """Return the indices of an epoch's batches, one after another: each once, in an order of (seed, epoch)."""
        return permutation(seed, epoch, len(self))

    def read(
        self, epochs: Epochs, epoch: int, start_step: int, views: Sequence[tuple[AugmentOptions, int]]
    ) -> Iterator[tuple[Portion, Tensor, list[Tensor]]]:
        """Yield the portions of an epoch from a step on, their labels, and their images, uint8, for each view.

        The images are cut, resized and flipped already, see `left`.
        """
        crops = tuple(Crop(options, self.view, seed, epoch) for options, seed in views)
        order = epochs.order(self, epoch)
        pieces = _TrainPieces(self.files, self.places, crops, order, epochs, epoch)
        steps = range(start_step, epochs.steps)
        made = in_order(pieces, steps, workers=self.workers, device=self.device)
        for step, images in zip(steps, made, strict=True):
            portion = epochs.portion(order, epoch, step)
            yield portion, self.labels.index_select(0, portion.indices.to(self.device, non_blocking=True)), images

    def left(self, options: AugmentOptions) -> AugmentOptions:
        """Return which augmentations are left to do when images are read."""
        return left_to_batches(options)

    def batches(self, size: int, first: int = 0, every: int = 1) -> Iterator[Tensor]:
        """Yield the test views in order, normalised, `size` at a time; every so many of these batches, from `first` on.

        What is passed over is not decoded.
        """
        return self._views(self.places, size, first, every)

    def seen(self, indices: Tensor, size: int) -> Iterator[Tensor]:
        """Yield the test views of `indices`, normalised, `size` at a time."""
        return self._views(self.places[indices.cpu()], size)

    def _views(self, places: Tensor, size: int, first: int = 0, every: int = 1) -> Iterator[Tensor]:
        pieces = _TestPieces(self.files, places, self.view, size)
        steps = range(first, math.ceil(len(places) / size), every)
        for images, *_ in in_order(pieces, steps, workers=self.workers, device=self.device):
            yield normalise(images, self.pixels)


def left_to_batches(options: AugmentOptions) -> AugmentOptions:
    """Return which augmentations are left to do after images are decoded, cut, resized and flipped."""
    return options.model_copy(update={"resized_crop": None, "flip": options.flip and not flips_here(options)})


@dataclass(frozen=True, eq=False)
class _TrainPieces:
    """Views of training images; which ones is arithmetic, so that a process needs no more than the number of a step."""

    files: ImageFiles
    places: Tensor
    crops: tuple[Crop, ...]
    order: Tensor
    epochs: Epochs
    epoch: int

    @property
    def parts(self) -> int:
        """Pieces of each step; where images are mixed, those of the partners are read too."""
        most = self.epochs.batch_size * (2 if self.epochs.mixing else 1) / self.epochs.world
        return math.ceil(min(most, self.epochs.batch_size) / PIECE)

    def make(self, step: int, part: int) -> tuple[Tensor, ...]:
        """Return the views of a part of this rank's portion of a step."""
        portion = self.epochs.portion(self.order, self.epoch, step)
        indices, keys = (tensor.tensor_split(self.parts)[part] for tensor in (portion.indices, portion.keys))
        return train_views(self.files, self.places[indices], keys, self.crops)


@dataclass(frozen=True, eq=False)
class _TestPieces:
    """Test views of images in order."""

    files: ImageFiles
    places: Tensor
    view: MiddleView
    size: int

    @property
    def parts(self) -> int:
        """Pieces of each batch."""
        return math.ceil(self.size / PIECE)

    def make(self, step: int, part: int) -> tuple[Tensor, ...]:
        """Return the test views of a part of a batch."""
        batch = self.places[step * self.size : (step + 1) * self.size]
        return (middle_views(self.files, batch.tensor_split(self.parts)[part], self.view),)
