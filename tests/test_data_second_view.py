"""Two views of one batch: the same samples, independent draws, the same from any step on."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from engine_runs import recipe

from limbeck.config import AugmentOptions, Recipe
from limbeck.data import Pixels, Source, build_data, normalise, open_stream
from limbeck.data.streams import ImageStream
from limbeck.data.user import first_two, user_data
from limbeck.engine.views import KeptStream, ViewStore, open_run_stream
from limbeck.errors import UserError

WEAK = AugmentOptions(crop_padding=4, flip=True)
STRONG = AugmentOptions(crop_padding=4, flip=True, auto_augment=True)


def stream_of(n=64, second_view=WEAK, seed=3):
    images = torch.randint(256, (n, 3, 12, 12), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    source = Source(images, torch.arange(n) % 5, Pixels(255, (0.0,) * 3, (1.0,) * 3))
    return ImageStream(source, WEAK, 5, batch_size=20, drop_last=False, seed=seed, second_view=second_view)


def test_the_second_view_changes_nothing_of_the_first():
    for one, two in zip(stream_of(second_view=None).batches(1), stream_of().batches(1), strict=True):
        assert one.views == ()
        assert torch.equal(one.images, two.images)
        assert torch.equal(one.indices, two.indices)
        assert two.views[0].shape == two.images.shape


def test_crop_and_flip_of_the_second_view_are_independent_of_the_first():
    """Of 20 samples two views agree in flip and crop with probability 1 / 162 each."""
    batch = next(stream_of().batches(1))
    same = (batch.images == batch.views[0]).flatten(1).all(1)
    assert same.sum() <= 2


def test_a_flip_of_one_view_says_nothing_of_the_other():
    """Images whose left half is black: which half is bright tells the flip."""
    images = torch.zeros(4000, 1, 2, 2, dtype=torch.uint8)
    images[..., 1] = 255
    source = Source(images, torch.zeros(4000, dtype=torch.int64), Pixels(255, (0.0,), (1.0,)))
    flip = AugmentOptions(flip=True)
    batch = next(ImageStream(source, flip, 1, 4000, False, seed=0, second_view=flip).batches(1))
    both = torch.stack([batch.images[:, 0, 0, 0], batch.views[0][:, 0, 0, 0]])
    counts = (2 * both[0] + both[1]).long().bincount(minlength=4)
    assert (counts - 1000).abs().max() < 5 * (4000 * 3 / 16) ** 0.5


def test_the_second_view_is_of_the_same_samples_and_has_its_own_augmentations():
    batch = next(stream_of(second_view=AugmentOptions()).batches(1))
    source = stream_of().source
    assert torch.equal(batch.views[0], normalise(source.images[batch.indices], source.pixels))
    strong = next(stream_of(second_view=STRONG).batches(1))
    assert not torch.equal(strong.views[0], next(stream_of().batches(1)).views[0])


def test_a_sample_has_the_same_second_view_in_any_batch():
    """It is a function of (seed, epoch, index)."""
    one, two = stream_of(), replace(stream_of(), batch_size=7)
    assert torch.equal(seconds_in_order(one), seconds_in_order(two))


def seconds_in_order(stream):
    """Return the second views of an epoch, in the order of the source."""
    batches = list(stream.batches(2))
    order = torch.cat([batch.indices for batch in batches]).argsort()
    return torch.cat([batch.views[0] for batch in batches])[order]


def test_other_seeds_and_epochs_have_other_second_views():
    first = next(stream_of().batches(1)).views[0]
    assert not torch.equal(first, next(stream_of().batches(2)).views[0])
    assert not torch.equal(first, next(stream_of(seed=4).batches(1)).views[0])


def test_resuming_gives_the_second_views_of_an_unbroken_epoch():
    unbroken = list(stream_of(second_view=STRONG).batches(2))[2:]
    for expected, got in zip(unbroken, stream_of(second_view=STRONG).batches(2, 2), strict=True):
        assert torch.equal(expected.views[0], got.views[0])


def test_a_loader_of_a_user_has_no_second_view():
    data = user_data(
        [(torch.zeros(4, 1, 2, 2), torch.arange(4))],
        None,
        None,
        unpack=first_two,
        num_classes=4,
        device=torch.device("cpu"),
    )
    with pytest.raises(UserError, match="your own loader has one view of each image"):
        open_stream(data, AugmentOptions(), batch_size=4, drop_last=False, seed=0, second_view=WEAK)


# --- what runs of a seed share ------------------------------------------------------------------------------------


def two_views(**data) -> Recipe:
    losses = [{"name": "cross_entropy", "on": "adversarial"}]
    options = {"standardise": False, "second_view": {"crop_padding": 1}, **data}
    return recipe(task="adversarial", losses=losses, data=options)


def test_a_recipe_with_a_second_view_has_it_in_its_batches():
    options = two_views()
    batch = next(open_run_stream(options, build_data(options.data)).batches(1))
    assert batch.views[0].shape == batch.images.shape
    assert not torch.equal(batch.views[0], batch.images)


def test_runs_with_other_second_views_share_none():
    store, options = ViewStore(), two_views()
    data = build_data(options.data)
    first = store.stream(options, data)
    assert store.stream(options, data) is first
    assert store.stream(two_views(second_view={"crop_padding": 2}), data) is not first
    assert store.stream(two_views(second_view=None), data) is not first


def test_the_second_views_count_in_the_bytes_kept():
    options = two_views()
    stream = KeptStream(open_run_stream(options, build_data(options.data)), room=10**9)
    batches = list(stream.batches(1))
    bytes_kept = sum(
        tensor.nbytes for batch in batches for tensor in (batch.images, batch.views[0], batch.labels, batch.indices)
    )
    assert 10**9 - stream.room == bytes_kept
