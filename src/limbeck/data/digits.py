"""scikit-learn's digits: 1,797 grey images of 8x8 pixels, 10 classes (UCI optical recognition, test part; BSD)."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import torch

from limbeck.data.sources import Pixels
from limbeck.errors import missing_extra

if TYPE_CHECKING:
    from torch import Tensor

# Of all 1,797 images, in units of the largest pixel value. Constants, so that no split moves them.
PIXELS = Pixels(maximum=16, mean=(0.3053,), std=(0.3760,))


@lru_cache(maxsize=1)
def load() -> tuple[Tensor, Tensor]:
    """Return all images, and their labels; the file is parsed once in a process.

    Returns:
        Images uint8 `(1797, 1, 8, 8)` from 0 to 16, labels int64 `(1797,)`.

    Raises:
        UserError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise missing_extra("scikit-learn", "data", "the data set `digits`") from error
    raw = load_digits()
    return torch.from_numpy(raw.images).to(torch.uint8).unsqueeze(1), torch.from_numpy(raw.target).long()
