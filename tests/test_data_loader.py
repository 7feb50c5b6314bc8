"""Batches of an epoch: resuming is arithmetic, ranks share out the batch of one."""

from __future__ import annotations

import pytest
import torch

from limbeck.data import Pixels, Source, epoch_batches, steps_per_epoch


def source_of(n: int) -> Source:
    images = (torch.arange(n * 4) % 251).to(torch.uint8).view(n, 1, 2, 2)
    return Source(images, torch.arange(n) % 3, Pixels(255, (0.5,), (0.5,)))


def batches(n: int = 50, **options):
    defaults = {"batch_size": 8, "seed": 1, "epoch": 2, "drop_last": False}
    return list(epoch_batches(source_of(n), **{**defaults, **options}))


def same(one, other) -> bool:
    tensors = zip(*((b.images, b.labels, b.indices) for b in (one, other)), strict=True)
    return one.step == other.step and all(torch.equal(a, b) for a, b in tensors)


def test_an_epoch_holds_every_sample_once():
    seen = torch.cat([batch.indices for batch in batches()])
    assert torch.equal(seen.sort().values, torch.arange(50))
    assert [batch.step for batch in batches()] == list(range(7))


def test_a_batch_holds_the_images_and_labels_of_its_indices():
    source = source_of(50)
    for batch in batches():
        assert torch.equal(batch.images, source.images[batch.indices])
        assert torch.equal(batch.labels, source.labels[batch.indices])


@pytest.mark.parametrize("start_step", [0, 1, 3, 6, 7])
@pytest.mark.parametrize("drop_last", [False, True])
def test_resuming_in_mid_epoch_gives_the_batches_of_an_unbroken_one(start_step, drop_last):
    unbroken = batches(drop_last=drop_last)[start_step:]
    resumed = batches(drop_last=drop_last, start_step=start_step)
    assert len(resumed) == len(unbroken)
    assert all(same(a, b) for a, b in zip(resumed, unbroken, strict=True))


@pytest.mark.parametrize("world", [2, 3, 5])
def test_the_parts_of_the_ranks_make_the_batch_of_one_rank(world):
    ranks = [batches(rank=rank, world=world) for rank in range(world)]
    for whole, *parts in zip(batches(), *ranks, strict=True):
        assert torch.equal(torch.cat([part.indices for part in parts]), whole.indices)
        assert torch.equal(torch.cat([part.images for part in parts]), whole.images)
        assert torch.equal(torch.cat([part.labels for part in parts]), whole.labels)
        sizes = [len(part.indices) for part in parts]
        assert max(sizes) - min(sizes) <= 1
        assert {part.step for part in parts} == {whole.step}


def test_a_last_batch_smaller_than_the_ranks_leaves_some_an_empty_part():
    sizes = [len(batches(n=9, rank=rank, world=4)[-1].indices) for rank in range(4)]
    assert sorted(sizes) == [0, 0, 0, 1]


@pytest.mark.parametrize(("n", "last"), [(50, 2), (49, 1), (48, 8), (5, 5)])
def test_the_last_batch_holds_the_rest(n, last):
    assert len(batches(n=n)[-1].indices) == last
    assert all(len(batch.indices) == 8 for batch in batches(n=n)[:-1])
    assert all(len(batch.indices) == 8 for batch in batches(n=n, drop_last=True))


@pytest.mark.parametrize(
    ("n", "drop_last", "steps"), [(50, False, 7), (50, True, 6), (48, True, 6), (5, True, 0), (0, False, 0)]
)
def test_steps_per_epoch_counts_the_batches(n, drop_last, steps):
    assert steps_per_epoch(n, 8, drop_last) == len(batches(n=n, drop_last=drop_last)) == steps


@pytest.mark.parametrize("change", [{"epoch": 3}, {"seed": 2}])
def test_another_epoch_or_seed_gives_another_order(change):
    assert not torch.equal(batches()[0].indices, batches(**change)[0].indices)
