"""AutoAugment, RandAugment and RandomResizedCrop equal a loop over images with Pillow that replays their draws."""

from __future__ import annotations

import math

import pytest
import torch

from benchmarks.pillow_loop import (
    POLICY,
    RAND_AUGMENT,
    auto_augment_plans,
    box_of,
    follow,
    from_pillow,
    magnitude,
    rand_augment_plans,
    resize,
    to_pillow,
)
from limbeck.config import AugmentOptions
from limbeck.data import Pixels, augment, auto_augment, normalise, rand_augment, resized_crop
from limbeck.data.image_ops import IDENTITY
from limbeck.draws import integers, uniform
from limbeck.errors import UserError

PLACE = {"seed": 3, "epoch": 2}
SHARES = (0.08, 1.0)


def images_of(n: int, channels: int = 3, height: int = 32, width: int = 32) -> torch.Tensor:
    """Half of them noise, half of them smooth."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (n, channels, height, width), generator=generator, dtype=torch.uint8)
    ramp = torch.arange(height).unsqueeze(1) * 3 + torch.arange(width) * 4
    images[::2] = (ramp + images[::2, :, :1, :1] // 4).clamp(max=255).to(torch.uint8)
    return images


def levels_apart(views: torch.Tensor, expected: list[torch.Tensor]) -> torch.Tensor:
    assert views.dtype == torch.uint8
    return (views.int() - torch.stack(expected).int()).abs()


def auto(images: torch.Tensor, indices: torch.Tensor, *, seed: int = 3, epoch: int = 2) -> torch.Tensor:
    return auto_augment.auto_augment(images, seed=seed, epoch=epoch, indices=indices)


def rand(images: torch.Tensor, indices: torch.Tensor, *, seed: int = 3, epoch: int = 2) -> torch.Tensor:
    return rand_augment.rand_augment(images, 2, 9, seed=seed, epoch=epoch, indices=indices)


def crop(images: torch.Tensor, indices: torch.Tensor, *, seed: int = 3, epoch: int = 2) -> torch.Tensor:
    return resized_crop.resized_crop(images, SHARES, seed=seed, epoch=epoch, indices=indices)


AUGMENTATIONS = (auto, rand, crop)


@pytest.mark.parametrize("channels", [1, 3])
def test_auto_augment_equals_a_loop_with_pillow(channels):
    images, indices = images_of(1500, channels), 7 * torch.arange(1500)
    plans = auto_augment_plans(**PLACE, indices=indices)
    expected = [from_pillow(follow(plan, to_pillow(image))) for plan, image in zip(plans, images, strict=True)]
    levels = levels_apart(auto(images, indices), expected)
    assert (levels > 0).float().mean() < 0.001
    assert levels.max() <= 2  # after two operations; 0 unless a compiler fused products and sums


@pytest.mark.parametrize(("operations", "level"), [(1, 0), (2, 9), (3, 30), (2, 17)])
def test_rand_augment_equals_a_loop_with_pillow(operations, level):
    images, indices = images_of(300), 11 * torch.arange(300)
    plans = rand_augment_plans(operations, level, **PLACE, indices=indices)
    expected = [from_pillow(follow(plan, to_pillow(image))) for plan, image in zip(plans, images, strict=True)]
    levels = levels_apart(rand_augment.rand_augment(images, operations, level, **PLACE, indices=indices), expected)
    assert (levels > 0).float().mean() < 0.001
    assert levels.max() <= operations


@pytest.mark.parametrize(("height", "width"), [(32, 32), (17, 40), (8, 60), (60, 8), (1, 1), (3, 2)])
@pytest.mark.parametrize("shares", [SHARES, (0.5, 0.5), (1.0, 1.0), (0.001, 0.01)])
@pytest.mark.parametrize("channels", [1, 3])
def test_resized_crop_equals_pillows(height, width, shares, channels):
    images, indices = images_of(60, channels, height, width), 5 * torch.arange(60)
    views = resized_crop.resized_crop(images, shares, **PLACE, indices=indices)
    expected = [
        from_pillow(resize(to_pillow(image), box_of(height, width, shares, **PLACE, index=index), (height, width)))
        for image, index in zip(images, indices.tolist(), strict=True)
    ]
    assert levels_apart(views, expected).max() == 0


def resize_levels(size: tuple[int, int]) -> torch.Tensor:
    images = images_of(200, 3, 33, 40)
    generator = torch.Generator().manual_seed(1)
    sizes = torch.stack([torch.randint(1, side + 1, (200,), generator=generator) for side in (33, 40)], dim=1)
    room = torch.tensor([33, 40]) - sizes + 1
    boxes = torch.cat([(torch.rand(200, 2, generator=generator) * room).long(), sizes], dim=1)
    expected = [
        from_pillow(resize(to_pillow(image), tuple(box), size))
        for image, box in zip(images, boxes.tolist(), strict=True)
    ]
    return levels_apart(resized_crop.resize(images, boxes, size), expected)


@pytest.mark.parametrize("size", [(33, 40), (50, 41), (99, 99), (33, 7), (40, 1)])
def test_resize_equals_pillows_where_columns_are_not_shrunk(size):
    assert resize_levels(size).max() == 0


@pytest.mark.parametrize("size", [(10, 9), (5, 32), (1, 1), (20, 40)])
def test_resize_equals_pillows_to_one_level_where_columns_are_shrunk(size):
    levels = resize_levels(size)
    assert levels.max() <= 1
    assert (levels > 0).float().mean() < 0.1


@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
def test_a_view_does_not_depend_on_the_batch(augmentation):
    images, indices = images_of(200), torch.arange(200)
    whole = augmentation(images, indices)
    some = torch.randperm(200, generator=torch.Generator().manual_seed(1))[:77]
    some = torch.cat([some, some[:9]])
    assert torch.equal(augmentation(images[some], some), whole[some])


@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
def test_samples_epochs_and_seeds_have_views_of_their_own(augmentation):
    one, indices = images_of(1).expand(200, -1, -1, -1), torch.arange(200)
    first = augmentation(one, indices)
    assert len(first.flatten(1).unique(dim=0)) > 25
    assert not torch.equal(first, augmentation(one, indices, epoch=3))
    assert not torch.equal(first, augmentation(one, indices, seed=4))


@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
def test_the_input_is_not_written_to(augmentation):
    images = images_of(50)
    augmentation(images, torch.arange(50))
    assert torch.equal(images, images_of(50))


@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
def test_an_empty_batch_stays_empty(augmentation):
    assert augmentation(images_of(0), torch.arange(0)).shape == (0, 3, 32, 32)


@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
def test_images_that_are_not_uint8_are_refused(augmentation):
    with pytest.raises(TypeError, match="`images` expected uint8, got torch"):
        augmentation(images_of(2).float(), torch.arange(2))


def within_five_sigma(count: float, n: int, probability: float) -> bool:
    return abs(count - n * probability) <= 5 * math.sqrt(n * probability * (1 - probability))


def test_the_25_sub_policies_are_those_of_another_transcription():
    ours = [[str(word) for name, p, level in steps for word in (p, name, level)] for steps in auto_augment.POLICY]
    assert ours == POLICY


def test_sub_policies_and_their_steps_are_as_frequent_as_published():
    n = 50_000
    place = {**PLACE, "indices": torch.arange(n)}
    chosen = integers(name="auto_augment policy", high=25, **place)
    chances = uniform(name="auto_augment apply", size=(2,), **place)
    negative = integers(name="auto_augment sign", high=2, size=(2,), **place)
    for policy, words in enumerate(POLICY):
        mine = chosen == policy
        count = int(mine.sum())
        assert within_five_sigma(count, n, 1 / 25)
        both = [float(words[0]), float(words[3])]
        applied = chances[mine] < torch.tensor(both, dtype=torch.float64)
        for step in range(2):
            assert within_five_sigma(applied[:, step].sum(), count, both[step])
            assert within_five_sigma(negative[mine, step].sum(), count, 0.5)
        assert within_five_sigma(applied.all(1).sum(), count, both[0] * both[1])


def test_rand_augments_operations_are_equally_frequent():
    n = 14_000
    drawn = integers(**PLACE, indices=torch.arange(n), name="rand_augment operation", high=14, size=(3,))
    for step in range(3):
        assert all(within_five_sigma(count, n, 1 / 14) for count in drawn[:, step].bincount(minlength=14).tolist())
    assert tuple(RAND_AUGMENT) == rand_augment.NAMES


def drawn_strengths(monkeypatch, **options):
    """The codes and strengths of each of 2 operations on 10,000 images."""
    seen = []

    def record(images, codes, strengths, negative):
        seen.append((codes, strengths))
        return images

    monkeypatch.setattr(rand_augment, "apply_operations", record)
    images = torch.zeros(10_000, 1, 1, 1, dtype=torch.uint8)
    rand_augment.rand_augment(images, 2, **PLACE, indices=torch.arange(10_000), **options)
    return (torch.stack(what) for what in zip(*seen, strict=True))


def test_spread_strengths_are_normal_around_the_magnitude_and_each_operation_draws_its_own(monkeypatch):
    _, strengths = drawn_strengths(monkeypatch, magnitude=21, spread=1.5)
    normal = (30 * strengths - 21) / 1.5
    assert abs(normal.mean()) < 5 / math.sqrt(20_000)
    assert normal.std().item() == pytest.approx(1, abs=5 / math.sqrt(40_000))
    assert within_five_sigma((normal.abs() < 0.6745).sum().item(), 20_000, 0.5)  # half lie within 0.6745
    assert abs(torch.corrcoef(normal)[0, 1]) < 5 / math.sqrt(10_000)


def test_spread_strengths_stay_within_their_range(monkeypatch):
    _, strengths = drawn_strengths(monkeypatch, magnitude=29, spread=5.0)
    assert strengths.max() == 1
    assert within_five_sigma((strengths == 1).sum().item(), 20_000, 0.42074)  # 1 - Phi(1/5)


def test_operations_that_are_left_out_are_as_many_as_the_chance_says(monkeypatch):
    codes, strengths = drawn_strengths(monkeypatch, magnitude=9, probability=0.3)
    plain, _ = drawn_strengths(monkeypatch, magnitude=9)
    kept = codes != IDENTITY
    assert within_five_sigma(kept.sum().item(), 20_000, 0.3 * 13 / 14)  # one of the fourteen is the identity
    assert torch.equal(codes[kept], plain[kept])  # the other draws are the same
    assert (strengths == 0.3).all()


def test_no_operations_return_the_images_themselves():
    images = images_of(2)
    assert rand_augment.rand_augment(images, 0, 9, **PLACE, indices=torch.arange(2)) is images


def test_boxes_fill_the_ranges_and_lie_inside():
    boxes = resized_crop.draw_boxes(32, 32, SHARES, **PLACE, indices=torch.arange(20_000))
    top, left, height, width = boxes.unbind(1)
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + height).max() == 32
    assert (left + width).max() == 32
    assert (height * width).min() < 0.09 * 32**2
    assert (height * width).max() == 32**2


def test_areas_and_logarithms_of_ratios_are_uniform_where_all_parts_fit():
    boxes = resized_crop.draw_boxes(1000, 1000, (0.1, 0.5), **PLACE, indices=torch.arange(20_000))
    height, width = boxes[:, 2:].double().unbind(1)
    shares = (height * width / 1000**2 - 0.1) / 0.4
    ratios = (width / height).log() / math.log(4 / 3) / 2 + 0.5
    places = boxes[:, :2] / (1001 - boxes[:, 2:])
    for uniforms in (shares, ratios, *places.unbind(1)):
        # Rounding to whole pixels moves values by less than 0.01.
        for quantile in (0.1, 0.5, 0.9):
            assert abs(float((uniforms < quantile).double().mean()) - quantile) < 0.01 + 5 * 0.5 / 20_000**0.5


def test_a_box_falls_back_to_the_middle_where_none_fits():
    # Parts of the whole area fit into a long image with no ratio of 3/4 to 4/3.
    boxes = resized_crop.draw_boxes(10, 60, (1.0, 1.0), **PLACE, indices=torch.arange(20))
    assert boxes.unique(dim=0).tolist() == [[0, 23, 10, 13]]


def test_magnitudes_of_the_published_levels():
    assert magnitude("posterize", 7, 9, 1) == 5
    assert magnitude("shear_y", 9, 9, -1) == pytest.approx(-0.3)
    assert 32 * magnitude("translate_x", 9, 9, 1) == pytest.approx(14.5, abs=0.01)


PIXELS = Pixels(255, (0.5, 0.4, 0.3), (0.2, 0.2, 0.3))
OPTIONS = {
    "resized_crop": (0.3, 0.9),
    "flip": True,
    "auto_augment": True,
    "rand_augment_operations": 2,
    "rand_augment_magnitude": 12,
    "cutout": 7,
}


def test_augment_goes_on_in_the_stated_order():
    images, place = images_of(64), {**PLACE, "indices": torch.arange(64)}
    views = resized_crop.resized_crop(images, (0.3, 0.9), **place)
    views = torch.where(integers(**place, name="flip", high=2).bool().view(-1, 1, 1, 1), views.flip(3), views)
    views = rand_augment.rand_augment(auto_augment.auto_augment(views, **place), 2, 12, **place)
    expected = augment(views, AugmentOptions(cutout=7), pixels=PIXELS, **place)
    assert torch.equal(augment(images, AugmentOptions(**OPTIONS), pixels=PIXELS, **place), expected)


@pytest.mark.parametrize("name", ["resized_crop", "auto_augment", "rand_augment_operations"])
def test_each_option_changes_the_views(name):
    images, place = images_of(64), {**PLACE, "indices": torch.arange(64)}
    views = augment(images, AugmentOptions(**{name: OPTIONS[name]}), pixels=PIXELS, **place)
    assert not torch.equal(views, normalise(images, PIXELS))


@pytest.mark.parametrize("option", [{"auto_augment": True}, {"rand_augment_operations": 2}])
def test_levels_other_than_256_are_refused_in_one_line(option):
    images, digits = images_of(2, 1) // 16, Pixels(16, (0.3,), (0.4,))
    with pytest.raises(
        UserError, match=r"expected images of 256 levels, got levels of 0 to 16: set `data\.augment"
    ) as error:
        augment(images, AugmentOptions(**option), pixels=digits, **PLACE, indices=torch.arange(2))
    assert "\n" not in str(error.value)


def test_a_resized_crop_needs_no_256_levels():
    images, digits = images_of(2, 1) // 16, Pixels(16, (0.3,), (0.4,))
    options = AugmentOptions(resized_crop=SHARES)
    assert augment(images, options, pixels=digits, **PLACE, indices=torch.arange(2)).max() <= (1 - 0.3) / 0.4
