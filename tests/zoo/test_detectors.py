"""torchvision's Faster R-CNN behind this library's interface of detectors."""

from __future__ import annotations

import pytest
import torch
from coco_files import write_coco
from recipe_steps import SHORT, take_two_steps_with_all_losses

from limbeck.config import ModelOptions
from limbeck.engine.evaluate import evaluate
from limbeck.engine.interrelations import InterrelationRequest, _similarities
from limbeck.engine.progress import Reporter
from limbeck.errors import UserError
from limbeck.models import Standardisation, build_model
from limbeck.models.prefixed_detector import NOT_IN_COCO
from limbeck.models.weights import start_weights

IMAGENET = Standardisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
SMALL = "tv:fasterrcnn_mobilenet_v2"


def build(name=SMALL, classes=3, seed=0, data=IMAGENET, **options):
    model = ModelOptions(name=name, **options)
    return build_model(model, image_shape=(3, 64, 64), num_classes=classes, seed=seed, data=data, task="detect")


def sure(detector):
    """Make an untrained detector find boxes: sharper scores, boxes that move."""
    predictor = detector.network.roi_heads.box_predictor
    with torch.no_grad():
        predictor.cls_score.weight *= 40
        predictor.bbox_pred.weight *= 10
        predictor.cls_score.bias.copy_(torch.linspace(-1, 1, len(predictor.cls_score.bias)))
    return detector.eval()


def images_of(*sizes):
    draw = torch.Generator().manual_seed(1)
    return [torch.rand(3, *size, generator=draw) for size in sizes]


