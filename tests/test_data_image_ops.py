"""Each operation equals Pillow's, each image of a batch by its own magnitude."""

from __future__ import annotations

import pytest
import torch

from benchmarks.pillow_loop import from_pillow, magnitude, operate, to_pillow
from limbeck.data import image_geometry, image_tones
from limbeck.data.image_ops import IDENTITY, OPERATIONS, apply_operations, codes_of

GEOMETRIC = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")
BLENDS = ("contrast", "colour", "brightness", "sharpness")  # float32: a compiler may fuse products and sums
NAMES = tuple(OPERATIONS)
# Every level of AutoAugment and RandAugment, either way.
SETTINGS = [(level, levels, sign) for levels in (9, 30) for level in range(levels + 1) for sign in (1, -1)]


def random_images(n: int, channels: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (n, channels, height, width), generator=generator, dtype=torch.uint8)


def images_of(kind: str, n: int, channels: int, height: int, width: int) -> torch.Tensor:
    noise = random_images(n, channels, height, width)
    y, x = torch.meshgrid(torch.linspace(0, 3, height), torch.linspace(0, 2, width), indexing="ij")
    phases = torch.arange(n * channels).view(n, channels, 1, 1)
    match kind:
        case "noise":
            return noise
        case "smooth":
            return ((y + 0.7 * x + phases).sin() * 100 + 130).to(torch.uint8)
        case "constant":
            return noise[:, :, :1, :1].expand(-1, -1, height, width).contiguous()
        case "few levels":
            return torch.tensor([3, 40, 41, 200], dtype=torch.uint8)[(noise % 4).long()]
        case "one odd pixel":
            images = noise[:, :, :1, :1].expand(-1, -1, height, width).clone()
            images[:, :, height // 2, width // 2] = 255
            return images
        case "dark":
            return noise // 16
    raise KeyError(kind)


KINDS = ("noise", "smooth", "constant", "few levels", "one odd pixel", "dark")


def difference(name: str, images: torch.Tensor, magnitudes: list[float]) -> torch.Tensor:
    """Grey levels between the batched operation and Pillow's."""
    changed = OPERATIONS[name].function(images, torch.tensor(magnitudes, dtype=torch.float64))
    expected = [
        from_pillow(operate(name, to_pillow(image), value)) for image, value in zip(images, magnitudes, strict=True)
    ]
    assert changed.dtype == torch.uint8
    return (changed.int() - torch.stack(expected).int()).abs()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("channels", "height", "width"), [(3, 32, 32), (1, 32, 32), (3, 9, 14), (3, 2, 5), (1, 1, 1)])
def test_each_operation_equals_pillows(name, kind, channels, height, width):
    magnitudes = [float(magnitude(name, *setting)) for setting in SETTINGS]
    levels = difference(name, images_of(kind, len(magnitudes), channels, height, width), magnitudes)
    if name in BLENDS:
        assert levels.max() <= 1
        assert (levels > 0).float().mean() < 0.001
    else:
        assert levels.max() == 0


@pytest.mark.parametrize("name", GEOMETRIC)
def test_geometry_samples_pillows_pixel_at_any_magnitude(name):
    # Pixels that tell where they come from. Halves and quarters lie on borders between pixels.
    images = torch.arange(16 * 16, dtype=torch.uint8).view(1, 1, 16, 16).expand(400, -1, -1, -1)
    size = 180.0 if name == "rotate" else 1.5
    generator = torch.Generator().manual_seed(1)
    magnitudes = (2 * torch.rand(400, generator=generator, dtype=torch.float64) - 1) * size
    borders = torch.arange(-48, 48) / 32 * (120.0 if name == "rotate" else 1.0)
    magnitudes[: len(borders)] = borders
    assert difference(name, images, magnitudes.tolist()).max() == 0


@pytest.mark.parametrize("name", GEOMETRIC)
@pytest.mark.parametrize("fill", [0, 255])
def test_what_comes_in_has_the_fill_value(name, fill):
    images, shift = random_images(1, 3, 8, 8), 20.0 if name == "rotate" else 0.3
    changed = getattr(image_geometry, name)(images, torch.tensor([shift], dtype=torch.float64), fill=fill)
    assert torch.equal(changed[0], from_pillow(operate(name, to_pillow(images[0]), shift, fill)))
    assert (changed == fill).all(1).any()


