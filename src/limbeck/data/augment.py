"""Random crop, flip and cutout of whole batches; each sample has draws of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from limbeck.data.draws import integers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from limbeck.config import AugmentOptions


def augment(
    images: Tensor,
    options: AugmentOptions,
    *,
    seed: int,
    epoch: int,
    indices: Tensor,
    black: Sequence[float] = (0.0,),
) -> Tensor:
    """Crop, flip, cut out, in this order. The view of a sample is a function of (seed, epoch, index).

    A crop shifts the image by up to `crop_padding` pixels each way. What comes in is `black`, the value of a black
    pixel after normalisation: so it equals padding with zeros before normalising, as in published pipelines. The
    square of cutout is centred on any pixel, cut at the border, and set to 0, the mean after normalisation
    (DeVries & Taylor 2017, arXiv 1708.04552).

    Args:
        images: Normalised, `(N, C, H, W)`.
        options: What to do; `mixup` and `cutmix` are not read here, see `mix`.
        seed: Seed of the run.
        epoch: Epoch.
        indices: The samples' positions in the source, int64 `(N,)`.
        black: Value of a black pixel, one for all channels or one per channel.

    Returns:
        `(N, C, H, W)`; `images` itself if nothing is asked for. The input is never written to.

    Raises:
        TypeError: `indices` is not int64 of one dimension.

    Example:
        >>> from limbeck.config import AugmentOptions
        >>> images, indices = torch.tensor([[[[1.0, 2.0, 3.0]]]]).expand(4, -1, -1, -1), torch.arange(4)
        >>> augment(images, AugmentOptions(flip=True), seed=0, epoch=1, indices=indices)[:, 0, 0].tolist()
        [[3.0, 2.0, 1.0], [3.0, 2.0, 1.0], [1.0, 2.0, 3.0], [1.0, 2.0, 3.0]]
    """
    if not (options.crop_padding or options.flip or options.cutout):
        return images
    indices = indices.to(images.device)
    if options.crop_padding or options.flip:
        images = _crop_and_flip(images, options, seed, epoch, indices, black)
    if options.cutout:
        images = _cutout(images, options.cutout, seed, epoch, indices)
    return images


def _crop_and_flip(
    images: Tensor, options: AugmentOptions, seed: int, epoch: int, indices: Tensor, black: Sequence[float]
) -> Tensor:
    """Gather each output pixel from where it lies in the input: one pass for both."""
    height, width = images.shape[2:]
    padding = options.crop_padding
    rows = torch.arange(height, device=images.device).expand(len(images), height)
    columns = torch.arange(width, device=images.device).expand(len(images), width)
    if options.flip:
        flipped = integers(seed, epoch, indices, "flip", 2).bool().unsqueeze(1)
        columns = torch.where(flipped, columns.flip(1), columns)
    if padding:
        shifts = integers(seed, epoch, indices, "crop", 2 * padding + 1, (2, 1)) - padding
        rows, columns = rows + shifts[:, 0], columns + shifts[:, 1]
    places = (rows.clamp(0, height - 1) * width).unsqueeze(2) + columns.clamp(0, width - 1).unsqueeze(1)
    views = images.flatten(2).gather(2, places.flatten(1).unsqueeze(1).expand(-1, images.shape[1], -1))
    views = views.view_as(images)
    if not padding:
        return views
    inside = _within(rows, height).unsqueeze(2) & _within(columns, width).unsqueeze(1)
    border = torch.tensor(black, dtype=images.dtype, device=images.device).view(-1, 1, 1)
    return torch.where(inside.unsqueeze(1), views, border)


def _within(places: Tensor, length: int) -> Tensor:
    return (places >= 0) & (places < length)


def _cutout(images: Tensor, side: int, seed: int, epoch: int, indices: Tensor) -> Tensor:
    height, width = images.shape[2:]
    rows = _covered(integers(seed, epoch, indices, "cutout row", height), side, height)
    columns = _covered(integers(seed, epoch, indices, "cutout column", width), side, width)
    return images.masked_fill((rows.unsqueeze(2) & columns.unsqueeze(1)).unsqueeze(1), 0.0)


def _covered(centres: Tensor, side: int, length: int) -> Tensor:
    """Return which of `length` places lie in the stretch of `side` around each centre, `(N, length)`."""
    offsets = torch.arange(length, device=centres.device) - (centres - side // 2).unsqueeze(1)
    return _within(offsets, side)
