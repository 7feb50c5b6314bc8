"""The operations of AutoAugment and RandAugment by name, and one operation for each image of a batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from limbeck.data import image_geometry as geometry
from limbeck.data import image_tones as tones

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


class Operation(NamedTuple):
    """An operation and its magnitudes.

    Attributes:
        function: Takes images, uint8 `(N, C, H, W)`, and the magnitudes `(N,)`.
        neutral: Magnitude at strength 0.
        change: What strength 1 adds to it.
        signed: Whether it is added or taken away, by a draw.
    """

    function: Callable[[Tensor, Tensor], Tensor]
    neutral: float = 0.0
    change: float = 0.0
    signed: bool = False


# The ranges of DeepVoltaire/AutoAugment, which GKL's code has copied. Both shear with bicubic interpolation and rotate
# counter-clockwise only; here all geometry takes the nearest pixel and goes either way, as in the authors' release and
# in torchvision. torchvision has the same ranges, except that solarize starts at 255, which inverts white at strength
# 0, and that translations are cut to whole pixels. The authors' release (tensorflow/models, research/autoaugment)
# divides levels by 10 and not by 9, translates by at most 10 pixels of 32, keeps 4 bits at level 0 of posterize, and
# has factors of the last four that rise with the level from 0.1 to 1.9.
OPERATIONS: dict[str, Operation] = {
    "shear_x": Operation(geometry.shear_x, change=0.3, signed=True),
    "shear_y": Operation(geometry.shear_y, change=0.3, signed=True),
    "translate_x": Operation(geometry.translate_x, change=150 / 331, signed=True),
    "translate_y": Operation(geometry.translate_y, change=150 / 331, signed=True),
    "rotate": Operation(geometry.rotate, change=30.0, signed=True),
    "auto_contrast": Operation(lambda images, _: tones.auto_contrast(images)),
    "invert": Operation(lambda images, _: tones.invert(images)),
    "equalize": Operation(lambda images, _: tones.equalize(images)),
    "solarize": Operation(tones.solarize, neutral=256.0, change=-256.0),
    "posterize": Operation(tones.posterize, neutral=8.0, change=-4.0),
    "contrast": Operation(tones.contrast, neutral=1.0, change=0.9, signed=True),
    "colour": Operation(tones.colour, neutral=1.0, change=0.9, signed=True),
    "brightness": Operation(tones.brightness, neutral=1.0, change=0.9, signed=True),
    "sharpness": Operation(tones.sharpness, neutral=1.0, change=0.9, signed=True),
}
IDENTITY = len(OPERATIONS)
_CODES = {name: code for code, name in enumerate(OPERATIONS)} | {"identity": IDENTITY}


def codes_of(names: list[str]) -> Tensor:
    """Return the places of operations in `OPERATIONS`, and `IDENTITY` for "identity".

    Args:
        names: Of operations.

    Returns:
        int64 `(len(names),)`.

    Example:
        >>> codes_of(["shear_y", "identity"]).tolist()
        [1, 14]
    """
    return torch.tensor([_CODES[name] for name in names])


def apply_operations(
    images: Tensor,
    codes: Tensor,
    strengths: Tensor,
    negative: Tensor,
    operations: Mapping[str, Operation] = OPERATIONS,
) -> Tensor:
    """Apply to each image an operation of its own.

    The images are sorted by operation, and each operation is applied once, to all its images together. Draws are on
    the CPU, so nothing waits for an accelerator.

    Args:
        images: uint8 `(N, C, H, W)`, on any device.
        codes: Operation of each image: its place in `operations`, or their number for none. int64 `(N,)`, on the CPU.
        strengths: In [0, 1], float64 `(N,)`, on the CPU.
        negative: Whether the magnitude of a signed operation is on the other side of its neutral one, bool `(N,)`, on
            the CPU.
        operations: The operations by name.

    Returns:
        uint8 `(N, C, H, W)`. The input is never written to.

    Raises:
        TypeError: `images` are not uint8.
        ValueError: `images` have neither one nor three channels, and an operation mixes them.

    Example:
        >>> images = torch.tensor([10, 20, 30], dtype=torch.uint8).view(3, 1, 1, 1)
        >>> codes, strengths = codes_of(["invert", "identity", "brightness"]), torch.ones(3, dtype=torch.float64)
        >>> apply_operations(images, codes, strengths, torch.zeros(3, dtype=torch.bool)).flatten().tolist()
        [245, 20, 57]
    """
    if images.dtype != torch.uint8:
        raise TypeError(f"`images` expected uint8, got {images.dtype}")
    order = codes.argsort(stable=True)
    counts = codes.bincount(minlength=len(operations) + 1).tolist()
    strengths = torch.where(negative, -strengths, strengths)[order].to(images.device, non_blocking=True)
    order = order.to(images.device, non_blocking=True)
    *groups, untouched = torch.split(images[order], counts)
    *strengths_of_groups, _ = torch.split(strengths, counts)
    changed = [
        operation.function(group, _magnitudes(operation, group_strengths))
        for operation, group, group_strengths in zip(operations.values(), groups, strengths_of_groups, strict=True)
        if len(group)
    ]
    return torch.empty_like(images).index_copy_(0, order, torch.cat([*changed, untouched]))


def _magnitudes(operation: Operation, strengths: Tensor) -> Tensor:
    return operation.neutral + operation.change * (strengths if operation.signed else strengths.abs())