@pytest.mark.parametrize("name", BLENDS)
def test_enhancers_equal_pillows_beyond_the_policies_range(name):
    factors = [0.0, 1.0, -0.5, 2.5, 10.0, 1 / 3]
    levels = difference(name, random_images(len(factors), 3, 16, 16), factors)
    assert levels.max() <= 1
    assert (levels > 0).float().mean() < 0.001


def test_posterize_equals_pillows_for_every_number_of_bits():
    bits = [float(count) for count in range(1, 9)]
    assert difference("posterize", random_images(8, 3, 16, 16), bits).max() == 0


def test_solarize_equals_pillows_at_every_threshold():
    thresholds = [float(level) / 2 for level in range(513)]
    ramp = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(513, -1, -1, -1)
    assert difference("solarize", ramp, thresholds).max() == 0


def test_equalize_equals_pillows_where_levels_would_pass_255():
    # 509 dark pixels and a step of one: the lightest level's place is 509, which Pillow clips.
    image = torch.tensor([0] * 509 + [9] * 3, dtype=torch.uint8)[torch.randperm(512)].view(1, 1, 16, 32)
    assert difference("equalize", image, [0.0]).max() == 0
    assert image_tones.equalize(image).max() == 255


@pytest.mark.parametrize("name", ["contrast", "colour"])
def test_two_channels_have_no_grey(name):
    with pytest.raises(ValueError, match="`images` expected 1 or 3 channels, got 2"):
        OPERATIONS[name].function(random_images(1, 2, 4, 4), torch.ones(1))


def mixed_batch(n: int = 150) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    codes = torch.randint(IDENTITY + 1, (n,), generator=generator)
    strengths = torch.rand(n, generator=generator, dtype=torch.float64)
    return random_images(n, 3, 12, 12), codes, strengths, torch.rand(n, generator=generator) < 0.5


def test_each_image_of_a_mixed_batch_gets_its_own_operation():
    images, codes, strengths, negative = mixed_batch()
    changed = apply_operations(images, codes, strengths, negative)
    alone = [
        apply_operations(images[n : n + 1], codes[n : n + 1], strengths[n : n + 1], negative[n : n + 1])
        for n in range(len(images))
    ]
    assert torch.equal(changed, torch.cat(alone))
    assert torch.equal(changed[codes == IDENTITY], images[codes == IDENTITY])


@pytest.mark.parametrize("name", NAMES)
def test_only_signed_operations_have_two_sides(name):
    images, strengths = images_of("smooth", 1, 3, 12, 12), torch.tensor([0.8], dtype=torch.float64)
    sides = [apply_operations(images, codes_of([name]), strengths, torch.tensor([side])) for side in (False, True)]
    assert torch.equal(*sides) != (name in GEOMETRIC + BLENDS)


@pytest.mark.parametrize("name", [*GEOMETRIC, *BLENDS, "solarize", "posterize"])
def test_strength_0_changes_nothing(name):
    images = random_images(2, 3, 12, 12)
    unsigned = torch.tensor([False, True])
    assert torch.equal(apply_operations(images, codes_of([name] * 2), torch.zeros(2).double(), unsigned), images)


def test_the_input_is_not_written_to():
    images, codes, strengths, negative = mixed_batch()
    apply_operations(images, codes, strengths, negative)
    assert torch.equal(images, mixed_batch()[0])


def test_an_empty_batch_stays_empty():
    images, codes, strengths, negative = (tensor[:0] for tensor in mixed_batch())
    assert apply_operations(images, codes, strengths, negative).shape == (0, 3, 12, 12)


def test_images_that_are_not_uint8_are_refused():
    images, codes, strengths, negative = mixed_batch(3)
    with pytest.raises(TypeError, match="`images` expected uint8, got torch"):
        apply_operations(images.float(), codes, strengths, negative)
