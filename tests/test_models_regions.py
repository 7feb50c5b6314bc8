"""Boxes and the maps inside of them, against loops over single boxes and single samples."""

from __future__ import annotations

import math

import pytest
import torch

from limbeck.functional import boxes as geometry
from limbeck.models.detectors import detector
from limbeck.models.regions import anchors, pool_regions
from limbeck.objectives.layers import classifier


def some_boxes(*shape, seed=0, size=40.0):
    draw = torch.Generator().manual_seed(seed)
    corner = torch.rand(*shape, 2, generator=draw, dtype=torch.float64) * size
    return torch.cat([corner, corner + 1 + torch.rand(*shape, 2, generator=draw, dtype=torch.float64) * size], -1)


def overlap(box, other):
    width = max(0.0, min(box[2], other[2]) - max(box[0], other[0]))
    height = max(0.0, min(box[3], other[3]) - max(box[1], other[1]))
    area = sum((each[2] - each[0]) * (each[3] - each[1]) for each in (box, other))
    return width * height / (area - width * height)


def test_overlaps_are_intersections_over_unions():
    ours, theirs = some_boxes(5), some_boxes(7, seed=1)
    twin = torch.tensor([[overlap(a, b) for b in theirs.tolist()] for a in ours.tolist()], dtype=torch.float64)
    torch.testing.assert_close(geometry.overlaps(ours, theirs), twin, rtol=0, atol=1e-12)


def test_offsets_lead_to_the_wanted_boxes():
    start, wanted = some_boxes(9), some_boxes(9, seed=1)
    offsets = geometry.offsets_to(start, wanted, (10.0, 5.0))
    torch.testing.assert_close(geometry.moved(start, offsets, (10.0, 5.0)), wanted, rtol=0, atol=1e-11)


def greedy(rows, threshold, groups):
    found = []
    for place, row in enumerate(rows):
        rivals = [other for other in found if groups[other] == groups[place]]
        if all(overlap(rows[other], row) <= threshold for other in rivals):
            found.append(place)
    return [place in found for place in range(len(rows))]


@pytest.mark.parametrize("threshold", [0.1, 0.5, 0.7])
def test_suppression_is_the_greedy_one(threshold):
    rows = some_boxes(3, 60, size=20.0)
    groups = torch.randint(2, (3, 60), generator=torch.Generator().manual_seed(2))
    found = geometry.kept(rows, threshold, groups)
    twin = [greedy(each.tolist(), threshold, group.tolist()) for each, group in zip(rows, groups, strict=True)]
    assert found.tolist() == twin
    assert 0 < found.sum() < found.numel()


def bilinear(grid, row, column):
    height, width = grid.shape[-2:]
    if not (-1 <= row <= height and -1 <= column <= width):
        return torch.zeros(len(grid), dtype=grid.dtype)
    row, column = (min(max(value, 0.0), side - 1.0) for value, side in ((row, height), (column, width)))
    top, left = math.floor(row), math.floor(column)
    down, right = row - top, column - left
    total = torch.zeros(len(grid), dtype=grid.dtype)
    for line, vertical in ((top, 1 - down), (min(top + 1, height - 1), down)):
        for place, horizontal in ((left, 1 - right), (min(left + 1, width - 1), right)):
            total = total + vertical * horizontal * grid[:, line, place]
    return total


def pooled_one_by_one(maps, boxes, side, strides, cells):
    found = []
    for sample, rows in enumerate(boxes):
        for x0, y0, x1, y1 in rows.tolist():
            level = math.floor(math.log2(math.sqrt((x1 - x0) * (y1 - y0)) / (cells * strides[0]) + 1e-6))
            level = min(max(level, 0), len(maps) - 1)
            grid, stride = maps[level][sample], strides[level]
            result = torch.zeros(len(grid), side, side, dtype=grid.dtype)
            for row in range(side):
                for column in range(side):
                    for down in (0.25, 0.75):
                        for right in (0.25, 0.75):
                            y = (y0 + (y1 - y0) * (row + down) / side) / stride - 0.5
                            x = (x0 + (x1 - x0) * (column + right) / side) / stride - 0.5
                            result[:, row, column] += bilinear(grid, y, x) / 4
            found.append(result)
    return torch.stack(found)


def some_maps():
    draw = torch.Generator().manual_seed(5)
    sides = [(16, 14), (8, 7), (4, 4)]
    return [torch.randn(2, 3, *side, generator=draw, dtype=torch.float64) for side in sides]


def test_pooled_regions_are_means_of_bilinear_samples():
    boxes = torch.cat([some_boxes(2, 12), some_boxes(2, 2) - 30], dim=1)  # the last reach out of the image
    maps = some_maps()
    found = pool_regions(maps, boxes, 3, strides=(4, 8, 16), cells=2)
    twin = pooled_one_by_one(maps, boxes, 3, (4, 8, 16), 2)
    torch.testing.assert_close(found, twin, rtol=0, atol=1e-12)


def test_gradient_of_pooled_regions_is_the_transpose_of_pooling():
    maps = [each.requires_grad_() for each in some_maps()]
    boxes = torch.cat([some_boxes(2, 6), 2.5 * some_boxes(2, 3)], dim=1)  # of all levels
    found = pool_regions(maps, boxes, 2, strides=(4, 8, 16), cells=2)
    weight = torch.randn(found.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ours = torch.autograd.grad((found * weight).sum(), maps)
    theirs = torch.autograd.grad((pooled_one_by_one(maps, boxes, 2, (4, 8, 16), 2) * weight).sum(), maps)
    for gradient, twin in zip(ours, theirs, strict=True):
        torch.testing.assert_close(gradient, twin, rtol=0, atol=1e-12)


def test_anchors_have_their_areas_and_ratios():
    found = anchors([(2, 3), (1, 1)], [8, 16], cells=3, ratios=(0.5, 1.0, 2.0), device=torch.device("cpu"))
    assert found.shape == (3 * 7, 4)
    sides = found[:, 2:] - found[:, :2]
    assert (sides[:, 1] / sides[:, 0]).view(7, 3)[0].tolist() == pytest.approx([0.5, 1.0, 2.0])
    assert sides.prod(1).sqrt().tolist() == pytest.approx([24.0] * 18 + [48.0] * 3)
    assert ((found[:, :2] + found[:, 2:]) / 2)[[0, 3, 9, 18]].tolist() == [[4, 4], [12, 4], [4, 12], [8, 8]]


def test_distance_iou_is_that_of_the_paper():
    ours, theirs = some_boxes(20), some_boxes(20, seed=3)
    values = geometry.distance_iou(ours, theirs).tolist()
    for (a, b), value in zip(zip(ours.tolist(), theirs.tolist(), strict=True), values, strict=True):
        distance = sum(((a[i] + a[i + 2]) / 2 - (b[i] + b[i + 2]) / 2) ** 2 for i in (0, 1))
        diagonal = sum((max(a[i + 2], b[i + 2]) - min(a[i], b[i])) ** 2 for i in (0, 1))
        assert value == pytest.approx(1 - overlap(a, b) + distance / diagonal, abs=1e-12)


@pytest.mark.parametrize("num_classes", [1, 3, 31])  # 3: as many outputs as a box has; 31: as the hidden layers have
def test_the_classifier_of_a_detector_is_that_of_its_regions(num_classes):
    network = detector((3, 48, 48), num_classes, width=4)
    assert classifier(network, num_classes + 1) is network.box_head.classes
