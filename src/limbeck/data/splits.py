"""Test, validation and training parts; few labels and long tails.

All members of a class are put in one order that depends on `split_seed` alone. The test part is its beginning, the
validation part what follows, and the training part is taken from its end. So the test part does not depend on the
other options; fewer labels are a part of more labels; and for a given number of labels, the training images do not
depend on how many are held out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from limbeck.draws import permutation
from limbeck.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from limbeck.config import DataOptions


class Split(NamedTuple):
    """Indices of the three parts, int64, each rising, no two parts sharing one."""

    train: Tensor
    validation: Tensor
    test: Tensor


def split(labels: Tensor, options: DataOptions) -> Split:
    """Split a data set, class by class.

    Args:
        labels: int64 `(N,)`; every class from 0 to the largest label occurs.
        options: `test_share`, `validation`, `split_seed`, `labels_per_class` and `imbalance` are read.

    Returns:
        The indices of the three parts; every class keeps at least one training image.

    Raises:
        UserError: A class would be left without a training image, or without so many as `labels_per_class`.
    """
    order = permutation(options.split_seed, 0, len(labels), "split")
    shuffled = labels[order]
    members = torch.split(order[shuffled.argsort(stable=True)], shuffled.bincount().tolist())  # each in that order
    test_counts = [round(options.test_share * len(m)) for m in members]
    held_counts = [round(options.validation * (len(m) - t)) for m, t in zip(members, test_counts, strict=True)]
    ends = [t + v for t, v in zip(test_counts, held_counts, strict=True)]
    train_counts = _train_counts([len(m) - end for m, end in zip(members, ends, strict=True)], options)
    return Split(
        train=_joined([m[len(m) - n :] for m, n in zip(members, train_counts, strict=True)]),
        validation=_joined([m[t:end] for m, t, end in zip(members, test_counts, ends, strict=True)]),
        test=_joined([m[:t] for m, t in zip(members, test_counts, strict=True)]),
    )


def long_tail(largest: int, num_classes: int, imbalance: float) -> list[int]:
    """Return class sizes that fall exponentially from class 0 to the last (Cui et al. 2019, arXiv 1901.05555).

    n_c = largest * imbalance ** (-c / (C - 1)) without its fraction, as in the public long-tailed CIFAR; at least 1.

    Args:
        largest: Size of class 0, at least 1.
        num_classes: C.
        imbalance: Size of the first class over that of the last, at least 1.

    Returns:
        C sizes, none larger than the one before.

    Example:
        >>> long_tail(100, 5, imbalance=100)
        [100, 31, 10, 3, 1]
    """
    last = max(num_classes - 1, 1)
    # A hair more, so that a size that is a whole number does not lose one to rounding.
    return [max(1, int(largest * imbalance ** (-c / last) * (1 + 1e-12))) for c in range(num_classes)]


def _train_counts(available: list[int], options: DataOptions) -> list[int]:
    """Return how many training images each class keeps of those that testing and validation leave."""
    fewest = min(available)
    if fewest < 1:
        raise UserError(
            f"`data.test` and `data.validation` expected to leave a training image of every class, "
            f"got none of class {available.index(fewest)}: lower one of them"
        )
    if options.labels_per_class is not None and options.labels_per_class > fewest:
        raise UserError(
            f"`data.labels_per_class` expected at most {fewest}, what testing and validation leave of "
            f"class {available.index(fewest)}, got {options.labels_per_class}: lower it, `data.test` or "
            f"`data.validation`"
        )
    if options.labels_per_class is None and options.imbalance == 1:
        return available
    # From the smallest class, so that the sizes have the exact ratio and fall even where the classes differ.
    return long_tail(options.labels_per_class or fewest, len(available), options.imbalance)


def _joined(parts: list[Tensor]) -> Tensor:
    return torch.cat(parts).sort().values
