"""The losses of detectors against loops over single anchors, regions and positions."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from limbeck import BoxRegressionLoss, DetectionLoss, FGFILoss, box_imitation, fine_grained_imitation
from limbeck.functional.boxes import moved
from limbeck.losses.detection import Matched


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def some_proposals(count):
    corner = draw(count, 2, seed=7).abs() * 10
    return torch.cat([corner, corner + 3 + draw(count, 2, seed=8).abs() * 10], 1)


def imitation_of_one(offsets, target, proposal, iou_weight):
    b, t = (moved(proposal, each, (10.0, 5.0)).tolist() for each in (offsets, target))
    width, height = (max(0.0, min(b[i + 2], t[i + 2]) - max(b[i], t[i])) for i in (0, 1))
    areas = sum((each[2] - each[0]) * (each[3] - each[1]) for each in (b, t))
    overlap = width * height / (areas - width * height)
    distance = sum(((b[i] + b[i + 2] - t[i] - t[i + 2]) / 2) ** 2 for i in (0, 1))
    diagonal = sum((max(b[i + 2], t[i + 2]) - min(b[i], t[i])) ** 2 for i in (0, 1))
    return (offsets - target).square().sum().item() + iou_weight * (1 - overlap + distance / diagonal)


def test_box_imitation_is_offsets_and_distance_iou():
    ours, theirs, proposals = draw(6, 4), draw(6, 4, seed=1), some_proposals(6)
    values = box_imitation(ours, theirs, proposals, iou_weight=3.0, reduction="none")
    twin = [imitation_of_one(*row, 3.0) for row in zip(ours, theirs, proposals, strict=True)]
    torch.testing.assert_close(values, torch.tensor(twin, dtype=torch.float64), rtol=0, atol=1e-10)


def test_box_imitation_has_its_gradient_and_the_target_none():
    ours, theirs = draw(5, 4).requires_grad_(), draw(5, 4, seed=1).requires_grad_()
    proposals, mask = some_proposals(5), torch.tensor([True, False, True, True, True])
    assert torch.autograd.gradcheck(lambda o: box_imitation(o, theirs.detach(), proposals, mask), ours)
    value = box_imitation(ours, theirs, proposals, mask)
    gradients = torch.autograd.grad(value, (ours, theirs), allow_unused=True)
    assert gradients[1] is None
    assert not gradients[0][1].any()


def test_regions_of_the_background_say_nothing_of_boxes():
    ours, theirs, proposals = draw(4, 4), draw(4, 4, seed=1), some_proposals(4)
    labels = torch.tensor([0, 3, 2, 3])  # three classes, then the background
    loss = BoxRegressionLoss(4)(ours, theirs, proposals, labels)
    twin = sum(imitation_of_one(ours[i], theirs[i], proposals[i], 20.0) for i in (0, 2)) / 4
    assert loss.item() == pytest.approx(twin, abs=1e-10)


def test_fine_grained_imitation_is_the_mean_over_the_positions_near_objects():
    ours = [draw(3, 5, 6, 4), draw(3, 5, 3, 2, seed=1)]
    theirs = [draw(3, 5, 6, 4, seed=2), draw(3, 5, 3, 2, seed=3)]
    masks = [draw(3, 6, 4, seed=4) > 0.3, draw(3, 3, 2, seed=5) > 0.3]
    for mask in masks:
        mask[2] = False  # an image without an object
    values = fine_grained_imitation(ours, theirs, masks, reduction="none")
    twin = []
    for image in range(3):
        total, positions = 0.0, 0
        for s, t, mask in zip(ours, theirs, masks, strict=True):
            for row, column in mask[image].nonzero().tolist():
                total += (s[image, :, row, column] - t[image, :, row, column]).square().sum().item()
                positions += 1
        twin.append(total / (2 * positions) if positions else 0.0)
    assert values.tolist() == pytest.approx(twin, abs=1e-10)
    assert values[2] == 0


def test_the_detectors_loss_is_two_cross_entropies_and_two_errors():
    anchors = Matched(
        draw(2, 5), torch.tensor([[1, 0, -1, 0, 1], [-1, -1, 0, 0, 1]]), draw(2, 5, 4, seed=1), draw(2, 5, 4, seed=2), 8
    )
    regions = Matched(draw(4, 3, seed=3), torch.tensor([0, 2, 1, 2]), draw(4, 4, seed=4), draw(4, 4, seed=5), 4)
    weights = {"objectness_weight": 2.0, "anchor_weight": 3.0, "class_weight": 5.0, "box_weight": 7.0}
    objectness = anchor_error = classes = box_error = 0.0
    for image in range(2):
        for place, label in enumerate(anchors.labels[image].tolist()):
            score = anchors.scores[image, place].item()
            objectness += math.log1p(math.exp(-score if label else score)) * (label >= 0)
            error = (anchors.offsets - anchors.wanted)[image, place].abs().sum().item()
            anchor_error += error * (label == 1)
    for region, label in enumerate(regions.labels.tolist()):
        classes -= F.log_softmax(regions.scores[region], 0)[label].item()
        box_error += (regions.offsets - regions.wanted)[region].abs().sum().item() * (label < 2)
    twin = 2 * objectness / 8 + 3 * anchor_error / 8 + 5 * classes / 4 + 7 * box_error / 4
    assert DetectionLoss(**weights)(anchors, regions).item() == pytest.approx(twin, rel=1e-5)


def test_adapters_start_near_nothing_and_learn():
    loss = FGFILoss([(4, 6, 6), (4, 3, 3)], [(8, 6, 6), (8, 3, 3)], activation=False)
    ours = [draw(2, 4, 6, 6).float(), draw(2, 4, 3, 3).float()]
    theirs = [draw(2, 8, 6, 6).float(), draw(2, 8, 3, 3).float()]
    near = [torch.ones(2, 6, 6, dtype=torch.bool), torch.ones(2, 3, 3, dtype=torch.bool)]
    value = loss(ours, theirs, near)
    nothing = fine_grained_imitation([torch.zeros_like(each) for each in theirs], theirs, near)
    assert value.item() == pytest.approx(nothing.item(), rel=1e-2)
    value.backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in loss.parameters())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: box_imitation(draw(3, 8), draw(3, 8), draw(3, 4)), "choose the offsets of one class"),
        (lambda: fine_grained_imitation([draw(1, 2, 3, 3)], [draw(1, 2, 3, 3)], []), "one tensor per level each"),
        (
            lambda: fine_grained_imitation([draw(1, 2, 3, 3)], [draw(1, 2, 3, 3)], [draw(1, 3) > 0]),
            "`masks` expected",
        ),
        (lambda: BoxRegressionLoss(3, iou_weight=-1), "`iou_weight` expected"),
        (lambda: DetectionLoss(box_weight=-1), "`box_weight` expected"),
    ],
)
def test_mistakes_are_said(call, message):
    with pytest.raises(ValueError, match=message):
        call()
