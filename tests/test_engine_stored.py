"""Runs on images in files, and on images in memory at a larger size or in repeated views."""

from __future__ import annotations

import json
import os
import signal

import pytest
import torch
from engine_runs import Hook, assert_same_run
from folders import write_imagenet_lt
from PIL import Image

from limbeck.config import AugmentOptions, DataOptions, Recipe
from limbeck.data import Pixels, augment, build_data, normalise, open_stream
from limbeck.data.loader import VIEW_STEP
from limbeck.engine.fit import fit
from limbeck.engine.interrelations import compute_interrelations
from limbeck.errors import Interrupted, UserError
from limbeck.models import build_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_imagenet_lt(tmp_path_factory.mktemp("lt"))


def recipe(folder, **changes):
    """Two epochs of three steps on 38 images; the batches are mixed, the last one is short."""
    data = {
        "name": "imagenet_lt",
        "folder": str(folder),
        "image_size": 8,
        "test_resize": 9,
        "workers": 0,
        "validation": 0,
        "augment": {"resized_crop": [0.3, 1.0], "flip": True, "mixup": 0.5},
    }
    return Recipe.model_validate(
        {
            "protocol": "paper",
            "data": {**data, **changes},
            "model": {"name": "mlp", "width": 8, "depth": 1},
            "train": {"epochs": 2, "batch_size": 16, "threads": 1},
            "save": {"every_steps": 1, "log_every": 1, "tensorboard": False},
        }
    )


