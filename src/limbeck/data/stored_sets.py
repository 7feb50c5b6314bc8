"""ImageNet, its long-tailed part, Places, iNaturalist, and anyone's folders: which files are which split."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

from limbeck.data.decode import MiddleView
from limbeck.data.decoding import share_of_cores
from limbeck.data.image_files import class_folders, listed_images
from limbeck.data.shards import ShardSource, find_shards
from limbeck.data.shifted import open_shifted
from limbeck.data.sources import Pixels
from limbeck.data.splits import Split, split
from limbeck.data.stored import StoredSource
from limbeck.data_files import BY_HAND, data_folder
from limbeck.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from limbeck.config import DataOptions
    from limbeck.data.image_files import ImageFiles, Told
    from limbeck.data.shifted import ShiftedTest

IMAGENET = Pixels(maximum=255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
INATURALIST = Pixels(maximum=255, mean=(0.466, 0.471, 0.380), std=(0.195, 0.194, 0.192))
PLAIN = Pixels(maximum=255, mean=(0.0,) * 3, std=(1.0,) * 3)
CPU, NONE = torch.device("cpu"), torch.empty(0, dtype=torch.int64)


class StoredSplits(NamedTuple):
    """The splits of a data set whose images stay in their files."""

    train: StoredSource | ShardSource
    validation: StoredSource
    test: StoredSource
    shifted: dict[str, ShiftedTest]
    num_classes: int


class _Found(NamedTuple):
    """Files of the splits, without those in shards; None for validation images that are a part of the training images.

    Those of a folder of their own are not there either where none are asked for.
    """

    train: ImageFiles | None
    validation: ImageFiles | None
    test: ImageFiles


def open_stored(options: DataOptions, told: Told) -> StoredSplits:
    """Return the splits of a data set in files; no image is opened.

    Args:
        options: Name, folder, lists, splits, sizes.
        told: Called with a line before a folder is looked through for the first time.

    Raises:
        UserError: Folders, lists or images are missing, or classes differ between the splits.
    """
    found = _find(options, told)
    pixels = PLAIN if not options.standardise else INATURALIST if options.name == "inaturalist18" else IMAGENET
    view = MiddleView(options.test_resize, options.stored_size)
    workers = share_of_cores() if options.workers is None else options.workers

    def source(files: ImageFiles, places: Tensor | None = None) -> StoredSource:
        places = torch.arange(len(files)) if places is None else places
        return StoredSource(files, places, files.labels[places], pixels, view, workers, CPU)

    classes, test = found.test.classes, source(found.test)
    train: StoredSource | ShardSource
    validation = source(found.validation or found.test, None if found.validation else NONE)
    if found.train is not None:
        parts = _parts(found.train.labels, options, held=found.validation is None)
        train, classes = source(found.train, parts.train), found.train.classes
        validation = validation if found.validation else source(found.train, parts.validation)
    else:
        shards = find_shards(str(options.shards))
        train = ShardSource(shards, options.samples or 0, len(classes), pixels, view, workers, CPU)
    root = data_folder(options.folder)
    folders = {name: root / Path(folder).expanduser() for name, folder in options.shifted_tests.folders.items()}
    shifted = open_shifted(folders, classes, test, told)
    return StoredSplits(train, validation, test, shifted, len(classes))


def _parts(labels: Tensor, options: DataOptions, *, held: bool) -> Split:
    """Return how training images are split; without `held`, validation images are others."""
    return split(labels, options if held else options.model_copy(update={"validation": 0.0}))


def _find(options: DataOptions, told: Told) -> _Found:
    root = data_folder(options.folder)
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; set `data.folder` to that of `{options.name}`, or $LIMBECK_DATA")
    if BY_HAND[options.name].files[0].endswith(".txt"):
        return _find_lists(options, root, told)
    needed = ("train",) if options.shards is None else ()
    for name in (*needed, "val"):
        if not (root / name).is_dir() and (name, options.name) != ("val", "image_folder"):
            raise UserError(f"{root}: expected the folders train and val of class folders, got no {name}")
    others = ("val",) if options.name == "imagenet" else ("val", "test")  # ImageNet's test images have no labels
    there = [root / name for name in others if (root / name).is_dir()]
    if not there:
        raise UserError(f"{root}: expected a folder val or test beside train, got none; test images are a folder's own")
    held = [class_folders(folder, told) for folder in there]
    validation = held[0] if len(held) > 1 and options.validation else None
    if options.shards is not None and options.validation and validation is None:
        raise UserError(
            "`data.validation` expected 0, since no images of shards are held out; or name image_folder, with the "
            "folders val and test"
        )
    train = class_folders(root / "train", told) if options.shards is None else None
    for files in held:
        _refuse_other_classes(files, train or held[-1])
    return _Found(train, validation, held[-1])


def _refuse_other_classes(held: ImageFiles, train: ImageFiles) -> None:
    if held.classes != train.classes:
        differing = sorted(set(held.classes) ^ set(train.classes))[0]
        place = held.root if differing in held.classes else train.root
        raise UserError(f"{held.root}: expected the class folders of {train.root}, got {differing!r} in {place} only")


def _find_lists(options: DataOptions, root: Path, told: Told) -> _Found:
    published = BY_HAND[options.name].files
    paths = [
        root / Path(chosen or name).expanduser()
        for chosen, name in zip((options.train_list, options.test_list), published, strict=True)
    ]
    train, test = (listed_images(path, root, told) for path in paths)
    counts = train.labels.bincount(minlength=len(train.classes))
    if not counts.all():
        raise UserError(f"{paths[0]}: expected an image of each class, got none of class {int(counts.argmin())}")
    if len(test.classes) > len(train.classes):
        raise UserError(
            f"{paths[1]}: expected labels of 0 to {len(train.classes) - 1}, as {paths[0].name} has, "
            f"got {len(test.classes) - 1}"
        )
    return _Found(train, None, test)
