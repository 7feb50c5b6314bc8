"""Claims about few labelled images beside a pool: what a step sees, and that nobody reads the pool's labels."""

from __future__ import annotations

import pytest
import torch
from folders import write_imagenet
from pydantic import ValidationError

from limbeck.config import AugmentOptions, DataOptions, UnlabelledOptions
from limbeck.data import build_data
from limbeck.data.streams import Order, open_stream

WEAK, STRONG = AugmentOptions(crop_padding=1), AugmentOptions(crop_padding=2, cutout=3)
OPTIONS = DataOptions(labels_per_class=4, augment=WEAK, unlabelled=UnlabelledOptions(ratio=3, strong=STRONG))


def bundle(**changes: object):
    unlabelled = OPTIONS.unlabelled.model_copy(update=changes)
    return build_data(OPTIONS.model_copy(update={"unlabelled": unlabelled}))


def stream(data=None, **changes: object):
    order = {"augment": WEAK, "batch_size": 16, "drop_last": True, "seed": 0, **changes}
    return (data or bundle()).train.open(Order(**order))


def test_labels_per_class_without_a_pool_leaves_the_other_images_out():
    assert len(build_data(DataOptions(labels_per_class=4)).train) == 40


def test_the_pool_is_the_whole_training_part_and_has_no_labels():
    part, whole = bundle().train, build_data(DataOptions()).train
    assert torch.equal(part.pool.images, whole.images)
    assert set(part.pool.labels.tolist()) == {-1}
    labelled = {image.numpy().tobytes() for image in part.labelled.images}
    assert labelled <= {image.numpy().tobytes() for image in part.pool.images}


def test_a_step_has_labelled_images_and_two_views_of_ratio_times_as_many_others():
    batch = next(stream().batches(1))
    weak, strong = batch.views
    assert batch.images.shape == (16, 1, 8, 8)
    assert weak.shape == strong.shape == (48, 1, 8, 8)
    assert not torch.equal(weak, strong)
    assert batch.whole == 16
    assert batch.labels.min() >= 0


def test_an_epoch_is_a_pass_over_the_pool():
    data = bundle()
    plain = Order(AugmentOptions(), 16, True, 0)
    steps = list(data.train.open(plain).batches(1))
    assert len(steps) == len(data.train) // 48
    seen = {image.numpy().tobytes() for batch in steps for image in batch.views[0]}
    distinct = {image.numpy().tobytes() for image in data.train.pool.images}
    assert len(seen) >= len(distinct) - len(data.train) % 48


def test_labelled_images_come_again_with_another_view():
    steps = list(stream().batches(1))
    indices = torch.cat([batch.indices for batch in steps])
    counts = indices.bincount(minlength=40)
    assert counts.max() - counts.min() <= 1
    assert counts.min() > 1
    views = torch.cat([batch.images for batch in steps])[indices == 0]
    assert len({view.numpy().tobytes() for view in views}) > 1


def test_a_fixed_number_of_steps_goes_over_the_pool_again():
    data = bundle(steps_per_epoch=50)
    steps = list(stream(data, augment=AugmentOptions()).batches(1))
    assert len(steps) == stream(data).steps_per_epoch == 50
    seen = [image.numpy().tobytes() for batch in steps for image in batch.views[0]]
    assert len(seen) == 50 * 48 > len(data.train)


def test_a_stream_goes_on_at_any_step():
    whole, rest = list(stream().batches(2)), list(stream().batches(2, 7))
    for batch, other in zip(whole[7:], rest, strict=True):
        assert batch.step == other.step
        for tensor, twin in zip(
            (batch.images, batch.labels, *batch.views), (other.images, other.labels, *other.views), strict=True
        ):
            assert torch.equal(tensor, twin)


@pytest.mark.parametrize("world", [2, 3])
def test_the_ranks_parts_make_up_the_step(world):
    whole = next(stream().batches(1))
    parts = [next(stream(rank=rank, world=world).batches(1)) for rank in range(world)]
    assert torch.equal(torch.cat([part.images for part in parts]), whole.images)
    assert torch.equal(torch.cat([part.labels for part in parts]), whole.labels)
    for position in range(2):
        assert torch.equal(torch.cat([part.views[position] for part in parts]), whole.views[position])
    assert {part.whole for part in parts} == {16}


def test_views_are_those_of_the_seed():
    first, again, other = next(stream().batches(1)), next(stream().batches(1)), next(stream(seed=1).batches(1))
    assert torch.equal(first.views[1], again.views[1])
    assert not torch.equal(first.views[1], other.views[1])


def test_the_run_opens_the_same_stream():
    data = bundle()
    batch = next(open_stream(data, WEAK, batch_size=16, drop_last=False, seed=0).batches(1))
    assert torch.equal(batch.views[1], next(stream().batches(1)).views[1])


def test_few_labels_are_part_of_the_data_that_a_run_resumes_on():
    assert bundle().fingerprint != build_data(DataOptions(labels_per_class=4)).fingerprint


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"labels_per_class": None}, "labels_per_class"),
        ({"repeats": 2}, "repeats"),
        ({"augment": {"mixup": 0.5}}, "mixup"),
        ({"unlabelled": {"strong": {"cutmix": 1.0}}}, "cutmix"),
        ({"unlabelled": {"ratio": 0}}, "ratio"),
    ],
)
def test_what_has_no_meaning_beside_a_pool_is_refused(changes, words):
    with pytest.raises(ValidationError, match=words):
        DataOptions.model_validate({"labels_per_class": 4, "unlabelled": {}, **changes})


def test_images_in_files_have_a_pool_too(tmp_path):
    write_imagenet(tmp_path)
    strong = {"resized_crop": (0.1, 1.0), "flip": True, "rand_augment_operations": 1}
    options = {"labels_per_class": 1, "unlabelled": {"ratio": 2, "strong": strong}}
    files = {"name": "imagenet", "folder": str(tmp_path), "image_size": 24, "test_resize": 28}
    order = Order(AugmentOptions(resized_crop=(0.5, 1.0)), 6, True, 0)
    steps = {}
    for workers in (0, 1):
        data = build_data(DataOptions.model_validate({**files, **options, "workers": workers}))
        assert (len(data.train.labelled), len(data.train), set(data.train.pool.labels.tolist())) == (10, 40, {-1})
        steps[workers] = list(data.train.open(order).batches(1, 1))
    assert [batch.step for batch in steps[0]] == [1, 2]
    for batch, other in zip(*steps.values(), strict=True):
        assert [view.shape for view in batch.views] == [(12, 3, 24, 24)] * 2
        assert all(torch.equal(*pair) for pair in zip(batch.views, other.views, strict=True))
        assert torch.equal(batch.images, other.images)
