"""Data sets by name, their splits, batches and augmentations. Every random draw is a function: see `draws`."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from limbeck.data import digits, mnist5k
from limbeck.data.augment import augment
from limbeck.data.loader import Batch, epoch_batches, steps_per_epoch
from limbeck.data.mixing import mix
from limbeck.data.sources import DataBundle, Source, fingerprint
from limbeck.data.splits import split

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from limbeck.config import DataOptions

__all__ = [
    "DATASETS",
    "Batch",
    "DataBundle",
    "Dataset",
    "Source",
    "augment",
    "build_data",
    "epoch_batches",
    "mix",
    "steps_per_epoch",
]


class Dataset(NamedTuple):
    """How a data set is read.

    Attributes:
        load: Returns all images, normalised, float32 `(N, C, H, W)`, and labels, int64 `(N,)`.
        black: Value of a black pixel after normalisation, one per channel.
    """

    load: Callable[[], tuple[Tensor, Tensor]]
    black: tuple[float, ...]


DATASETS: dict[str, Dataset] = {
    "digits": Dataset(digits.load, black=(-digits.MEAN / digits.STD,)),
    "mnist5k": Dataset(mnist5k.load, black=(-mnist5k.MEAN / mnist5k.STD,)),
}


def build_data(options: DataOptions) -> DataBundle:
    """Read a data set and split it.

    Args:
        options: Name, split, few labels and long tail; the augmentations are not read here.

    Returns:
        The three parts. Equal options give equal tensors.

    Raises:
        UserError: The package that ships the data is missing, or the split is impossible.

    Example:
        >>> from limbeck.config import DataOptions
        >>> data = build_data(DataOptions(labels_per_class=40, imbalance=20))
        >>> data.train.class_counts.tolist()
        [40, 29, 21, 15, 11, 8, 5, 4, 3, 2]
    """
    dataset = DATASETS[options.name]
    images, labels = dataset.load()
    train, validation, test = (Source(images[part], labels[part]) for part in split(labels, options))
    channels, height, width = images.shape[1:]
    return DataBundle(
        name=options.name,
        train=train,
        validation=validation,
        test=test,
        num_classes=int(labels.max()) + 1,
        image_shape=(channels, height, width),
        black=dataset.black,
        fingerprint=fingerprint(train, validation, test),
    )
