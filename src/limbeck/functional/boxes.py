"""Boxes in images: overlaps, offsets between them, suppression of double ones. Corners are x0, y0, x1, y1 in pixels."""

from __future__ import annotations

import math

import torch
from torch import Tensor

LARGEST_GROWTH = math.log(1000 / 16)  # of a side by an offset: beyond, exp() would leave every image
SMALLEST = 1e-6  # side or area of a box, so that no empty one divides by zero


def areas(boxes: Tensor) -> Tensor:
    """Return the areas `(*)` of boxes `(*, 4)`."""
    return (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(dim=-1)


def overlaps(boxes: Tensor, others: Tensor) -> Tensor:
    """Return intersection over union of each box `(*, A, 4)` with each other one `(*, B, 4)`, `(*, A, B)`.

    >>> overlaps(torch.tensor([[0.0, 0.0, 2.0, 2.0]]), torch.tensor([[1.0, 0.0, 3.0, 2.0], [4.0, 4.0, 5.0, 5.0]]))
    tensor([[0.3333, 0.0000]])
    """
    ours, theirs = boxes.unsqueeze(-2), others.unsqueeze(-3)
    common = _common(ours, theirs)
    return common / (areas(ours) + areas(theirs) - common).clamp(min=SMALLEST)


def _common(boxes: Tensor, others: Tensor) -> Tensor:
    sides = torch.minimum(boxes[..., 2:], others[..., 2:]) - torch.maximum(boxes[..., :2], others[..., :2])
    return sides.clamp(min=0).prod(dim=-1)


def distance_iou(boxes: Tensor, others: Tensor) -> Tensor:
    r"""Distance-IoU loss of pairs of boxes: :math:`1 - IoU + d^2 / c^2`.

    d is the distance of the centres, c the diagonal of the smallest box around both.

    Args:
        boxes: `(*, 4)`.
        others: `(*, 4)`.

    Returns:
        `(*)`, in [0, 2).

    Gradient:
        To both.

    Example:
        >>> box = torch.tensor([[0.0, 0.0, 2.0, 2.0]])
        >>> distance_iou(box, box), distance_iou(box, box + 2)
        (tensor([0.]), tensor([1.2500]))

    Reference:
        Zheng et al., "Distance-IoU Loss", AAAI 2020, arXiv 1911.08287, Eq. 5 to 7.
    """
    common = _common(boxes, others)
    shared = common / (areas(boxes) + areas(others) - common).clamp(min=SMALLEST)
    between = ((boxes[..., :2] + boxes[..., 2:]) - (others[..., :2] + others[..., 2:])) / 2
    around = torch.maximum(boxes[..., 2:], others[..., 2:]) - torch.minimum(boxes[..., :2], others[..., :2])
    return 1 - shared + between.square().sum(-1) / around.square().sum(-1).clamp(min=SMALLEST)


def offsets_to(boxes: Tensor, wanted: Tensor, scale: tuple[float, float] = (1.0, 1.0)) -> Tensor:
    """Return the offsets `(*, 4)` that lead from boxes to wanted ones: centres in sides, sides in logs.

    Args:
        boxes: `(*, 4)`.
        wanted: `(*, 4)`.
        scale: What the offsets of centres and of sides are multiplied by, so that they vary by about 1.

    Reference:
        Girshick et al., R-CNN, arXiv 1311.2524, Eq. 6 to 9.
    """
    centres, sides = _centres(boxes)
    wanted_centres, wanted_sides = _centres(wanted)
    moved = (wanted_centres - centres) / sides * scale[0]
    return torch.cat([moved, (wanted_sides / sides).log() * scale[1]], dim=-1)


def moved(boxes: Tensor, offsets: Tensor, scale: tuple[float, float] = (1.0, 1.0)) -> Tensor:
    """Return the boxes that offsets lead to; the inverse of `offsets_to`.

    >>> box, wanted = torch.tensor([0.0, 0.0, 4.0, 2.0]), torch.tensor([1.0, 1.0, 3.0, 4.0])
    >>> moved(box, offsets_to(box, wanted, (10.0, 5.0)), (10.0, 5.0))
    tensor([1., 1., 3., 4.])
    """
    centres, sides = _centres(boxes)
    centres = centres + offsets[..., :2] / scale[0] * sides
    half = (offsets[..., 2:] / scale[1]).clamp(max=LARGEST_GROWTH).exp() * sides / 2
    return torch.cat([centres - half, centres + half], dim=-1)


def _centres(boxes: Tensor) -> tuple[Tensor, Tensor]:
    sides = (boxes[..., 2:] - boxes[..., :2]).clamp(min=SMALLEST)
    return (boxes[..., :2] + boxes[..., 2:]) / 2, sides


def clipped(boxes: Tensor, sizes: Tensor) -> Tensor:
    """Return boxes `(N, K, 4)` cut at the borders of their images, whose heights and widths are `sizes` `(N, 2)`."""
    largest = sizes.flip(-1).repeat(1, 2).unsqueeze(1).to(boxes.dtype)
    return torch.minimum(boxes.clamp(min=0), largest)


def kept(boxes: Tensor, threshold: float, groups: Tensor | None = None) -> Tensor:
    """Return which boxes greedy suppression keeps: those that overlap with no kept one before them by more.

    A box's fate hangs on those before it only, so a fixed point of "kept if no kept one before it overlaps" is the
    greedy answer, and repeating it from all kept finds that after as many rounds as the longest chain of suppressions:
    a few. Each round asks whether something changed, for which an accelerator is waited for.

    Args:
        boxes: `(N, K, 4)`, the surest first.
        threshold: Overlap above which a box is suppressed.
        groups: Integers `(N, K)`; boxes of different groups do not suppress each other.

    Returns:
        bool `(N, K)`.

    Example:
        >>> row = torch.tensor([[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 4.0, 3.0], [0.0, 2.0, 4.0, 4.0]])
        >>> kept(row.unsqueeze(0), 0.4)
        tensor([[ True, False, False]])
    """
    suppresses = overlaps(boxes, boxes) > threshold
    if groups is not None:
        suppresses &= groups.unsqueeze(-1) == groups.unsqueeze(-2)
    before = suppresses.triu(diagonal=1).to(torch.float32)  # [earlier, later]
    found = torch.ones(boxes.shape[:2], dtype=torch.bool, device=boxes.device)
    for _ in range(boxes.shape[1]):
        now = torch.bmm(found.float().unsqueeze(1), before).squeeze(1) == 0
        if torch.equal(now, found):
            break
        found = now
    return found
