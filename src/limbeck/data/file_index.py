"""The index of files that were found in a folder: kept in the cache folder, in force as long as no folder changed."""

from __future__ import annotations

import hashlib
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

from limbeck.data_files import cache_folder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

FORMAT = 1
SETTLED = 2 * 10**9  # nanoseconds: a folder that changed a moment ago may change again without another time


class Kept(NamedTuple):
    """What an index holds.

    Attributes:
        names: All names, one after another.
        ends: Where each name ends, int64 `(N,)`.
        sizes: int64 `(N,)`.
        labels: int64 `(N,)`.
        classes: Names of the classes, by label.
    """

    names: bytes
    ends: Tensor
    sizes: Tensor
    labels: Tensor
    classes: tuple[str, ...]


def kept_index(root: Path, what: str) -> Kept | None:
    """Return what was found before, unless a folder has changed since; None too where there is no readable index.

    Args:
        root: Folder that the names start from.
        what: Which index of that folder.
    """
    try:
        content = torch.load(_path(root, what), weights_only=True)
        if content["format"] != FORMAT:
            return None
        folders = zip(_split(content["folders"]), content["changed"].tolist(), strict=True)
        if any(os.stat(root / folder).st_mtime_ns != changed for folder, changed in folders):
            return None
        return Kept(
            names=_bytes(content["names"]),
            ends=content["ends"],
            sizes=content["sizes"],
            labels=content["labels"],
            classes=tuple(_split(content["classes"])),
        )
    except Exception:  # damaged, of another version, folders gone: it is only an index, and the folder is read again
        return None


def write_index(root: Path, what: str, found: Kept, folders: Sequence[tuple[str, int]]) -> None:
    """Write an index, whole or not at all; where that is not possible, the folder is looked through again next time.

    Args:
        root: See `kept_index`.
        what: See `kept_index`.
        found: What was found.
        folders: Names of all folders that were looked into, from `root`, and their times of change in nanoseconds.
    """
    if max(changed for _, changed in folders) > time.time_ns() - SETTLED:
        return
    content = {
        "format": FORMAT,
        "names": _tensor(found.names),
        "ends": found.ends,
        "sizes": found.sizes,
        "labels": found.labels,
        "classes": _joined(found.classes),
        "folders": _joined([name for name, _ in folders]),
        "changed": torch.tensor([changed for _, changed in folders]),
    }
    path = _path(root, what)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")  # ranks may write at the same time
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(content, temporary)
        temporary.replace(path)
    except (OSError, RuntimeError):
        with suppress(OSError):
            temporary.unlink()


def _path(root: Path, what: str) -> Path:
    digest = hashlib.sha256(f"{root.resolve()}\0{what}".encode(errors="surrogateescape")).hexdigest()
    return cache_folder() / "index" / f"{digest[:32]}.pt"


def _tensor(content: bytes) -> Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8) if content else torch.empty(0, dtype=torch.uint8)


def _bytes(tensor: Tensor) -> bytes:
    return tensor.numpy().tobytes()


def _joined(names: Sequence[str]) -> Tensor:
    return _tensor(b"\0".join(os.fsencode(name) for name in names))


def _split(tensor: Tensor) -> list[str]:
    return [os.fsdecode(name) for name in _bytes(tensor).split(b"\0")]
