"""COCO's files: classes without gaps, images padded and mirrored with their boxes, crowds for the judge alone."""

from __future__ import annotations

import json

import pytest
import torch
from coco_files import CATEGORIES, write_coco

from limbeck.config import AugmentOptions, DataOptions
from limbeck.data import build_data
from limbeck.data.streams import Order
from limbeck.errors import UserError


def options(root, **changes):
    coco = {"shorter": [40, 48], "longer": 80}
    base = {"name": "coco", "folder": str(root), "validation": 0.0, "workers": 0, "coco": coco}
    return DataOptions.model_validate({**base, **changes})


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_coco(tmp_path_factory.mktemp("files"))


def order(**changes):
    base = {"augment": AugmentOptions(flip=True), "batch_size": 2, "drop_last": False, "seed": 5}
    return Order(**{**base, **changes})


def test_boxes_are_those_of_the_file_with_classes_from_0(root):
    data = build_data(options(root))
    content = json.loads((root / "coco/annotations/instances_val2017.json").read_text())
    objects = data.test.objects
    ids = sorted(image["id"] for image in content["images"])
    found = [
        (ids[image], CATEGORIES[label], *(round(value, 6) for value in box), int(crowd))
        for image, label, box, crowd in zip(*(field.tolist() for field in objects), strict=True)
    ]
    listed = []
    for row in content["annotations"]:
        x, y, width, height = row["bbox"]
        corners = (round(value, 6) for value in (x, y, x + width, y + height))
        listed.append((row["image_id"], row["category_id"], *corners, row["iscrowd"]))
    assert sorted(found) == sorted(listed)
    assert (data.num_classes, len(data.test)) == (3, 7)


def test_crowds_and_empty_images_teach_nothing(root):
    data = build_data(options(root))
    assert len(data.train) == 6
    boxes = data.train.files.boxes[data.train.places]
    assert ((boxes[..., 0] >= 0).sum(1) > 0).all()
    assert (boxes[..., 0] >= 0).sum() == (~data.train.objects.crowd).sum()


def test_images_are_resized_to_a_shorter_side_and_padded(root):
    part = build_data(options(root)).test
    batches = list(part.seen(4))
    assert [len(images) for images, _ in batches] == [4, 3]
    sizes = torch.cat([sizes for _, sizes in batches])
    original = part.files.sizes[part.places]
    assert ((sizes.amin(1) == 48) | (sizes.amax(1) == 80)).all()
    assert (sizes.amax(1) <= 80).all()
    torch.testing.assert_close(sizes.double() / original, part.scales.unsqueeze(1).expand(-1, 2), rtol=0.02, atol=0)
    for images, (heights, widths) in ((images, sizes.unbind(1)) for images, sizes in batches):
        assert all(side % 32 == 0 for side in images.shape[2:])
        for image, height, width in zip(images, heights.tolist(), widths.tolist(), strict=True):
            assert not image[:, height:].any()
            assert not image[:, :, width:].any()
            assert image[:, :height, :width].std() > 0.1


def test_a_mirrored_image_has_mirrored_boxes(root):
    data = build_data(options(root, coco={"shorter": [48], "longer": 80}))
    stream, plain = (data.train.open(order(augment=AugmentOptions(flip=flip))) for flip in (True, False))
    seen = 0
    for batch, other in zip(stream.batches(1), plain.batches(1), strict=True):
        (sizes,) = batch.views
        for row in range(len(batch.images)):
            height, width = sizes[row].tolist()
            ours, theirs = (each.images[row, :, :height, :width] for each in (batch, other))
            if torch.equal(ours, theirs):
                assert torch.equal(batch.labels[row], other.labels[row])
                continue
            seen += 1
            assert torch.equal(ours, theirs.flip(2))
            there = batch.labels[row][:, 0] >= 0
            mirrored = other.labels[row][there]
            torch.testing.assert_close(batch.labels[row][there][:, 1], width - mirrored[:, 3])
            torch.testing.assert_close(batch.labels[row][there][:, 3], width - mirrored[:, 1])
    assert seen


def test_batches_from_a_step_on_are_the_same_and_ranks_share_them(root):
    train = build_data(options(root)).train
    whole = list(train.open(order()).batches(2))
    late = list(train.open(order()).batches(2, 1))
    assert [batch.step for batch in late] == [1, 2]
    for batch, other in zip(whole[1:], late, strict=True):
        assert torch.equal(batch.images, other.images)
        assert torch.equal(batch.labels, other.labels)
    parts = [list(train.open(order(rank=rank, world=2)).batches(2)) for rank in (0, 1)]
    for batch, *shares in zip(whole, *parts, strict=True):
        assert torch.equal(torch.cat([share.indices for share in shares]), batch.indices)
        assert torch.equal(torch.cat([share.views[0] for share in shares]), batch.views[0])


def test_held_out_images_are_not_trained_on(root):
    data = build_data(options(root, validation=0.4))
    assert (len(data.train), len(data.validation)) == (4, 2)
    assert not set(data.train.places.tolist()) & set(data.validation.places.tolist())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"coco": {"train_images": "nowhere"}}, "expected a folder of images"),
        ({"coco": {"train_annotations": "nowhere.json"}}, "expected annotations as COCO writes them"),
        ({"coco": {"train_annotations": "coco/val2017/000000001000.jpg"}}, "expected images, categories and"),
    ],
)
def test_a_mistake_is_one_line(root, changes, message):
    with pytest.raises(UserError, match=message) as caught:
        build_data(options(root, **changes))
    assert "\n" not in str(caught.value)


def test_other_augmentations_are_refused(root):
    with pytest.raises(UserError, match="`flip` alone"):
        build_data(options(root)).train.open(order(augment=AugmentOptions(crop_padding=2)))
