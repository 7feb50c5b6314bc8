"""A random part of each image, of random area and shape, resized to the whole (Szegedy et al. 2015, arXiv 1409.4842).

Images are cropped and then resized as by Pillow with `Resampling.BILINEAR`: a triangle as wide as an output pixel, or
as an input pixel where these are the larger ones, first along the rows, then along the columns, with 8 bits between.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from limbeck.draws import uniform

RATIOS = (3 / 4, 4 / 3)  # width over height of a part
ATTEMPTS = 10
# Pillow's weights are integers of 22 bits: sums of products with levels fit into int32 and are exact on every device.
_WEIGHT_BITS = 22
# Larger temporaries cost a CPU more than twice the time: their memory comes fresh from the system again and again.
_LEVELS_AT_ONCE = 2**17


def resized_crop(images: Tensor, shares: tuple[float, float], *, seed: int, epoch: int, indices: Tensor) -> Tensor:
    """Cut a random part out of each image and resize it; the view of a sample is a function of (seed, epoch, index).

    As torchvision's RandomResizedCrop: a share of the area and the logarithm of width over height, 3/4 to 4/3, are
    drawn uniformly, up to ten times until the part fits into the image. Failing that, the part is the largest in the
    middle of the image whose shape is allowed.

    Args:
        images: uint8 `(N, C, H, W)`.
        shares: Smallest and largest share of the area, in (0, 1].
        seed: Seed of the run.
        epoch: Epoch.
        indices: The samples' positions in the source, int64 `(N,)`.

    Returns:
        uint8 `(N, C, H, W)`.

    Raises:
        TypeError: `images` are not uint8, or `indices` not int64 of one dimension.

    Example:
        >>> images, indices = torch.arange(32, dtype=torch.uint8).view(2, 1, 4, 4), torch.arange(2)
        >>> torch.equal(resized_crop(images, (1.0, 1.0), seed=0, epoch=1, indices=indices)[0], images[0])
        True
    """
    height, width = images.shape[2:]
    boxes = draw_boxes(height, width, shares, seed=seed, epoch=epoch, indices=indices.cpu())
    return resize(images, boxes, (height, width))


def draw_boxes(
    height: int, width: int, shares: tuple[float, float], *, seed: int, epoch: int, indices: Tensor
) -> Tensor:
    """Draw the parts of `resized_crop`.

    Args:
        height: Of the images, in pixels.
        width: Of the images, in pixels.
        shares: Smallest and largest share of the area.
        seed: Seed of the run.
        epoch: Epoch.
        indices: The samples' positions in the source, int64 `(N,)`.

    Returns:
        Top, left, height and width, int64 `(N, 4)`.
    """
    sizes = torch.tensor([height, width]).expand(len(indices), 2)
    return draw_boxes_in(sizes, shares, seed=seed, epoch=epoch, indices=indices)


def draw_boxes_in(room: Tensor, shares: tuple[float, float], *, seed: int, epoch: int, indices: Tensor) -> Tensor:
    """Draw the parts of `resized_crop` in images of sizes of their own.

    Args:
        room: Height and width of each image, int64 `(N, 2)`.
        shares: Smallest and largest share of the area.
        seed: Seed of the run.
        epoch: Epoch.
        indices: The samples' positions in the source, int64 `(N,)`.

    Returns:
        Top, left, height and width, int64 `(N, 4)`.
    """
    share, shape = uniform(seed, epoch, indices, "resized_crop shape", (2, ATTEMPTS)).unbind(1)
    areas = room.prod(1, keepdim=True) * (shares[0] + (shares[1] - shares[0]) * share)
    shortest, longest = (math.log(ratio) for ratio in RATIOS)
    ratios = (shortest + (longest - shortest) * shape).exp()
    sizes = torch.stack([(areas / ratios).sqrt().round(), (areas * ratios).sqrt().round()], 2).long()
    fits = ((sizes > 0) & (sizes <= room.unsqueeze(1))).all(2)
    first = fits.byte().argmax(1)
    sizes = sizes[torch.arange(len(indices)), first]
    corners = (uniform(seed, epoch, indices, "resized_crop place", (2,)) * (room - sizes + 1)).long()
    return torch.where(fits.any(1, keepdim=True), torch.cat([corners, sizes], 1), _middle(room))


def _middle(room: Tensor) -> Tensor:
    """Return the largest part of an allowed shape, in the middle: `(N, 4)`."""
    height, width = room.unbind(1)
    tallest, widest = (width.double() / RATIOS[0]).round().long(), (height.double() * RATIOS[1]).round().long()
    size = torch.stack([height.minimum(tallest), width.minimum(widest)], 1)
    return torch.cat([(room - size) // 2, size], 1)


def resize(images: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Cut a box out of each image and resize it, with antialiasing.

    Args:
        images: uint8 `(N, C, H, W)`.
        boxes: Top, left, height and width in pixels, inside the image, int64 `(N, 4)`.
        size: Height and width of the output.

    Returns:
        uint8 `(N, C, *size)`, equal to `image.crop(box).resize(size, BILINEAR)`; to one level where recent versions of
        Pillow go along the columns first, because these are shrunk more.

    Raises:
        TypeError: `images` are not uint8.

    Example:
        >>> image = torch.tensor([[[[0, 90, 9, 9]]]], dtype=torch.uint8)
        >>> resize(image, torch.tensor([[0, 0, 1, 2]]), (1, 4)).tolist()
        [[[[0, 23, 68, 90]]]]
    """
    if images.dtype != torch.uint8:
        raise TypeError(f"`images` expected uint8, got {images.dtype}")
    some = max(1, _LEVELS_AT_ONCE // math.prod(images.shape[1:]))
    parts = zip(torch.split(images, some), torch.split(boxes.to(images.device, non_blocking=True), some), strict=True)
    return torch.cat([_resize(part, boxes_of_part, size) for part, boxes_of_part in parts])


def _resize(images: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    top, left, height, width = boxes.unbind(1)
    across = _resample(images.permute(0, 3, 1, 2), left, width, size[1])  # (N, width, C, H)
    return _resample(across.permute(0, 3, 2, 1), top, height, size[0]).permute(0, 2, 1, 3)


def _resample(lines: Tensor, starts: Tensor, lengths: Tensor, outputs: int) -> Tensor:
    """Resize a stretch of the second axis: `(N, L, A, B)` to `(N, outputs, A, B)`."""
    count, pixels = lines.shape[:2]
    places, weights = _taps(starts, lengths, pixels, outputs)
    places = places + torch.arange(count, device=lines.device).unsqueeze(1) * pixels
    flat = lines.flatten(2).flatten(0, 1)
    sums = torch.full((count * outputs, flat.shape[1]), 2 ** (_WEIGHT_BITS - 1), dtype=torch.int32, device=lines.device)
    for place, weight in zip(places.flatten(1), weights.flatten(1), strict=True):
        sums.add_(flat.index_select(0, place).int().mul_(weight.unsqueeze(1)))
    return sums.bitwise_right_shift_(_WEIGHT_BITS).to(torch.uint8).view(count, outputs, *lines.shape[2:])


def _taps(starts: Tensor, lengths: Tensor, pixels: int, outputs: int) -> tuple[Tensor, Tensor]:
    """Return the input pixels of each output pixel, int64 `(taps, N, outputs)`, and their weights, int32."""
    scale = (lengths.double() / outputs).unsqueeze(1)
    reach = scale.clamp(min=1)
    centres = (torch.arange(outputs, device=starts.device) + 0.5) * scale
    taps = torch.arange(math.ceil(2 * max(pixels / outputs, 1)), device=starts.device).view(-1, 1, 1)
    places = (centres - reach + 0.5).floor().long() + taps
    inside = (places >= 0) & (places < lengths.unsqueeze(1))
    weights = (1 - (places - centres + 0.5).abs() * (1 / reach)).clamp_(min=0) * inside
    weights = (weights / weights.sum(0) * 2**_WEIGHT_BITS + 0.5).int()
    return (places + starts.unsqueeze(1)).clamp_(0, pixels - 1), weights
