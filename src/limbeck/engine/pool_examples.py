"""Some unlabelled images as a finished run saw them, for its picture."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from limbeck.engine.loop import Trainer

SHOWN = 24


@torch.no_grad()
def pool_examples(trainer: Trainer) -> dict[str, Tensor]:
    """Return weak and strong views of the last epoch, and what the reported network says of the weak ones.

    Args:
        trainer: A finished run of the task semi_supervised; a run whose loader has no such views has none to show.
    """
    batch = next(iter(trainer.stream.batches(trainer.epochs)))
    if len(batch.views) != 2:
        return {}
    weak, strong = (view[:SHOWN] for view in batch.views)
    network = trainer.objective.reported
    training = network.training
    probabilities = network.eval()(weak).float().softmax(-1)
    network.train(training)
    return {"weak_views": weak, "strong_views": strong, "weak_probabilities": probabilities}
