"""Average precision of detected boxes, as the COCO challenge defines it: the area "all", 100 boxes per image."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

# As NumPy rounds them, since a recall such as 3 of 10 has to reach its own point.
THRESHOLDS = 0.5 + torch.arange(10, dtype=torch.float64) * ((0.95 - 0.5) / 9)  # of the overlap
RECALLS = torch.arange(101, dtype=torch.float64) * 0.01
MOST_BOXES = 100  # of a class in an image
CELLS = 2048  # pairs of an image and a class that are matched at a time
NEVER = -1.0  # an overlap that no threshold reaches


class Found(NamedTuple):
    """Boxes that a detector found, in any order. D is their number.

    Attributes:
        images: int64 `(D,)`: which image a box is in.
        classes: int64 `(D,)`.
        scores: `(D,)`: the larger, the surer.
        boxes: `(D, 4)`: x0, y0, x1, y1.
    """

    images: Tensor
    classes: Tensor
    scores: Tensor
    boxes: Tensor


class Truth(NamedTuple):
    """The boxes that are there. G is their number.

    Attributes:
        images: int64 `(G,)`.
        classes: int64 `(G,)`.
        boxes: `(G, 4)`: x0, y0, x1, y1.
        crowd: bool `(G,)`: whether a box holds a crowd, inside of which any number of boxes is neither right nor wrong.
    """

    images: Tensor
    classes: Tensor
    boxes: Tensor
    crowd: Tensor


class Precision(NamedTuple):
    """Average precision, in [0, 1].

    Attributes:
        ap: Mean over the overlaps 0.5, 0.55 to 0.95 and over the classes that have a true box; nan if none has.
        ap50: At an overlap of 0.5.
        ap75: At 0.75.
        per_class: float64 `(C,)`, nan for a class without a true box.
    """

    ap: float
    ap50: float
    ap75: float
    per_class: Tensor


def average_precision(found: Found, truth: Truth, num_classes: int) -> Precision:
    """Return COCO's average precision: of each class the mean precision at 101 recalls, at ten overlaps.

    In each image and class the boxes are taken from the surest on; each takes the true box that it overlaps most of
    those left, if it reaches the threshold. A box that none is left for is wrong, unless it lies in a crowd. Precision
    at a recall is the largest at that recall or above it. Only the 100 surest boxes of a class in an image count.

    Args:
        found: What a detector found.
        truth: What is there.
        num_classes: C.

    Returns:
        Average precision, computed in float64; equal scores are taken in the order of the images.

    Example:
        >>> box = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
        >>> zero = torch.zeros(1, dtype=torch.int64)
        >>> found = Found(zero, zero, torch.tensor([0.9]), box + torch.tensor([0.0, 0.0, 0.0, 2.0]))
        >>> average_precision(found, Truth(zero, zero, box, torch.tensor([False])), 1)[:3]  # they overlap by 10 / 12
        (0.7, 1.0, 1.0)
    """
    found, truth = _sorted(found), Truth(truth.images, truth.classes, truth.boxes.double(), truth.crowd.bool())
    right, ignored = _match(found, truth, num_classes)
    precision = torch.full((num_classes, len(THRESHOLDS)), torch.nan, dtype=torch.float64)
    there = truth.classes[~truth.crowd].bincount(minlength=num_classes)
    order = found.scores.argsort(descending=True, stable=True)
    for label in there.nonzero().flatten().tolist():
        rows = order[found.classes[order] == label]
        precision[label] = _mean_precision(right[rows], ignored[rows], int(there[label]))
    means = precision[~precision[:, 0].isnan()].mean(dim=0)
    return Precision(means.mean().item(), means[0].item(), means[5].item(), precision.mean(dim=1))


def _sorted(found: Found) -> Found:
    """Return the boxes by image, class and falling score, less those beyond the most that count."""
    order = found.scores.argsort(descending=True, stable=True)
    for key in (found.classes, found.images):
        order = order[key[order].argsort(stable=True)]
    images, classes, scores, boxes = (field[order] for field in found)
    rank = _rank(torch.stack([images, classes], dim=1))
    kept = rank < MOST_BOXES
    return Found(images[kept], classes[kept], scores[kept].double(), boxes[kept].double())


def _rank(keys: Tensor) -> Tensor:
    """Return the place of each row of sorted `keys` `(M, K)` among those that equal it, from 0."""
    places = torch.arange(len(keys))
    new = torch.ones(len(keys), dtype=torch.bool)
    new[1:] = (keys[1:] != keys[:-1]).any(dim=1)
    return places - torch.where(new, places, 0).cummax(dim=0).values if len(keys) else places


def _match(found: Found, truth: Truth, num_classes: int) -> tuple[Tensor, Tensor]:
    """Return which boxes are right, and which do not count, bool `(D, T)` each, over the T thresholds."""
    right = torch.zeros(len(found.images), len(THRESHOLDS), dtype=torch.bool)
    ignored = torch.zeros_like(right)
    ours, theirs = (each.images * num_classes + each.classes for each in (found, truth))
    # Real boxes before crowds, so that a crowd is taken only where no real box can be.
    order = (theirs * 2 + truth.crowd).argsort(stable=True)
    cells, sizes = torch.unique_consecutive(theirs[order], return_counts=True)
    true_rows = torch.split(order, sizes.tolist())
    starts, ends = torch.searchsorted(ours, cells), torch.searchsorted(ours, cells, right=True)
    shared = (ends > starts).nonzero().flatten()
    shared = shared[sizes[shared].argsort(stable=True)]  # so that those of one size are padded together
    for part in torch.split(shared, CELLS) if len(shared) else ():
        rows = pad_sequence([true_rows[cell] for cell in part.tolist()], batch_first=True, padding_value=-1)
        _match_cells(found, truth, rows, starts[part], ends[part], right, ignored)
    return right, ignored


def _match_cells(
    found: Found, truth: Truth, rows: Tensor, starts: Tensor, ends: Tensor, right: Tensor, ignored: Tensor
) -> None:
    """Match the boxes from `starts` to `ends` of some images and classes with the true `rows` of each, -1 for none."""
    there, crowd = rows >= 0, truth.crowd[rows] & (rows >= 0)
    free = there.unsqueeze(1).repeat(1, len(THRESHOLDS), 1)
    for rank in range(int((ends - starts).max())):
        live = (starts + rank < ends).nonzero().flatten()
        box = starts[live] + rank
        overlaps = _overlaps(found.boxes[box], truth.boxes[rows[live]], crowd[live]).unsqueeze(1)
        reached = free[live] & (overlaps >= THRESHOLDS.clamp(max=1 - 1e-10).unsqueeze(1))
        real = reached & ~crowd[live].unsqueeze(1)
        among = torch.where(real.any(dim=-1, keepdim=True), real, reached)
        # Of equal overlaps the last, as in the challenge's own code.
        best = len(rows[0]) - 1 - torch.where(among, overlaps, NEVER).flip(-1).argmax(dim=-1)
        taken, in_crowd = among.any(dim=-1), crowd[live].gather(1, best)
        right[box], ignored[box] = taken & ~in_crowd, taken & in_crowd
        left = free[live].scatter(2, best.unsqueeze(-1), False)
        free[live] = torch.where((taken & ~in_crowd).unsqueeze(-1), left, free[live])


def _overlaps(boxes: Tensor, truth: Tensor, crowd: Tensor) -> Tensor:
    """Return intersection over union of boxes `(B, 4)` with `(B, G, 4)`; over the box's own area in a crowd."""
    boxes = boxes.unsqueeze(1)
    sides = torch.minimum(boxes[..., 2:], truth[..., 2:]) - torch.maximum(boxes[..., :2], truth[..., :2])
    common = sides.clamp(min=0).prod(dim=-1)
    own, other = ((each[..., 2:] - each[..., :2]).prod(dim=-1) for each in (boxes, truth))
    union = torch.where(crowd, own.expand_as(other), own + other - common)
    return torch.where(common > 0, common / union, 0.0)


def _mean_precision(right: Tensor, ignored: Tensor, there: int) -> Tensor:
    """Return the mean over the recalls, float64 `(T,)`, of one class's boxes `(D, T)`, the surest first."""
    hits = right.double().cumsum(dim=0)
    misses = (~right & ~ignored).double().cumsum(dim=0)
    precision = hits / (hits + misses).clamp(min=1)
    precision = precision.flip(0).cummax(dim=0).values.flip(0) if len(precision) else precision
    places = torch.searchsorted((hits / there).t().contiguous(), RECALLS.expand(hits.shape[1], -1).contiguous())
    padded = torch.cat([precision, torch.zeros(1, precision.shape[1], dtype=torch.float64)])
    return padded.gather(0, places.t()).mean(dim=0)
