"""COCO's average precision against an independent implementation, and cases that can be told by hand."""

from __future__ import annotations

import contextlib
import io
import math
import time

import numpy as np
import pytest
import torch

from limbeck.measures.average_precision import Found, Truth, average_precision


def scene(seed, *, images=20, classes=4, truths=6, boxes=12, crowd=0.0):
    """Random true boxes, and found ones: some of them moved true boxes, some anywhere."""
    draw = np.random.default_rng(seed)

    def anywhere(count):
        corner = draw.uniform(0, 80, (count, 2))
        return np.concatenate([corner, corner + draw.uniform(4, 40, (count, 2))], 1)

    true_images = draw.integers(0, images, images * truths)
    true_boxes, true_classes = anywhere(len(true_images)), draw.integers(0, classes, len(true_images))
    is_crowd = draw.uniform(size=len(true_images)) < crowd
    source = draw.integers(0, len(true_images), images * boxes)
    moved = true_boxes[source] + draw.normal(0, 2.5, (len(source), 4))
    moved[:, 2:] = np.maximum(moved[:, 2:], moved[:, :2] + 1)
    found = np.where(draw.uniform(size=(len(source), 1)) < 0.7, moved, anywhere(len(source)))
    labels = np.where(
        draw.uniform(size=len(source)) < 0.8, true_classes[source], draw.integers(0, classes, len(source))
    )
    scores = draw.uniform(size=len(source)).round(2)  # with ties
    tensors = map(torch.from_numpy, (true_images[source], labels, scores, found))
    truth = map(torch.from_numpy, (true_images, true_classes, true_boxes, is_crowd))
    return Found(*tensors), Truth(*truth), classes


def by_pycocotools(found, truth, classes):
    coco, evaluation = pytest.importorskip("pycocotools.coco"), pytest.importorskip("pycocotools.cocoeval")

    def rows(each, **more):
        corners = each.boxes.numpy()
        sides = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], 1)
        fields = zip(each.images.tolist(), each.classes.tolist(), sides.tolist(), strict=True)
        return [
            {"image_id": image + 1, "category_id": label + 1, "bbox": box, "area": box[2] * box[3]}
            | {name: value[place] for name, value in more.items()}
            for place, (image, label, box) in enumerate(fields)
        ]

    with contextlib.redirect_stdout(io.StringIO()):
        oracle = coco.COCO()
        oracle.dataset = {
            "info": {},
            "images": [{"id": number + 1} for number in range(int(max(truth.images.max(), found.images.max())) + 1)],
            "categories": [{"id": number + 1} for number in range(classes)],
            "annotations": [
                row | {"id": place + 1} for place, row in enumerate(rows(truth, iscrowd=truth.crowd.int().tolist()))
            ],
        }
        oracle.createIndex()
        judged = evaluation.COCOeval(oracle, oracle.loadRes(rows(found, score=found.scores.tolist())), "bbox")
        judged.evaluate()
        judged.accumulate()
        judged.summarize()
    precision = judged.eval["precision"][:, :, :, 0, 2]  # thresholds, recalls, classes
    return judged.stats[:3], np.where((precision > -1).all((0, 1)), precision.mean((0, 1)), np.nan)


CASES = {
    "plain": {},
    "crowds": {"crowd": 0.4},
    "many boxes": {"images": 3, "truths": 30, "boxes": 400, "crowd": 0.1},
    "many classes": {"classes": 40, "crowd": 0.2},
    "rare classes": {"images": 3, "truths": 2, "classes": 12},
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_average_precision_is_that_of_the_challenge(case, seed):
    found, truth, classes = scene(seed, **case)
    ours = average_precision(found, truth, classes)
    theirs, per_class = by_pycocotools(found, truth, classes)
    assert np.abs(np.array(ours[:3]) - theirs).max() < 1e-9
    np.testing.assert_allclose(ours.per_class.numpy(), per_class, rtol=0, atol=1e-9)


def test_average_precision_does_not_hang_on_the_order_of_the_boxes():
    found, truth, classes = scene(3, crowd=0.2)
    found = found._replace(scores=torch.rand(len(found.scores), dtype=torch.float64))
    order = torch.randperm(len(found.scores))
    mixed = average_precision(Found(*(field[order] for field in found)), truth, classes)
    assert mixed[:3] == average_precision(found, truth, classes)[:3]


def test_the_true_boxes_have_an_average_precision_of_one():
    _, truth, classes = scene(4)
    found = Found(truth.images, truth.classes, torch.ones(len(truth.boxes)), truth.boxes)
    assert average_precision(found, truth, classes)[:3] == (1.0, 1.0, 1.0)


def test_nothing_found_is_worth_nothing_and_nothing_there_is_no_number():
    found, truth, classes = scene(5)
    nothing = Found(*(field[:0] for field in found))
    assert average_precision(nothing, truth, classes)[:3] == (0.0, 0.0, 0.0)
    assert math.isnan(average_precision(found, Truth(*(field[:0] for field in truth)), classes).ap)


def test_two_hundred_images_take_less_than_a_second():
    found, truth, classes = scene(6, images=200, classes=10, truths=5, boxes=100)
    start = time.perf_counter()
    average_precision(found, truth, classes)
    assert time.perf_counter() - start < 1.0
