"""RandAugment: a few operations drawn for each image, all with one strength (Cubuk et al. 2020, arXiv 1909.13719)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from limbeck.data.image_ops import IDENTITY, apply_operations, codes_of
from limbeck.draws import integers, uniform

# torchvision's fourteen, and its magnitudes of 0 to 30. timm's space has `invert` and `solarize_add` in place of
# `identity`, and other ranges of posterize and solarize.
NAMES = (
    "identity",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
    "rotate",
    "brightness",
    "colour",
    "contrast",
    "sharpness",
    "posterize",
    "solarize",
    "auto_contrast",
    "equalize",
)
LARGEST_MAGNITUDE = 30
_CODES = codes_of(list(NAMES))


def rand_augment(
    images: Tensor,
    operations: int,
    magnitude: int,
    *,
    seed: int,
    epoch: int,
    indices: Tensor,
    spread: float = 0.0,
    probability: float = 1.0,
) -> Tensor:
    """Apply operations drawn with equal chance; the view of a sample is a function of (seed, epoch, index).

    Shears, translations, rotations, contrast, colour, brightness and sharpness go either way with probability 1/2.
    Geometry takes the nearest pixel and fills with 128.

    Args:
        images: uint8 `(N, C, H, W)` with all 256 levels in use, C 1 or 3.
        operations: How many for each image, one after the other.
        magnitude: Strength of all of them, of 0 to 30.
        seed: Seed of the run.
        epoch: Epoch.
        indices: The samples' positions in the source, int64 `(N,)`.
        spread: Standard deviation of a normal draw around the magnitude, cut to 0 and 30, for each operation of each
            image (arXiv 2110.00476, appendix).
        probability: Chance of an operation to be made; else the image stays as it is.

    Returns:
        uint8 `(N, C, H, W)`; `images` itself if there are no operations. The input is never written to.

    Raises:
        TypeError: `images` are not uint8, or `indices` not int64 of one dimension.
        ValueError: `images` have neither one nor three channels.

    Example:
        >>> images, indices = torch.arange(12, dtype=torch.uint8).view(3, 1, 2, 2), torch.arange(3)
        >>> rand_augment(images, 2, 9, seed=0, epoch=1, indices=indices).shape
        torch.Size([3, 1, 2, 2])
    """
    indices = indices.cpu()
    codes = _CODES[integers(seed, epoch, indices, "rand_augment operation", len(NAMES), (operations,))]
    if probability < 1:
        left_out = uniform(seed, epoch, indices, "rand_augment chance", (operations,)) >= probability
        codes = codes.masked_fill(left_out, IDENTITY)
    negative = integers(seed, epoch, indices, "rand_augment sign", 2, (operations,)).bool()
    strengths = _strengths(magnitude, spread, seed=seed, epoch=epoch, indices=indices, operations=operations)
    for step in range(operations):
        images = apply_operations(images, codes[:, step], strengths[:, step], negative[:, step])
    return images


def _strengths(magnitude: int, spread: float, *, seed: int, epoch: int, indices: Tensor, operations: int) -> Tensor:
    """Return shares of the largest magnitude, float64 `(N, operations)`."""
    if not spread:
        return torch.full((len(indices), operations), magnitude / LARGEST_MAGNITUDE, dtype=torch.float64)
    first, second = uniform(seed, epoch, indices, "rand_augment spread", (operations, 2)).unbind(-1)
    normal = (-2 * torch.log1p(-first)).sqrt() * torch.cos(2 * math.pi * second)  # Box and Muller 1958
    return ((magnitude + spread * normal) / LARGEST_MAGNITUDE).clamp(0, 1)
