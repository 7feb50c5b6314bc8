"""Splits: no image in two parts, no class lost, and the test part moves with nothing but its own options."""

from __future__ import annotations

import itertools

import pytest
import torch

from limbeck.config import DataOptions
from limbeck.data import DATASETS
from limbeck.data.splits import long_tail, split
from limbeck.errors import UserError

OPTIONS = [
    DataOptions(),
    DataOptions(validation=0),
    DataOptions(split_seed=3, test=0.5, validation=0.5),
    DataOptions(labels_per_class=10),
    DataOptions(imbalance=50),
    DataOptions(labels_per_class=40, imbalance=40),
    DataOptions(imbalance=1e6),
]


@pytest.fixture(scope="module")
def labels():
    return DATASETS["digits"].load()[1]


def counts(labels, part):
    return labels[part].bincount(minlength=10).tolist()


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: str(options.model_dump(exclude_unset=True)))
def test_no_image_is_in_two_parts_or_twice_in_one(labels, options):
    together = torch.cat(list(split(labels, options)))
    assert len(together.unique()) == len(together) <= len(labels)


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: str(options.model_dump(exclude_unset=True)))
def test_every_class_is_trained_and_tested(labels, options):
    parts = split(labels, options)
    assert min(counts(labels, parts.train)) >= 1
    assert min(counts(labels, parts.test)) >= 1


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: str(options.model_dump(exclude_unset=True)))
def test_equal_options_give_the_same_split(labels, options):
    for one, other in zip(split(labels, options), split(labels, options.model_copy()), strict=True):
        assert torch.equal(one, other)


def test_the_fractions_hold_in_every_class(labels):
    parts = split(labels, DataOptions(test=0.3, validation=0.2))
    for size, test, held in zip(
        labels.bincount().tolist(), counts(labels, parts.test), counts(labels, parts.validation), strict=True
    ):
        assert abs(test - 0.3 * size) <= 0.5
        assert abs(held - 0.2 * (size - test)) <= 0.5
    assert sum(map(len, parts)) == len(labels)


def test_the_test_part_does_not_depend_on_what_is_trained_on(labels):
    first = split(labels, DataOptions(split_seed=2)).test
    for change in ({"imbalance": 20.0}, {"labels_per_class": 5}, {"validation": 0.0}, {"validation": 0.6}):
        assert torch.equal(split(labels, DataOptions(split_seed=2, **change)).test, first), change


def test_validation_does_not_depend_on_the_tail_or_the_labels_kept(labels):
    first = split(labels, DataOptions()).validation
    assert torch.equal(split(labels, DataOptions(imbalance=20)).validation, first)
    assert torch.equal(split(labels, DataOptions(labels_per_class=5)).validation, first)


def test_no_validation_holds_nothing_out(labels):
    assert split(labels, DataOptions(validation=0)).validation.tolist() == []


def test_another_split_seed_gives_another_split(labels):
    ours, theirs = (split(labels, DataOptions(split_seed=seed)) for seed in (0, 1))
    shared = set(ours.test.tolist()) & set(theirs.test.tolist())
    assert 0.2 < len(shared) / len(ours.test) < 0.4  # chance is 0.3


def test_fewer_labels_are_a_part_of_more(labels):
    for few, more in itertools.pairwise((2, 10, 40)):
        kept = [set(split(labels, DataOptions(labels_per_class=n)).train.tolist()) for n in (few, more)]
        assert kept[0] < kept[1]


def test_the_labels_kept_do_not_depend_on_how_many_images_are_held_out(labels):
    first = split(labels, DataOptions(labels_per_class=20, validation=0)).train
    assert torch.equal(split(labels, DataOptions(labels_per_class=20, validation=0.5)).train, first)


def test_few_labels_are_as_many_in_each_class(labels):
    assert counts(labels, split(labels, DataOptions(labels_per_class=7)).train) == [7] * 10


def test_class_0_is_the_largest_and_the_ratio_is_the_imbalance_factor(labels):
    sizes = counts(labels, split(labels, DataOptions(imbalance=20)).train)
    assert sizes == sorted(sizes, reverse=True)
    assert 0 <= sizes[0] / 20 - sizes[-1] < 1
    assert sizes == long_tail(sizes[0], 10, 20)


def test_the_tail_falls_even_where_the_classes_of_the_data_differ():
    labels = torch.tensor([0] * 20 + [1] * 10 + [2] * 50)
    parts = split(labels, DataOptions(imbalance=4, test=0.2, validation=0))
    assert labels[parts.train].bincount().tolist() == [8, 4, 2]


def test_the_tail_starts_from_the_labels_kept(labels):
    assert counts(labels, split(labels, DataOptions(labels_per_class=64, imbalance=64)).train) == long_tail(64, 10, 64)


@pytest.mark.parametrize(
    ("largest", "classes", "imbalance"), [(500, 10, 100.0), (5, 7, 3.0), (1, 4, 10.0), (9, 1, 5.0)]
)
def test_the_tail_is_the_formula(largest, classes, imbalance):
    exponents = [c / (classes - 1) if classes > 1 else 0.0 for c in range(classes)]
    assert long_tail(largest, classes, imbalance) == [max(1, int(largest / imbalance**e + 1e-9)) for e in exponents]


def test_more_labels_than_there_are_is_the_users_error(labels):
    with pytest.raises(
        UserError, match=r"`data.labels_per_class` expected at most (\d+).* got 101: lower it"
    ) as caught:
        split(labels, DataOptions(labels_per_class=101))
    at_most = int(str(caught.value).split("at most ")[1].split(",")[0])
    assert counts(labels, split(labels, DataOptions(labels_per_class=at_most)).train) == [at_most] * 10
    with pytest.raises(UserError, match="labels_per_class"):
        split(labels, DataOptions(labels_per_class=at_most + 1))


def test_a_class_left_without_a_training_image_is_the_users_error():
    labels = torch.tensor([0] * 50 + [1] * 3)
    with pytest.raises(UserError, match="leave a training image of every class, got none of class 1"):
        split(labels, DataOptions(test=0.85, validation=0))
