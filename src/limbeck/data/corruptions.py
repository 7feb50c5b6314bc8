"""Twelve corruptions of images, each in five strengths; every image is corrupted by draws of its own, always alike.

The kinds are those of Hendrycks and Dietterich (arXiv 1903.12261) that need no picture of frost or snow, made anew for
batches of small images: lengths are shares of the side, and shot noise is normal with the variance of counting. They
are not the files of CIFAR-10-C.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from limbeck.draws import uniform

SEVERITIES = 5

# Takes images in [0, 1], float32 `(N, C, H, W)`, their indices, and the strength.
Corruption: TypeAlias = Callable[[Tensor, Tensor, float], Tensor]


def corrupt(images: Tensor, name: str, severity: int, indices: Tensor, *, maximum: int = 255) -> Tensor:
    """Return corrupted images, a function of (name, severity, index).

    Args:
        images: uint8 `(N, C, H, W)`.
        name: A key of `CORRUPTIONS`.
        severity: 1 to 5.
        indices: The images' positions in their part, int64 `(N,)`.
        maximum: What stands for white.

    Returns:
        uint8 `(N, C, H, W)` of 256 levels.

    Example:
        >>> images = torch.full((2, 1, 4, 4), 100, dtype=torch.uint8)
        >>> corrupt(images, "brightness", 2, torch.arange(2))[0, 0, 0].tolist()
        [151, 151, 151, 151]
    """
    function, strengths = CORRUPTIONS[name]
    changed = function(images.float() / maximum, indices, strengths[severity - 1])
    return (changed.clamp(0, 1) * 255).round().to(torch.uint8)


# --- noise ------------------------------------------------------------------------------------------------------------


def _uniform(images: Tensor, indices: Tensor, name: str, size: tuple[int, ...] | None = None) -> Tensor:
    return uniform(0, 0, indices, f"corruption {name}", size or tuple(images.shape[1:])).to(images)


def _normal(images: Tensor, indices: Tensor, name: str) -> Tensor:
    """Box and Muller's normal numbers."""
    radius = (-2 * torch.log1p(-_uniform(images, indices, f"{name} radius").clamp_max(1 - 2**-24))).sqrt()
    return radius * (2 * math.pi * _uniform(images, indices, f"{name} angle")).cos()


def _gaussian_noise(images: Tensor, indices: Tensor, strength: float) -> Tensor:
    return images + strength * _normal(images, indices, "gaussian")


def _shot_noise(images: Tensor, indices: Tensor, strength: float) -> Tensor:
    return images + (images / strength).sqrt() * _normal(images, indices, "shot")


def _impulse_noise(images: Tensor, indices: Tensor, strength: float) -> Tensor:
    draw = _uniform(images, indices, "impulse")
    white = _uniform(images, indices, "salt").round()
    return torch.where(draw < strength, white, images)


def _speckle_noise(images: Tensor, indices: Tensor, strength: float) -> Tensor:
    return images + strength * images * _normal(images, indices, "speckle")


# --- blur -------------------------------------------------------------------------------------------------------------


