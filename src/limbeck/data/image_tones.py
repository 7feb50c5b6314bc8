"""Change the tones of whole batches of uint8 images, each image by its own magnitude, level for level as Pillow.

Images are uint8 `(N, C, H, W)` and use all 256 levels. Where channels are mixed, they are one (grey) or three (RGB).
Everything is computed in integers or in the floating-point type and the order that Pillow uses, so that the levels
are equal and not only near, and are the same on every device and in every batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

_LEVELS = 256
_LUMA = (19595, 38470, 7471)  # red, green and blue in 65536ths: ITU-R 601-2, Pillow's `convert("L")`


def invert(images: Tensor) -> Tensor:
    """Turn level `v` into `255 - v`, as `ImageOps.invert`.

    Args:
        images: uint8 `(N, C, H, W)`.

    Returns:
        uint8 `(N, C, H, W)`.
    """
    return images.bitwise_not()


def solarize(images: Tensor, thresholds: Tensor) -> Tensor:
    """Invert the levels at and above a threshold, as `ImageOps.solarize`.

    Args:
        images: uint8 `(N, C, H, W)`.
        thresholds: Lowest level that is inverted, need not be whole, one for each image, `(N,)`. 256 changes nothing.

    Returns:
        uint8 `(N, C, H, W)`.

    Example:
        >>> images = torch.tensor([0, 99, 100, 255], dtype=torch.uint8).view(1, 1, 1, 4)
        >>> solarize(images, torch.tensor([100.0])).tolist()
        [[[[0, 99, 155, 0]]]]
    """
    return torch.where(images < thresholds.ceil().short().view(-1, 1, 1, 1), images, invert(images))


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    """Keep the highest bits of each level and clear the others, as `ImageOps.posterize`.

    Args:
        images: uint8 `(N, C, H, W)`.
        bits: How many to keep, 1 to 8 and rounded, one for each image, `(N,)`.

    Returns:
        uint8 `(N, C, H, W)`.

    Example:
        >>> posterize(torch.tensor([[[[255, 63, 64]]]], dtype=torch.uint8), torch.tensor([2.0])).tolist()
        [[[[192, 0, 64]]]]
    """
    kept = (_LEVELS - 2 ** (8 - bits.round())).to(torch.uint8)
    return images & kept.view(-1, 1, 1, 1)


def auto_contrast(images: Tensor) -> Tensor:
    """Stretch each channel so that its darkest level becomes 0 and its lightest 255, as `ImageOps.autocontrast`.

    Args:
        images: uint8 `(N, C, H, W)`.

    Returns:
        uint8 `(N, C, H, W)`. A channel of one level stays as it is.

    Example:
        >>> auto_contrast(torch.tensor([[[[10, 11, 12]]]], dtype=torch.uint8)).tolist()
        [[[[0, 127, 255]]]]
    """
    darkest, lightest = (extreme.double().unsqueeze(2) for extreme in images.flatten(2).aminmax(dim=2))
    # Not `255 / range`: torch would multiply by the reciprocal, and a level at a whole number could fall below it.
    scale = torch.full_like(darkest, 255) / (lightest - darkest)
    levels = torch.arange(_LEVELS, dtype=torch.float64, device=images.device)
    stretched = (levels * scale - darkest * scale).clamp_(0, 255)
    return _look_up(images, torch.where(lightest > darkest, stretched, levels))


def equalize(images: Tensor) -> Tensor:
    """Spread each channel's levels so that about equally many pixels have each, as `ImageOps.equalize`.

    Args:
        images: uint8 `(N, C, H, W)`.

    Returns:
        uint8 `(N, C, H, W)`. A channel with one level, or with fewer than 255 pixels below its lightest, stays as it
        is.

    Example:
        >>> image = torch.tensor([3] * 255 + [5] * 255 + [7], dtype=torch.uint8).view(1, 1, 7, 73)
        >>> equalize(image).unique().tolist()
        [0, 128, 255]
    """
    pixels = images.flatten(2).long()
    counts = torch.zeros(*pixels.shape[:2], _LEVELS, dtype=torch.int64, device=images.device)
    counts.scatter_add_(2, pixels, torch.ones_like(pixels))
    of_lightest = counts.gather(2, pixels.amax(2, keepdim=True))
    step = (pixels.shape[2] - of_lightest) // 255
    darker = counts.cumsum(2) - counts
    spread = ((darker + step // 2) // step.clamp(min=1)).clamp_(max=255)
    levels = torch.arange(_LEVELS, device=images.device)
    return _look_up(images, torch.where(step > 0, spread, levels))


def _look_up(images: Tensor, tables: Tensor) -> Tensor:
    """Replace each level by the table `(N, C, 256)` of its image and channel; fractions are cut off."""
    return tables.to(torch.uint8).gather(2, images.flatten(2).long()).view_as(images)


def brightness(images: Tensor, factors: Tensor) -> Tensor:
    """Multiply the levels, as `ImageEnhance.Brightness`: 0 is black, 1 changes nothing, above 1 is brighter.

    Args:
        images: uint8 `(N, C, H, W)`.
        factors: One for each image, `(N,)`.

    Returns:
        uint8 `(N, C, H, W)`.

    Example:
        >>> brightness(torch.tensor([[[[10, 100, 200]]]], dtype=torch.uint8), torch.tensor([1.5])).tolist()
        [[[[15, 150, 255]]]]
    """
    return _blend(torch.zeros_like(images), images, factors)


def contrast(images: Tensor, factors: Tensor) -> Tensor:
    """Move the levels from the image's mean grey, as `ImageEnhance.Contrast`: 0 is grey, 1 changes nothing.

    Args:
        images: uint8 `(N, C, H, W)`, C 1 or 3.
        factors: One for each image, `(N,)`.

    Returns:
        uint8 `(N, C, H, W)`.

    Raises:
        ValueError: C is neither 1 nor 3.
    """
    grey = _grey(images).flatten(1)
    means = (2 * grey.sum(1) + grey.shape[1]) // (2 * grey.shape[1])  # the mean to the nearest level
    return _blend(means.view(-1, 1, 1, 1), images, factors)


def colour(images: Tensor, factors: Tensor) -> Tensor:
    """Move the levels from the pixel's own grey, as `ImageEnhance.Color`: 0 is a grey image, 1 changes nothing.

    Args:
        images: uint8 `(N, C, H, W)`, C 1 or 3.
        factors: One for each image, `(N,)`.

    Returns:
        uint8 `(N, C, H, W)`. An image of one channel stays as it is.

    Raises:
        ValueError: C is neither 1 nor 3.

    Example:
        >>> red = torch.tensor([200, 0, 0], dtype=torch.uint8).view(1, 3, 1, 1)
        >>> colour(red, torch.tensor([0.5])).flatten().tolist()
        [130, 30, 30]
    """
    return _blend(_grey(images), images, factors)


def sharpness(images: Tensor, factors: Tensor) -> Tensor:
    """Move the levels from those of a smoothed image, as `ImageEnhance.Sharpness`: 0 is smooth, 1 changes nothing.

    Args:
        images: uint8 `(N, C, H, W)`.
        factors: One for each image, `(N,)`.

    Returns:
        uint8 `(N, C, H, W)`. The outermost pixels stay as they are: they lack neighbours.
    """
    smooth = images.float()
    rows = smooth[:, :, :-2] + smooth[:, :, 1:-1] + smooth[:, :, 2:]
    squares = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    centres = smooth[..., 1:-1, 1:-1]
    # Each pixel counts five times, each of its eight neighbours once. No sum over 13 ends in a half, so that the
    # nearest level does not depend on rounding.
    centres.copy_(((squares + 4 * centres) / 13).round_())
    return _blend(smooth, images, factors)


def _grey(images: Tensor) -> Tensor:
    """Return the luma of each pixel, int32 `(N, 1, H, W)`."""
    match images.shape[1]:
        case 1:
            return images.int()
        case 3:
            red, green, blue = torch.split(images.int(), 1, dim=1)
            return (red * _LUMA[0] + green * _LUMA[1] + blue * _LUMA[2] + 2**15).bitwise_right_shift_(16)
        case channels:
            raise ValueError(f"`images` expected 1 or 3 channels, got {channels}")


def _blend(degenerate: Tensor, images: Tensor, factors: Tensor) -> Tensor:
    """Return `degenerate + factor * (images - degenerate)` in float32, clipped; fractions are cut off."""
    degenerate = degenerate.float()
    moved = (images.float() - degenerate).mul_(factors.float().view(-1, 1, 1, 1))
    return moved.add_(degenerate).clamp_(0, 255).to(torch.uint8)
