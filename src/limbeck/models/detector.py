"""A two-stage detector on a pyramid of maps: proposals, then a class and a box for each (Faster R-CNN with FPN).

The parts are called one by one in training, where a teacher's head has to see the boxes that its student proposes.
Each image has the same number of proposals, so that no shape hangs on what an image shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.functional import boxes as geometry
from limbeck.functional.detection import REGION_SCALE
from limbeck.models.regions import anchors, pool_regions, whole_sizes

SMALLEST_SCORE = 0.05  # of a box that is reported
RATIOS = (0.5, 1.0, 2.0)  # height over width of the anchors
ANCHOR_OVERLAP = 0.7  # above which the less sure of two proposals is suppressed
BOX_OVERLAP = 0.5  # the same of two boxes of a class
MOST_BOXES = 100  # reported of an image


@dataclass(frozen=True)
class Geometry:
    """Where a detector looks.

    Attributes:
        strides: Pixels between two positions of each map.
        anchor_cells: Side of a square anchor, in positions of its map.
        region_cells: Root area, in positions, from which on boxes look at a coarser map.
        side: Of the map that is pooled from a box.
        candidates: Of an image, before suppression.
        proposals: Of an image, after it.
    """

    strides: tuple[int, ...]
    anchor_cells: float
    region_cells: float
    side: int
    candidates: int
    proposals: int


class Proposed(NamedTuple):
    """What the first stage says of a batch.

    Attributes:
        maps: Of each level of the pyramid, fine first, `(N, D, H, W)`.
        anchors: `(A, 4)`.
        scores: `(N, A)`, logits of "there is something".
        offsets: `(N, A, 4)` from the anchors.
        boxes: `(N, K, 4)` without a gradient: the proposals, those that suppression kept first, by falling score.
    """

    maps: tuple[Tensor, ...]
    anchors: Tensor
    scores: Tensor
    offsets: Tensor
    boxes: Tensor


class Detector(nn.Module):
    """Backbone, pyramid, proposals and box head.

    Args:
        stages: A module per stage; each one's map is half as large as the one's before it. The last ones make levels.
        stage_channels: Of the stages that levels are made of.
        num_classes: C; one more stands for the background.
        channels: D, of each level.
        hidden: Features of the box head's two layers.
        geometry: Where it looks.
        extra_level: Make one more level, every second position of the last one, for large proposals.
        boxes_per_class: Whether each class has box offsets of its own.
        dropout: Before the last layers.
    """

    def __init__(
        self,
        stages: Sequence[nn.Module],
        stage_channels: Sequence[int],
        *,
        num_classes: int,
        channels: int,
        hidden: int,
        geometry: Geometry,
        extra_level: bool = False,
        boxes_per_class: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_classes, self.channels, self.geometry = num_classes, channels, geometry
        self.backbone = nn.ModuleList(stages)
        self.pyramid = Pyramid(stage_channels, channels, extra_level=extra_level)
        self.first_stage = FirstStage(channels, len(RATIOS))
        inputs = channels * geometry.side**2
        self.box_head = BoxHead(inputs, hidden, num_classes, boxes_per_class=boxes_per_class, dropout=dropout)

    def look(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the levels of the pyramid of images `(N, C, H, W)`, fine first."""
        maps, current = [], images
        for stage in self.backbone:
            current = stage(current)
            maps.append(current)
        return cast("tuple[Tensor, ...]", self.pyramid(maps[-self.pyramid.inputs :]))

    def propose(self, maps: tuple[Tensor, ...], sizes: Tensor) -> Proposed:
        """Return what the first stage says of maps from `look`; `sizes` are the images' heights and widths `(N, 2)`."""
        scores, offsets = self.first_stage(maps)
        where = self.geometry
        starts = anchors(
            [(each.shape[2], each.shape[3]) for each in maps],
            where.strides,
            cells=where.anchor_cells,
            ratios=RATIOS,
            device=scores.device,
        )
        found = propose(starts, scores.detach(), offsets.detach(), sizes, where.candidates, where.proposals)
        return Proposed(maps, starts, scores, offsets, found)

    def pool(self, maps: Sequence[Tensor], boxes: Tensor, side: int | None = None) -> Tensor:
        """Return the maps inside of boxes `(N, P, 4)`, `(N · P, D, S, S)`; S is the box head's unless given."""
        levels = len(maps) - self.pyramid.extra_level  # the extra one is for proposals alone
        where = self.geometry
        side = side or where.side
        return pool_regions(maps[:levels], boxes, side, strides=where.strides[:levels], cells=where.region_cells)

    def classify(self, regions: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits `(R, C + 1)`, the background last, and offsets `(R, 1 or C, 4)`, of pooled maps."""
        return cast("tuple[Tensor, Tensor]", self.box_head(regions))

    def forward(self, images: Tensor, sizes: Tensor | None = None) -> Tensor:
        """Return the boxes found in images, `(N, 100, 6)`: x0, y0, x1, y1, score, class; class -1 where there is none.

        Args:
            images: `(N, C, H, W)`.
            sizes: Heights and widths `(N, 2)` of the images, where they are padded.
        """
        if sizes is None:
            sizes = whole_sizes(images)
        maps = self.look(images)
        boxes = self.propose(maps, sizes).boxes
        logits, offsets = self.classify(self.pool(maps, boxes))
        return report(boxes, logits, offsets, sizes)


def propose(starts: Tensor, scores: Tensor, offsets: Tensor, sizes: Tensor, candidates: int, proposals: int) -> Tensor:
    """Return the boxes that a second stage looks at, `(N, proposals, 4)`: the surest, each far from surer ones.

    Where suppression keeps fewer, the surest of the others follow, so that there are always as many.

    Args:
        starts: Anchors `(A, 4)`.
        scores: `(N, A)`.
        offsets: `(N, A, 4)`.
        sizes: Heights and widths of the images, `(N, 2)`.
        candidates: How many of the surest are looked at; all levels together.
        proposals: How many are returned; fewer if there are fewer anchors.
    """
    scores, places = scores.float().topk(min(candidates, len(starts)), dim=1)
    moved = geometry.moved(starts[places], _rows(offsets, places).float())
    boxes = geometry.clipped(moved, sizes)
    empty = geometry.areas(boxes) <= 0
    kept = geometry.kept(boxes, ANCHOR_OVERLAP) & ~empty
    count = boxes.shape[1]
    rank = torch.arange(count, device=boxes.device) + count * (~kept + 1 * empty)
    first = rank.argsort(dim=1)[:, :proposals]
    return _rows(boxes, first)


def report(proposals: Tensor, logits: Tensor, offsets: Tensor, sizes: Tensor) -> Tensor:
    """Return the boxes of a detector's second stage, see `Detector.forward`.

    Args:
        proposals: `(N, K, 4)`.
        logits: `(N · K, C + 1)`.
        offsets: `(N · K, 1 or C, 4)`.
        sizes: Heights and widths of the images, `(N, 2)`.
    """
    scores = logits.float().softmax(-1)[:, :-1].reshape(len(proposals), -1)
    classes = logits.shape[-1] - 1
    scores, places = scores.topk(min(10 * MOST_BOXES, scores.shape[1]), dim=1)
    shifts = offsets.float().expand(-1, classes, 4).reshape(len(proposals), -1, 4)
    label = places % classes
    boxes = geometry.moved(_rows(proposals, places // classes), _rows(shifts, places), REGION_SCALE)
    boxes = geometry.clipped(boxes, sizes)
    good = geometry.kept(boxes, BOX_OVERLAP, label) & (scores > SMALLEST_SCORE) & (geometry.areas(boxes) > 0)
    found = torch.cat([boxes, scores.unsqueeze(-1), torch.where(good, label, -1).unsqueeze(-1)], dim=-1)
    first = (~good).to(torch.uint8).sort(dim=1, stable=True).indices[:, :MOST_BOXES]
    return _rows(found, first)


def _rows(values: Tensor, places: Tensor) -> Tensor:
    """Return the rows `(N, K, *)` of `values` `(N, A, *)` at `places` `(N, K)`."""
    return values.gather(1, places.unsqueeze(-1).expand(-1, -1, values.shape[-1]))


class Pyramid(nn.Module):
    """Levels of one width, each of its stage's map and of the coarser level, enlarged.

    Args:
        stage_channels: Of the stages' maps, fine first.
        channels: Of each level.
        extra_level: Add every second position of the coarsest level as one more.

    Reference:
        Lin et al., arXiv 1612.03144.
    """

    def __init__(self, stage_channels: Sequence[int], channels: int, *, extra_level: bool) -> None:
        super().__init__()
        self.inputs, self.extra_level = len(stage_channels), extra_level
        self.inner = nn.ModuleList(nn.Conv2d(each, channels, 1) for each in stage_channels)
        self.outer = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in stage_channels)
        for layer in (*self.inner, *self.outer):
            nn.init.kaiming_uniform_(layer.weight, a=1)
            nn.init.zeros_(layer.bias)

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return the levels, `(N, channels, H, W)` of each map."""
        merged = [layer(each) for layer, each in zip(self.inner, maps, strict=True)]
        for level in range(len(merged) - 2, -1, -1):
            coarse = F.interpolate(merged[level + 1], size=merged[level].shape[2:], mode="nearest")
            merged[level] = merged[level] + coarse
        levels = [layer(each) for layer, each in zip(self.outer, merged, strict=True)]
        return (*levels, levels[-1][:, :, ::2, ::2]) if self.extra_level else tuple(levels)


class FirstStage(nn.Module):
    """Says of each anchor whether it has something in it, and how to move it; one network for all levels.

    Args:
        channels: Of the maps.
        shapes: Anchors of a position.
    """

    def __init__(self, channels: int, shapes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.scores = nn.Conv2d(channels, shapes, 1)
        self.offsets = nn.Conv2d(channels, 4 * shapes, 1)
        for layer in (self.conv, self.scores, self.offsets):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return logits `(N, A)` and offsets `(N, A, 4)`, in the order of `anchors`."""
        inner = [self.conv(each).relu() for each in maps]
        scores = [self.scores(each).permute(0, 2, 3, 1).flatten(1) for each in inner]
        offsets = [self.offsets(each).permute(0, 2, 3, 1).reshape(len(each), -1, 4) for each in inner]
        return torch.cat(scores, dim=1), torch.cat(offsets, dim=1)


class BoxHead(nn.Module):
    """Two hidden layers on a pooled map, then a class and a box."""

    def __init__(self, inputs: int, hidden: int, num_classes: int, *, boxes_per_class: bool, dropout: float) -> None:
        super().__init__()
        self.hidden = nn.Sequential(
            nn.Flatten(),
            nn.Linear(inputs, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Dropout(dropout),
        )
        classes = nn.Linear(hidden, num_classes + 1)
        offsets = nn.Linear(hidden, 4 * (num_classes if boxes_per_class else 1))
        nn.init.normal_(classes.weight, std=0.01)
        nn.init.normal_(offsets.weight, std=0.001)
        for layer in (classes, offsets):
            nn.init.zeros_(layer.bias)
        # The classes last: a network's classifier is its last layer of so many outputs, and of 3 classes both have 4.
        self.offsets, self.classes = offsets, classes

    def forward(self, regions: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits `(R, C + 1)` and offsets `(R, 1 or C, 4)` of maps `(R, D, S, S)`."""
        features = self.hidden(regions)
        return self.classes(features), self.offsets(features).view(len(regions), -1, 4)
