"""Mixup and cutmix: labels follow the pixels exactly, and the draw is a function of (seed, epoch, step)."""

from __future__ import annotations

import random

import pytest
import torch

from limbeck.config import AugmentOptions
from limbeck.data import mix

MIXUP, CUTMIX, BOTH = AugmentOptions(mixup=0.8), AugmentOptions(cutmix=1.0), AugmentOptions(mixup=0.8, cutmix=1.0)
N, CLASSES = 12, 12


def batch():
    """Every image is filled with its own number, which is also its label."""
    labels = torch.arange(N)
    return labels.double().view(N, 1, 1, 1).expand(N, 2, 7, 9).clone(), labels


def mixed(options, *, seed=0, epoch=1, step=0):
    return mix(*batch(), options=options, num_classes=CLASSES, seed=seed, epoch=epoch, step=step)


@pytest.mark.parametrize("options", [MIXUP, CUTMIX, BOTH])
def test_labels_are_distributions(options):
    for step in range(50):
        _, targets = mixed(options, step=step)
        assert targets.shape == (N, CLASSES)
        assert targets.min() >= 0
        torch.testing.assert_close(targets.sum(1), torch.ones(N, dtype=torch.float64))


@pytest.mark.parametrize("options", [MIXUP, CUTMIX, BOTH])
def test_labels_hold_each_image_by_its_share_of_the_pixels(options):
    """The mean pixel is the expectation of the image's number under the label: area-exact for cutmix too."""
    for step in range(100):
        images, targets = mixed(options, step=step)
        expected = targets @ torch.arange(CLASSES, dtype=torch.float64)
        torch.testing.assert_close(images.mean(dim=(1, 2, 3)), expected)


def test_mixup_averages_pixels_and_cutmix_keeps_them():
    mixup_images, _ = mixed(MIXUP, step=3)
    assert (mixup_images.flatten(1).unique(dim=1)).shape[1] == 1
    cutmix_images, _ = mixed(CUTMIX, step=3)
    assert torch.equal(cutmix_images, cutmix_images.round())


def test_cutmix_pastes_one_rectangle_in_the_same_place_of_all():
    for step in range(50):
        images, _ = mixed(CUTMIX, step=step)
        foreign = (images != batch()[0]).any(dim=0).any(dim=0)
        if foreign.any():
            rows, columns = foreign.any(1).nonzero(), foreign.any(0).nonzero()
            box = foreign[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
            assert box.all()


def test_cutmix_takes_the_square_root_of_the_share_from_each_side():
    """With lambda next to 1/2, the rectangle has 4 = int(7 sqrt(1/2)) by 6 = int(9 sqrt(1/2)) pixels, or is cut."""
    sizes = set()
    for step in range(200):
        images, _ = mixed(AugmentOptions(cutmix=1e6), step=step)
        foreign = (images != batch()[0]).any(dim=0).any(dim=0)
        sizes.add((int(foreign.any(1).sum()), int(foreign.any(0).sum())))
    assert max(sizes) == (4, 6)
    assert {height for height, _ in sizes} == {2, 3, 4}
    assert {width for _, width in sizes} == {3, 4, 5, 6}


def test_the_draw_is_a_function_of_seed_epoch_and_step():
    for options in (MIXUP, CUTMIX, BOTH):
        first = mixed(options, seed=1, epoch=2, step=5)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(99)
            again = mixed(options, seed=1, epoch=2, step=5)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
        for change in ({"seed": 2}, {"epoch": 3}, {"step": 6}):
            other = mixed(options, **{"seed": 1, "epoch": 2, "step": 5, **change})
            assert not torch.equal(first[1], other[1]), change


def test_no_random_state_is_written():
    before = torch.get_rng_state(), random.getstate()
    mixed(BOTH)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_the_share_has_the_moments_of_its_beta_distribution(alpha):
    """Beta(a, a) has mean 1/2 and variance 1 / (4 (2 a + 1))."""
    images, labels = torch.tensor([0.0, 1.0]).double().view(2, 1, 1, 1), torch.arange(2)
    options = AugmentOptions(mixup=alpha)
    shares = []
    for step in range(4000):
        views, _ = mix(images, labels, options=options, num_classes=2, seed=0, epoch=1, step=step)
        if views[0] != 0 or views[1] != 1:  # partners exchanged: the first image holds 1 - lambda of the second
            shares.append(float(views[0]))
    drawn = torch.tensor(shares)
    assert len(drawn) > 1800
    assert abs(drawn.mean() - 0.5) < 5 * drawn.std() / len(drawn) ** 0.5
    variance = 1 / (4 * (2 * alpha + 1))
    assert abs(drawn.var() / variance - 1) < 0.12


def test_both_on_draws_each_of_them_half_of_the_time():
    pasted = []
    for step in range(1000):
        images, _ = mixed(BOTH, step=step)
        pasted.append(bool((images == images.round()).all()))
    assert abs(sum(pasted) / 1000 - 0.5) < 5 * 0.5 / 1000**0.5


def test_the_input_is_not_written_to():
    images, labels = batch()
    for options in (MIXUP, CUTMIX):
        mix(images, labels, options=options, num_classes=CLASSES, seed=0, epoch=1, step=0)
    assert torch.equal(images, batch()[0])


def test_one_image_is_mixed_with_itself():
    for options in (MIXUP, CUTMIX):
        image = torch.rand(1, 1, 4, 4, generator=torch.Generator().manual_seed(0))
        mixed_image, target = mix(image, torch.tensor([2]), options=options, num_classes=3, seed=0, epoch=1, step=0)
        torch.testing.assert_close(mixed_image, image)
        torch.testing.assert_close(target, torch.tensor([[0.0, 0.0, 1.0]]))


def test_nothing_to_mix_is_refused():
    with pytest.raises(ValueError, match="`options` expected `mixup` or `cutmix` above 0"):
        mixed(AugmentOptions())