def test_a_run_resumes_with_other_workers_in_another_place(folder, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    fit(recipe(folder), whole)

    def stop(step):
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        fit(recipe(folder, workers=2), broken, reporter=Hook(stop))
    (tmp_path / "moved").symlink_to(folder)
    moved = recipe(tmp_path / "moved", workers=1, train_list="ImageNet_LT_train.txt")
    fit(moved, broken, resume=True)
    for run in (broken, whole):
        results = json.loads((run / "results.json").read_text())
        for free in ("folder", "train_list", "workers"):
            del results["data"][free]
        (run / "results.json").write_text(json.dumps(results))
    assert_same_run(broken, whole)


def test_other_images_are_other_data(folder, tmp_path):
    write_imagenet_lt(tmp_path)
    options = recipe(folder).data
    places = (folder, tmp_path)
    digests = {build_data(options.model_copy(update={"folder": str(place)})).fingerprint for place in places}
    assert len(digests) == 1
    file = next((tmp_path / "train").rglob("*_0.JPEG"))
    file.write_bytes(file.read_bytes() + b"more")
    digests |= {
        build_data(options.model_copy(update=change)).fingerprint
        for change in (
            {"folder": str(tmp_path)},
            {"test_resize": 10},
            {"image_size": 9},
            {"standardise": False},
        )
    }
    assert len(digests) == 5


def test_classes_are_told_apart_by_features_of_the_test_views(folder):
    """Interrelations are of the images as they are, not of a random view of them."""
    data = build_data(recipe(folder, labels_per_class=None).data)
    model = build_model(recipe(folder).model, image_shape=data.image_shape, num_classes=10, seed=0)
    found = compute_interrelations(model, data.train, kind="centroid", num_classes=10)
    images = torch.cat(list(data.train.seen(torch.arange(len(data.train)), 7)))
    with torch.no_grad():
        features = model.eval().forward_features(images).double()
    means = torch.stack([features[data.train.labels == c].mean(0) for c in range(10)])
    means = means - means.mean(0)
    cosine = torch.nn.functional.cosine_similarity(means[:, None], means[None], dim=-1)
    torch.testing.assert_close(found.double(), (1 + cosine) / 2, atol=1e-5, rtol=0)


# --- a larger size ----------------------------------------------------------------------------------------


def test_a_larger_size_is_pillows_bicubic():
    """But for rounding between the passes, where Pillow also cuts off what is beyond black and white."""
    images = torch.randint(60, 195, (2, 3, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    pixels = Pixels(255, (0.4, 0.5, 0.6), (0.2, 0.25, 0.3), side=28)
    seen = normalise(images, pixels)
    assert seen.shape == (2, 3, 28, 28)
    levels = seen * torch.tensor(pixels.std).view(3, 1, 1) + torch.tensor(pixels.mean).view(3, 1, 1)
    for image, found in zip(images, levels * 255, strict=True):
        twin = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((28, 28), Image.Resampling.BICUBIC)
        expected = torch.frombuffer(bytearray(twin.tobytes()), dtype=torch.uint8).view(28, 28, 3).permute(2, 0, 1)
        assert (found - expected).abs().max() <= 1.5


def test_nothing_is_blacker_than_black():
    images = torch.randint(2, (2, 3, 8, 8), generator=torch.Generator().manual_seed(0)).mul(255).to(torch.uint8)
    seen = normalise(images, Pixels(255, (0.0,) * 3, (1.0,) * 3, side=28))
    assert (seen.min(), seen.max()) == (0, 1)


def test_images_are_enlarged_after_all_augmentation():
    images = torch.randint(256, (4, 3, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    small, large = (Pixels(255, (0.4,) * 3, (0.2,) * 3, side=side) for side in (None, 16))
    options = AugmentOptions(crop_padding=2, flip=True, cutout=4)
    place = {"seed": 0, "epoch": 1, "indices": torch.arange(4)}
    views = augment(images, options, pixels=small, **place)
    again = torch.nn.functional.interpolate(views, (16, 16), mode="bicubic", antialias=True).clamp(-2, 3)
    torch.testing.assert_close(augment(images, options, pixels=large, **place), again)


def test_all_parts_of_a_run_see_the_larger_size(tmp_path):
    options = {"name": "digits", "labels_per_class": 10, "image_size": 12}
    data = build_data(DataOptions.model_validate(options))
    assert data.image_shape == (1, 12, 12)
    assert {next(part.batches(5)).shape for part in (data.train, data.validation, data.test)} == {(5, 1, 12, 12)}
    assert next(data.train.seen(torch.tensor([3]), 1)).shape == (1, 1, 12, 12)
    assert data.fingerprint != build_data(DataOptions.model_validate({**options, "image_size": 13})).fingerprint
    content = {
        "task": "distill",
        "data": options,
        "model": {"name": "mlp", "width": 4, "depth": 1},
        "teachers": [{"run": str(tmp_path / "teacher")}],
        "losses": [{"name": "cross_entropy"}, {"name": "wkd_logit", "interrelations": "cka"}],
        "train": {"epochs": 1, "threads": 1},
    }
    alone = {"task": "supervised", "teachers": [], "losses": [{"name": "cross_entropy"}]}
    fit(Recipe.model_validate({**content, **alone}), tmp_path / "teacher")
    results = fit(Recipe.model_validate(content), tmp_path / "run")
    assert results["image_shape"] == [1, 12, 12]


def test_images_in_memory_are_never_made_smaller():
    with pytest.raises(UserError, match=r"`data.image_size` expected at least 8, the side of the images of `digits`"):
        build_data(DataOptions(image_size=7))


# --- repeated views ---------------------------------------------------------------------------------------


def batches(data, **options):
    augmentation = options.pop("augment", AugmentOptions(crop_padding=2))
    place = {"batch_size": 12, "drop_last": False, "seed": 2, "repeats": 3, **options}
    return list(open_stream(data, augmentation, **place).batches(1))


@pytest.fixture(scope="module")
def digits():
    return build_data(DataOptions(labels_per_class=10))


def test_a_batch_holds_each_image_in_so_many_views(digits):
    plain = batches(digits, repeats=1)
    seen = batches(digits)
    assert len(seen) == len(plain) == 9
    order = torch.cat([batch.indices for batch in plain])
    for step, batch in enumerate(seen):
        distinct = order[4 * step : 4 * step + 4]
        assert torch.equal(batch.indices, distinct.repeat(3))
        assert torch.equal(batch.labels, digits.train.labels[batch.indices])
        views = batch.images.view(3, 4, -1)
        assert not torch.equal(views[0], views[1])


def test_each_view_has_draws_of_its_own_and_the_first_is_the_only_one_of_others(digits):
    options = AugmentOptions(crop_padding=2)
    for batch in batches(digits):
        keys = batch.indices + torch.arange(3).repeat_interleave(4) * VIEW_STEP
        images = digits.train.images[batch.indices]
        expected = augment(images, options, pixels=digits.train.pixels, seed=2, epoch=1, indices=keys)
        assert torch.equal(batch.images, expected)


def test_ranks_see_different_views_of_an_image(digits):
    ranks = [batches(digits, rank=rank, world=3) for rank in range(3)]
    for whole, *parts in zip(batches(digits), *ranks, strict=True):
        assert torch.equal(torch.cat([part.images for part in parts]), whole.images)
        assert torch.equal(parts[0].indices, parts[1].indices)


def test_repeated_views_of_files(folder):
    data = build_data(recipe(folder).data)
    seen = batches(data, augment=AugmentOptions(resized_crop=(0.3, 1.0)))
    assert [len(batch.indices) for batch in seen] == [12] * 4  # 38 images, all batches full
    first, second, third = seen[0].images.view(3, 4, -1)
    assert not any(torch.equal(*pair) for pair in ((first, second), (first, third), (second, third)))
    plain = batches(data, augment=AugmentOptions(resized_crop=(0.3, 1.0)), repeats=1)
    assert torch.equal(first, plain[0].images[:4].flatten(1))


def test_a_batch_that_the_repeats_do_not_divide_is_full_all_the_same(digits):
    """2,048 images in three views each are published; of the last image one view is left out."""
    for batch in batches(digits, repeats=5):
        assert len(batch.indices) == 12
        assert sorted(batch.indices.unique(return_counts=True)[1].tolist()) == [4, 4, 4]
    (batch, *_) = batches(digits, batch_size=11, repeats=5)
    assert sorted(batch.indices.unique(return_counts=True)[1].tolist()) == [3, 4, 4]
