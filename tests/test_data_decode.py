"""Views of files against Pillow step by step, and processes that leave no trace."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time

import numpy as np
import pytest
import torch
from folders import SIZES, picture, write_imagenet
from PIL import Image

from limbeck.config import AugmentOptions, DataOptions
from limbeck.data import augment, build_data, normalise, open_stream
from limbeck.data.decode import Crop, MiddleView, middle_views, train_views
from limbeck.data.decoding import in_order
from limbeck.data.image_files import class_folders
from limbeck.data.resized_crop import draw_boxes
from limbeck.data.stored_sets import IMAGENET
from limbeck.draws import integers
from limbeck.errors import Interrupted, UserError

CROP = AugmentOptions(resized_crop=(0.08, 1.0), flip=True)


def files_of(folder, images, **options):
    """A folder of one class with these images, named in order."""
    (folder / "one").mkdir(parents=True)
    for number, image in enumerate(images):
        image.save(folder / "one" / f"{number:03d}.{'png' if image.mode == 'P' else 'jpg'}", **options)
    return class_folders(folder, lambda line: None)


def as_tensor(image):
    return torch.from_numpy(np.asarray(image).copy())


@pytest.mark.parametrize("size", [*SIZES, (50, 30), (30, 51), (77, 31), (31, 93)])
def test_a_test_view_is_the_resized_middle(size, tmp_path):
    """torchvision: the longer side without its fraction; the corner rounded half to even."""
    files = files_of(tmp_path, [picture(1, 2, size)])
    image = Image.open(files.path(0))
    width, height = size
    short = min(size)
    width, height = (int(33 * side / short) for side in (width, height))
    resized = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
    top, left = round((height - 24) / 2.0), round((width - 24) / 2.0)
    expected = torch.from_numpy(resized[top : top + 24, left : left + 24].copy())
    assert torch.equal(middle_views(files, torch.tensor([0]), MiddleView(33, 24))[0], expected)


def test_a_training_view_is_the_drawn_part_resized_and_flipped(tmp_path):
    files = files_of(tmp_path, [picture(2, number, SIZES[number % 5]) for number in range(10)])
    places, keys = torch.arange(10), torch.arange(10) + 700
    (views,) = train_views(files, places, keys, (Crop(CROP, MiddleView(28, 24), seed=4, epoch=2),))
    flips = integers(4, 2, keys, "flip", 2)
    assert 0 < flips.sum() < 10
    for place in range(10):
        image = Image.open(files.path(place)).convert("RGB")
        box = draw_boxes(image.height, image.width, (0.08, 1.0), seed=4, epoch=2, indices=keys[place : place + 1])
        top, left, height, width = box[0].tolist()
        part = image.crop((left, top, left + width, top + height)).resize((24, 24), Image.Resampling.BILINEAR)
        expected = as_tensor(part)
        expected = expected.flip(1) if flips[place] else expected
        assert (views[place].int() - expected.int()).abs().max() <= 1, place  # torch rounds otherwise than Pillow


def test_a_view_from_a_file_is_the_view_from_memory(tmp_path):
    """The same draws and the same arithmetic, to the level that Pillow's order of the two passes may cost."""
    pictures = [picture(3, number, (24, 24)) for number in range(6)]
    (tmp_path / "one").mkdir()
    for number, image in enumerate(pictures):
        image.save(tmp_path / "one" / f"{number}.png")
    files = class_folders(tmp_path, lambda line: None)
    (views,) = train_views(files, torch.arange(6), torch.arange(6), (Crop(CROP, MiddleView(24, 24), seed=1, epoch=3),))
    memory = torch.stack([as_tensor(image).permute(2, 0, 1) for image in pictures])
    expected = augment(memory, CROP, pixels=IMAGENET, seed=1, epoch=3, indices=torch.arange(6))
    found = normalise(views.permute(0, 3, 1, 2), IMAGENET)
    assert (found - expected).abs().max() * 0.225 * 255 <= 1.001


