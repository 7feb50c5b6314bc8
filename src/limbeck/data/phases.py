"""Classes numbered anew, and the part of a data set that a phase of class-incremental learning sees."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from limbeck.data.sources import Source
from limbeck.draws import permutation
from limbeck.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from limbeck.config import DataOptions, PhaseOptions


def class_order(options: DataOptions, classes: int) -> list[int]:
    """Return the classes of a data set in the order that the options ask for.

    Args:
        options: `class_order` and `split_seed` are read.
        classes: C, how many there are.

    Raises:
        UserError: The order that is given is none of these classes.

    Example:
        >>> from limbeck.config import DataOptions
        >>> class_order(DataOptions(class_order=(2, 0, 1)), 3)
        [2, 0, 1]
    """
    if options.class_order is None:
        return list(range(classes))
    if options.class_order == "drawn":
        return [int(each) for each in permutation(options.split_seed, 0, classes, "class order")]
    if sorted(options.class_order) != list(range(classes)):
        raise UserError(
            f"`data.class_order` expected each of the classes 0 to {classes - 1} of `{options.name}` once, "
            f"got {list(options.class_order)}"
        )
    return list(options.class_order)


def in_order(parts: Sequence[Source], options: DataOptions) -> list[Source]:
    """Return the parts of a data set with its classes numbered as `class_order` says: the first of them is 0."""
    if options.class_order is None:
        return list(parts)
    classes = int(torch.cat([part.labels for part in parts]).max()) + 1
    number = torch.tensor(class_order(options, classes)).argsort()
    return [Source(part.images, number[part.labels], part.pixels) for part in parts]


def of_phase(parts: Sequence[Source], phase: PhaseOptions | None) -> list[Source]:
    """Return what a phase sees of training, validation and test images; all of them without one.

    Args:
        parts: Training, validation and test images, all classes.
        phase: Trains on its new classes and on the first images of each old one that it keeps; what is validated and
            tested are all classes seen so far.

    Raises:
        UserError: There are fewer classes than the phase has seen.
    """
    if phase is None:
        return list(parts)
    classes = int(torch.cat([part.labels for part in parts]).max()) + 1
    if phase.seen > classes:
        raise UserError(f"`data.phase.seen` expected at most the {classes} classes of the data, got {phase.seen}")
    train, *held_out = parts
    learned = (train.labels >= phase.old) & (train.labels < phase.seen)
    for label in range(phase.old):
        learned[(train.labels == label).nonzero().squeeze(1)[: phase.memory_per_class]] = True
    return [_only(train, learned), *(_only(part, part.labels < phase.seen) for part in held_out)]


def _only(part: Source, which: Tensor) -> Source:
    return Source(part.images[which], part.labels[which], part.pixels)
