"""AugMix: views that are mixtures of an image with short chains of operations (arXiv 1912.02781)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from limbeck.data import image_geometry as geometry
from limbeck.data import image_tones as tones
from limbeck.data.augment import augment_levels
from limbeck.data.image_ops import Operation, apply_operations
from limbeck.data.loader import Batch, Epochs
from limbeck.data.sources import Source, enlarge, standardise
from limbeck.draws import integers, uniform
from limbeck.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from limbeck.config import AugMixOptions
    from limbeck.data.sources import Pixels
    from limbeck.data.streams import Order

DEEPEST, WEAKEST, LEVELS = 3, 0.1, 10.0

# The nine of the paper, which leave out contrast, colour, brightness and sharpness: those are among the corruptions
# that views are tested on. What comes in from outside is black; geometry takes the nearest pixel, the public code
# interpolates.
OPERATIONS: dict[str, Operation] = {
    "auto_contrast": Operation(lambda images, _: tones.auto_contrast(images)),
    "equalize": Operation(lambda images, _: tones.equalize(images)),
    "posterize": Operation(tones.posterize, neutral=4.0, change=-4.0),
    "rotate": Operation(lambda images, by: geometry.rotate(images, by, fill=0), change=30.0, signed=True),
    "solarize": Operation(tones.solarize, neutral=256.0, change=-256.0),
    "shear_x": Operation(lambda images, by: geometry.shear_x(images, by, fill=0), change=0.3, signed=True),
    "shear_y": Operation(lambda images, by: geometry.shear_y(images, by, fill=0), change=0.3, signed=True),
    "translate_x": Operation(lambda images, by: geometry.translate_x(images, by, fill=0), change=1 / 3, signed=True),
    "translate_y": Operation(lambda images, by: geometry.translate_y(images, by, fill=0), change=1 / 3, signed=True),
}


def augmix(images: Tensor, options: AugMixOptions, *, view: int, seed: int, epoch: int, indices: Tensor) -> Tensor:
    """Return a mixture of each image with chains of operations; a function of (seed, epoch, index, view).

    A chain is one to three operations, each of a drawn magnitude. Chains are mixed by shares of the flat Dirichlet
    distribution, and the mixture with the image by a share of the uniform one, as with alpha 1 in the paper.

    Args:
        images: uint8 `(N, C, H, W)` of 256 levels.
        options: How many chains, how long, how strong.
        view: Number of the view; others are drawn independently.
        seed: Seed of the run.
        epoch: Epoch.
        indices: The samples' positions in the source, int64 `(N,)`.

    Returns:
        float32 `(N, C, H, W)`, levels from 0 to 255 that need not be whole.

    Example:
        >>> from limbeck.config import AugMixOptions
        >>> images, indices = torch.arange(48, dtype=torch.uint8).view(3, 1, 4, 4), torch.arange(3)
        >>> views = augmix(images, AugMixOptions(), view=0, seed=0, epoch=1, indices=indices)
        >>> torch.equal(views[2:], augmix(images[2:], AugMixOptions(), view=0, seed=0, epoch=1, indices=indices[2:]))
        True
    """
    indices, width, longest = indices.cpu(), options.width, options.depth or DEEPEST
    name, size = f"augmix {view}", (options.width, longest)
    codes = integers(seed, epoch, indices, f"{name} operation", len(OPERATIONS), size)
    depths = integers(seed, epoch, indices, f"{name} depth", longest, (width, 1)) + 1
    if options.depth is not None:
        depths.fill_(options.depth)
    codes.masked_fill_(torch.arange(longest) >= depths, len(OPERATIONS))  # operations after a chain's end do nothing
    levels = WEAKEST + (options.severity - WEAKEST) * uniform(seed, epoch, indices, f"{name} level", size)
    negative = integers(seed, epoch, indices, f"{name} sign", 2, size).bool()
    shares = -torch.log1p(-uniform(seed, epoch, indices, f"{name} shares", (width,)))  # exponential, so flat Dirichlet
    shares = (shares / shares.sum(1, keepdim=True)).float().to(images.device)
    mixed = torch.zeros_like(images, dtype=torch.float32)
    for chain in range(width):
        changed = images
        for step in range(longest):
            changed = apply_operations(
                changed, codes[:, chain, step], levels[:, chain, step] / LEVELS, negative[:, chain, step], OPERATIONS
            )
        mixed += shares[:, chain].view(-1, 1, 1, 1) * changed
    share = uniform(seed, epoch, indices, f"{name} mixture").float().to(images.device).view(-1, 1, 1, 1)
    return (1 - share) * images + share * mixed


@dataclass(frozen=True, eq=False)
class AugMixed:
    """Training images in memory, of which each batch has AugMix views too.

    Attributes:
        source: Images and labels.
        options: How the views are made.
    """

    source: Source
    options: AugMixOptions

    def __post_init__(self) -> None:
        if self.source.pixels.maximum != 255:
            raise UserError(
                f"`data.augmix` expected images of 256 levels, got levels of 0 to {self.source.pixels.maximum}; take "
                "mnist5k, cifar10 or cifar100"
            )

    def __len__(self) -> int:
        return len(self.source)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Shape of one image as the network sees it, `(C, H, W)`."""
        return self.source.image_shape

    @property
    def pixels(self) -> Pixels:
        """What the images' numbers stand for."""
        return self.source.pixels

    def to(self, device: torch.device) -> AugMixed:
        """Return the same part on a device."""
        return replace(self, source=self.source.to(device))

    def open(self, order: Order) -> AugMixedStream:
        """Return the batches of a run."""
        return AugMixedStream(self, order)


@dataclass(frozen=True, eq=False)
class AugMixedStream:
    """Batches of augmented images, and views that AugMix makes of these: clean and mixed ones have one crop.

    Attributes:
        part: The images.
        asked: What the run asks for.
    """

    part: AugMixed
    asked: Order

    @property
    def _epochs(self) -> Epochs:
        return self.asked.epochs(len(self.part))

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch."""
        return self._epochs.steps

    def batches(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch from a step on."""
        source, asked, options = self.part.source, self.asked, self.part.options
        for portion in self._epochs.portions(source, epoch, start_step):
            images, labels = source.take(portion.indices)
            cropped = augment_levels(
                images, asked.augment, pixels=source.pixels, seed=asked.seed, epoch=epoch, indices=portion.keys
            )
            mixed = [
                augmix(cropped, options, view=view, seed=asked.seed, epoch=epoch, indices=portion.keys)
                for view in range(options.views)
            ]
            clean, *views = (enlarge(standardise(each, source.pixels), source.pixels) for each in (cropped, *mixed))
            yield Batch(clean, labels, portion.indices, portion.step, tuple(views), portion.whole)
