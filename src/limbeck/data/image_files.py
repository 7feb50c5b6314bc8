"""Images that stay in their files: folders of class folders and published lists, looked through once.

To look through a million files takes seconds on a disk and minutes on a network. What was found is kept in an index,
which stands as long as all folders have the time of change that they had: adding, removing and renaming a file or a
folder changes its folder's. To write other bytes into an old file does not.
"""

from __future__ import annotations

import hashlib
import itertools
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import torch

from limbeck.data.file_index import Kept, kept_index, write_index
from limbeck.errors import UserError, reason

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor

ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # torchvision's
AT_ONCE = 16  # folders that are read at the same time: what counts is how long the disk or network takes to answer
SHOWN = 3  # missing files that are named
MANY = 1_000_000  # classes of which names may be kept for a list of fewer images

Told: TypeAlias = "Callable[[str], None]"


@dataclass(frozen=True, eq=False)
class ImageFiles:
    """Files of images, in a fixed order.

    Attributes:
        root: Folder that the names start from.
        names: All names, one after another, with `/` between folders.
        ends: Where each name ends, int64 `(N,)`.
        sizes: Bytes of each file, int64 `(N,)`.
        labels: int64 `(N,)`.
        classes: Names of the classes, by label: those of the folders.
    """

    root: Path
    names: bytes
    ends: Tensor
    sizes: Tensor
    labels: Tensor
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.ends)

    def name(self, place: int) -> str:
        """Return the name of a file, from `root`."""
        start = int(self.ends[place - 1]) if place else 0
        return os.fsdecode(self.names[start : int(self.ends[place])])

    def path(self, place: int) -> str:
        """Return the path of a file."""
        return os.path.join(self.root, self.name(place))

    @property
    def fingerprint(self) -> str:
        """SHA-256 of names, sizes and labels, in hexadecimal; neither the bytes of the images nor where they lie."""
        digest = hashlib.sha256(self.names)
        for tensor in (self.ends, self.sizes, self.labels):
            digest.update(tensor.numpy().data)
        return digest.hexdigest()


class _Folder(NamedTuple):
    """What lies in a folder: files and their sizes, folders and their times of change, by name from the root."""

    files: list[tuple[str, int]]
    folders: list[tuple[str, int]]


def class_folders(root: Path, told: Told) -> ImageFiles:
    """Return the images in the class folders of a folder; classes and files in the order of their names.

    Names that begin with a dot are passed over. Images may lie in folders inside a class folder. Class folders and
    images may be links.

    Args:
        root: The folder.
        told: Called with a line before the folder is looked through.

    Raises:
        UserError: There is no such folder, it cannot be read, it has no class folders, or one of them has no images
            or a link to a folder.
    """
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; `data.folder` expected the one that holds it")
    if (kept := kept_index(root, "classes")) is not None:
        return ImageFiles(root, *kept)
    told(f"{root}: looking through the images; the next start is quick")
    with _disk_errors(root), ThreadPoolExecutor(AT_ONCE) as pool:
        changed = root.stat().st_mtime_ns
        names = sorted(_subfolders(root))
        if not names:
            raise UserError(f"{root}: expected a folder of each class, got no folders")
        found = list(pool.map(lambda name: _look_through(root, name), names))
    for name, folder in zip(names, found, strict=True):
        if not folder.files:
            raise UserError(f"{root / name}: expected images ({', '.join(ENDINGS)}) of a class, got none")
    files = [file for folder in found for file in sorted(folder.files)]
    labels = torch.arange(len(names)).repeat_interleave(torch.tensor([len(folder.files) for folder in found]))
    images = _image_files(root, files, labels, tuple(names))
    write_index(root, "classes", _kept(images), [("", changed), *(each for folder in found for each in folder.folders)])
    return images


def _subfolders(root: Path) -> list[str]:
    with os.scandir(root) as entries:
        return [entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir()]


