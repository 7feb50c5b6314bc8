"""A user's loaders: the same batches in each epoch of the same number, whatever they draw from; clear mistakes."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, RandomSampler, TensorDataset

from limbeck.data.user import first_inputs, first_two, read, user_data
from limbeck.errors import UserError

CPU = torch.device("cpu")


class Augmented(Dataset):
    """Twenty vectors of three classes; each view draws from torch, Python and numpy."""

    def __len__(self):
        return 20

    def __getitem__(self, index):
        noise = torch.rand(1) + random.random() + float(np.random.rand())  # noqa: NPY002 (as users do)
        return torch.full((4,), float(index)) + noise / 100, index % 3


def loader(**options):
    return DataLoader(Augmented(), **{"batch_size": 6, "shuffle": True, **options})


def bundle(train=None, validation=None, test=None, *, unpack=first_two, num_classes=3):
    return user_data(
        loader() if train is None else train, validation, test, unpack=unpack, num_classes=num_classes, device=CPU
    )


def epoch(train, number=1, start_step=0, seed=0):
    return list(bundle(train).train.stream(seed, CPU).batches(number, start_step))


def equal(batches, others):
    pairs = zip(batches, others, strict=True)
    return all(torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels) for a, b in pairs)


LOADERS = {
    "plain": loader,
    "own generator": lambda: loader(generator=torch.Generator()),
    "sampler": lambda: DataLoader(
        Augmented(), batch_size=6, sampler=RandomSampler(Augmented(), generator=torch.Generator())
    ),
    "batch sampler": lambda: DataLoader(
        Augmented(),
        batch_sampler=torch.utils.data.BatchSampler(
            RandomSampler(Augmented(), generator=torch.Generator()), 6, drop_last=False
        ),
    ),
    "drop last": lambda: loader(drop_last=True),
}


@pytest.mark.parametrize("kind", LOADERS)
def test_an_epoch_is_a_function_of_seed_and_number(kind):
    first, again = epoch(LOADERS[kind]()), epoch(LOADERS[kind]())
    assert equal(first, again)
    same_loader = LOADERS[kind]()
    assert equal(epoch(same_loader), epoch(same_loader))
    assert not equal(first, epoch(LOADERS[kind](), number=2))
    assert not equal(first, epoch(LOADERS[kind](), seed=1))


@pytest.mark.parametrize("kind", LOADERS)
def test_an_epoch_resumes_at_any_step(kind):
    whole = epoch(LOADERS[kind]())
    for start in range(len(whole) + 1):
        resumed = epoch(LOADERS[kind](), start_step=start)
        assert equal(whole[start:], resumed)
        assert [batch.step for batch in resumed] == list(range(start, len(whole)))
        assert [batch.indices.tolist() for batch in resumed] == [batch.indices.tolist() for batch in whole[start:]]


@pytest.mark.slow
def test_an_epoch_with_workers_resumes_at_any_step():
    whole = epoch(loader(num_workers=2))
    assert equal(whole[2:], epoch(loader(num_workers=2), start_step=2))
    assert not equal(whole, epoch(loader(num_workers=2), number=2))


def test_reading_leaves_the_programs_random_states_alone():
    def draw():
        return torch.rand(1).item(), random.random(), float(np.random.rand())  # noqa: NPY002 (as users do)

    def seeded():
        torch.manual_seed(5)
        random.seed(5)
        np.random.seed(5)  # noqa: NPY002 (as users do)

    seeded()
    expected = draw()
    seeded()
    first_inputs(loader(), first_two)
    epoch(loader())
    assert draw() == expected


def test_what_the_program_draws_between_two_batches_changes_no_batch():
    undisturbed = epoch(loader())
    stream = bundle().train.stream(0, CPU).batches(1)
    disturbed = []
    for batch in stream:
        disturbed.append(batch)
        torch.rand(3), random.random(), np.random.rand()  # noqa: NPY002 (as users do)
    assert equal(undisturbed, disturbed)


def test_samplers_are_told_the_epoch():
    class Told(RandomSampler):
        epochs = ()

        def set_epoch(self, number):
            self.epochs = (*self.epochs, number)

    sampler = Told(Augmented())
    stream = bundle(DataLoader(Augmented(), batch_size=6, sampler=sampler)).train.stream(0, CPU)
    for number in (1, 2):
        list(stream.batches(number))
    assert sampler.epochs == (1, 2)


def test_held_out_views_are_the_same_in_each_pass_though_the_loader_shuffles_and_augments():
    data = bundle(validation=loader(generator=torch.Generator()))
    first, again = (torch.cat(list(data.validation.batches(1))) for _ in range(2))
    assert torch.equal(first, again)
    assert torch.equal(first.round().long()[:, 0] % 3, data.validation.labels)  # noise is below a half: row i has i


def test_a_loader_may_be_any_sized_iterable_of_pairs():
    batches = [(torch.randn(2, 5), torch.tensor([0, 2])), (torch.randn(1, 5), torch.tensor([1]))]
    data = bundle(batches, validation=batches)
    assert (len(data.train), len(data.validation), len(data.test)) == (2, 3, 0)
    assert data.image_shape == (5,)
    assert [batch.labels.tolist() for batch in data.train.stream(0, CPU).batches(1)] == [[0, 2], [1]]


def test_dict_batches_are_unpacked_by_a_function_and_labels_become_int64():
    batches = [{"image": torch.randn(2, 5), "label": torch.tensor([0, 2], dtype=torch.int32), "name": ["a", "b"]}]
    data = bundle(batches, unpack=lambda batch: (batch["image"], batch["label"]))
    (batch,) = data.train.stream(0, CPU).batches(1)
    assert batch.labels.dtype == torch.int64


def test_soft_labels_are_for_training_only():
    soft = [(torch.randn(2, 5), torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]]))]
    (batch,) = bundle(soft).train.stream(0, CPU).batches(1)
    assert torch.equal(batch.labels, soft[0][1])
    with pytest.raises(UserError, match=r"validation loader expected labels as class numbers of shape \(N,\), got"):
        bundle(soft, validation=soft)


def test_the_fingerprint_knows_labels_and_shapes_but_not_the_views():
    batches = [(torch.randn(2, 5), torch.tensor([0, 2]))]
    other_views = [(torch.randn(2, 5), torch.tensor([0, 2]))]
    other_labels = [(torch.randn(2, 5), torch.tensor([0, 1]))]
    same = bundle(batches, validation=batches).fingerprint
    assert bundle(other_views, validation=batches).fingerprint == same
    assert bundle(other_labels, validation=batches).fingerprint != same
    assert bundle(batches, validation=other_labels).fingerprint != same
    assert bundle(batches, test=batches).fingerprint != same


class Lying:
    """Says it has three batches."""

    def __init__(self, batches):
        self.batches = batches

    def __len__(self):
        return 3

    def __iter__(self):
        return iter(self.batches)


class Restless:
    """Turns its batches round with every pass, by no generator."""

    def __init__(self):
        self.passes = itertools.count()

    def __iter__(self):
        labels = torch.tensor([0, 1, 2])
        return iter([(torch.randn(3, 5), labels.roll(next(self.passes)))])


X = torch.randn(2, 5)
GOOD = [(X, torch.tensor([0, 1]))]
MISTAKES = {
    "no length": ({"train": iter(GOOD)}, "`train` expected a loader of a known number .*got list_iterator without len"),
    "empty": ({"train": []}, "`train` expected a loader of a known number of batches, at least one, got an empty one"),
    "none, though": ({"train": Lying([])}, "training loader expected 3 batches, as its length says, got none"),
    "workers that stay": (
        {"train": loader(num_workers=1, persistent_workers=True)},
        "`train` expected a loader with persistent_workers=False, got True",
    ),
    "dict": (
        {"train": [{"image": X, "label": torch.tensor([0, 1])}]},
        "expected batches of .inputs, labels., got a dict with keys 'image', 'label'; pass `unpack`",
    ),
    "no tensors": (
        {"train": [(X, [0, 1])]},
        r"expected tensors \(inputs, labels\) in each batch, got \(Tensor, list\)",
    ),
    "no pair": (
        {"train": [[1, 2]], "unpack": lambda batch: torch.zeros(3, 4)},
        r"expected tensors \(inputs, labels\) in each batch, got \(Tensor\); see `unpack`",
    ),
    "a data set": (
        {"train": TensorDataset(X, torch.tensor([0, 1]))},
        r"expected batches, got tensors of the shapes \(5,\) and \(\); to make .*DataLoader",
    ),
    "a data set of numbers": ({"validation": [(X[0], 1)]}, r"got \(Tensor, int\); to make .*DataLoader"),
    "lengths": ({"train": [(X, torch.tensor([0]))]}, "expected as many labels as inputs in a batch, got 1 and 2"),
    "class too high": (
        {"train": [(X, torch.tensor([0, 3]))]},
        "training loader expected labels from 0 to 2, as the network has 3 outputs, got 3",
    ),
    "class below": ({"validation": [(X, torch.tensor([0, -1]))]}, "validation loader expected labels from 0 .* got -1"),
    "one-hot": (
        {"test": [(X, torch.eye(3)[:2].long())]},
        r"test loader expected labels as class numbers of shape \(N,\), got torch.int64 \(2, 3\)",
    ),
    "empty validation": ({"validation": []}, "validation loader expected at least one batch, got none"),
    "read once": ({"validation": iter(GOOD)}, "validation loader expected to be read many times, got the iterator"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_clear_line(mistake):
    arguments, message = MISTAKES[mistake]
    with pytest.raises(UserError, match=message) as caught:
        bundle(**{"train": GOOD, **arguments})
    assert "\n" not in str(caught.value)


def test_a_training_loader_that_ends_early_or_has_a_bad_batch_later_is_a_mistake():
    stream = bundle(Lying(GOOD)).train.stream(0, CPU)
    with pytest.raises(UserError, match="expected 3 batches, as its length says, got 1"):
        list(stream.batches(1))
    stream = bundle([*GOOD, (X, torch.tensor([0, 7]))]).train.stream(0, CPU)
    with pytest.raises(UserError, match=r"expected labels from 0 to 2, .* got 7"):
        list(stream.batches(1))


def test_a_held_out_loader_that_changes_its_order_unseen_is_a_mistake():
    data = bundle(validation=Restless())
    with pytest.raises(UserError, match="validation loader expected the same order in each pass"):
        list(data.validation.batches(1))


def test_read_ends_with_the_loader():
    assert len(list(read(GOOD, 0))) == 1
