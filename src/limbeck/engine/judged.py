"""A task's judge at work: in eval mode, without a graph, on metrics that are finite."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from limbeck.errors import Diverged
from limbeck.headlines import headline_of
from limbeck.measures import JUDGES

if TYPE_CHECKING:
    from torch import nn

    from limbeck.data import DataBundle
    from limbeck.engine.ranks import Ranks
    from limbeck.measures import Verdict


@torch.no_grad()
def judge(task: str, model: nn.Module, part: Any, data: DataBundle, place: Ranks) -> Verdict:
    """Return what a task's judge finds of a network, whose mode is as before afterwards.

    Args:
        task: One of `JUDGES`.
        model: The network.
        part: A part of the data that is not empty.
        data: The data.
        place: Several ranks share the part, and all get the verdict.

    Raises:
        Diverged: The measure that the task goes by is not finite.
    """
    training = model.training
    model.eval()
    try:
        verdict = JUDGES[task](model, part, data, place)
    finally:
        model.train(training)
    key = headline_of(task).main.key
    if not math.isfinite(verdict.metrics[key]):
        raise Diverged(f"`{key}` is not finite in evaluation: lower `optimizer.learning_rate`")
    return verdict
