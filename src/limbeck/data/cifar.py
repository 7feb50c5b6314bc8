"""CIFAR-10 and CIFAR-100 from the authors' archives: the python or the binary version, packed or extracted.

Krizhevsky 2009, Learning Multiple Layers of Features from Tiny Images. Nothing is extracted to the disk, and no pickle
is run: see `pickles`.
"""

from __future__ import annotations

import gzip
import io
import tarfile
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from limbeck.data.pickles import PickledArray, Refused, load_dictionary
from limbeck.data.sources import Pixels
from limbeck.data_files import PART, PUBLISHED, Found, Layout, fetch_command, find, megabytes
from limbeck.errors import UserError, reason

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import IO

CLASSES = {"cifar10": 10, "cifar100": 100}
# The constants of the distillation literature, of the training images.
PIXELS = {
    "cifar10": Pixels(maximum=255, mean=(0.4914, 0.4822, 0.4465), std=(0.2471, 0.2435, 0.2616)),
    "cifar100": Pixels(maximum=255, mean=(0.5071, 0.4867, 0.4408), std=(0.2675, 0.2565, 0.2761)),
}
IMAGE_SHAPE = (3, 32, 32)
IMAGE_BYTES = 3 * 32 * 32
LABEL_KEYS = {"cifar10": "labels", "cifar100": "fine_labels"}  # of a pickled batch
LABEL_BYTES = {"cifar10": 1, "cifar100": 2}  # that open a binary record; the last of them is the (fine) label
CHUNK = 1 << 20
LARGEST = 1 << 28  # bytes of an archive, unpacked; the published ones have 190 MB


class CifarImages(NamedTuple):
    """A data set with test images of its own.

    Attributes:
        train_images: uint8 `(N, 3, 32, 32)`; red, green, blue.
        train_labels: int64 `(N,)`; the fine labels of CIFAR-100.
        test_images: uint8 `(M, 3, 32, 32)`.
        test_labels: int64 `(M,)`.
    """

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def load(name: str, folder: Path) -> CifarImages:
    """Read a data set; it is read once in a process, so its tensors are not to be written to.

    Args:
        name: "cifar10" or "cifar100".
        folder: Where the archive lies, or what was in it; of the python or the binary version.

    Returns:
        Images and labels, in the order of the files.

    Raises:
        UserError: It is not there, incomplete or damaged, or asks for code to be run.
    """
    found = find(name, folder)
    if found is None:
        raise UserError(_not_there(name, folder))
    return _read(name, Found(found.layout, found.path.resolve()))


@lru_cache(maxsize=1)
def _read(name: str, found: Found) -> CifarImages:
    layout, path = found
    batches: dict[str, tuple[Tensor, Tensor]] = {}
    with _named(path, name):
        for file_name, file in _open_files(layout, path):
            with _named(path / file_name, name):
                batches[file_name] = _read_batch(name, file, pickled=layout is PUBLISHED[name].python)
    if missing := [file_name for file_name in layout.train + layout.test if file_name not in batches]:
        raise UserError(f"{path} lacks {_listed(missing)} of {PUBLISHED[name].title}; {_way_out(path, name)}")
    images = CifarImages(*_joined(batches, layout.train), *_joined(batches, layout.test))
    if len(seen := set(images.train_labels.tolist())) < CLASSES[name]:
        raise UserError(
            f"{path} expected training images of all {CLASSES[name]} classes, got {len(seen)}; {_way_out(path, name)}"
        )
    return images


