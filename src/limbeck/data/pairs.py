"""Images with captions, in memory: training batches of pairs, and what retrieval and zero-shot classification read."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from limbeck.data.augment import augment
from limbeck.data.loader import Batch, Epochs
from limbeck.data.sources import Pixels, Source
from limbeck.draws import integers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from limbeck.data.stored import StoredSource
    from limbeck.data.streams import Order


@dataclass(frozen=True, eq=False)
class PairSource:
    """Training images with captions in several wordings.

    Attributes:
        source: Images, and the classes that they belong to, which training does not read.
        tokens: int64 `(N, T, L)`: each caption in each of T templates.
    """

    source: Source
    tokens: Tensor

    def __len__(self) -> int:
        return len(self.source)

    @property
    def labels(self) -> Tensor:
        """Classes of the images, int64 `(N,)`."""
        return self.source.labels

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Shape of one image, `(C, H, W)`."""
        return self.source.image_shape

    @property
    def pixels(self) -> Pixels:
        """What the images' numbers stand for."""
        return self.source.pixels

    def to(self, device: torch.device) -> PairSource:
        """Return the same source on a device."""
        return replace(self, source=self.source.to(device), tokens=self.tokens.to(device))

    def open(self, order: Order) -> PairStream:
        """Return the training batches of a run."""
        return PairStream(self, order)


@dataclass(frozen=True, eq=False)
class PairStream:
    """Batches of pairs; the view of an image and the wording of its caption are functions of (seed, epoch, sample).

    Attributes:
        source: The pairs.
        order: Which batches are asked for.
    """

    source: PairSource
    order: Order

    @property
    def _epochs(self) -> Epochs:
        return self.order.epochs(len(self.source))

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch."""
        return self._epochs.steps

    def batches(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch from a step on; their labels are tokens `(B, L)`."""
        pairs, asked = self.source, self.order
        for portion in self._epochs.portions(pairs.source, epoch, start_step):
            images, _ = pairs.source.take(portion.indices)
            views = augment(
                images, asked.augment, pixels=pairs.pixels, seed=asked.seed, epoch=epoch, indices=portion.keys
            )
            wording = integers(asked.seed, epoch, portion.keys, "template", pairs.tokens.shape[1])
            there = pairs.tokens.device
            tokens = pairs.tokens[portion.indices.to(there), wording.to(there)]
            yield Batch(views, tokens, portion.indices, portion.step, whole=portion.whole)


@dataclass(frozen=True, eq=False)
class Gallery:
    """Held-out images, what they are called, and what their classes are called.

    Attributes:
        images: The images and their classes.
        prompts: int64 `(C, P, L)`: the name of each class in each of P prompts.
        tokens: int64 `(N, L)`: the images' own captions; empty where images have none.
        captions: Those in words, for pictures.
        class_names: C names.
    """

    images: Source | StoredSource
    prompts: Tensor
    tokens: Tensor
    captions: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.images)

    @property
    def labels(self) -> Tensor:
        """Classes of the images, int64 `(N,)`."""
        return self.images.labels

    def batches(self, size: int, first: int = 0, every: int = 1) -> Iterator[Tensor]:
        """Yield the normalised images, as `Samples` does."""
        return self.images.batches(size, first, every)

    def to(self, device: torch.device) -> Gallery:
        """Return the same on a device."""
        return replace(
            self, images=self.images.to(device), prompts=self.prompts.to(device), tokens=self.tokens.to(device)
        )


def fill(templates: tuple[str, ...], caption: str, group: str = "") -> list[str]:
    """Return a caption in each template.

    >>> fill(("{}", "a {}, which is a {group}"), "cat", "pet")
    ['cat', 'a cat, which is a pet']
    """
    return [template.format(caption, group=group) for template in templates]
