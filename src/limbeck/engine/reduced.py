"""Gradients over several ranks: one wrapper around the objective, whose parameters are all that trains."""

from __future__ import annotations

import inspect
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from limbeck.engine.ranks import Ranks
    from limbeck.objectives import Supervised

# A rank keeps its BatchNorms' statistics from forward to forward: `Ranks.share_buffers` averages them when it is time.
_NEW = "forward_sync_buffers" in inspect.signature(DistributedDataParallel.__init__).parameters  # from torch 2.13 on
OWN_BUFFERS: dict[str, Any] = {"forward_sync_buffers" if _NEW else "broadcast_buffers": False}


def across_ranks(objective: Supervised, place: Ranks) -> nn.Module:
    """Return what the loop calls: the objective, or a wrapper that averages its gradients over the ranks.

    The teachers are no parameters of the objective, and attacks call the student itself, so neither is reduced.
    """
    if place.world == 1:
        return objective
    # Without the student's logits in a term, its last layer gets no gradient.
    unused = all({"logits", "regions"}.isdisjoint(term.inputs) for term in objective.terms.values())
    return DistributedDataParallel(objective, find_unused_parameters=unused, **OWN_BUFFERS)


def unreduced(module: nn.Module) -> AbstractContextManager[None]:
    """Return a context in which gradients stay on their ranks, for all micro-batches but the last."""
    return module.no_sync() if isinstance(module, DistributedDataParallel) else nullcontext()
