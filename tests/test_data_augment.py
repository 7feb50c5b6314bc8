"""Crop, flip and cutout equal a loop over pixels, and each sample's view is its own."""

from __future__ import annotations

import pytest
import torch

from limbeck.config import AugmentOptions
from limbeck.data import Pixels, augment, normalise
from limbeck.draws import integers

H, W = 6, 5
PIXELS = Pixels(maximum=200, mean=(0.25, 0.5), std=(0.5, 2.0))


def images_of(n: int) -> torch.Tensor:
    """No pixel is black, and no two images are the same."""
    return (1 + torch.arange(n * 2 * H * W) * 37 % 199).to(torch.uint8).view(n, 2, H, W)


def view(images, options, indices, *, seed=3, epoch=2):
    return augment(images, options, pixels=PIXELS, seed=seed, epoch=epoch, indices=indices)


def draw(name: str, index: int, high: int, size: tuple[int, ...] = ()) -> list[int] | int:
    return integers(3, 2, torch.tensor([index]), name, high, size)[0].tolist()


def twin(image: torch.Tensor, options: AugmentOptions, index: int) -> torch.Tensor:
    """Pixel by pixel: pad with black, crop, flip, normalise, cut out."""
    p = options.crop_padding
    (down,), (right,) = draw("crop", index, 2 * p + 1, (2, 1))
    flipped = options.flip and draw("flip", index, 2) == 1
    centre = draw("cutout row", index, H), draw("cutout column", index, W)
    out = torch.empty(image.shape)
    for c in range(2):
        padded = torch.zeros((H + 2 * p, W + 2 * p))
        padded[p : p + H, p : p + W] = image[c]
        padded = (padded / 200 - PIXELS.mean[c]) / PIXELS.std[c]
        for y in range(H):
            for x in range(W):
                out[c, y, x] = padded[down + y, right + (W - 1 - x if flipped else x)]
                top, left = (place - options.cutout // 2 for place in centre)
                if top <= y < top + options.cutout and left <= x < left + options.cutout:
                    out[c, y, x] = 0
    return out


@pytest.mark.parametrize("crop_padding", [0, 1, 3, 9])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("cutout", [0, 1, 2, 3, 20])
def test_augment_equals_a_loop_over_pixels(crop_padding, flip, cutout):
    options = AugmentOptions(crop_padding=crop_padding, flip=flip, cutout=cutout)
    indices = torch.tensor([0, 5, 2, 77, 1000, 12, 13, 14])
    images = images_of(len(indices))
    expected = torch.stack([twin(image, options, i) for image, i in zip(images, indices.tolist(), strict=True)])
    assert torch.equal(view(images, options, indices), expected)


EVERYTHING = AugmentOptions(crop_padding=2, flip=True, cutout=2)


def test_a_view_does_not_depend_on_the_batch():
    images, indices = images_of(20), torch.arange(20)
    whole = view(images, EVERYTHING, indices)
    some = torch.tensor([13, 4, 4, 19])
    assert torch.equal(view(images[some], EVERYTHING, some), whole[some])


def test_samples_epochs_and_seeds_have_views_of_their_own():
    one, indices = images_of(1).expand(200, -1, -1, -1), torch.arange(200)
    first = view(one, EVERYTHING, indices)
    assert len(first.flatten(1).unique(dim=0)) > 100
    assert not torch.equal(first, view(one, EVERYTHING, indices, epoch=3))
    assert not torch.equal(first, view(one, EVERYTHING, indices, seed=4))


def test_half_of_the_images_are_flipped():
    images = images_of(1).expand(4000, -1, -1, -1)
    flipped = (view(images, AugmentOptions(flip=True), torch.arange(4000)) == normalise(images.flip(3), PIXELS)).all(
        dim=(1, 2, 3)
    )
    assert abs(flipped.double().mean() - 0.5) < 5 * 0.5 / 4000**0.5


def test_every_crop_is_as_frequent():
    images = images_of(1).expand(9000, -1, -1, -1)
    views = view(images, AugmentOptions(crop_padding=1), torch.arange(9000))
    counts = views.flatten(1).unique(dim=0, return_counts=True)[1]
    assert len(counts) == 9
    assert (counts - 1000).abs().max() < 5 * (9000 / 9 * 8 / 9) ** 0.5


def test_nothing_asked_for_is_normalising():
    images = images_of(3)
    expected = (images.double() / 200 - torch.tensor([0.25, 0.5]).view(2, 1, 1)) / torch.tensor([0.5, 2.0]).view(
        2, 1, 1
    )
    torch.testing.assert_close(view(images, AugmentOptions(), torch.arange(3)).double(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("options", [EVERYTHING, AugmentOptions(flip=True), AugmentOptions(cutout=3)])
def test_the_input_is_not_written_to(options):
    images = images_of(8)
    view(images, options, torch.arange(8))
    assert torch.equal(images, images_of(8))


def test_an_empty_batch_stays_empty():
    assert view(images_of(0), EVERYTHING, torch.arange(0)).shape == (0, 2, H, W)


def test_a_reflected_crop_is_the_crop_of_the_mirrored_image():
    images, indices = torch.arange(3 * 5 * 7, dtype=torch.uint8).view(3, 1, 5, 7), torch.arange(3)
    pixels = Pixels(1, (0.0,), (1.0,))
    options = AugmentOptions(crop_padding=3, crop_border="reflect")
    views = augment(images, options, pixels=pixels, seed=1, epoch=2, indices=indices)
    mirrored = torch.nn.functional.pad(images.float(), (3, 3, 3, 3), mode="reflect")
    shifts = integers(1, 2, indices, "crop", 7, (2, 1)).squeeze(-1)
    for view, image, (row, column) in zip(views, mirrored, shifts.tolist(), strict=True):
        assert torch.equal(view, image[:, row : row + 5, column : column + 7])
