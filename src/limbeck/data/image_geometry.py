"""Shear, translate and rotate batches of uint8 images, each image by its own magnitude, pixel for pixel as Pillow.

All five take each output pixel from one input pixel, the one in which the transformed centre of the output pixel lies
(`Image.transform` and `Image.rotate` with `Resampling.NEAREST`, Pillow's default). What comes in from outside is
`fill`; 128 is mid-grey, the colour that public implementations of AutoAugment use.
"""

from __future__ import annotations

import torch
from torch import Tensor

GREY = 128
# Pillow walks over the input in fixed point with 16 fractional bits. At the border between two input pixels exact
# arithmetic would choose the other one here and there, so the same bits are kept.
_FRACTIONAL_BITS = 16


def shear_x(images: Tensor, slopes: Tensor, *, fill: int = GREY) -> Tensor:
    """Shift row `y`, counted from the top, by `slope * y` pixels to the left.

    Args:
        images: uint8 `(N, C, H, W)`.
        slopes: Pixels per row, one for each image, float64 `(N,)`.
        fill: Value of pixels from outside.

    Returns:
        uint8 `(N, C, H, W)`, equal to `image.transform(image.size, AFFINE, (1, slope, 0, 0, 1, 0))`.

    Example:
        >>> image = torch.tensor([[1, 2, 3, 4]] * 4, dtype=torch.uint8)
        >>> shear_x(image.view(1, 1, 4, 4), torch.tensor([1.0], dtype=torch.float64), fill=0)[0, 0].tolist()
        [[2, 3, 4, 0], [3, 4, 0, 0], [4, 0, 0, 0], [0, 0, 0, 0]]
    """
    zeros, ones = torch.zeros_like(slopes), torch.ones_like(slopes)
    return _affine(images, (ones, slopes, zeros), (zeros, ones, zeros), fill)


def shear_y(images: Tensor, slopes: Tensor, *, fill: int = GREY) -> Tensor:
    """Shift column `x`, counted from the left, by `slope * x` pixels upwards.

    Args:
        images: uint8 `(N, C, H, W)`.
        slopes: Pixels per column, one for each image, float64 `(N,)`.
        fill: Value of pixels from outside.

    Returns:
        uint8 `(N, C, H, W)`, equal to `image.transform(image.size, AFFINE, (1, 0, 0, slope, 1, 0))`.
    """
    zeros, ones = torch.zeros_like(slopes), torch.ones_like(slopes)
    return _affine(images, (ones, zeros, zeros), (slopes, ones, zeros), fill)


def rotate(images: Tensor, degrees: Tensor, *, fill: int = GREY) -> Tensor:
    """Turn counter-clockwise about the centre of the image.

    Args:
        images: uint8 `(N, C, H, W)`.
        degrees: One angle for each image, float64 `(N,)`.
        fill: Value of pixels from outside.

    Returns:
        uint8 `(N, C, H, W)`, equal to `image.rotate(degrees)`.

    Example:
        >>> image = torch.tensor([[1, 2], [3, 4]], dtype=torch.uint8)
        >>> rotate(image.view(1, 1, 2, 2), torch.tensor([90.0], dtype=torch.float64))[0, 0].tolist()
        [[2, 4], [1, 3]]
    """
    height, width = images.shape[2:]
    radians = -degrees.deg2rad()
    # Pillow rounds to 15 digits, so that a right angle has a cosine of 0.
    cosines, sines = radians.cos().round(decimals=15), radians.sin().round(decimals=15)
    x, y = width / 2, height / 2
    columns = (cosines, sines, x - cosines * x - sines * y)
    rows = (-sines, cosines, y + sines * x - cosines * y)
    return _affine(images, columns, rows, fill)


def translate_x(images: Tensor, shares: Tensor, *, fill: int = GREY) -> Tensor:
    """Shift to the left by a share of the width, to the nearest pixel.

    Args:
        images: uint8 `(N, C, H, W)`.
        shares: Of the width, one for each image, float64 `(N,)`.
        fill: Value of pixels from outside.

    Returns:
        uint8 `(N, C, H, W)`, equal to `image.transform(image.size, AFFINE, (1, 0, share * width, 0, 1, 0))`.

    Example:
        >>> image = torch.tensor([1, 2, 3, 4], dtype=torch.uint8)
        >>> translate_x(image.view(1, 1, 1, 4), torch.tensor([0.3], dtype=torch.float64)).tolist()
        [[[[2, 3, 4, 128]]]]
    """
    height, width = images.shape[2:]
    columns = torch.arange(width, device=images.device) + _whole(shares * width)
    rows = torch.arange(height, device=images.device).view(1, -1, 1)
    return _sample(images, columns, rows, fill)


def translate_y(images: Tensor, shares: Tensor, *, fill: int = GREY) -> Tensor:
    """Shift upwards by a share of the height, to the nearest pixel.

    Args:
        images: uint8 `(N, C, H, W)`.
        shares: Of the height, one for each image, float64 `(N,)`.
        fill: Value of pixels from outside.

    Returns:
        uint8 `(N, C, H, W)`, equal to `image.transform(image.size, AFFINE, (1, 0, 0, 0, 1, share * height))`.
    """
    height, width = images.shape[2:]
    columns = torch.arange(width, device=images.device).view(1, 1, -1)
    rows = torch.arange(height, device=images.device).unsqueeze(1) + _whole(shares * height)
    return _sample(images, columns, rows, fill)


def _whole(pixels: Tensor) -> Tensor:
    """Return the shift of pixel centres, halves upwards: `(N,)` to int64 `(N, 1, 1)`."""
    return (pixels + 0.5).floor().long().view(-1, 1, 1)


def _affine(
    images: Tensor, columns: tuple[Tensor, Tensor, Tensor], rows: tuple[Tensor, Tensor, Tensor], fill: int
) -> Tensor:
    """Take the pixel at (x, y) from column a x + b y + c of the input; its row likewise. Coefficients are `(N,)`."""
    height, width = images.shape[2:]
    return _sample(images, _places(*columns, height, width), _places(*rows, height, width), fill)


def _places(a: Tensor, b: Tensor, c: Tensor, height: int, width: int) -> Tensor:
    """Return the pixel in which a x + b y + c lies for the centre (x, y) of each pixel: int64 `(N, H, W)`."""
    x = torch.arange(width, device=a.device)
    y = torch.arange(height, device=a.device).unsqueeze(1)
    first = _fixed(c + a * 0.5 + b * 0.5)
    return (first + _fixed(a) * x + _fixed(b) * y).bitwise_right_shift(_FRACTIONAL_BITS)


def _fixed(values: Tensor) -> Tensor:
    """Return fixed-point numbers: `(N,)` to int64 `(N, 1, 1)`."""
    return (values * (1 << _FRACTIONAL_BITS) + 0.5).floor().long().view(-1, 1, 1)


def _sample(images: Tensor, columns: Tensor, rows: Tensor, fill: int) -> Tensor:
    """Gather each pixel from its place in the input, int64 that broadcast to `(N, H, W)`."""
    height, width = images.shape[2:]
    outside = (columns < 0) | (columns >= width) | (rows < 0) | (rows >= height)
    places = rows.clamp(0, height - 1) * width + columns.clamp(0, width - 1)
    places = places.flatten(1).unsqueeze(1).expand(-1, images.shape[1], -1)
    views = images.flatten(2).gather(2, places).view_as(images)
    return views.masked_fill_(outside.unsqueeze(1), fill)