@pytest.mark.parametrize("mode", ["L", "CMYK", "P", "1"])
def test_every_mode_becomes_rgb(mode, tmp_path):
    files = files_of(tmp_path, [picture(1, 5, (40, 30)).convert(mode)])
    views = middle_views(files, torch.tensor([0]), MiddleView(30, 30))
    expected = as_tensor(Image.open(files.path(0)).convert("RGB").crop((5, 0, 35, 30)))
    assert torch.equal(views[0], expected)


def test_an_orientation_in_exif_is_not_followed(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    (plain, turned) = (
        files_of(tmp_path / name, [picture(1, 5, (40, 30))], **options)
        for name, options in (("plain", {}), ("turned", {"exif": exif}))
    )
    view = MiddleView(28, 24)
    assert torch.equal(middle_views(plain, torch.tensor([0]), view), middle_views(turned, torch.tensor([0]), view))


# --- whole batches ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    return write_imagenet(tmp_path_factory.mktemp("imagenet"))


def data_of(folder, **changes):
    options = {"name": "imagenet", "folder": str(folder), "image_size": 24, "test_resize": 28, "workers": 0}
    return build_data(DataOptions.model_validate({**options, **changes}))


def test_what_is_left_to_batches_is_done_once(imagenet):
    """Flip and crop are done as images are decoded; RandAugment and cutout act on the batch, with their own draws."""
    options = CROP.model_copy(update={"rand_augment_operations": 2, "cutout": 6})
    data = data_of(imagenet)
    batch = next(open_stream(data, options, batch_size=10, drop_last=False, seed=5).batches(1))
    view = data.train.view
    places, crop = data.train.places[batch.indices], Crop(CROP, view, seed=5, epoch=1)
    (decoded,) = train_views(data.train.files, places, batch.indices, (crop,))
    rest = options.model_copy(update={"resized_crop": None, "flip": False})
    expected = augment(
        decoded.permute(0, 3, 1, 2), rest, pixels=data.train.pixels, seed=5, epoch=1, indices=batch.indices
    )
    assert torch.equal(batch.images, expected)


def test_two_views_of_a_file_are_independent_and_the_first_is_as_ever(imagenet):
    data, options = data_of(imagenet, standardise=False), {"batch_size": 20, "drop_last": False, "seed": 5}
    (alone, _), (both, _) = (
        list(open_stream(data, CROP, **options, **second).batches(1)) for second in ({}, {"second_view": CROP})
    )
    assert torch.equal(alone.images, both.images)
    assert not any(torch.equal(*pair) for pair in zip(both.images, both.views[0], strict=True))


def test_a_padded_crop_acts_on_the_middle(imagenet):
    data = data_of(imagenet)
    batch = next(open_stream(data, AugmentOptions(), batch_size=8, drop_last=False, seed=5).batches(1))
    assert torch.equal(batch.images, next(data.train.seen(batch.indices, 8)))
    padded = AugmentOptions(crop_padding=4, flip=True)
    views = next(open_stream(data, padded, batch_size=8, drop_last=False, seed=5).batches(1))
    decoded = middle_views(data.train.files, data.train.places[batch.indices], data.train.view).permute(0, 3, 1, 2)
    expected = augment(decoded, padded, pixels=data.train.pixels, seed=5, epoch=1, indices=batch.indices)
    assert torch.equal(views.images, expected)


def test_a_rank_decodes_no_test_image_of_another(imagenet, monkeypatch):
    data, opened = data_of(imagenet), []
    whole = torch.cat(list(data.test.batches(6)))
    original = type(data.test.files).path
    monkeypatch.setattr(
        type(data.test.files), "path", lambda self, place: (opened.append(place), original(self, place))[1]
    )
    odd = torch.cat(list(data.test.batches(6, 1, 2)))
    assert sorted(opened) == [6, 7, 8, 9, 10, 11, 18, 19]
    assert torch.equal(odd, whole[sorted(opened)])


def test_processes_draw_nothing_here_and_end_with_the_batches(imagenet):
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    stream = open_stream(data_of(imagenet, workers=2), CROP, batch_size=8, drop_last=False, seed=5)
    batches = stream.batches(1)
    next(batches)
    assert len(multiprocessing.active_children()) == 2
    batches.close()
    deadline = time.monotonic() + 20
    while multiprocessing.active_children() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not multiprocessing.active_children()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert np.array_equal(np.random.get_state()[1], before[2])  # noqa: NPY002


class Signals:
    """Makes the dispositions of signals in the process that makes it."""

    parts = 1

    def make(self, step, part):
        ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        return (torch.full((1, 1, 1, 1), int(ignored), dtype=torch.uint8),)


def test_an_interruption_from_the_keyboard_is_the_runs_alone():
    cpu = torch.device("cpu")
    assert [int(images) for (images,) in in_order(Signals(), range(2), workers=1, device=cpu)] == [1, 1]
    assert [int(images) for (images,) in in_order(Signals(), range(1), workers=0, device=cpu)] == [0]


class Ended:
    """Ends its process by a signal."""

    parts = 1

    def __init__(self, number):
        self.number = number

    def make(self, step, part):
        os.kill(os.getpid(), self.number)


def test_a_process_that_is_killed_is_one_line():
    with pytest.raises(UserError, match=r"^a process that decodes images ended \(.*\); lower `data.workers`") as caught:
        list(in_order(Ended(signal.SIGKILL), range(2), workers=1, device=torch.device("cpu")))
    assert len(str(caught.value).splitlines()) == 1


class Terminated:
    """Makes the tens of seconds that are left to the process after SIGTERM."""

    parts = 1

    def make(self, step, part):
        os.kill(os.getpid(), signal.SIGTERM)
        return (torch.full((1, 1, 1, 1), (signal.alarm(0) + 5) // 10, dtype=torch.uint8),)


def test_a_process_outlives_the_step_in_which_the_run_is_told_to_stop():
    ((left,),) = in_order(Terminated(), range(1), workers=1, device=torch.device("cpu"))
    assert int(left) == 60


def test_a_process_that_ended_by_its_alarm_is_an_interruption():
    with pytest.raises(Interrupted, match=r"^the run did not come to save within 600 seconds of SIGTERM") as caught:
        list(in_order(Ended(signal.SIGALRM), range(2), workers=1, device=torch.device("cpu")))
    assert len(str(caught.value).splitlines()) == 1


class Mistaken:
    """Raises what is no matter of a process that ended."""

    parts = 1

    def make(self, step, part):
        raise RuntimeError("no kernel image is available; the work was killed")


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_of_the_program_is_not_taken_for_the_end_of_a_process(workers):
    with pytest.raises(RuntimeError, match="no kernel image is available"):
        list(in_order(Mistaken(), range(1), workers=workers, device=torch.device("cpu")))


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("content", [b"", b"no image", "half"])
def test_a_damaged_file_is_one_line_with_its_path(content, workers, tmp_path):
    write_imagenet(tmp_path, train=2, val=1)
    path = next(path for path in (tmp_path / "val").rglob("*.JPEG"))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] if content == "half" else content)
    data = data_of(tmp_path, workers=workers)
    with pytest.raises(UserError) as caught:
        list(data.test.batches(20))
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"{path} cannot be decoded (")


def test_a_file_that_is_gone_is_one_line_with_its_path(tmp_path):
    write_imagenet(tmp_path, train=2, val=1)
    data = data_of(tmp_path)
    path = data.test.files.path(3)
    os.unlink(path)
    with pytest.raises(UserError, match="cannot be decoded \\(no such file or directory\\)"):
        list(data.test.batches(20))


class Stuck:
    """Makes a piece, and then none for long."""

    parts = 1

    def make(self, step: int, part: int) -> tuple[torch.Tensor, ...]:
        if step:
            time.sleep(60)
        return (torch.zeros(1, 1, 1, 1, dtype=torch.uint8),)


def test_a_process_that_is_stuck_ends_with_the_iterator():
    made = in_order(Stuck(), range(3), workers=1, device=torch.device("cpu"))
    next(made)
    made.close()
    assert not multiprocessing.active_children()
