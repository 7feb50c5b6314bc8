"""scikit-learn's digits: 1,797 grey images of 8x8 pixels, 10 classes (UCI optical recognition, test part; BSD)."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import torch

from limbeck.errors import missing_extra

if TYPE_CHECKING:
    from torch import Tensor

# Of all 1,797 images, in units of the largest pixel value (16). Constants, so that no split moves them.
MEAN, STD = 0.3053, 0.3760


@lru_cache(maxsize=1)
def _raw() -> tuple[Tensor, Tensor]:
    """Return pixels float32 `(N, 1, 8, 8)` in [0, 1] and labels; the file is parsed once in a process."""
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise missing_extra("scikit-learn", "data", "the data set `digits`") from error
    raw = load_digits()
    return torch.from_numpy(raw.images).float().unsqueeze(1) / 16, torch.from_numpy(raw.target).long()


def load() -> tuple[Tensor, Tensor]:
    """Return all images, normalised, and their labels.

    Returns:
        Images float32 `(1797, 1, 8, 8)`, labels int64 `(1797,)`.

    Raises:
        UserError: scikit-learn is not installed.
    """
    pixels, labels = _raw()
    return (pixels - MEAN) / STD, labels
