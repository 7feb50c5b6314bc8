"""Image-text pairs in tar files, as DataComp has them, and labelled images in folders to be classified by prompts."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from limbeck.data.decode import MiddleView
from limbeck.data.decoding import share_of_cores
from limbeck.data.image_files import class_folders
from limbeck.data.pairs import Gallery, fill
from limbeck.data.shards import ShardSource, find_shards
from limbeck.data.sources import DataBundle, Pixels
from limbeck.data.stored import StoredSource
from limbeck.data.tokenizers import open_tokenizer
from limbeck.data_files import data_folder
from limbeck.errors import UserError, reason

if TYPE_CHECKING:
    from limbeck.config import DataOptions
    from limbeck.data.image_files import ImageFiles, Told

# What CLIP and its successors standardise pixels by.
PIXELS = Pixels(maximum=255, mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711))
PLAIN = Pixels(maximum=255, mean=(0.0,) * 3, std=(1.0,) * 3)
TEST = "val"  # folder of the labelled images


def open_captioned_shards(options: DataOptions, told: Told) -> DataBundle:
    """Return pairs in shards to train on, and labelled images to classify; no image is opened.

    Args:
        options: `shards`, `samples`, `folder`, `captions` and sizes.
        told: Called with a line before a folder is looked through for the first time.

    Raises:
        UserError: Shards, folders, names of classes or the tokenizer are missing.
    """
    root, wording = data_folder(options.folder), options.captions
    if not (root / TEST).is_dir():
        raise UserError(f"{root}: expected a folder {TEST} of class folders, to be classified, got none")
    files = class_folders(root / TEST, told)
    names = class_names(root / Path(wording.class_names or "").expanduser(), files) if wording.class_names else None
    tokens_of = open_tokenizer(wording.tokenizer, wording.length)
    pixels = PIXELS if options.standardise else PLAIN
    view = MiddleView(options.test_resize, options.stored_size)
    workers = share_of_cores() if options.workers is None else options.workers
    cpu, classes = torch.device("cpu"), len(files.classes)
    shards = find_shards(str(options.shards))
    train = ShardSource(shards, options.samples or 0, classes, pixels, view, workers, cpu, tokens_of)
    spoken = names or tuple(name.replace("_", " ") for name in files.classes)
    prompts = torch.stack([tokens_of(fill(wording.prompts, name)) for name in spoken])

    none = torch.empty(0, dtype=torch.int64)
    held = StoredSource(files, torch.arange(len(files)), files.labels, pixels, view, workers, cpu)
    test = Gallery(held, prompts, none.view(0, wording.length), (), spoken)
    validation = replace(test, images=replace(held, places=none, labels=none))
    said = f"{train.fingerprint} {held.fingerprint} {wording.tokenizer} {prompts.tolist()}"
    return DataBundle(
        name=options.name,
        train=train,
        validation=validation,
        test=test,
        num_classes=classes,
        image_shape=train.image_shape,
        class_counts=torch.empty(0, dtype=torch.int64),
        fingerprint=hashlib.sha256(said.encode()).hexdigest(),
        device=cpu,
    )


def class_names(path: Path, files: ImageFiles) -> tuple[str, ...]:
    """Return what classes are called, a line each in the order of their folders.

    Raises:
        UserError: The file cannot be read, or has another number of lines.
    """
    try:
        lines = [line.strip() for line in path.read_text("utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: `data.captions.class_names` cannot be read ({reason(error)}); name a file") from error
    if len(lines) != len(files.classes):
        raise UserError(
            f"{path}: expected {len(files.classes)} lines, the names of the class folders of {files.root} in their "
            f"order, got {len(lines)}"
        )
    return tuple(lines)
