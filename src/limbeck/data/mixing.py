"""Mixup and cutmix: a batch mixed with a shuffled copy of itself, labels mixed alike."""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING

import torch.nn.functional as F

from limbeck.draws import key, permutation

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
    if not (options.mixup or options.cutmix):
        raise ValueError("`options` expected `mixup` or `cutmix` above 0, got 0 and 0: leave `mix` out")
    # A generator of its own, made from the hash: the Beta draw is a rejection loop of unknown length.
    generator = random.Random(key(seed, epoch, f"mix {step}"))
    partners = permutation(seed, epoch, len(images), f"mix partners {step}").to(images.device)
    cut = bool(options.cutmix) and (not options.mixup or generator.random() < 0.5)
    alpha = options.cutmix if cut else options.mixup
    share = generator.betavariate(alpha, alpha)
    if cut:
        images, share = _paste(images, images[partners], share, generator)
    else:
        images = images.lerp(images[partners], 1 - share)
    targets = F.one_hot(labels, num_classes).to(images.dtype)
    return images, targets.lerp(targets[partners], 1 - share)


def _paste(images: Tensor, others: Tensor, share: float, generator: random.Random) -> tuple[Tensor, float]:
    """Paste a rectangle of `others`; return the images and the share of the area that is still their own."""
    height, width = images.shape[2:]
    top, bottom = _stretch(height, share, generator)
    left, right = _stretch(width, share, generator)
    images = images.clone()
    images[:, :, top:bottom, left:right] = others[:, :, top:bottom, left:right]
    return images, 1 - (bottom - top) * (right - left) / (height * width)


def _stretch(length: int, share: float, generator: random.Random) -> tuple[int, int]:
    """Return both ends of a stretch of `length` * sqrt(1 - share) around a random centre, cut at the border."""
    size = int(length * math.sqrt(1 - share))
    start = generator.randrange(length) - size // 2
    return max(start, 0), min(start + size, length)