def _joined(batches: dict[str, tuple[Tensor, Tensor]], names: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    """Join batches, and take them out of the dictionary so that no image is in memory twice for long."""
    parts = [batches.pop(name) for name in names]
    if len(parts) == 1:
        return parts[0]
    return torch.cat([images for images, _ in parts]), torch.cat([labels for _, labels in parts])


# --- files ---


def _open_files(layout: Layout, path: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """Yield the names and contents of the files of a data set that there are, in any order."""
    names = layout.train + layout.test
    if path.is_file():
        yield from _open_members(path, {f"{layout.folder}/{name}": name for name in names})
        return
    for name in names:
        if (path / name).is_file():
            with (path / name).open("rb") as file:
                yield name, file


def _open_members(path: Path, names: dict[str, str]) -> Iterator[tuple[str, IO[bytes]]]:
    """Yield those files of a .tar.gz that have exactly these names, in one pass and in memory."""
    with _Unpacked(path) as stream, tarfile.open(fileobj=stream, mode="r:") as archive:
        for member in archive:
            name = names.get(member.name.removeprefix("./"))
            if name is not None and member.isreg() and (file := archive.extractfile(member)):
                yield name, file
        while stream.read(CHUNK):  # gzip's own checksum stands at the end
            pass


class _Unpacked(gzip.GzipFile):
    """What is in a .gz, up to `LARGEST` bytes: ten megabytes of zeros packed may be ten gigabytes in memory."""

    def read(self, size: int | None = -1) -> bytes:
        self._refuse_beyond(self.tell() + (size or 0))
        return super().read(size)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._refuse_beyond(offset)
        return super().seek(offset, whence)

    def _refuse_beyond(self, place: int) -> None:
        if place > LARGEST + CHUNK:  # what is read at the end may go beyond the end
            raise _Unexpected(f"expected at most {LARGEST:,} bytes when unpacked, got more")


# --- batches ---


def _read_batch(name: str, file: IO[bytes], *, pickled: bool) -> tuple[Tensor, Tensor]:
    """Return images and labels of one file.

    Raises:
        _Unexpected: They are not images and labels of this data set.
    """
    size = file.seek(0, io.SEEK_END)
    if size > LARGEST:
        raise _Unexpected(f"expected at most {LARGEST:,} bytes, got {size:,}")
    file.seek(0)
    images, labels = _from_pickle(name, file) if pickled else _from_records(name, file)
    if len(images) != len(labels):
        raise _Unexpected(f"expected a label for each image, got {len(images)} images and {len(labels)} labels")
    last = CLASSES[name] - 1
    if wrong := labels[(labels < 0) | (labels > last)].tolist():
        raise _Unexpected(f"expected labels from 0 to {last}, got {wrong[0]}")
    return images, labels


def _from_pickle(name: str, file: IO[bytes]) -> tuple[Tensor, Tensor]:
    batch = load_dictionary(file)
    key = LABEL_KEYS[name]
    if key not in batch or "data" not in batch:
        raise _Unexpected(f"expected `data` and `{key}`, got {_listed(sorted(batch))}")
    labels = batch[key]
    if not isinstance(labels, list) or not all(type(label) is int for label in labels):
        raise _Unexpected(f"expected `{key}` to be a list of integers")
    return _images(batch["data"]), torch.tensor(labels, dtype=torch.int64)


def _images(array: Any) -> Tensor:
    if not isinstance(array, PickledArray):
        raise _Unexpected(f"expected `data` to be an array, got {type(array).__name__}")
    rows = len(array.data) // IMAGE_BYTES
    if (array.kind, array.shape, array.fortran) != ("u1", (rows, IMAGE_BYTES), False) or not rows:
        raise _Unexpected(
            f"expected `data` of one byte each and shape (N, {IMAGE_BYTES}), got {array.kind} {array.shape}"
        )
    return torch.frombuffer(bytearray(array.data), dtype=torch.uint8).view(rows, *IMAGE_SHAPE)


def _from_records(name: str, file: IO[bytes]) -> tuple[Tensor, Tensor]:
    content, opening = bytearray(file.read()), LABEL_BYTES[name]
    if not content or len(content) % (opening + IMAGE_BYTES):
        raise _Unexpected(f"expected records of {opening + IMAGE_BYTES} bytes, got {len(content)} bytes")
    records = torch.frombuffer(content, dtype=torch.uint8).view(-1, opening + IMAGE_BYTES)
    return records[:, opening:].contiguous().view(-1, *IMAGE_SHAPE), records[:, opening - 1].long()


# --- what is said when it goes wrong ---


class _Unexpected(Exception):
    """A file that can be read is not what was expected."""


@contextmanager
def _named(path: Path, name: str) -> Iterator[None]:
    """Turn what goes wrong while a file is read into one line; pickle, gzip and tarfile raise almost anything."""
    try:
        yield
    except (UserError, MemoryError):
        raise
    except _Unexpected as error:
        raise UserError(f"{path}: {error}; {_way_out(path, name)}") from None
    except Refused as error:
        raise UserError(
            f"{path} asks for {error}, which images never need: refused, and nothing was run; "
            f"{_published_files(path, name)}"
        ) from None
    except Exception as error:
        if isinstance(error, OSError) and error.errno:  # the operating system's, such as no permission
            raise UserError(f"{error.filename or path} cannot be read ({reason(error)})") from error
        raise UserError(f"{path} is damaged or cut off ({error}); {_way_out(path, name)}") from error


def _way_out(path: Path, name: str) -> str:
    """Return how to come by good files: those of an archive again, or the archive again."""
    archive = next((parent for parent in (path, *path.parents) if parent.name.endswith(".tar.gz")), None)
    if archive is None:
        return "extract its archive again"
    return f"delete {archive} and run: {fetch_command(name, archive.parent)}"


def _published_files(path: Path, name: str) -> str:
    """Return how to get the published files in the place of foreign ones, which a download would take for them."""
    foreign = next((parent for parent in (path, *path.parents) if parent.name.endswith(".tar.gz")), path)
    if path.parent.name == PUBLISHED[name].python.folder:  # never a data folder, which may hold more than this
        foreign = path.parent
    return f"delete {foreign} and run: {fetch_command(name, foreign.parent)}"


def _not_there(name: str, folder: Path) -> str:
    published = PUBLISHED[name]
    layout = published.python
    get = f"{fetch_command(name, folder)} (downloads {megabytes(published.size)})"
    if folder.is_file():
        return f"`data.folder` expected the folder that holds {layout.archive}, got the file {folder}"
    if not folder.exists():
        return f"the data folder {folder} of {published.title} does not exist; name another in `data.folder`, or: {get}"
    if (folder / (layout.archive + PART)).is_file():
        return f"{folder} holds only a part of {layout.archive}; to go on: {get}"
    others = [other for other in PUBLISHED if find(other, folder)]
    seen = f" (it holds what `data.name: {others[0]}` reads)" if others else ""
    return f"{folder} holds no {published.title}: expected {layout.archive} or {layout.folder}/{seen}; get it: {get}"


def _listed(words: list[str]) -> str:
    return ", ".join(f"`{word}`" for word in words)