@pytest.mark.parametrize("name", [SMALL, "tv:fasterrcnn_resnet18", "tv:fasterrcnn_resnet50_fpn"])
def test_it_finds_the_boxes_that_torchvision_finds(name):
    units = Standardisation((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    detector = sure(build(name, data=units, weights="file.pth"))
    images = images_of((130, 170), (160, 128), (99, 101))
    padded = torch.zeros(3, 3, 160, 170)
    sizes = torch.tensor([image.shape[1:] for image in images])
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in units)
    own_mean = torch.tensor(IMAGENET.mean).view(3, 1, 1)
    padding = (own_mean - mean) / std  # what is 0 in the network's units
    padded += padding
    for row, image in zip(padded, images, strict=True):
        row[:, : image.shape[1], : image.shape[2]] = (image - mean) / std
    # torchvision resizes images; one side, of which nothing is resized, is asked for each image by itself.
    transform = detector.network.transform
    transform.resize = lambda image, target=None: (image, target)
    with torch.no_grad():
        found = detector(padded, sizes)
        theirs = detector.network(images)
    assert sum(len(each["boxes"]) for each in theirs) > 5
    for rows, expected in zip(found, theirs, strict=True):
        kept = rows[rows[:, 5] >= 0]
        assert kept[:, 5].tolist() == (expected["labels"] - 1).tolist()
        torch.testing.assert_close(kept[:, :4], expected["boxes"], rtol=1e-4, atol=1e-2)
        torch.testing.assert_close(kept[:, 4], expected["scores"], rtol=1e-3, atol=1e-5)


def test_its_parts_one_by_one_say_what_it_reports():
    detector = sure(build())
    images = torch.stack(images_of((128, 160), (128, 160)))
    sizes = torch.tensor([[128, 160], [128, 150]])
    with torch.no_grad():
        maps = detector.look(images)
        proposed = detector.propose(maps, sizes)
        logits, offsets = detector.classify(detector.pool(maps, proposed.boxes))
        found = detector(images, sizes)
    assert proposed.boxes.shape == (2, 1000, 4)
    assert proposed.boxes[1, :, 2].max() <= 150
    assert logits.shape == (2000, 4)
    assert offsets.shape == (2000, 3, 4)
    assert logits.softmax(1)[:, :3].max() == pytest.approx(found[..., 4].max().item(), rel=1e-5)
    assert detector.pool(maps, proposed.boxes[:, :5], 18).shape == (10, 256, 18, 18)


def test_training_draws_from_as_many_proposals_of_each_image():
    detector = build().train()
    maps = detector.look(torch.stack(images_of((64, 96), (64, 96))))
    proposed = detector.propose(maps, torch.tensor([[64, 96], [40, 50]]))
    assert proposed.boxes.shape == (2, detector.geometry.proposals, 4)
    assert not proposed.boxes.requires_grad
    shapes = sum(each.shape[2] * each.shape[3] for each in maps)
    assert proposed.anchors.shape == (3 * shapes, 4)
    assert proposed.scores.shape == (2, 3 * shapes)
    assert proposed.offsets.shape == (2, 3 * shapes, 4)


def test_cosines_of_its_classifier_have_the_background_last():
    detector = build()
    rows = detector.network.roi_heads.box_predictor.cls_score.weight
    with torch.no_grad():
        rows[2] = rows[1]  # the first two classes are one
    request = InterrelationRequest(kind="classifier")
    found, _ = _similarities(detector, None, request, 4, Reporter())
    assert found[0, 1] == pytest.approx(1.0, abs=1e-5)
    assert found[0, 3] < 0.99


def test_a_file_for_cocos_ids_serves_its_categories(tmp_path):
    """Under the names that the layers had when it was written."""
    there = build("tv:fasterrcnn_resnet18", classes=90, seed=1)
    old = {
        key.replace("rpn.head.conv.0.0.", "rpn.head.conv.").replace("_blocks.0.0.", "_blocks.0."): value
        for key, value in there.network.state_dict().items()
        if "num_batches_tracked" not in key
    }
    assert "rpn.head.conv.weight" in old
    torch.save(old, tmp_path / "coco.pth")
    options = {"name": "tv:fasterrcnn_resnet18", "weights": str(tmp_path / "coco.pth")}
    here = build(classes=80, **options)
    assert start_weights(here, ModelOptions(**options), any_head=False).other_classes is None
    ours, theirs = (each.eval().classify(torch.ones(1, 256, 7, 7)) for each in (here, there))
    kept = [row - 1 for row in range(1, 91) if row not in NOT_IN_COCO]
    torch.testing.assert_close(ours[0], theirs[0][:, [*kept, 90]])
    torch.testing.assert_close(ours[1], theirs[1][:, kept])


def test_categories_that_coco_leaves_out_are_those_of_torchvision():
    from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

    categories = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    assert tuple(place for place, name in enumerate(categories) if name == "N/A") == NOT_IN_COCO


@pytest.mark.parametrize("backbone", ["resnet18", "mobilenet_v2"])
def test_a_student_starts_from_a_classifier_of_torchvision_and_a_teacher_does_not(backbone, tmp_path):
    from torchvision import models

    classifier = models.get_model(backbone, num_classes=7)
    torch.save(classifier.state_dict(), tmp_path / "classifier.pth")
    options = {"name": f"tv:fasterrcnn_{backbone}", "weights": str(tmp_path / "classifier.pth")}
    detector = build(**options)
    assert start_weights(detector, ModelOptions(**options), any_head=True).other_classes == 7
    state, body = classifier.state_dict(), detector.network.backbone.body.state_dict()
    inside = {key: state[key if key in state else f"features.{key}"] for key in body}
    assert all(torch.equal(value, body[key]) for key, value in inside.items())
    with pytest.raises(UserError, match="expected weights of `tv:fasterrcnn"):
        start_weights(build(**options), ModelOptions(**options), any_head=False)


def test_a_head_for_other_classes_is_replaced_for_a_student_alone(tmp_path):
    torch.save(build(classes=5, seed=1).network.state_dict(), tmp_path / "five.pth")
    options = {"name": SMALL, "weights": str(tmp_path / "five.pth")}
    detector = build(**options)
    assert start_weights(detector, ModelOptions(**options), any_head=True).other_classes == 5
    with pytest.raises(UserError, match="expected weights of"):
        start_weights(build(**options), ModelOptions(**options), any_head=False)


def test_pretrained_weights_are_those_of_one_detector():
    with pytest.raises(UserError, match="torchvision has pretrained weights of tv:fasterrcnn_resnet50 alone"):
        build("tv:fasterrcnn_resnet18", weights="pretrained")


def test_pretrained_weights_come_through_the_librarys_cache(tmp_path, monkeypatch):
    """The published file's shapes, 91 rows, without what its BatchNorms add to a variance."""
    from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights, fasterrcnn_resnet50_fpn

    there = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None)
    state = {key: value for key, value in there.state_dict().items() if "num_batches_tracked" not in key}
    monkeypatch.setattr(FasterRCNN_ResNet50_FPN_Weights, "get_state_dict", lambda *_, **__: state)
    options = ModelOptions(name="tv:fasterrcnn_resnet50_fpn", weights="pretrained")
    shape = (3, 64, 64)
    here = build_model(
        options, image_shape=shape, num_classes=80, seed=0, data=IMAGENET, pretrained=True, task="detect"
    )
    assert start_weights(here, options, any_head=False).other_classes is None
    assert torch.equal(here.network.backbone.body.conv1.weight, state["backbone.body.conv1.weight"])
    assert here.network.backbone.body.bn1.eps == 0


@pytest.fixture(scope="module")
def changes(tmp_path_factory):
    root = write_coco(tmp_path_factory.mktemp("files"), images=3)
    coco = {"data.coco.shorter": "[32]", "data.coco.longer": 64}
    few = {"detect.anchors": 8, "detect.regions": 4, "train.batch_size": 2, "train.epochs": 2}
    return {**SHORT, "data.folder": root, "data.workers": 0, **coco, **few, "optimizer.learning_rate": 1e-3}


@pytest.mark.parametrize("student", [SMALL, f"{SMALL} of a classifier", "faster_rcnn_mobilenet_v2"])
def test_losses_of_all_rows_take_two_steps(student, changes, tmp_path):
    """The second student's BatchNorms are frozen."""
    from torchvision import models

    student, _, starts = student.partition(" ")
    if starts:
        torch.save(models.mobilenet_v2(num_classes=7).state_dict(), tmp_path / "classifier.pth")
        changes = {**changes, "model.weights": tmp_path / "classifier.pth"}
    torch.save(build(seed=1).network.state_dict(), tmp_path / "teacher.pth")
    teacher = f"[{{model: {{name: '{SMALL}'}}, weights: {tmp_path / 'teacher.pth'}}}]"
    named = {**changes, "teachers": teacher, "model.name": student, "detect.feature_side": 8}
    take_two_steps_with_all_losses("detect/coco/r50-mobilenet_v2", named, tmp_path / "run", coarse=False)
    evaluate(tmp_path / "run")
