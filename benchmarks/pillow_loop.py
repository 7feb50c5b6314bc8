"""The augmentations as loops over images with Pillow, from the same draws: the tests' twin and the benchmark's rival.

Written from the public implementations, apart from the package: the ranges of the magnitudes are a table of their
own, and the sub-policies another transcription. A plan is what is to be done to one image: names and magnitudes.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from limbeck.draws import integers, uniform

Plan = list[tuple[str, float]]

SUB_POLICIES = """
    0.1 invert 7       0.2 contrast 6
    0.7 rotate 2       0.3 translate_x 9
    0.8 sharpness 1    0.9 sharpness 3
    0.5 shear_y 8      0.7 translate_y 9
    0.5 auto_contrast 8  0.9 equalize 2
    0.2 shear_y 7      0.3 posterize 7
    0.4 colour 3       0.6 brightness 7
    0.3 sharpness 9    0.7 brightness 9
    0.6 equalize 5     0.5 equalize 1
    0.6 contrast 7     0.6 sharpness 5
    0.7 colour 7       0.5 translate_x 8
    0.3 equalize 7     0.4 auto_contrast 8
    0.4 translate_y 3  0.2 sharpness 6
    0.9 brightness 6   0.2 colour 8
    0.5 solarize 2     0.0 invert 3
    0.2 equalize 0     0.6 auto_contrast 0
    0.2 equalize 8     0.6 equalize 4
    0.9 colour 9       0.6 equalize 6
    0.8 auto_contrast 4  0.2 solarize 8
    0.1 brightness 3   0.7 colour 0
    0.4 solarize 5     0.9 auto_contrast 3
    0.9 translate_y 9  0.7 translate_y 9
    0.9 auto_contrast 2  0.8 solarize 3
    0.8 equalize 8     0.1 invert 3
    0.7 translate_y 9  0.9 auto_contrast 1
