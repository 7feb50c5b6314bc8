"""Random views of whole batches; each sample has draws of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from limbeck.data.auto_augment import auto_augment
from limbeck.data.rand_augment import rand_augment
from limbeck.data.resized_crop import resized_crop
from limbeck.data.sources import Pixels, enlarge, standardise
from limbeck.draws import integers
from limbeck.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from limbeck.config import AugmentOptions


def augment(
    images: Tensor, options: AugmentOptions, *, pixels: Pixels, seed: int, epoch: int, indices: Tensor
) -> Tensor:
    """Return normalised views; the view of a sample is a function of (seed, epoch, index).

    Crop, flip, AutoAugment and RandAugment act on the integers in this order, as in published pipelines. What comes in
    at the border of a crop is black, or the image mirrored; in the other two it is mid-grey. Then images are
    normalised. The square of cutout is centred on any pixel, cut at the border, and set to 0 (DeVries & Taylor 2017,
    arXiv 1708.04552): the mean after normalisation, black if the pixels are not standardised. Last, images are
    enlarged if `pixels` say so.

    Args:
        images: uint8 `(N, C, H, W)`.
        options: What to do; `mixup` and `cutmix` are not read here, see `mix`.
        pixels: What the numbers stand for.
        seed: Seed of the run.
        epoch: Epoch.
        indices: The samples' positions in the source, int64 `(N,)`.

    Returns:
        float32 `(N, C, H, W)`, H and W those of `pixels` if these name a side. The input is never written to.

    Raises:
        TypeError: `indices` is not int64 of one dimension.
        UserError: AutoAugment or RandAugment of images whose largest number is not 255.

    Example:
        >>> from limbeck.config import AugmentOptions
        >>> images = torch.tensor([[[[0, 1, 2]]]], dtype=torch.uint8).expand(4, -1, -1, -1)
        >>> pixels, indices = Pixels(2, (0.0,), (1.0,)), torch.arange(4)
        >>> views = augment(images, AugmentOptions(flip=True), pixels=pixels, seed=0, epoch=1, indices=indices)
        >>> views[:, 0, 0].tolist()
        [[1.0, 0.5, 0.0], [1.0, 0.5, 0.0], [0.0, 0.5, 1.0], [0.0, 0.5, 1.0]]
    """
    views = standardise(augment_levels(images, options, pixels=pixels, seed=seed, epoch=epoch, indices=indices), pixels)
    if options.cutout:
        there = indices.to(images.device, non_blocking=True)
        views = _cutout(views, options.cutout, indices=there, seed=seed, epoch=epoch)
    return enlarge(views, pixels)


def augment_levels(
    images: Tensor, options: AugmentOptions, *, pixels: Pixels, seed: int, epoch: int, indices: Tensor
) -> Tensor:
    """Return what `augment` makes of images before they are normalised, uint8 `(N, C, H, W)`; see there."""
    time = {"seed": seed, "epoch": epoch}
    there = indices.to(images.device, non_blocking=True)  # the other draws are made on the CPU
    if options.resized_crop:
        images = resized_crop(images, options.resized_crop, indices=indices, **time)
    if options.crop_padding or options.flip:
        images = _crop_and_flip(images, options, indices=there, **time)
    if options.auto_augment or options.rand_augment_operations:
        _check_levels(pixels)
    if options.auto_augment:
        images = auto_augment(images, indices=indices, **time)
    if options.rand_augment_operations:
        images = rand_augment(
            images,
            options.rand_augment_operations,
            options.rand_augment_magnitude,
            spread=options.rand_augment_spread,
            probability=options.rand_augment_probability,
            indices=indices,
            **time,
        )
    return images


def _check_levels(pixels: Pixels) -> None:
    if pixels.maximum != 255:
        raise UserError(
            f"AutoAugment and RandAugment expected images of 256 levels, got levels of 0 to {pixels.maximum}: set "
            f"`data.augment.auto_augment` to false and `data.augment.rand_augment_operations` to 0"
        )


def _crop_and_flip(images: Tensor, options: AugmentOptions, seed: int, epoch: int, indices: Tensor) -> Tensor:
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
    reflect = padding and options.crop_border == "reflect"
    if reflect:
        rows, columns = _reflected(rows, height), _reflected(columns, width)
    places = (rows.clamp(0, height - 1) * width).unsqueeze(2) + columns.clamp(0, width - 1).unsqueeze(1)
    views = images.flatten(2).gather(2, places.flatten(1).unsqueeze(1).expand(-1, images.shape[1], -1))
    views = views.view_as(images)
    if padding and not reflect:
        inside = _within(rows, height).unsqueeze(2) & _within(columns, width).unsqueeze(1)
        views = views.mul_(inside.unsqueeze(1))
    return views


def _reflected(places: Tensor, length: int) -> Tensor:
    """Return places that lie inside, mirrored at the first and the last one, which are not repeated."""
    if length == 1:
        return torch.zeros_like(places)
    around = places.remainder(2 * length - 2)
    return torch.where(around < length, around, 2 * length - 2 - around)


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
