"""Test images of ImageNet's classes from elsewhere: ImageNet-V2, -Sketch and -R."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from limbeck.data.image_files import class_folders
from limbeck.data.stored import StoredSource
from limbeck.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from limbeck.data.image_files import ImageFiles, Told


class ShiftedTest(NamedTuple):
    """Test images of some or all of a data set's classes.

    Attributes:
        samples: The images; their labels are positions among `classes`.
        classes: Which classes there are, int64 `(K,)`, rising: logits are compared among these alone.
    """

    samples: StoredSource
    classes: Tensor

    def logits_of(self, logits: Tensor) -> Tensor:
        """Return the logits `(N, K)` of these classes out of those of all, `(N, C)`."""
        return logits[:, self.classes.to(logits.device)]


def open_shifted(
    folders: Mapping[str, Path], classes: Sequence[str], like: StoredSource, told: Told
) -> dict[str, ShiftedTest]:
    """Return shifted tests by name, each from a folder of class folders.

    A folder has the name of its class, as ImageNet-R's and -Sketch's have, or its number, as ImageNet-V2's have.

    Args:
        folders: Name -> folder.
        classes: Names of the data set's classes, by label.
        like: How images are seen and decoded.
        told: See `class_folders`.

    Raises:
        UserError: A folder is missing or empty, or a class of it is none of the data set's.
    """
    return {name: _open(name, class_folders(folder, told), classes, like) for name, folder in folders.items()}


def _open(name: str, files: ImageFiles, classes: Sequence[str], like: StoredSource) -> ShiftedTest:
    labels = {each: label for label, each in enumerate(classes)}
    if not labels.keys() & set(files.classes) and all(each.isdecimal() for each in files.classes):
        labels = {str(label): label for label in range(len(classes))}
    if unknown := [each for each in files.classes if each not in labels]:
        raise UserError(
            f"{files.root}: `data.shifted_tests.{name}` expected folders of the {len(classes)} classes of the training "
            f"images, got {unknown[0]!r}, which is none of them"
        )
    there = torch.tensor([labels[each] for each in files.classes])
    order = there.sort().values
    position = torch.searchsorted(order, there)[files.labels]
    source = StoredSource(
        files, torch.arange(len(files)), position, like.pixels, like.view, like.workers, torch.device("cpu")
    )
    return ShiftedTest(source, order)
