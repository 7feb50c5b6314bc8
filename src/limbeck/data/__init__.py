"""Data sets by name, their splits, batches and augmentations. Every random draw is a function: see `limbeck.draws`."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

import torch

from limbeck.data import cifar, digits, mnist5k
from limbeck.data.augment import augment
from limbeck.data.augmix import AugMixed
from limbeck.data.boxes import scene_boxes
from limbeck.data.captioned_shards import open_captioned_shards
from limbeck.data.coco import open_coco
from limbeck.data.corrupted import Corrupted, MadeHere, open_corrupted
from limbeck.data.emoji_pairs import open_emoji
from limbeck.data.generated import MixedSource, open_generated
from limbeck.data.groups import class_groups
from limbeck.data.loader import Batch, epoch_batches, steps_per_epoch
from limbeck.data.masked_sets import open_masked
from limbeck.data.mixing import mix
from limbeck.data.pairs import PairSource
from limbeck.data.phases import class_order, in_order, of_phase
from limbeck.data.shards import ShardSource
from limbeck.data.shifted import ShiftedTest
from limbeck.data.sources import DataBundle, Pixels, Samples, Source, fingerprint, normalise
from limbeck.data.splits import split
from limbeck.data.stored import StoredSource
from limbeck.data.stored_sets import open_stored
from limbeck.data.streams import ImageStream, Order, Stream, Streaming, open_stream
from limbeck.data.unlabelled import PartlyLabelled, partly_labelled, with_all_labels
from limbeck.data_files import data_folder
from limbeck.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from limbeck.config import DataOptions

__all__ = [
    "DATASETS",
    "AugMixed",
    "Batch",
    "DataBundle",
    "Dataset",
    "ImageStream",
    "Order",
    "PairSource",
    "PartlyLabelled",
    "Pixels",
    "Samples",
    "ShardSource",
    "ShiftedTest",
    "Source",
    "StoredSource",
    "Stream",
    "Streaming",
    "augment",
    "build_data",
    "class_order",
    "epoch_batches",
    "mix",
    "normalise",
    "open_stream",
    "steps_per_epoch",
]


class Dataset(NamedTuple):
    """How a data set is read that comes with a package and has no test images of its own.

    Attributes:
        load: Returns all images, uint8 `(N, C, H, W)`, and labels, int64 `(N,)`.
        pixels: What the images' numbers stand for.
    """

    load: Callable[[], tuple[Tensor, Tensor]]
    pixels: Pixels


DATASETS: dict[str, Dataset] = {
    "digits": Dataset(digits.load, digits.PIXELS),
    "mnist5k": Dataset(mnist5k.load, mnist5k.PIXELS),
}


def build_data(options: DataOptions, told: Callable[[str], None] = lambda line: None) -> DataBundle:
    """Read a data set and split it.

    Args:
        options: Name, split, few labels and long tail; the augmentations are not read here.
        told: Called with a line before what takes long.

    Returns:
        The three parts, on the CPU. Equal options give equal tensors. Without `standardise`, `Pixels` say mean 0 and
        deviation 1, so that `normalise` leaves images in [0, 1].

    Raises:
        UserError: The package that ships the data, its archive, folders or lists are missing, the split is impossible,
            images are to be made smaller, or the file of generated images is missing or wrong.

    Example:
        >>> from limbeck.config import DataOptions
        >>> data = build_data(DataOptions(labels_per_class=40, imbalance=20))
        >>> data.class_counts.tolist()
        [40, 28, 20, 14, 10, 7, 5, 3, 2, 2]
    """
    if options.name == "custom":
        raise UserError("the data of this run are a user's own loaders: call limbeck.fit with them again")
    if options.name == "emoji":
        return open_emoji(options)
    if options.name == "captioned_shards":
        return open_captioned_shards(options, told)
    if options.name == "scene_boxes":
        return scene_boxes(options)
    if options.masked:
        return open_masked(options, told)
    if options.name == "coco":
        return open_coco(options, told)
    if options.stored:
        return _stored(options, told)
    parts = of_phase(in_order(_parts(options), options), options.phase)
    train, validation, test = (_as_asked(part, options) for part in parts)
    classes = int(torch.cat([train.labels, test.labels]).max()) + 1
    counts, digest = train.labels.bincount(minlength=classes), fingerprint(train, validation, test)
    if options.generated is not None:
        train = _with_generated(train, Path(options.generated), options.generated_fraction, classes)
        counts = counts + train.generated.class_counts
        digest = _joined(digest, train.generated.fingerprint)
    seen: Source | PartlyLabelled[Source] | AugMixed = AugMixed(train, options.augmix) if options.augmix else train
    if options.unlabelled is not None:
        pool = _as_asked(_parts(with_all_labels(options))[0], options)
        seen = partly_labelled(train, pool, options.unlabelled)
        digest = _joined(digest, fingerprint(seen.pool))
    return DataBundle(
        name=options.name,
        train=seen,
        validation=validation,
        test=test,
        num_classes=classes,
        image_shape=train.image_shape,
        class_counts=counts,
        fingerprint=digest,
        device=torch.device("cpu"),
        groups=class_groups(counts, options.groups),
        corrupted=_corrupted(options, test),
    )


def _corrupted(options: DataOptions, test: Source) -> Corrupted | None:
    """Return the test images under corruptions, if the options ask for them."""
    match options.corrupted_tests:
        case None:
            return None
        case "generated":
            return MadeHere(test)
        case folder:
            return open_corrupted(data_folder(options.folder) / folder, test)


def _stored(options: DataOptions, told: Callable[[str], None]) -> DataBundle:
    found = open_stored(options, told)
    digest = _joined(*(part.fingerprint for part in (found.train, found.validation, found.test)))
    counts = torch.empty(0, dtype=torch.int64)
    train: StoredSource | ShardSource | PartlyLabelled[StoredSource] = found.train
    if isinstance(found.train, StoredSource):
        counts = found.train.labels.bincount(minlength=found.num_classes)
        if options.unlabelled is not None:
            pool = cast("StoredSource", open_stored(with_all_labels(options), told).train)
            train = partly_labelled(found.train, pool, options.unlabelled)
            digest = _joined(digest, pool.fingerprint)
    return DataBundle(
        name=options.name,
        train=train,
        validation=found.validation,
        test=found.test,
        num_classes=found.num_classes,
        image_shape=found.train.image_shape,
        class_counts=counts,
        fingerprint=digest,
        device=torch.device("cpu"),
        groups=class_groups(counts, options.groups),
        shifted=found.shifted,
    )


def _joined(*digests: str) -> str:
    return hashlib.sha256(" ".join(digests).encode()).hexdigest()


def _as_asked(source: Source, options: DataOptions) -> Source:
    """Return a source whose pixels are standardised or not, and enlarged or not, as the options say."""
    _, channels, *sides = source.images.shape
    pixels = source.pixels
    if not options.standardise:
        pixels = Pixels(pixels.maximum, mean=(0.0,) * channels, std=(1.0,) * channels)
    if (side := options.image_size) is not None:
        if side < max(sides):
            raise UserError(
                f"`data.image_size` expected at least {max(sides)}, the side of the images of `{options.name}`, which "
                f"are enlarged and never made smaller, got {side}"
            )
        pixels = pixels._replace(side=side)
    return replace(source, pixels=pixels)


def _with_generated(train: Source, path: Path, fraction: float, num_classes: int) -> MixedSource:
    shape, maximum = tuple(train.images.shape[1:]), train.pixels.maximum
    generated = open_generated(path, image_shape=shape, num_classes=num_classes, maximum=maximum)
    return MixedSource(train.images, train.labels, train.pixels, generated, fraction)


def _parts(options: DataOptions) -> list[Source]:
    if options.name in cifar.PIXELS:
        return _parts_of_cifar(options)
    dataset = DATASETS[options.name]
    images, labels = dataset.load()
    return [Source(images[part], labels[part], dataset.pixels) for part in split(labels, options)]


def _parts_of_cifar(options: DataOptions) -> list[Source]:
    """Return training and validation images, split, and the authors' test images, whole and in their order."""
    read, pixels = cifar.load(options.name, data_folder(options.folder)), cifar.PIXELS[options.name]
    train, validation, _ = split(read.train_labels, options)
    return [
        *(Source(read.train_images[part], read.train_labels[part], pixels) for part in (train, validation)),
        Source(read.test_images, read.test_labels, pixels),
    ]
