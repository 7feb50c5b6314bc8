"""What a step of detection draws, and that all networks see the same regions."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from limbeck import functional
from limbeck.config import DetectionTerm, DetectOptions, FGFITerm, GKLTerm, KLTerm
from limbeck.data import Batch
from limbeck.functional.boxes import overlaps
from limbeck.models.detectors import detector
from limbeck.objectives import Detection, Facts
from limbeck.objectives.matching import Chance, draw_anchors, draw_regions, match_anchors, near_objects

CLASSES, REGIONS, ANCHORS = 3, 16, 32


def chance(count, epoch=1):
    return Chance(0, epoch, torch.arange(count))


def some_truth():
    truth = torch.tensor([[[1.0, 4, 4, 20, 22], [0, 24, 20, 44, 40]], [[2, 10, 8, 30, 28], [-1, 0, 0, 0, 0]]])
    return truth


def some_boxes(count, seed=0):
    draw = torch.Generator().manual_seed(seed)
    corner = 28 * torch.rand(2, count, 2, generator=draw)
    return torch.cat([corner, corner + 6 + 14 * torch.rand(2, count, 2, generator=draw)], dim=-1)


def test_an_anchor_matches_by_its_overlap_or_as_an_objects_best():
    anchors, truth = some_boxes(80)[0], some_truth()
    labels, boxes = match_anchors(anchors, truth)
    for image in range(2):
        real = truth[image][truth[image][:, 0] >= 0]
        shared = overlaps(anchors, real[:, 1:])
        best_of_object = {int(column.argmax()) for column in shared.t()}
        for place in range(len(anchors)):
            best = shared[place].max()
            wanted = 1 if best >= 0.7 or place in best_of_object else 0 if best < 0.3 else -1
            assert labels[image, place] == wanted
            if wanted == 1:
                assert boxes[image, place].tolist() == real[shared[place].argmax(), 1:].tolist()


def test_as_many_anchors_are_drawn_of_each_image_and_half_of_them_match_at_most():
    labels = torch.tensor([[1] * 40 + [0] * 60 + [-1] * 20, [1] * 3 + [0] * 117])
    drawn = draw_anchors(labels, ANCHORS, chance(2))
    assert (drawn >= 0).sum(1).tolist() == [ANCHORS, ANCHORS]
    assert (drawn == 1).sum(1).tolist() == [16, 3]
    assert ((drawn == labels) | (drawn == -1)).all()
    assert not torch.equal(drawn, draw_anchors(labels, ANCHORS, chance(2, epoch=2)))


def test_a_samples_draws_do_not_hang_on_the_batch():
    truth, boxes = some_truth(), some_boxes(40)
    whole = draw_regions(boxes, truth, REGIONS, CLASSES, chance(2))
    alone = draw_regions(boxes[1:], truth[1:], REGIONS, CLASSES, Chance(0, 1, torch.tensor([1])))
    assert torch.equal(whole.boxes[1:], alone.boxes)
    assert torch.equal(whole.labels[REGIONS:], alone.labels)


@pytest.mark.parametrize("proposals", [40, REGIONS])
def test_regions_have_the_class_that_they_overlap_by_half_and_a_quarter_match_at_most(proposals):
    truth, boxes = some_truth(), some_boxes(proposals)
    drawn = draw_regions(boxes, truth, REGIONS, CLASSES, chance(2))
    labels = drawn.labels.view(2, REGIONS)
    for image in range(2):
        real = truth[image][truth[image][:, 0] >= 0]
        best, which = overlaps(drawn.boxes[image], real[:, 1:]).max(1)
        wanted = torch.where(best >= 0.5, real[which, 0].long(), CLASSES)
        assert labels[image].tolist() == wanted.tolist()
        assert (labels[image] < CLASSES).sum() <= REGIONS // 4
        assert (drawn.boxes[image, :, 2:] > drawn.boxes[image, :, :2]).all()  # never a row of padding


def test_an_image_full_of_matches_still_has_all_its_regions():
    truth = torch.tensor([[[1.0, 4, 4, 24, 24]]])
    boxes = truth[..., 1:] + torch.rand(1, 20, 4, generator=torch.Generator().manual_seed(0))
    drawn = draw_regions(boxes, truth, REGIONS, CLASSES, chance(1))
    assert drawn.labels.tolist() == [1] * REGIONS


def test_positions_near_objects_have_an_anchor_half_as_good_as_the_best():
    anchors, truth = some_boxes(24)[0], some_truth()
    masks = near_objects(anchors, truth, [(2, 2), (1, 4)])  # three anchors a position
    for image in range(2):
        real = truth[image][truth[image][:, 0] >= 0]
        shared = overlaps(anchors, real[:, 1:])
        near = (shared > 0.5 * shared.amax(0)).any(1).view(8, 3).any(1)
        assert torch.cat([mask[image].flatten() for mask in masks]).tolist() == near.tolist()


def networks():
    torch.manual_seed(0)
    return detector((3, 48, 48), CLASSES, width=4), detector((3, 48, 48), CLASSES, width=6)


def objective(terms, student, teachers=()):
    options = DetectOptions(anchors=ANCHORS, regions=REGIONS)
    return Detection(
        student, teachers, terms, options, epochs=3, facts=Facts(CLASSES, example=torch.zeros(1, 3, 48, 48))
    )


def a_batch():
    images = torch.rand(2, 3, 48, 48, generator=torch.Generator().manual_seed(3))
    return Batch(images, some_truth(), torch.arange(2), 0)


def test_the_teacher_says_what_it_sees_in_the_students_regions():
    student, teacher = networks()
    loop = objective([DetectionTerm(), KLTerm(temperature=2.0)], student, [teacher])
    loop.eval()
    batch = a_batch()
    outcome = loop(batch)
    sizes = torch.full((2, 2), 48)
    proposed = student.propose(student.look(batch.images), sizes)
    drawn = draw_regions(proposed.boxes, batch.labels, REGIONS, CLASSES, chance(2))
    said = [net.classify(net.pool(net.look(batch.images), drawn.boxes))[0] for net in (student, teacher)]
    torch.testing.assert_close(outcome.logits, said[0])
    torch.testing.assert_close(outcome.target_logits[0], said[1])
    torch.testing.assert_close(outcome.parts["kl"], functional.kl_divergence(*said, temperature=2.0))
    assert outcome.labels.tolist() == drawn.labels.tolist()
    assert loop.score(batch, outcome) == (said[0].argmax(1) == drawn.labels).float().mean()


def test_the_class_prior_is_of_the_regions_labels_the_backgrounds_too():
    student, teacher = networks()
    loop = objective([DetectionTerm(), GKLTerm()], student, [teacher])
    batch = a_batch()
    outcome = loop(batch)
    loop.after_step(batch, outcome)
    loop.refresh()
    for label in outcome.labels.unique().tolist():
        rows = F.softmax(outcome.target_logits[0][outcome.labels == label].double(), -1)
        torch.testing.assert_close(loop.class_prior()[label].double(), rows.mean(0), rtol=0, atol=1e-6)


def test_every_parameter_learns_and_no_teachers_does():
    student, teacher = networks()
    fgfi = FGFITerm(features=("pyramid",), activation=False)
    loop = objective([DetectionTerm(), KLTerm(), fgfi], student, [teacher])
    loop(a_batch()).loss.backward()
    assert [name for name, weight in loop.named_parameters() if weight.grad is None] == []
    assert all(weight.grad is None for weight in teacher.parameters())
    assert not any(weight.requires_grad for weight in teacher.parameters())
