"""Which anchors and regions of an image a step learns from, and what each of them should say.

As many of each image in each step, so no shape hangs on the images, and no value is waited for. The draws are functions
of (seed, epoch, sample).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from limbeck.draws import uniform
from limbeck.functional.boxes import overlaps

ANCHOR_MATCHES, ANCHOR_MISSES = 0.7, 0.3  # overlap from which an anchor matches, and below which it is background
REGION_MATCHES = 0.5
ANCHORS_WITH_OBJECT, REGIONS_WITH_OBJECT = 0.5, 0.25  # at most, of those that are drawn
LEFT_OUT = -1
NEAR = 0.5  # FGFI's factor of the best anchor's overlap


@dataclass(frozen=True)
class Chance:
    """What the draws of a batch are functions of.

    Attributes:
        seed: Seed of the run.
        epoch: Epoch.
        indices: int64 `(N,)`: the samples' places in the training split.
    """

    seed: int
    epoch: int
    indices: Tensor

    def uniform(self, name: str, count: int) -> Tensor:
        """Return float64 `(N, count)` in [0, 1)."""
        return uniform(self.seed, self.epoch, self.indices, name, (count,))


class Regions(NamedTuple):
    """What a second stage learns from. R = N · P.

    Attributes:
        boxes: `(N, P, 4)`.
        labels: int64 `(R,)`: a class, or C for the background.
        wanted: `(N, P, 4)`: the true box that each overlaps most, whatever its label.
    """

    boxes: Tensor
    labels: Tensor
    wanted: Tensor


def match_anchors(anchors: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Return what each anchor should say, int64 `(N, A)`, and the true box that it overlaps most, `(N, A, 4)`.

    1 where it overlaps an object by 0.7 or is an object's best, 0 where it overlaps none by 0.3, else -1.

    Args:
        anchors: `(A, 4)`.
        truth: `(N, M, 5)`: class, x0, y0, x1, y1; class -1 for no object. M is at least 1.
    """
    shared = _with_objects(truth, anchors)
    best, which = shared.max(dim=1)
    labels = torch.where(best >= ANCHOR_MATCHES, 1, torch.where(best < ANCHOR_MISSES, 0, LEFT_OUT))
    of_object = shared.amax(dim=2, keepdim=True)
    labels = torch.where(((shared == of_object) & (of_object > 0)).any(dim=1), 1, labels)
    return labels, _boxes_at(truth, which)


def near_objects(anchors: Tensor, truth: Tensor, shapes: list[tuple[int, int]]) -> tuple[Tensor, ...]:
    """Return the positions of each level at which an anchor is half as good as an object's best, bool `(N, H, W)`.

    Args:
        anchors: `(A, 4)`, the same number at each position.
        truth: See `match_anchors`.
        shapes: Heights and widths of the levels.
    """
    shared = _with_objects(truth, anchors)
    near = (shared > (NEAR * shared.amax(dim=2, keepdim=True)).clamp(min=0)).any(dim=1)
    positions = [height * width for height, width in shapes]
    each = near.view(len(truth), sum(positions), -1).any(dim=-1).split(positions, dim=1)  # type: ignore[no-untyped-call]
    return tuple(flags.view(-1, *shape) for flags, shape in zip(each, shapes, strict=True))


def draw_anchors(labels: Tensor, count: int, chance: Chance) -> Tensor:
    """Return the labels of `match_anchors` with -1 for all but `count` anchors of each image."""
    draw = chance.uniform("anchors", labels.shape[1])
    objects = _at_random(labels == 1, draw, int(count * ANCHORS_WITH_OBJECT))
    left = count - objects.sum(dim=1, keepdim=True)
    order = torch.where(labels == 0, draw, 2.0).topk(min(count, labels.shape[1]), dim=1, largest=False).values
    last = order.gather(1, (left - 1).clamp(0, order.shape[1] - 1))
    background = (labels == 0) & (draw <= last) & (left > 0)
    return torch.where(objects, 1, torch.where(background, 0, LEFT_OUT))


def draw_regions(proposals: Tensor, truth: Tensor, count: int, num_classes: int, chance: Chance) -> Regions:
    """Return `count` regions of each image, of its proposals and its true boxes.

    At most a quarter match an object, unless there is nothing else left to draw.

    Args:
        proposals: `(N, K, 4)`, K at least `count`.
        truth: See `match_anchors`.
        count: P.
        num_classes: C.
        chance: Of the batch.
    """
    boxes = torch.cat([proposals, truth[..., 1:].to(proposals.dtype)], dim=1)
    best, which = _with_objects(truth, boxes).max(dim=1)
    real = torch.cat([torch.ones_like(proposals[..., 0], dtype=torch.bool), truth[..., 0] >= 0], dim=1)
    matches = (best >= REGION_MATCHES) & real
    draw = chance.uniform("regions", boxes.shape[1])
    first = _at_random(matches, draw, int(count * REGIONS_WITH_OBJECT))
    turn = torch.where(first, 0.0, torch.where(~matches & real, 1.0, torch.where(real, 2.0, 3.0)))
    chosen = (turn + draw).topk(count, dim=1, largest=False).indices
    classes = truth[..., 0].gather(1, which).to(torch.int64)
    labels = torch.where(matches, classes, num_classes).gather(1, chosen)
    rows = chosen.unsqueeze(-1).expand(-1, -1, 4)
    return Regions(boxes.gather(1, rows), labels.flatten(), _boxes_at(truth, which).gather(1, rows))


def _with_objects(truth: Tensor, boxes: Tensor) -> Tensor:
    """Return the overlap of each true box with each of the boxes, `(N, M, A)`; -1 for rows without an object."""
    shared = overlaps(truth[..., 1:].to(boxes.dtype), boxes)
    return torch.where((truth[..., 0] >= 0).unsqueeze(-1), shared, -1.0)


def _boxes_at(truth: Tensor, which: Tensor) -> Tensor:
    return truth[..., 1:].gather(1, which.unsqueeze(-1).expand(-1, -1, 4))


def _at_random(flags: Tensor, draw: Tensor, most: int) -> Tensor:
    """Return the flags `(N, A)` of which at most so many are left in a row, those of the smallest draws."""
    smallest = torch.where(flags, draw, 2.0).topk(min(most, flags.shape[1]), dim=1, largest=False).values
    return flags & (draw <= smallest[:, -1:])
