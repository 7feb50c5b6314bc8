"""Tiny data sets in the form of the large ones: folders of images, published lists, ImageNet's further test sets.

All images are of one seed. Among them are a grey one, one in CMYK, one with a palette and a PNG, of differing sizes.
"""

from __future__ import annotations

import io
import tarfile
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

WNIDS = tuple(f"n{1440764 + 13 * number:08d}" for number in range(10))
SIZES = ((40, 30), (32, 48), (36, 36), (64, 41), (30, 33))  # width and height
RENDERED = WNIDS[1:8:2]  # classes of the folder like ImageNet-R


def write_imagenet(root: Path, *, train: int = 5, val: int = 2, classes: Sequence[str] = WNIDS) -> Path:
    """Write `train` and `val`, a folder of each class with so many images; return the root."""
    for split, count in (("train", train), ("val", val)):
        for label, name in enumerate(classes):
            write_class(root / split / name, label, count, seed=1000 * label + (500 if split == "val" else 0))
    return root


def write_imagenet_lt(root: Path, *, most: int = 8, val: int = 2) -> Path:
    """Write `train` and `val`, and the lists of ImageNet-LT: class c has most, ..., 1 training images; return the root.

    The files of the training list come in no order.
    """
    write_imagenet(root, train=most, val=val)
    lines = [
        f"train/{name}/{name}_{number}.{ending(number)} {label}"
        for label, name in enumerate(WNIDS)
        for number in range(max(1, most - label))
    ]
    (root / "ImageNet_LT_train.txt").write_text("\n".join(lines[::2] + lines[1::2]) + "\n")
    tests = [f"val/{n}/{n}_{i}.{ending(i)} {label}" for label, n in enumerate(WNIDS) for i in range(val)]
    (root / "ImageNet_LT_test.txt").write_text("\n".join(tests) + "\n")
    return root


def write_shifted(root: Path, *, count: int = 2) -> dict[str, str]:
    """Write folders like ImageNet-V2's (classes by number), -Sketch's and -R's; return name -> folder."""
    names = {
        "imagenet_v2": [str(label) for label in range(len(WNIDS))],
        "imagenet_sketch": list(WNIDS),
        "imagenet_r": list(RENDERED),
    }
    for seed, (test, classes) in enumerate(names.items()):
        for label, name in enumerate(classes):
            write_class(root / test / name, label, count, seed=10_000 * (seed + 1) + label)
    return {test: str(root / test) for test in names}


def write_shards(root: Path, *, shards: int = 4, samples: int = 6) -> str:
    """Write shards as WebDataset's writer does, `train-0000.tar` and on; return their pattern.

    Sample k of all has the key `sample_k`; its class is k modulo ten.
    """
    root.mkdir(parents=True, exist_ok=True)
    for shard in range(shards):
        with tarfile.open(root / f"train-{shard:04d}.tar", "w") as tar:
            for number in range(shard * samples, (shard + 1) * samples):
                content = io.BytesIO()
                picture(number % 10, number, SIZES[number % len(SIZES)]).save(content, "JPEG", quality=90)
                for name, value in (("cls", str(number % 10).encode()), ("jpg", content.getvalue())):
                    member = tarfile.TarInfo(f"sample_{number}.{name}")
                    member.size = len(value)
                    tar.addfile(member, io.BytesIO(value))
    return str(root / f"train-{{0000..{shards - 1:04d}}}.tar")


def write_captioned_shards(root: Path, *, shards: int = 2, samples: int = 6) -> str:
    """Write shards of images and captions, `0000.tar` and on, as img2dataset writes them; return their pattern."""
    root.mkdir(parents=True, exist_ok=True)
    for shard in range(shards):
        with tarfile.open(root / f"{shard:04d}.tar", "w") as tar:
            for number in range(shard * samples, (shard + 1) * samples):
                content = io.BytesIO()
                picture(number % 10, number, SIZES[number % len(SIZES)]).save(content, "JPEG", quality=90)
                caption = f"picture {number} of kind {number % 10}".encode()
                for name, value in (("jpg", content.getvalue()), ("json", b"{}"), ("txt", caption)):
                    member = tarfile.TarInfo(f"{number:08d}.{name}")
                    member.size = len(value)
                    tar.addfile(member, io.BytesIO(value))
    return str(root / f"{{0000..{shards - 1:04d}}}.tar")


def write_class(folder: Path, label: int, count: int, seed: int) -> None:
    """Write images of one colour each, with a little noise, named as ImageNet names them."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        image = picture(label, seed + number, SIZES[(seed + number) % len(SIZES)])
        modes = {(0, 1): "L", (1, 1): "CMYK"}
        path = folder / f"{folder.name}_{number}.{ending(number)}"
        if number == 2:
            image.quantize(16).save(path)
        else:
            image.convert(modes.get((label, number), "RGB")).save(path, **({} if number % 3 == 2 else {"quality": 90}))


def ending(number: int) -> str:
    """Return the ending of the file of an image: each third is a PNG."""
    return "png" if number % 3 == 2 else "JPEG"


def picture(label: int, seed: int, size: tuple[int, int]) -> Image.Image:
    """Return a smooth picture with a hue of its class."""
    width, height = size
    draws = np.random.default_rng(seed)
    rows, columns = np.linspace(0, 3, height)[:, None], np.linspace(0, 3, width)[None, :]
    hue = np.array([np.cos(label), np.sin(label), np.cos(2.5 * label)])
    waves = np.sin(rows * draws.uniform(1, 3) + columns * draws.uniform(1, 3) + draws.uniform(0, 6))
    levels = 128 + 70 * hue + 40 * waves[..., None] + draws.normal(0, 4, (height, width, 3))
    return Image.fromarray(levels.clip(0, 255).astype(np.uint8))
