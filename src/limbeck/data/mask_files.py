"""Scene parsing of ADE20K and Pascal VOC 2012: images in files, with a picture of each one's classes."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

from limbeck.errors import UserError, missing_extra, reason

if TYPE_CHECKING:
    from torch import Tensor

ADE20K_CLASSES, VOC_CLASSES = 150, 21
IGNORED = 255


class Pair(NamedTuple):
    """An image's file, and its mask's."""

    image: Path
    mask: Path


@dataclass(frozen=True, eq=False)
class MaskFiles:
    """Images and masks that stay in their files.

    Attributes:
        pairs: The files.
        num_classes: C; a mask holds classes below it, and 255 where none is.
        from_one: Whether a file numbers the classes from 1, and 0 is no class, as in ADE20K.
    """

    pairs: tuple[Pair, ...]
    num_classes: int
    from_one: bool = False
    one_size = False

    def __len__(self) -> int:
        return len(self.pairs)

    def read(self, place: int) -> tuple[Tensor, Tensor]:
        """Return an image and its mask.

        Raises:
            UserError: A file cannot be read, the two differ in size, or the mask holds what is no class.
        """
        pair = self.pairs[place]
        image, mask = _pixels(pair.image, "RGB").permute(2, 0, 1), _pixels(pair.mask, None)
        if mask.dim() != 2 or mask.shape != image.shape[1:]:
            raise UserError(
                f"{pair.mask}: expected one number for each of the {tuple(image.shape[1:])} pixels of "
                f"{pair.image.name}, got the shape {tuple(mask.shape)}"
            )
        if self.from_one:
            mask = mask - 1  # of bytes: 0 becomes 255
        known = (mask < self.num_classes) | (mask == IGNORED)
        if not known.all():
            wrong = int(mask[~known][0]) + self.from_one
            raise UserError(f"{pair.mask}: expected {self.num_classes} classes, got a pixel of class {wrong}")
        return image, mask

    def described(self) -> str:
        """Return names and sizes of all files, for a fingerprint."""
        return "\n".join(f"{path.name} {path.stat().st_size}" for pair in self.pairs for path in pair)


def _pixels(path: Path, mode: str | None) -> Tensor:
    try:
        import numpy as np
        from PIL import Image
    except ModuleNotFoundError as error:
        raise missing_extra("pillow", "images", "reading images") from error
    try:
        with Image.open(path) as image:
            return torch.from_numpy(np.array(image if mode is None else image.convert(mode)))
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as an image ({reason(error)})") from error


def ade20k(folder: Path) -> tuple[MaskFiles, MaskFiles]:
    """Return the training and validation parts of scene parsing's ADEChallengeData2016.

    Args:
        folder: It, or the folder that it lies in: images/training, images/validation and annotations beside.

    Raises:
        UserError: Folders or masks are missing.
    """
    root = _root(folder, "ADEChallengeData2016", "images/training")
    parts = []
    for part in ("training", "validation"):
        images, masks = root / "images" / part, root / "annotations" / part
        names = sorted(path.stem for path in _listed(images) if path.suffix == ".jpg")
        pairs = tuple(Pair(images / f"{name}.jpg", masks / f"{name}.png") for name in names)
        parts.append(MaskFiles(_complete(pairs, images), ADE20K_CLASSES, from_one=True))
    return parts[0], parts[1]


def voc2012(folder: Path, train_list: str) -> tuple[MaskFiles, MaskFiles]:
    """Return the training and validation parts of VOC 2012's segmentation.

    Args:
        folder: VOC2012, or the folder that VOCdevkit lies in.
        train_list: Name of a list in ImageSets/Segmentation, such as train, or trainaug where it was added.

    Raises:
        UserError: Folders, lists or masks are missing.
    """
    root = _root(folder, "VOCdevkit/VOC2012", "JPEGImages")
    parts = []
    for part in (train_list, "val"):
        path = root / "ImageSets" / "Segmentation" / f"{part}.txt"
        try:
            names = path.read_text().split()
        except OSError as error:
            raise UserError(f"{path}: expected a list of images, got {reason(error)}") from error
        pairs = tuple(Pair(root / "JPEGImages" / f"{n}.jpg", root / "SegmentationClass" / f"{n}.png") for n in names)
        parts.append(MaskFiles(_complete(pairs, path), VOC_CLASSES))
    return parts[0], parts[1]


def _root(folder: Path, name: str, inside: str) -> Path:
    for root in (folder / name, folder):
        if (root / inside).is_dir():
            return root
    raise UserError(
        f"{folder / name}: expected the folder {inside} there, got none; get the archive by hand, unpack it, and name "
        "the folder around it in `data.folder`"
    )


def _listed(folder: Path) -> list[Path]:
    try:
        return [Path(entry.path) for entry in os.scandir(folder)]
    except OSError as error:
        raise UserError(f"{folder}: expected a folder of images, got {reason(error)}") from error


def _complete(pairs: tuple[Pair, ...], where: Path) -> tuple[Pair, ...]:
    if not pairs:
        raise UserError(f"{where}: expected images, got none")
    for path in (path for pair in pairs for path in pair):
        if not path.is_file():
            raise UserError(f"{path}: expected this file of {where}, got none; unpack the archive again")
    return pairs
