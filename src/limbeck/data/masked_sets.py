"""Data sets of segmentation by name: composed scenes in memory, ADE20K and VOC 2012 in files."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING, cast

import torch

from limbeck.data.mask_files import MaskFiles, ade20k, voc2012
from limbeck.data.masked import MaskedPart, MasksInMemory
from limbeck.data.scenes import CLASSES, PARTS, render
from limbeck.data.sources import DataBundle, Pixels
from limbeck.data_files import data_folder
from limbeck.draws import permutation

if TYPE_CHECKING:
    from collections.abc import Callable

    from limbeck.config import DataOptions
    from limbeck.data.masked import Masks
    from limbeck.data.sources import Samples

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
MOST_THREADS = 16


def open_masked(options: DataOptions, told: Callable[[str], None]) -> DataBundle:
    """Return a data set of images with masks.

    Args:
        options: Name, folder, split, scale; the flip is read later.
        told: Called with a line before what takes long.

    Raises:
        UserError: A package, folder or file is missing.
    """
    sources, classes, side = _scenes(options) if options.name == "scenes" else _files(options, told)
    pixels = Pixels(255, *IMAGENET) if options.standardise else Pixels(255, (0.0,) * 3, (1.0,) * 3)
    threads = 0 if options.name == "scenes" else _threads(options.workers)
    parts = [
        MaskedPart(source, pixels, side, options.masks.scale, options.masks.test_side, threads) for source in sources
    ]
    return DataBundle(
        name=options.name,
        train=parts[0],
        validation=cast("Samples", parts[1]),  # for the judge of segmentation
        test=cast("Samples", parts[2]),
        num_classes=classes,
        image_shape=parts[0].image_shape,
        class_counts=torch.empty(0, dtype=torch.int64),
        fingerprint=hashlib.sha256(repr((pixels, *map(_digest, sources))).encode()).hexdigest(),
        device=torch.device("cpu"),
    )


def _threads(asked: int | None) -> int:
    return min(MOST_THREADS, os.cpu_count() or 1) if asked is None else asked


def _scenes(options: DataOptions) -> tuple[list[Masks], int, int]:
    scenes = [render(options.scenes, options.split_seed, part) for part in PARTS]
    sources: list[Masks] = [MasksInMemory(part.images, part.masks) for part in scenes]
    return sources, 1 + len(CLASSES), options.image_size or options.scenes.side


def _files(options: DataOptions, told: Callable[[str], None]) -> tuple[list[Masks], int, int]:
    """Return training images, some of them held out for validation, and the published validation images as the test."""
    folder = data_folder(options.folder)
    told(f"Looking for the files of {options.name}")
    whole, test = ade20k(folder) if options.name == "ade20k" else voc2012(folder, options.train_list or "train")
    order = permutation(options.split_seed, 0, len(whole), "split").tolist()
    held = round(options.validation * len(whole))
    train, validation = (
        MaskFiles(tuple(whole.pairs[place] for place in sorted(places)), whole.num_classes, whole.from_one)
        for places in (order[held:], order[:held])
    )
    return [train, validation, test], whole.num_classes, options.stored_size


def _digest(source: Masks) -> str:
    digest = hashlib.sha256()
    if isinstance(source, MasksInMemory):
        for tensor in (source.images, source.masks):
            digest.update(f"{tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().numpy().data)
    elif isinstance(source, MaskFiles):
        digest.update(source.described().encode())
    return digest.hexdigest()
