"""Training images in tar files: the same batches for any number of processes, other shards on other ranks."""

from __future__ import annotations

import io
import os
import re
import signal
import tarfile

import pytest
import torch
from engine_runs import Hook, assert_same_run
from folders import SIZES, picture, write_imagenet, write_shards
from PIL import Image

from limbeck.config import AugmentOptions, DataOptions, Recipe
from limbeck.data import augment, build_data, open_stream
from limbeck.data.shards import _index
from limbeck.engine.fit import fit
from limbeck.errors import Interrupted, UserError

CROP = AugmentOptions(resized_crop=(0.3, 1.0), flip=True)
SAMPLES = 24
NUMBERS = {_index(f"sample_{number}"): number for number in range(SAMPLES)}  # of the draws' key


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("shards")
    write_imagenet(root, train=0, val=1)
    write_shards(root / "shards")
    return root


def options(folder, **changes):
    return {
        "name": "imagenet",
        "folder": str(folder),
        "shards": str(folder / "shards" / "train-{0000..0003}.tar"),
        "samples": SAMPLES,
        "image_size": 8,
        "test_resize": 9,
        "workers": 0,
        "validation": 0,
        **changes,
    }


def batches(folder, start=0, epoch=1, augment=CROP, batch_size=8, rank=0, world=1, **changes):
    data = build_data(DataOptions.model_validate(options(folder, **changes)))
    stream = open_stream(data, augment, batch_size=batch_size, drop_last=False, seed=3, rank=rank, world=world)
    return list(stream.batches(epoch, start))


def numbers(seen):
    return [NUMBERS[index] for batch in seen for index in batch.indices.tolist()]


def same(one, other):
    tensors = zip(*((b.images, b.labels, b.indices) for b in (one, other)), strict=True)
    return one.step == other.step and all(torch.equal(*pair) for pair in tensors)


def test_an_epoch_has_its_length_and_holds_every_sample_where_streams_are_equal(folder):
    """Four streams of one shard of six: batches of six come from one stream each."""
    seen = batches(folder, batch_size=6)
    assert [len(batch.labels) for batch in seen] == [6] * 4
    assert sorted(numbers(seen)) == list(range(SAMPLES))
    assert numbers(seen) != numbers(batches(folder, batch_size=6, epoch=2))


def test_images_and_labels_are_the_samples_with_draws_keyed_by_their_names(folder):
    data = build_data(DataOptions.model_validate(options(folder)))
    for batch in batches(folder, augment=AugmentOptions(flip=True)):
        places = numbers([batch])
        assert batch.labels.tolist() == [place % 10 for place in places]
        middles = []
        for place in places:
            file = io.BytesIO()
            picture(place % 10, place, SIZES[place % len(SIZES)]).save(file, "JPEG", quality=90)
            middle = data.test.view.of(Image.open(file))
            middles.append(torch.frombuffer(bytearray(middle.tobytes()), dtype=torch.uint8).view(8, 8, 3))
        images = torch.stack(middles).permute(0, 3, 1, 2)
        flip = AugmentOptions(flip=True)
        expected = augment(images, flip, pixels=data.test.pixels, seed=3, epoch=1, indices=batch.indices)
        assert torch.equal(batch.images, expected)


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("start", [0, 5])
def test_batches_are_the_same_for_any_number_of_processes_and_from_any_step_on(workers, start, folder):
    mixed = CROP.model_copy(update={"mixup": 0.5})
    whole = batches(folder, augment=mixed, samples=2 * SAMPLES)
    found = batches(folder, start, augment=mixed, samples=2 * SAMPLES, workers=workers)
    assert len(found) == 6 - start
    assert all(same(*pair) for pair in zip(found, whole[start:], strict=True))


def test_ranks_read_different_shards_and_their_parts_make_a_batch(folder):
    ranks = [batches(folder, rank=rank, world=2, batch_size=9) for rank in range(2)]
    assert not set(numbers(ranks[0])) & set(numbers(ranks[1]))
    for parts in zip(*ranks, strict=True):
        assert [len(part.labels) for part in parts] == [4, 5]
        assert {part.whole for part in parts} == {9}


def test_a_shard_that_is_short_begins_again(folder):
    assert sorted(numbers(batches(folder, samples=2 * SAMPLES, batch_size=6))) == sorted([*range(SAMPLES)] * 2)


def test_a_run_on_shards_resumes(folder, tmp_path):
    recipe = Recipe.model_validate(
        {
            "data": options(folder, augment={"resized_crop": [0.3, 1.0], "mixup": 0.5}),
            "model": {"name": "mlp", "width": 4, "depth": 1},
            "train": {"epochs": 2, "batch_size": 8, "threads": 1},
            "save": {"log_every": 1, "tensorboard": False},
        }
    )
    fit(recipe, tmp_path / "whole")
    stop = Hook(lambda step: os.kill(os.getpid(), signal.SIGTERM) if step == 2 else None)
    with pytest.raises(Interrupted):
        fit(recipe, tmp_path / "broken", reporter=stop)
    fit(recipe, tmp_path / "broken", resume=True)
    assert_same_run(tmp_path / "broken", tmp_path / "whole")


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"a.jpg": b"x"}, "a: expected a sample with an image (jpg, jpeg, png, webp) and cls, its class"),
        ({"a.cls": b"0", "a.jpg": b"x"}, "a cannot be decoded (no image that Pillow knows)"),
        ({"a.cls": b"10", "a.jpg": b"x"}, "a: expected cls of 0 to 9, got '10'"),
        ({"a.cls": b"one", "a.jpg": b"x"}, "a: expected cls of 0 to 9, got 'one'"),
        ({}, "one.tar: expected samples in shards, got none"),
    ],
)
@pytest.mark.parametrize("workers", [0, 1])
def test_a_wrong_sample_is_one_line(files, expected, workers, folder, tmp_path):
    with tarfile.open(tmp_path / "one.tar", "w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    with pytest.raises(UserError, match=re.escape(expected)) as caught:
        batches(folder, shards=str(tmp_path / "one.tar"), workers=workers)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_of_too_many_pixels_is_one_line(workers, folder, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(UserError, match=r"^sample_\d+ cannot be decoded \(image size .* exceeds limit") as caught:
        batches(folder, workers=workers)
    assert len(str(caught.value).splitlines()) == 1


def test_a_shard_that_is_cut_is_one_line(folder, tmp_path):
    content = (folder / "shards" / "train-0000.tar").read_bytes()
    path = tmp_path / "cut.tar"
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=re.escape(f"{path} cannot be read as a shard")):
        batches(folder, shards=str(path))


def test_shards_that_are_not_there_are_named(folder):
    with pytest.raises(UserError, match=r"got none at .*none-0.tar, .*none-1.tar, .*none-2.tar and 7 more"):
        batches(folder, shards=str(folder / "none-{0..9}.tar"))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"samples": None}, "`shards` and `samples` expected each other"),
        ({"repeats": 2}, "`repeats` needs to know each image before it is read"),
        ({"name": "imagenet_lt"}, "`shards` belong to imagenet, image_folder"),
    ],
)
def test_options_that_shards_cannot_serve_are_refused(changes, expected, folder):
    with pytest.raises(ValueError, match=re.escape(expected)):
        DataOptions.model_validate(options(folder, **changes))


def test_no_images_of_shards_are_held_out(folder):
    with pytest.raises(UserError, match=r"`data.validation` expected 0"):
        batches(folder, validation=0.2)
