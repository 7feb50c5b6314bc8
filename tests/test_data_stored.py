"""Images in files: which are found, which are whose, and views that are pure functions of seed, epoch and sample."""

from __future__ import annotations

import pytest
import torch
from folders import WNIDS, write_imagenet, write_imagenet_lt

from limbeck.config import AugmentOptions, DataOptions
from limbeck.data import build_data, mix, open_stream

SIZES = {"image_size": 24, "test_resize": 28, "workers": 0}
CROP = AugmentOptions(resized_crop=(0.08, 1.0), flip=True)


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    return write_imagenet(tmp_path_factory.mktemp("imagenet"))


def data_of(folder, name="imagenet", **changes):
    return build_data(DataOptions.model_validate({"name": name, "folder": str(folder), **SIZES, **changes}))


def test_classes_are_the_folders_by_name_and_every_image_is_in_one_split(imagenet):
    data = data_of(imagenet)
    assert (data.num_classes, data.image_shape) == (10, (3, 24, 24))
    assert data.train.files.classes == WNIDS
    assert (len(data.train), len(data.validation), len(data.test)) == (40, 10, 20)
    for part in (data.train, data.validation, data.test):
        for place, label in zip(part.places.tolist(), part.labels.tolist(), strict=True):
            assert part.files.name(place).split("/")[0] == WNIDS[label]
    assert not set(data.train.places.tolist()) & set(data.validation.places.tolist())


def test_a_list_says_which_images_and_labels(tmp_path):
    write_imagenet_lt(tmp_path)
    data = data_of(tmp_path, "imagenet_lt", validation=0)
    lines = (tmp_path / "ImageNet_LT_train.txt").read_text().split("\n")[:-1]
    found = [
        f"{data.train.files.name(p)} {label}" for p, label in zip(data.train.places, data.train.labels, strict=True)
    ]
    assert found == lines
    assert data.class_counts.tolist() == [8, 7, 6, 5, 4, 3, 2, 1, 1, 1]
    assert (len(data.test), data.num_classes) == (20, 10)


@pytest.mark.parametrize("augment", [CROP, CROP.model_copy(update={"mixup": 0.8, "cutmix": 1.0})])
def test_two_ranks_and_any_workers_see_the_parts_of_one(imagenet, augment):
    def batches(workers=0, start=0, **place):
        stream = open_stream(
            data_of(imagenet, workers=workers), augment, batch_size=12, drop_last=False, seed=3, **place
        )
        return list(stream.batches(2, start))

    alone = batches()
    assert [len(batch.labels) for batch in alone] == [12, 12, 12, 4]
    ranks = [batches(workers=workers, rank=rank, world=2) for rank, workers in enumerate((2, 0))]
    for whole, *parts in zip(alone, *ranks, strict=True):
        for name in ("images", "labels", "indices"):
            assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name)), name
    resumed = batches(workers=1, start=2)
    assert [batch.step for batch in resumed] == [2, 3]
    assert all(torch.equal(one.images, two.images) for one, two in zip(resumed, alone[2:], strict=True))


@pytest.mark.parametrize("data", ["files", "memory"])
@pytest.mark.parametrize("mixing", [{"mixup": 0.8}, {"cutmix": 1.0}])
def test_images_are_mixed_with_their_partners_in_the_whole_batch(data, mixing, imagenet):
    """What two ranks make of their images and partners alone is `mix` of the batch before it is mixed."""
    data = data_of(imagenet) if data == "files" else build_data(DataOptions(labels_per_class=5))
    options = CROP if data.name == "imagenet" else AugmentOptions(crop_padding=1)
    place = {"batch_size": 12, "drop_last": False, "seed": 3}
    plain = open_stream(data, options, **place).batches(2)
    mixed = options.model_copy(update=mixing)
    ranks = [open_stream(data, mixed, **place, rank=rank, world=2).batches(2) for rank in range(2)]
    for whole, *parts in zip(plain, *ranks, strict=True):
        images, labels = mix(
            whole.images, whole.labels, options=mixed, num_classes=10, seed=3, epoch=2, step=whole.step
        )
        assert torch.equal(torch.cat([part.images for part in parts]), images)
        assert torch.equal(torch.cat([part.labels for part in parts]), labels)
        assert not torch.equal(images, whole.images)