def _look_through(root: Path, name: str) -> _Folder:
    """Return all images below a folder, and all folders, itself first."""
    found = _Folder([], [(name, os.stat(root / name).st_mtime_ns)])  # before it is read: what changes meanwhile shows
    with os.scandir(root / name) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.name.lower().endswith(ENDINGS):
                found.files.append((f"{name}/{entry.name}", entry.stat().st_size))
            elif entry.is_dir():
                if entry.is_symlink():  # to a class, whose images would count twice, or in a circle
                    raise UserError(
                        f"{root / name / entry.name}: expected no link to a folder inside a class folder, got one; "
                        "put a folder in its place, or links to single images"
                    )
                inside = _look_through(root, f"{name}/{entry.name}")
                found.files.extend(inside.files)
                found.folders.extend(inside.folders)
    return found


def listed_images(path: Path, root: Path, told: Told) -> ImageFiles:
    """Return the images that a list names, in its order; its lines are `path label`, paths from `root`.

    A class has the name of the folder of its first image.

    Args:
        path: The list.
        root: The folder that paths start from.
        told: Called with a line before the files are looked for.

    Raises:
        UserError: The list is missing or no such list, or names files that are not there.
    """
    names, labels, digest = _read_list(path)
    if (kept := kept_index(root, digest)) is not None:
        return ImageFiles(root, *kept)
    told(f"{path}: looking for its {len(names):,} images; the next start is quick")
    parents = sorted({os.path.dirname(name) for name in names})
    changed = [(parent, os.stat(root / parent).st_mtime_ns) for parent in parents if (root / parent).is_dir()]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        sizes = list(pool.map(lambda name: _size(root / name), names, chunksize=256))
    _refuse_absent(path, root, [name for name, size in zip(names, sizes, strict=True) if size is None])
    files = [(name, size) for name, size in zip(names, sizes, strict=True) if size is not None]
    images = _image_files(root, files, torch.tensor(labels), _class_names(names, labels))
    write_index(root, digest, _kept(images), changed)
    return images


def _read_list(path: Path) -> tuple[list[str], list[int], str]:
    """Return names, labels and the SHA-256 of a list."""
    if not path.is_file():
        raise UserError(f"{path}: no such list; put it there, or set `data.train_list` and `data.test_list`")
    with _disk_errors(path):
        content = path.read_bytes()
    names, labels = [], []
    for number, line in enumerate(content.decode(errors="surrogateescape").splitlines(), start=1):
        if not line.strip():
            continue
        name, _, label = line.strip().rpartition(" ")
        if not name or not label.isdecimal():
            raise UserError(f"{path}: expected `path label` in line {number}, got {line[:80]!r}")
        names.append(name.strip().lstrip("/"))
        labels.append(int(label))
    if not names:
        raise UserError(f"{path}: expected lines `path label`, got none")
    if max(labels) >= max(len(labels), MANY):
        there = set(labels)
        absent = next(label for label in itertools.count() if label not in there)
        raise UserError(f"{path}: expected an image of each class, got none of class {absent}, and class {max(labels)}")
    return names, labels, hashlib.sha256(content).hexdigest()


def _size(path: Path) -> int | None:
    try:
        return os.stat(path).st_size
    except OSError:
        return None


def _refuse_absent(path: Path, root: Path, absent: Sequence[str]) -> None:
    if absent:
        more = f" and {len(absent) - SHOWN:,} more" if len(absent) > SHOWN else ""
        raise UserError(
            f"{path} names images that are not in {root}: {', '.join(absent[:SHOWN])}{more}; "
            "`data.folder` expected the folder that these paths start from"
        )


def _class_names(names: Sequence[str], labels: Sequence[int]) -> tuple[str, ...]:
    found = [""] * (max(labels) + 1)
    for name, label in zip(reversed(names), reversed(labels), strict=True):
        found[label] = os.path.basename(os.path.dirname(name))
    return tuple(found)


def _image_files(root: Path, files: Sequence[tuple[str, int]], labels: Tensor, classes: tuple[str, ...]) -> ImageFiles:
    encoded = [os.fsencode(name) for name, _ in files]
    ends = torch.tensor([len(name) for name in encoded]).cumsum(0)
    return ImageFiles(root, b"".join(encoded), ends, torch.tensor([size for _, size in files]), labels, classes)


def _kept(images: ImageFiles) -> Kept:
    return Kept(images.names, images.ends, images.sizes, images.labels, images.classes)


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    """Turn an error of the operating system into one line."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{error.filename or path} cannot be read ({reason(error)}); mend that") from error
