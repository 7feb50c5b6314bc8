"""Classes in groups by how many training images they have: many, medium, few."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

GROUPS = ("many", "medium", "few")


def class_groups(class_counts: Tensor, bounds: tuple[int, int] | None) -> dict[str, Tensor]:
    """Return the classes of each group, as in the tables of ImageNet-LT (Liu et al. 2019, arXiv 1904.05160).

    Args:
        class_counts: Training images of each class, `(C,)`.
        bounds: A class with more images than the first is one of many, with fewer than the second one of few; the
            others, both bounds included, are medium. None makes no groups.

    Returns:
        Group -> its classes, int64, rising; groups without a class are left out.

    Example:
        >>> import torch
        >>> class_groups(torch.tensor([300, 100, 20, 19]), (100, 20))
        {'many': tensor([0]), 'medium': tensor([1, 2]), 'few': tensor([3])}
    """
    if bounds is None:
        return {}
    many, few = class_counts > bounds[0], class_counts < bounds[1]
    classes = {name: flags.nonzero()[:, 0] for name, flags in zip(GROUPS, (many, ~many & ~few, few), strict=True)}
    return {name: members for name, members in classes.items() if len(members)}