"""
POLICY = [line.split() for line in SUB_POLICIES.strip().splitlines()]
RAND_AUGMENT = [
    *("identity", "shear_x", "shear_y", "translate_x", "translate_y", "rotate", "brightness"),
    *("colour", "contrast", "sharpness", "posterize", "solarize", "auto_contrast", "equalize"),
]


def magnitude(name: str, level: int, levels: int, sign: int) -> float:
    """Return the magnitude of a level of 0 to `levels`; the sign is not used where there is none."""
    match name:
        case "shear_x" | "shear_y":
            return sign * np.linspace(0, 0.3, levels + 1)[level]
        case "translate_x" | "translate_y":
            return sign * np.linspace(0, 150 / 331, levels + 1)[level]
        case "rotate":
            return sign * np.linspace(0, 30, levels + 1)[level]
        case "contrast" | "colour" | "brightness" | "sharpness":
            return 1 + sign * np.linspace(0, 0.9, levels + 1)[level]
        case "posterize":
            return np.round(np.linspace(8, 4, levels + 1))[level]
        case "solarize":
            return np.linspace(256, 0, levels + 1)[level]
    return 0.0


def operate(name: str, image: Image.Image, value: float, fill: int = 128) -> Image.Image:
    """Apply one operation."""
    colour = (fill,) * len(image.getbands())
    width, height = image.size

    def transform(*coefficients: float) -> Image.Image:
        return image.transform(image.size, Image.Transform.AFFINE, coefficients, fillcolor=colour)

    match name:
        case "shear_x":
            return transform(1, value, 0, 0, 1, 0)
        case "shear_y":
            return transform(1, 0, 0, value, 1, 0)
        case "translate_x":
            return transform(1, 0, value * width, 0, 1, 0)
        case "translate_y":
            return transform(1, 0, 0, 0, 1, value * height)
        case "rotate":
            return image.rotate(value, fillcolor=colour)
        case "auto_contrast":
            return ImageOps.autocontrast(image)
        case "invert":
            return ImageOps.invert(image)
        case "equalize":
            return ImageOps.equalize(image)
        case "solarize":
            return ImageOps.solarize(image, value)
        case "posterize":
            return ImageOps.posterize(image, int(value))
        case "contrast":
            return ImageEnhance.Contrast(image).enhance(value)
        case "colour":
            return ImageEnhance.Color(image).enhance(value)
        case "brightness":
            return ImageEnhance.Brightness(image).enhance(value)
        case "sharpness":
            return ImageEnhance.Sharpness(image).enhance(value)
        case "identity":
            return image
    raise KeyError(name)


def to_pillow(image: Tensor) -> Image.Image:
    """Read uint8 `(C, H, W)`, C 1 or 3."""
    return Image.fromarray(image[0].numpy() if len(image) == 1 else image.permute(1, 2, 0).contiguous().numpy())


def from_pillow(image: Image.Image) -> Tensor:
    """Return uint8 `(C, H, W)`."""
    array = torch.from_numpy(np.array(image))
    return array.unsqueeze(0) if array.dim() == 2 else array.permute(2, 0, 1)


def auto_augment_plans(seed: int, epoch: int, indices: Tensor) -> list[Plan]:
    """Replay the draws of AutoAugment."""
    policies = integers(seed, epoch, indices, "auto_augment policy", 25).tolist()
    chances = uniform(seed, epoch, indices, "auto_augment apply", (2,)).tolist()
    negative = integers(seed, epoch, indices, "auto_augment sign", 2, (2,)).tolist()
    plans = []
    for n in range(len(indices)):
        words, plan = POLICY[policies[n]], []
        for step in range(2):
            probability, name, level = words[3 * step : 3 * step + 3]
            if chances[n][step] < float(probability):
                plan.append((name, magnitude(name, int(level), 9, -1 if negative[n][step] else 1)))
        plans.append(plan)
    return plans


def rand_augment_plans(operations: int, level: int, seed: int, epoch: int, indices: Tensor) -> list[Plan]:
    """Replay the draws of RandAugment."""
    drawn = integers(seed, epoch, indices, "rand_augment operation", 14, (operations,)).tolist()
    negative = integers(seed, epoch, indices, "rand_augment sign", 2, (operations,)).tolist()
    return [
        [
            (RAND_AUGMENT[code], magnitude(RAND_AUGMENT[code], level, 30, -1 if minus else 1))
            for code, minus in zip(codes, signs, strict=True)
        ]
        for codes, signs in zip(drawn, negative, strict=True)
    ]


def follow(plan: Plan, image: Image.Image) -> Image.Image:
    """Carry out a plan."""
    for name, value in plan:
        image = operate(name, image, value)
    return image


def box_of(
    height: int, width: int, shares: tuple[float, float], seed: int, epoch: int, index: int
) -> tuple[int, int, int, int]:
    """Replay the draws of RandomResizedCrop for one image: top, left, height, width."""
    one = torch.tensor([index])
    share, shape = uniform(seed, epoch, one, "resized_crop shape", (2, 10))[0].tolist()
    down, right = uniform(seed, epoch, one, "resized_crop place", (2,))[0].tolist()
    for attempt in range(10):
        area = height * width * (shares[0] + (shares[1] - shares[0]) * share[attempt])
        ratio = math.exp(math.log(3 / 4) + (math.log(4 / 3) - math.log(3 / 4)) * shape[attempt])
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(down * (height - h + 1)), int(right * (width - w + 1)), h, w
    w, h = width, height
    if width / height < 3 / 4:
        h = round(width / (3 / 4))
    elif width / height > 4 / 3:
        w = round(height * (4 / 3))
    return (height - h) // 2, (width - w) // 2, h, w


def resize(image: Image.Image, box: tuple[int, int, int, int], size: tuple[int, int]) -> Image.Image:
    """Crop and resize to a height and width."""
    top, left, height, width = box
    cropped = image.crop((left, top, left + width, top + height))
    return cropped.resize((size[1], size[0]), Image.Resampling.BILINEAR)


def crop_and_flip(image: Image.Image, padding: int, down: int, right: int, flipped: bool) -> Image.Image:
    """Pad with black, crop at a place, flip."""
    width, height = image.size
    cropped = ImageOps.expand(image, padding).crop((right, down, right + width, down + height))
    return ImageOps.mirror(cropped) if flipped else cropped
