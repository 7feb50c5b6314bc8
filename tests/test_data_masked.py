"""Images with masks: views move both alike, files are read as published, and mistakes are one line."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from limbeck.config import DataOptions
from limbeck.config_augment import AugmentOptions
from limbeck.data import Order, build_data
from limbeck.data.mask_files import ade20k
from limbeck.data.masked import MaskedPart, MasksInMemory, cropped, resized
from limbeck.data.sources import Pixels
from limbeck.errors import UserError

PLAIN = Pixels(255, (0.0,) * 3, (1.0,) * 3)
FILL = torch.zeros(3, 1, 1)


def write_ade20k(folder: Path, sizes=((20, 30), (33, 21), (24, 24), (40, 26)), classes: int = 150) -> None:
    """Images whose red level is their class, times ten."""
    rng = np.random.default_rng(0)
    root = folder / "ADEChallengeData2016"
    for part, count in (("training", len(sizes)), ("validation", 2)):
        (root / "images" / part).mkdir(parents=True)
        (root / "annotations" / part).mkdir(parents=True)
        for number, (height, width) in enumerate(sizes[:count]):
            mask = rng.integers(0, 4, (height, width)).astype(np.uint8)
            mask[0, 0] = classes
            name = f"ADE_{part[:5]}_{number:08d}"
            Image.fromarray(np.stack([mask] * 3, -1) * 10).save(root / "images" / part / f"{name}.jpg")
            Image.fromarray(mask).save(root / "annotations" / part / f"{name}.png")


def write_voc(folder: Path) -> None:
    root = folder / "VOCdevkit" / "VOC2012"
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / name).mkdir(parents=True)
    palette = [*(0, 0, 0), *(128, 0, 0), *(0, 128, 0)] + [224, 224, 192] * 253
    for part, names in (("train", ["2007_000032", "2007_000039", "2008_000003"]), ("val", ["2007_000033"])):
        (root / "ImageSets" / "Segmentation" / f"{part}.txt").write_text("\n".join(names) + "\n")
        for name in names:
            mask = np.full((24, 30), 1, dtype=np.uint8)
            mask[4:9, 4:9], mask[3, 3:9] = 2, 255
            picture = Image.fromarray(mask, mode="P")
            picture.putpalette(palette)
            picture.save(root / "SegmentationClass" / f"{name}.png")
            Image.fromarray(np.stack([mask] * 3, -1)).save(root / "JPEGImages" / f"{name}.jpg")


@pytest.mark.parametrize("factor", [0.5, 0.8, 1.0, 1.7])
@pytest.mark.parametrize("side", [9, 16, 40])
def test_a_view_moves_image_and_mask_alike(factor, side):
    mask = torch.zeros(12, 20, dtype=torch.uint8)
    mask[3:9, 5:15] = 200
    image, moved = resized(mask.expand(3, -1, -1), mask, factor)
    for down, right in ((0.0, 0.0), (0.5, 0.3), (0.999, 0.999)):
        square, labels = cropped(image, moved, side, down, right, FILL)
        assert square.shape == (3, side, side)
        inside = labels != 255
        assert int(inside.sum()) == min(moved.shape[0], side) * min(moved.shape[1], side)
        assert (square[:, ~inside] == 0).all()
        # The nearest pixel and the mean of neighbours agree but for a line along the edge.
        differs = ((square[0] > 100) != (labels == 200)) & inside
        assert differs.float().mean() < 0.12


def part_of(count: int = 7, **options) -> MaskedPart:
    images = torch.arange(count * 3 * 12 * 12).view(count, 3, 12, 12).remainder(251).to(torch.uint8)
    masks = images[:, 0] % 5
    return MaskedPart(MasksInMemory(images, masks), PLAIN, side=12, **options)


def order(**options) -> Order:
    return Order(**{"augment": AugmentOptions(flip=True), "batch_size": 3, "drop_last": False, "seed": 1, **options})


def test_views_are_functions_of_seed_epoch_and_sample_whatever_ranks_and_steps():
    part = part_of(scale=(0.5, 2.0))
    whole = list(part.open(order()).batches(2))
    assert [len(batch.labels) for batch in whole] == [3, 3, 1]
    resumed = list(part.open(order()).batches(2, start_step=1))
    ranks = [list(part.open(order(rank=rank, world=2)).batches(2)) for rank in range(2)]
    for step, batch in enumerate(whole):
        joined = [torch.cat([getattr(r[step], what) for r in ranks]) for what in ("images", "labels", "indices")]
        assert all(torch.equal(a, b) for a, b in zip(joined, (batch.images, batch.labels, batch.indices), strict=True))
        if step:
            assert torch.equal(resumed[step - 1].images, batch.images)
    other = next(iter(part.open(order()).batches(3)))
    assert not torch.equal(other.images, whole[0].images)


def test_threads_read_what_no_thread_reads(tmp_path):
    write_ade20k(tmp_path)
    options = {
        "name": "ade20k",
        "folder": str(tmp_path),
        "image_size": 16,
        "validation": 0.25,
        "masks": {"scale": (0.5, 2)},
    }
    found = []
    for workers in (0, 2):
        data = build_data(DataOptions.model_validate({**options, "workers": workers}))
        found.append(list(data.train.open(order(batch_size=2)).batches(1)))
    assert [len(b.labels) for b in found[0]] == [2, 1]
    for one, other in zip(*found, strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels, other.labels)


def test_ade20k_numbers_classes_from_one_and_is_judged_at_its_own_size(tmp_path):
    write_ade20k(tmp_path)
    data = build_data(DataOptions(name="ade20k", folder=str(tmp_path), image_size=16, validation=0.25))
    assert (len(data.train), len(data.validation), len(data.test), data.num_classes) == (3, 1, 2, 150)
    images, labels = next(data.test.batches())
    assert images.shape == (1, 3, 20, 30)
    assert labels.shape == (1, 20, 30)
    assert labels[0, 0, 0] == 149
    assert set(labels.unique().tolist()) <= {0, 1, 2, 149, 255}
    smaller = build_data(
        DataOptions.model_validate(
            {"name": "ade20k", "folder": str(tmp_path), "image_size": 16, "masks": {"test_side": 10}}
        )
    )
    images, labels = next(smaller.test.batches())
    assert images.shape == (1, 3, 10, 15)
    assert labels.shape == (1, 20, 30)


def test_voc_reads_the_palettes_numbers(tmp_path):
    write_voc(tmp_path)
    data = build_data(DataOptions(name="voc2012", folder=str(tmp_path), image_size=16, validation=0))
    assert (len(data.train), len(data.validation), len(data.test), data.num_classes) == (3, 0, 1, 21)
    _, labels = next(data.test.batches())
    assert labels[0, 5, 5] == 2
    assert set(labels.unique().tolist()) == {1, 2, 255}


def test_scenes_are_a_data_set_of_segmentation():
    options = DataOptions.model_validate(
        {"name": "scenes", "scenes": {"train": 6, "validation": 3, "test": 3, "side": 20}}
    )
    data = build_data(options)
    assert data.image_shape == (3, 20, 20)
    assert data.num_classes == 9
    assert data.fingerprint == build_data(options).fingerprint
    assert data.fingerprint != build_data(options.model_copy(update={"split_seed": 1})).fingerprint


@pytest.mark.parametrize(
    ("break_it", "match"),
    [
        (lambda root: None, r"expected the folder images/training there, got none; get the archive by hand"),
        (lambda root: write_ade20k(root, classes=151), "expected 150 classes, got a pixel of class 151"),
        (
            lambda root: [write_ade20k(root), *map(Path.unlink, root.glob("*/annotations/training/*1.png"))],
            "unpack the",
        ),
    ],
    ids=["no folder", "class out of range", "mask missing"],
)
def test_wrong_files_are_named(break_it, match, tmp_path):
    break_it(tmp_path)
    with pytest.raises(UserError, match=match) as caught:
        ade20k(tmp_path)[0].read(0)
    assert re.search(r"\n", str(caught.value)) is None


@pytest.mark.parametrize(
    ("options", "named"),
    [({"augment": {"cutout": 3}}, "augment.cutout"), ({"imbalance": 3.0}, "imbalance"), ({"test": 0.2}, "test")],
)
def test_options_of_images_with_one_class_are_refused(options, named):
    with pytest.raises(ValueError, match=named):
        DataOptions.model_validate({"name": "scenes", **options})
