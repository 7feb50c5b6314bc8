"""Small CIFAR archives in the published formats, for tests: pickles in the opcodes of Python 2, or binary records.

`write_cifar` is what other tests use. The images of a class share a pattern, so a network can learn them.
"""

from __future__ import annotations

import io
import struct
import tarfile
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

CLASSES = {"cifar10": 10, "cifar100": 100}
FOLDERS = {
    ("cifar10", "python"): "cifar-10-batches-py",
    ("cifar10", "binary"): "cifar-10-batches-bin",
    ("cifar100", "python"): "cifar-100-python",
    ("cifar100", "binary"): "cifar-100-binary",
}
ARCHIVES = {
    ("cifar10", "python"): "cifar-10-python.tar.gz",
    ("cifar10", "binary"): "cifar-10-binary.tar.gz",
    ("cifar100", "python"): "cifar-100-python.tar.gz",
    ("cifar100", "binary"): "cifar-100-binary.tar.gz",
}
FORMS = {
    "tar": ("python", True),
    "folder": ("python", False),
    "binary": ("binary", False),
    "binary-tar": ("binary", True),
}
BATCHES = 5  # CIFAR-10's training images come in so many files


class Cifar(NamedTuple):
    """What an archive holds: images uint8 `(N, 3, 32, 32)`, labels int64 `(N,)`."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def write_cifar(
    folder: Path, name: str, *, train: int = 200, test: int = 100, seed: int = 0, form: str = "tar"
) -> Cifar:
    """Write a data set of `train` and `test` images into `folder` and return what was written.

    Args:
        folder: The data folder; made where it is missing.
        name: cifar10 or cifar100.
        train: Training images, as many of each class as can be; at least 5.
        test: Test images.
        seed: Of the pixels and of the order of the labels.
        form: "tar" (the archive that `limbeck data fetch` gets), "folder" (the same, extracted), "binary" (the binary
            version, extracted) or "binary-tar".
    """
    data = make_cifar(name, train=train, test=test, seed=seed)
    version, packed = FORMS[form]
    files = python_files(name, data) if version == "python" else binary_files(name, data)
    folder.mkdir(parents=True, exist_ok=True)
    if packed:
        write_tar(folder / ARCHIVES[name, version], {f"{FOLDERS[name, version]}/{key}": files[key] for key in files})
        return data
    inner = folder / FOLDERS[name, version]
    inner.mkdir(exist_ok=True)
    for key, content in files.items():
        (inner / key).write_bytes(content)
    return data


def make_cifar(name: str, *, train: int, test: int, seed: int = 0) -> Cifar:
    """Return images of a pattern per class and noise, and their labels in random order."""
    classes, generator = CLASSES[name], torch.Generator().manual_seed(seed)
    patterns = torch.randint(0, 200, (classes, 3, 32, 32), generator=generator, dtype=torch.uint8)

    def part(count: int) -> tuple[Tensor, Tensor]:
        labels = torch.arange(count)[torch.randperm(count, generator=generator)] % classes
        noise = torch.randint(0, 56, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)
        return patterns[labels] + noise, labels

    return Cifar(*part(train), *part(test))


def python_files(name: str, data: Cifar) -> dict[str, bytes]:
    """Return the files of the Python version: name -> pickle."""
    train, test = (data.train_images, data.train_labels), (data.test_images, data.test_labels)
    if name == "cifar100":
        meta = {"fine_label_names": [f"class{c}" for c in range(100)], "coarse_label_names": []}
        batches = {"meta": meta, "test": batch(name, *test), "train": batch(name, *train)}
    else:
        meta = {"num_cases_per_batch": 10000, "label_names": [f"class{c}" for c in range(10)], "num_vis": 3072}
        parts = zip(*(tensor.tensor_split(BATCHES) for tensor in train), strict=True)
        batches = {"batches.meta": meta, "test_batch": batch(name, *test)}
        batches |= {f"data_batch_{k}": batch(name, *part) for k, part in enumerate(parts, start=1)}
    return {key: python2_pickle(content) for key, content in batches.items()}


def batch(name: str, images: Tensor, labels: Tensor) -> dict[str, object]:
    """Return one batch as the dictionary that the authors pickled."""
    names = {"batch_label": "a batch", "filenames": [f"image_{i}.png" for i in range(len(labels))]}
    if name == "cifar10":
        return {**names, "labels": labels.tolist(), "data": images.flatten(1)}
    coarse = (labels // 5).tolist()
    return {**names, "fine_labels": labels.tolist(), "coarse_labels": coarse, "data": images.flatten(1)}


def binary_files(name: str, data: Cifar) -> dict[str, bytes]:
    """Return the files of the binary version: one record per image, the label (coarse, fine), then the pixels."""

    def records(images: Tensor, labels: Tensor) -> bytes:
        columns = [labels[:, None]] if name == "cifar10" else [labels[:, None] // 5, labels[:, None]]
        return torch.cat([*(column.to(torch.uint8) for column in columns), images.flatten(1)], dim=1).numpy().tobytes()

    train, test = (data.train_images, data.train_labels), (data.test_images, data.test_labels)
    if name == "cifar100":
        return {"train.bin": records(*train), "test.bin": records(*test)}
    parts = zip(*(tensor.tensor_split(BATCHES) for tensor in train), strict=True)
    files = {f"data_batch_{k}.bin": records(*part) for k, part in enumerate(parts, start=1)}
    return {**files, "test_batch.bin": records(*test)}


def write_tar(path: Path, files: dict[str, bytes]) -> None:
    """Write a .tar.gz of `files`, with an entry for each folder, as the authors' have."""
    with tarfile.open(path, "w:gz", compresslevel=1) as tar:
        for inner in dict.fromkeys(name.rpartition("/")[0] for name in files):
            entry = tarfile.TarInfo(inner)
            entry.type = tarfile.DIRTYPE
            tar.addfile(entry)
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))


def python2_pickle(content: object) -> bytes:
    """Pickle as Python 2 does with protocol 2: its `str` opcodes, and numpy's names of that time."""
    return b"\x80\x02" + _opcodes(content) + b"."


def _opcodes(value: object) -> bytes:
    match value:
        case dict():
            return b"}(" + b"".join(_opcodes(key) + _opcodes(value[key]) for key in value) + b"u"
        case list():
            return b"](" + b"".join(_opcodes(each) for each in value) + b"e"
        case int():
            return b"J" + struct.pack("<i", value)
        case str() | bytes():
            raw = value.encode() if isinstance(value, str) else value
            return (b"U" + struct.pack("<B", len(raw)) if len(raw) < 256 else b"T" + struct.pack("<i", len(raw))) + raw
        case Tensor():
            return _array_opcodes(value)
    raise TypeError(f"no opcodes for {type(value)}")


def _array_opcodes(tensor: Tensor) -> bytes:
    """Return numpy's pickle of a 2-d uint8 array: _reconstruct(ndarray, (0,), 'b') with a state put into it."""
    empty = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    kind = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    rows, columns = tensor.shape
    shape = _opcodes(rows) + _opcodes(columns) + b"\x86"
    return empty + b"(K\x01" + shape + kind + b"\x89" + _opcodes(tensor.numpy().tobytes()) + b"tb"
