"""Detectors: what they report, what they start from, and that parts fit together."""

from __future__ import annotations

import sys

import pytest
import torch

from limbeck.config import ModelOptions
from limbeck.errors import UserError
from limbeck.functional.boxes import offsets_to
from limbeck.models import TASK_MODELS, build_model
from limbeck.models.detector import REGION_SCALE, propose, report
from limbeck.models.weights import start_weights
from limbeck.network_names import TASK_NETWORKS


def build(name, classes=3, **sizes):
    return build_model(ModelOptions(name=name, **sizes), image_shape=(3, 64, 64), num_classes=classes, seed=0)


@pytest.mark.parametrize("name", TASK_NETWORKS["detect"])
def test_a_detector_has_its_levels_and_reports_boxes(name):
    if name == "detector":
        model = build(name, width=4)
    else:
        with torch.device("meta"):
            model = TASK_MODELS[name]((3, 64, 64), 3)
    images = torch.zeros(2, 3, 64, 96, device=next(model.parameters()).device)
    sides = [tuple(each.shape[2:]) for each in model.eval().look(images)]
    assert sides == [(-(-64 // stride), -(-96 // stride)) for stride in model.geometry.strides]
    if name == "detector":
        assert model(images).shape == (2, 64 * 3 if 64 * 3 < 100 else 100, 6)


def test_a_detector_of_torchvision_names_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    options = ModelOptions(name="tv:fasterrcnn_resnet18")
    with pytest.raises(UserError, match=r'^`model.name` tv:fasterrcnn_resnet18 needs `torchvision`: pip install "limb'):
        build_model(options, image_shape=(3, 64, 64), num_classes=3, seed=0, task="detect")


def test_a_perfect_second_stage_reports_the_true_boxes_once():
    proposals = torch.tensor([[[0.0, 0, 10, 10], [1, 0, 11, 10], [20, 20, 40, 30], [50, 50, 60, 60]]])
    wanted = torch.tensor([[[0.0, 0, 12, 8], [0, 0, 12, 8], [22, 20, 40, 33], [50, 50, 60, 60]]])
    logits = torch.tensor([[9.0, 0, 0], [8, 0, 0], [0, 9, 0], [0, 0, 9]])  # the last is background
    offsets = offsets_to(proposals, wanted, REGION_SCALE).view(4, 1, 4)
    found = report(proposals, logits, offsets, torch.tensor([[64, 64]]))[0]
    found = found[found[:, 5] >= 0]
    assert found[:, 5].tolist() == [1, 0] or found[:, 5].tolist() == [0, 1]
    by_class = found[found[:, 5].argsort()]
    torch.testing.assert_close(by_class[:, :4], wanted[0, [0, 2]], rtol=0, atol=1e-4)


def test_boxes_of_padding_are_cut_off_and_there_are_always_as_many():
    starts = torch.tensor([[0.0, 0, 30, 30], [40, 40, 60, 60], [0, 0, 29, 30], [10, 10, 20, 20]])
    scores = torch.tensor([[3.0, 2.0, 1.0, 0.0]])
    found = propose(starts, scores, torch.zeros(1, 4, 4), torch.tensor([[32, 32]]), 4, 3)
    # The second lies in the padding, the third doubles the first: it follows after those that are kept.
    assert found[0].tolist() == [[0, 0, 30, 30], [10, 10, 20, 20], [0, 0, 29, 30]]


def test_a_detector_starts_from_a_classifiers_stages(tmp_path):
    classifier = build("resnet18", classes=7)
    with torch.no_grad():
        classifier.features.stage2[0].conv1.weight.fill_(0.5)
    torch.save(classifier.state_dict(), tmp_path / "resnet18.pth")
    options = ModelOptions(name="faster_rcnn_resnet18", weights=str(tmp_path / "resnet18.pth"))
    detector, other = build("faster_rcnn_resnet18"), build("faster_rcnn_resnet18")
    assert start_weights(detector, options, any_head=True).other_classes == 7
    assert (detector.backbone[2][0].conv1.weight == 0.5).all()
    assert torch.equal(detector.box_head.classes.weight, other.box_head.classes.weight)
    with pytest.raises(UserError, match="expected weights of `faster_rcnn_resnet18`"):
        start_weights(other, options, any_head=False)  # a teacher needs all


def test_a_classifier_of_another_kind_is_refused(tmp_path):
    torch.save(build("resnet8").state_dict(), tmp_path / "resnet8.pth")
    options = ModelOptions(name="faster_rcnn_resnet18", weights=str(tmp_path / "resnet8.pth"))
    with pytest.raises(UserError, match="expected weights of `faster_rcnn_resnet18`") as caught:
        start_weights(build("faster_rcnn_resnet18"), options, any_head=True)
    assert "\n" not in str(caught.value)
