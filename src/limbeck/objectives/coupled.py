"""What one batch shares that lies in parts on several ranks: GKL's denominator, and samples that are related."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from limbeck.losses import DenseGKLLoss, GKLLoss

if TYPE_CHECKING:
    from collections.abc import Sequence

    from limbeck.config import Term
    from limbeck.losses import DivergenceLoss
    from limbeck.objectives.build import Facts


def shared_normalizer(loss: DivergenceLoss, target_logits: Tensor, labels: Tensor, facts: Facts) -> dict[str, Tensor]:
    """Return what a loss is called with beside its inputs, so that the ranks' losses add up to one batch's.

    A collective: all ranks call it for the same loss. Micro-batches are normalised one by one, as without ranks.

    Args:
        loss: Of a term.
        target_logits: `(N, C)` of this rank's part.
        labels: Of this rank's part.
        facts: Of the run.

    Returns:
        The argument `normalizer` where the loss divides by a sum over the batch and ranks share one, else nothing.
    """
    if facts.sum_over_ranks is None or not isinstance(loss, GKLLoss) or loss.normalizer != "weights":
        return {}
    weights = loss.denominator(target_logits, labels)
    samples = weights.new_tensor(float(len(labels)))
    if isinstance(loss, DenseGKLLoss):
        samples = (labels != loss.ignore_index).sum().to(weights)  # each pixel is one
    total = facts.sum_over_ranks(torch.stack([weights, samples]))
    return {"normalizer": total[0] * samples.clamp_min(1) / total[1].clamp_min(1)}


def whole_batch(term: Term, inputs: Sequence[object], samples: int, facts: Facts) -> list[object]:
    """Return what a loss that relates samples is called with: the inputs of all ranks where the run gathers them.

    A collective: all ranks call it for the same term. Each then has the value of the whole batch, with the gradient of
    its own part.

    Args:
        term: Of the loss.
        inputs: Tensors whose first axis are the samples, tuples of them, and what else the loss takes.
        samples: Of this rank's part.
        facts: Of the run.
    """
    if facts.gather is None or not term.relates_samples:
        return list(inputs)
    gather = facts.gather(samples)

    def gathered(value: object) -> object:
        if isinstance(value, tuple):
            return tuple(map(gathered, value))
        return gather(value) if isinstance(value, Tensor) else value

    return [gathered(value) for value in inputs]
