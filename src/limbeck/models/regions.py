"""What a two-stage detector looks at: anchors all over an image, and maps pooled inside of boxes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from limbeck.functional.boxes import areas

SAMPLES = 2  # along an axis of a cell


def anchors(
    shapes: Sequence[tuple[int, int]],
    strides: Sequence[int],
    *,
    cells: float,
    ratios: Sequence[float],
    device: torch.device,
) -> Tensor:
    """Return the boxes that a detector starts from, around the middle of each position of each map.

    Args:
        shapes: Height and width of each level's map.
        strides: Pixels between two positions of each map.
        cells: Side of a square anchor, in strides.
        ratios: Height over width of each anchor of a position, at the same area.
        device: Where they are to lie.

    Returns:
        float32 `(A, 4)`: level by level, row by row, the anchors of a position after one another.

    Example:
        >>> anchors([(1, 2)], [4], cells=2, ratios=[1.0], device=torch.device("cpu"))
        tensor([[-2., -2.,  6.,  6.],
                [ 2., -2., 10.,  6.]])
    """
    found = []
    roots = torch.tensor(ratios).to(device, non_blocking=True).sqrt()
    for (height, width), stride in zip(shapes, strides, strict=True):
        half = cells * stride / 2 * torch.stack([1 / roots, roots], dim=1)  # (ratios, 2)
        rows, columns = (torch.arange(side, device=device) * stride + stride / 2 for side in (height, width))
        middles = torch.stack(torch.meshgrid(rows, columns, indexing="ij")[::-1], dim=-1).view(-1, 1, 2)
        found.append(torch.cat([middles - half, middles + half], dim=-1).flatten(0, 1))
    return torch.cat(found)


def pool_regions(maps: Sequence[Tensor], boxes: Tensor, side: int, *, strides: Sequence[int], cells: float) -> Tensor:
    """Return the map inside of each box, of one size: the mean of 2 x 2 bilinear samples in each cell (RoIAlign).

    A box looks at the level on which its root area is `cells` to twice `cells` positions wide, or at the nearest level.
    Positions are the middles of pixels; what lies more than one position outside of a map counts as 0. The samples of
    a cell, of any level, are one weighted sum of rows, so nothing is made but the result.

    Args:
        maps: `(N, D, H, W)` of each level, fine first.
        boxes: `(N, P, 4)` in pixels.
        side: S.
        strides: Pixels between two positions of each map.
        cells: See above; 14 where the maps are those of published networks.

    Returns:
        `(N · P, D, S, S)`, in at least float32.

    Gradient:
        To the maps, once; none to the boxes.

    Example:
        >>> ramp = torch.arange(8.0).expand(1, 1, 8, 8) * 2 + 1  # the middle of each pixel of two
        >>> pool_regions([ramp], torch.tensor([[[4.0, 4.0, 12.0, 12.0]]]), 2, strides=[2], cells=1)[0, 0, 0]
        tensor([ 6., 10.])

    Reference:
        He et al., Mask R-CNN, arXiv 1703.06870; the level: Lin et al., arXiv 1612.03144, Eq. 1.
    """
    level = _levels(boxes, strides, cells)
    rows = torch.cat([each.flatten(2).mT for each in maps], dim=1)  # (N, positions of all levels, D)
    first, height, width, stride = _of_level(maps, strides, level)
    sample, positions, channels = len(rows), rows.shape[1], rows.shape[2]
    first = first + torch.arange(sample, device=boxes.device).unsqueeze(1) * positions
    corners = (boxes.detach() / stride.unsqueeze(-1) - 0.5).to(torch.promote_types(rows.dtype, torch.float32))
    down, up, vertical = _samples(corners[..., 1], corners[..., 3], height, side)
    left, right, horizontal = _samples(corners[..., 0], corners[..., 2], width, side)
    lines = torch.stack([down, up], dim=-1)  # (N, P, S, 2 samples, 2 neighbours)
    columns = torch.stack([left, right], dim=-1)
    places = (lines * width[..., None, None, None])[:, :, :, None, :, None, :, None] + columns[
        :, :, None, :, None, :, None, :
    ]
    weights = vertical[:, :, :, None, :, None, :, None] * horizontal[:, :, None, :, None, :, None, :]
    places = places + first[(..., *[None] * 6)]
    bags = (-1, (2 * SAMPLES) ** 2)
    pooled = F.embedding_bag(
        places.reshape(bags),
        rows.flatten(0, 1).to(weights.dtype),
        mode="sum",
        per_sample_weights=weights.reshape(bags) / SAMPLES**2,
    )
    return pooled.view(-1, side, side, channels).permute(0, 3, 1, 2)


def whole_sizes(images: Tensor) -> Tensor:
    """Return height and width of each image of a batch without padding, int64 `(N, 2)`; nobody waits for the copy."""
    return torch.tensor(images.shape[2:]).to(images.device, non_blocking=True).expand(len(images), 2)


def _levels(boxes: Tensor, strides: Sequence[int], cells: float) -> Tensor:
    """Return the level that each box looks at, int64 `(N, P)`."""
    level = (areas(boxes).clamp(min=1e-6).sqrt() / (cells * strides[0]) + 1e-6).log2().floor()
    return level.clamp(0, len(strides) - 1).to(torch.int64)


def _of_level(maps: Sequence[Tensor], strides: Sequence[int], level: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return of each box's level: its first position among those of all, height, width, stride."""
    table: list[tuple[int, int, int, int]] = []
    before = 0
    for each, stride in zip(maps, strides, strict=True):
        height, width = each.shape[2:]
        table.append((before, height, width, stride))
        before += height * width
    first, tall, wide, steps = torch.tensor(table).to(level.device, non_blocking=True)[level].unbind(-1)
    return first, tall, wide, steps


def _samples(low: Tensor, high: Tensor, length: Tensor, side: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return where samples along an axis lie: positions below and above `(N, P, S, 2)`, weights `(N, P, S, 2, 2)`."""
    steps = (torch.arange(side * SAMPLES, dtype=low.dtype, device=low.device) + 0.5) / (side * SAMPLES)
    points = low.unsqueeze(-1) + (high - low).unsqueeze(-1) * steps
    last = length.unsqueeze(-1).to(points.dtype) - 1
    inside = (points >= -1) & (points <= last + 1)
    points = torch.minimum(points.clamp(min=0), last)
    below = points.floor()
    above = torch.minimum(below + 1, last)
    share = points - below
    weights = torch.stack([1 - share, share], dim=-1) * inside.unsqueeze(-1)
    shape = (*low.shape, side, SAMPLES)
    return below.long().view(shape), above.long().view(shape), weights.view(*shape, 2)
