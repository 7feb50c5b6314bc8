"""What a BatchNorm takes for its batch in a run: the images of a rank, parts of them, or those of all ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from limbeck.engine import ranks
from limbeck.errors import UserError
from limbeck.models.batch_norm import synchronise, use_ghost_batches

if TYPE_CHECKING:
    from torch import nn

    from limbeck.config import Recipe, TrainOptions


def set_batch_norm(module: nn.Module, train: TrainOptions) -> nn.Module:
    """Give a module on its device the BatchNorm that the options say, in place; state and names stay.

    Raises:
        UserError: The module has one that cannot be replaced.
    """
    try:
        if train.ghost_batch is not None:
            return use_ghost_batches(module, train.ghost_batch)
        if train.batch_norm == "synchronised" and ranks.here().world > 1:
            return synchronise(module)
    except ValueError as error:
        raise UserError(f"`train`: {error}") from error
    return module


def normalised_sizes(recipe: Recipe, samples: int, world: int) -> set[int]:
    """Return how many samples a BatchNorm normalises together, of all sizes that occur in an epoch.

    >>> from limbeck.config import Recipe, TrainOptions
    >>> recipe = Recipe(train=TrainOptions(batch_size=32, accumulate=2))
    >>> sorted(normalised_sizes(recipe, samples=97, world=1)), sorted(normalised_sizes(recipe, samples=96, world=2))
    ([1, 16], [8])
    """
    train = recipe.train
    sizes = {train.batch_size}
    if not (train.drop_last or recipe.data.full_batches):
        sizes.add(samples % train.batch_size)
    if world > 1:
        if train.batch_norm == "synchronised":
            return sizes - {0}
        sizes = {part for size in sizes for part in (size // world, -(-size // world))}
        sizes = {part for size in sizes for part in (size // train.accumulate, -(-size // train.accumulate))}
    else:
        sizes = _cut(sizes, train.batch_size // train.accumulate)
    return (_cut(sizes, train.ghost_batch) if train.ghost_batch else sizes) - {0}


def _cut(sizes: set[int], most: int) -> set[int]:
    """Return the sizes of parts of at most so many."""
    return {part for size in sizes for part in ((most, size % most) if size > most else (size,))}
