"""Mixup and cutmix: a batch mixed with a shuffled copy of itself, labels mixed alike."""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING, NamedTuple

import torch.nn.functional as F

from limbeck.data.loader import mixing_partners
from limbeck.draws import key

if TYPE_CHECKING:
    from torch import Tensor

    from limbeck.config import AugmentOptions


def mix(
    images: Tensor, labels: Tensor, *, options: AugmentOptions, num_classes: int, seed: int, epoch: int, step: int
) -> tuple[Tensor, Tensor]:
    """Mix each image with another of the batch: lambda of its own, 1 - lambda of the other.

    lambda ~ Beta(alpha, alpha), one per batch. Mixup (Zhang et al. 2018, arXiv 1710.09412) averages the pixels.
    Cutmix (Yun et al. 2019, arXiv 1905.04899) pastes a rectangle of the other image; it is cut at the border, and
    lambda is then taken from its true area. If both are on, each batch draws one of them with probability 1/2.

    The draws are a function of (seed, epoch, step) and of the batch's size: give it the whole batch of a step.

    Args:
        images: `(N, C, H, W)`.
        labels: int64 `(N,)`.
        options: `mixup` and `cutmix`, the alphas; at least one is above 0.
        num_classes: K.
        seed: Seed of the run.
        epoch: Epoch.
        step: Step within the epoch.

    Returns:
        Images `(N, C, H, W)`, and labels `(N, K)` in the images' dtype, each row a distribution.

    Raises:
        ValueError: Both alphas are 0.
    """
    partners = mixing_partners(seed, epoch, step, len(images)).to(images.device, non_blocking=True)
    drawn = draw_mixing(options, seed, epoch, step, tuple(images.shape[2:]))
    return drawn.mix(images, labels, images[partners], labels[partners], num_classes)


class Mixing(NamedTuple):
    """How a batch is mixed.

    Attributes:
        share: Of each image itself.
        box: Top, bottom, left and right of what comes from the other image; None averages the pixels.
    """

    share: float
    box: tuple[int, int, int, int] | None

    def mix(
        self, images: Tensor, labels: Tensor, others: Tensor, other_labels: Tensor, num_classes: int
    ) -> tuple[Tensor, Tensor]:
        """Return mixed images and labels `(N, K)` of images and of those that they are mixed with."""
        if self.box is None:
            images = images.lerp(others, 1 - self.share)
        else:
            top, bottom, left, right = self.box
            images = images.clone()
            images[:, :, top:bottom, left:right] = others[:, :, top:bottom, left:right]
        targets, other_targets = (F.one_hot(each, num_classes).to(images.dtype) for each in (labels, other_labels))
        return images, targets.lerp(other_targets, 1 - self.share)


def draw_mixing(options: AugmentOptions, seed: int, epoch: int, step: int, size: tuple[int, ...]) -> Mixing:
    """Draw how a step is mixed; the partners are drawn apart, see `mixing_partners`.

    Args:
        options: `mixup` and `cutmix`, the alphas; at least one is above 0.
        seed: Seed of the run.
        epoch: Epoch.
        step: Step within the epoch.
        size: Height and width of the images.

    Raises:
        ValueError: Both alphas are 0.
    """
    if not (options.mixup or options.cutmix):
        raise ValueError("`options` expected `mixup` or `cutmix` above 0, got 0 and 0: leave `mix` out")
    # A generator of its own, made from the hash: the Beta draw is a rejection loop of unknown length.
    generator = random.Random(key(seed, epoch, f"mix {step}"))
    cut = bool(options.cutmix) and (not options.mixup or generator.random() < 0.5)
    alpha = options.cutmix if cut else options.mixup
    share = generator.betavariate(alpha, alpha)
    if not cut:
        return Mixing(share, None)
    height, width = size
    top, bottom = _stretch(height, share, generator)
    left, right = _stretch(width, share, generator)
    return Mixing(1 - (bottom - top) * (right - left) / (height * width), (top, bottom, left, right))


def _stretch(length: int, share: float, generator: random.Random) -> tuple[int, int]:
    """Return both ends of a stretch of `length` * sqrt(1 - share) around a random centre, cut at the border."""
    size = int(length * math.sqrt(1 - share))
    start = generator.randrange(length) - size // 2
    return max(start, 0), min(start + size, length)