def _gaussian_blur(images: Tensor, indices: Tensor, strength: float) -> Tensor:
    sigma = strength * images.shape[-1]
    reach = max(1, min(math.ceil(3 * sigma), *(side - 1 for side in images.shape[2:])))
    line = torch.exp(-(torch.arange(-reach, reach + 1, device=images.device).float() ** 2) / (2 * sigma**2))
    line, channels = line / line.sum(), images.shape[1]
    padded = F.pad(images, (reach,) * 4, mode="reflect")
    rows = F.conv2d(padded, line.view(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels)
    return F.conv2d(rows, line.view(1, 1, -1, 1).expand(channels, 1, -1, 1), groups=channels)


def _motion_blur(images: Tensor, indices: Tensor, strength: float) -> Tensor:
    """The mean along a line, as long as a share of the side, in a direction of each image's own."""
    angle = math.pi * _uniform(images, indices, "direction", (1,))
    way = torch.stack([angle.cos(), angle.sin()], dim=-1).unsqueeze(1)  # (N, 1, 1, 2)
    grid = _grid(images)
    steps = torch.linspace(-strength, strength, 9).tolist()
    return torch.stack([_sampled(images, grid + step * way) for step in steps]).mean(0)


def _zoom_blur(images: Tensor, indices: Tensor, strength: float) -> Tensor:
    zooms = torch.linspace(1.0, 1.0 + strength, 6).tolist()
    return torch.stack([_sampled(images, _grid(images) / zoom) for zoom in zooms]).mean(0)


def _grid(images: Tensor) -> Tensor:
    """Return where each pixel lies, `(N, H, W, 2)`; the image reaches from -1 to 1."""
    same = torch.eye(2, 3, device=images.device).expand(len(images), 2, 3)
    return F.affine_grid(same, list(images.shape), align_corners=False)


def _sampled(images: Tensor, grid: Tensor) -> Tensor:
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


# --- light ------------------------------------------------------------------------------------------------------------


def _smooth(images: Tensor, indices: Tensor, name: str, channels: int) -> Tensor:
    """Noise in [0, 1] that changes over a quarter of the side, `(N, channels, H, W)`."""
    coarse = _uniform(images, indices, name, (channels, 4, 4))
    return F.interpolate(coarse, images.shape[2:], mode="bicubic", align_corners=True).clamp(0, 1)


def _fog(images: Tensor, indices: Tensor, strength: float) -> Tensor:
    return (1 - strength) * images + strength * (0.5 + 0.5 * _smooth(images, indices, "fog", 1))


def _brightness(images: Tensor, indices: Tensor, strength: float) -> Tensor:
    return images + strength


def _contrast(images: Tensor, indices: Tensor, strength: float) -> Tensor:
    mean = images.mean(dim=(2, 3), keepdim=True)
    return mean + strength * (images - mean)


# --- loss of detail ---------------------------------------------------------------------------------------------------


def _pixelate(images: Tensor, indices: Tensor, strength: float) -> Tensor:
    small = [max(1, round(strength * side)) for side in images.shape[2:]]
    return F.interpolate(F.interpolate(images, small, mode="area"), images.shape[2:], mode="nearest")


def _elastic(images: Tensor, indices: Tensor, strength: float) -> Tensor:
    shifts = 2 * _smooth(images, indices, "elastic", 2) - 1
    return _sampled(images, _grid(images) + strength * shifts.permute(0, 2, 3, 1))


CORRUPTIONS: Mapping[str, tuple[Corruption, tuple[float, ...]]] = {
    "gaussian_noise": (_gaussian_noise, (0.08, 0.12, 0.18, 0.26, 0.38)),
    "shot_noise": (_shot_noise, (60.0, 25.0, 12.0, 5.0, 3.0)),
    "impulse_noise": (_impulse_noise, (0.03, 0.06, 0.09, 0.17, 0.27)),
    "speckle_noise": (_speckle_noise, (0.15, 0.2, 0.35, 0.45, 0.6)),
    "gaussian_blur": (_gaussian_blur, (0.02, 0.03, 0.04, 0.05, 0.07)),
    "motion_blur": (_motion_blur, (0.06, 0.1, 0.15, 0.2, 0.3)),
    "zoom_blur": (_zoom_blur, (0.1, 0.2, 0.3, 0.4, 0.5)),
    "fog": (_fog, (0.2, 0.35, 0.5, 0.6, 0.7)),
    "brightness": (_brightness, (0.1, 0.2, 0.3, 0.4, 0.5)),
    "contrast": (_contrast, (0.75, 0.5, 0.4, 0.3, 0.15)),
    "pixelate": (_pixelate, (0.6, 0.5, 0.4, 0.3, 0.25)),
    "elastic": (_elastic, (0.08, 0.12, 0.16, 0.2, 0.25)),
}
