"""A reader of the files of `torch.save` that runs nothing: every object but tensors and containers is left out.

A pickle names functions and has them called. Here three names of torch make tensors, one makes a dictionary, and any
other stands for a class that takes what it is given and does nothing. This is not `torch.load`, whose safe mode
refuses the files of research code, where options and optimizers lie beside the weights.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from typing import Any, BinaryIO

import torch
from torch import Tensor

MAGIC_NUMBER = 0x1950A86A20F9469CFC6C  # begins a file in the format before torch 1.6
ZIP_START = b"PK\x03\x04"

DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


class Unreadable(Exception):
    """The content is no file of `torch.save`, or it is cut short or damaged."""


def read_torch_file(content: bytes) -> Any:
    """Return what `torch.save` wrote, tensors on the CPU, with a `LeftOut` for every object of any other class.

    Args:
        content: The whole file, in the format of today (zip) or that before torch 1.6.

    Raises:
        Unreadable: It is neither, or it is damaged; the zip format has a checksum of each tensor.
    """
    try:
        return _read_zip(content) if content.startswith(ZIP_START) else _read_legacy(content)
    except Exception as error:  # damaged pickles raise whatever the wrong bytes lead to
        raise Unreadable(f"{type(error).__name__}: {error}") from error


class LeftOut:
    """In place of an object of any class: takes arguments, state and items, calls nothing and keeps nothing."""

    def __init__(self, *args: object, **options: object) -> None: ...

    def __call__(self, *args: object, **options: object) -> LeftOut:
        """Take arguments."""
        return self

    def __setstate__(self, state: object) -> None: ...

    def __setitem__(self, key: object, value: object) -> None: ...

    def append(self, item: object) -> None:
        """Take an item of a list."""

    def extend(self, items: object) -> None:
        """Take items of a list."""

    def add(self, item: object) -> None:
        """Take an item of a set."""


def _tensor(storage: Tensor, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: object) -> Tensor:
    return storage.as_strided(shape, strides, offset)  # raises where a damaged shape leaves the storage


def _parameter(tensor: Tensor, *_: object) -> Tensor:
    return tensor


HARMLESS = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    **{("torch", storage): dtype for storage, dtype in DTYPES.items()},
}


class _Unpickler(pickle._Unpickler):
    """Makes tensors of storages, which are flat tensors here, and leaves all else out.

    It is the unpickler in Python: the one in C makes room for 2³¹ memos, 34 GB, when a file of ten bytes asks for it.

    Args:
        file: The pickle.
        room: How many bytes all storages together may have.
    """

    def __init__(self, file: BinaryIO, room: int = 0) -> None:
        super().__init__(file, encoding="utf-8")
        self._room = room

    def find_class(self, module: str, name: str) -> Any:
        """Return what a name in the pickle stands for; the class of a storage stands for its dtype."""
        return HARMLESS.get((module, name), LeftOut)

    def persistent_load(self, identity: Any) -> Any:
        """Return the storage that a tensor of the pickle refers to; other references are to classes of modules."""
        kind, *where = identity
        if kind != "storage":
            return LeftOut
        dtype, key, _, size, *view = where
        storage = self.storage(dtype, key, size)
        if view and view[0] is not None:
            _, start, length = view[0]
            return storage[start : start + length]
        return storage

    def storage(self, dtype: torch.dtype, key: str, size: int) -> Tensor:
        """Return a storage of the file, flat."""
        raise pickle.UnpicklingError("a storage where none is expected")

    def take_room(self, count: int) -> None:
        """Note that a storage has so many bytes; raise EOFError if the file cannot hold them. Nothing is compressed."""
        if count > self._room:
            raise EOFError(f"a storage of {count} bytes where at most {self._room} are left in the file")
        self._room -= count


class _ZipUnpickler(_Unpickler):
    """Reads each storage from a record of its own, whose checksum `zipfile` compares."""

    def __init__(self, archive: zipfile.ZipFile, file_size: int) -> None:
        pickled = next(info for info in archive.infolist() if info.filename.endswith("/data.pkl"))
        if pickled.file_size > file_size:
            raise EOFError(f"a pickle of {pickled.file_size} bytes in a file of {file_size}")
        super().__init__(io.BytesIO(archive.read(pickled)), file_size)
        self._archive = archive
        self._folder = pickled.filename.removesuffix("data.pkl")
        self._storages: dict[str, Tensor] = {}

    def storage(self, dtype: torch.dtype, key: str, size: int) -> Tensor:
        if key not in self._storages:
            record = self._archive.getinfo(f"{self._folder}data/{key}")
            self.take_room(record.file_size)
            self._storages[key] = _flat(self._archive.read(record), dtype, size)
        return self._storages[key]


def _read_zip(content: bytes) -> Any:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return _ZipUnpickler(archive, len(content)).load()


class _LegacyUnpickler(_Unpickler):
    """Makes room for each storage; their bytes follow the pickle."""

    def __init__(self, file: BinaryIO, file_size: int) -> None:
        super().__init__(file, file_size)
        self.storages: dict[str, Tensor] = {}

    def storage(self, dtype: torch.dtype, key: str, size: int) -> Tensor:
        if key not in self.storages:
            self.take_room(size * dtype.itemsize)
            self.storages[key] = torch.empty(size, dtype=dtype)
        return self.storages[key]


def _read_legacy(content: bytes) -> Any:
    """Read magic number, version, system, the pickle, the storages' keys, and each one's size and bytes."""
    file = io.BytesIO(content)
    if _Unpickler(file).load() != MAGIC_NUMBER:
        raise pickle.UnpicklingError("no magic number")
    _Unpickler(file).load()
    _Unpickler(file).load()
    unpickler = _LegacyUnpickler(file, len(content))
    result = unpickler.load()
    for key in _Unpickler(file).load():
        file.seek(8, io.SEEK_CUR)  # the storage's size once more
        storage = unpickler.storages[key]
        storage.copy_(_flat(file.read(storage.nbytes), storage.dtype, len(storage)))
    return result


def _flat(data: bytes, dtype: torch.dtype, size: int) -> Tensor:
    if size == 0:
        return torch.empty(0, dtype=dtype)  # torch.frombuffer refuses an empty buffer
    return torch.frombuffer(bytearray(data), dtype=dtype, count=size)
