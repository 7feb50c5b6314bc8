"""The label's class against the rest, in log space: what the losses with hard labels share."""

from __future__ import annotations

import torch
from torch import Tensor

from limbeck.functional._check import check_integer_labels


def own_class(labels: Tensor, logits: Tensor, loss: str, way_out: str = "pass their `argmax(-1)`") -> Tensor:
    """(*, C), True at each sample's label; checks that the labels are integers in [0, C) of the shape (*)."""
    if not isinstance(labels, Tensor) or labels.is_floating_point():
        got = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
        raise TypeError(
            f"`labels` expected class indices (integers) of the shape {tuple(logits.shape[:-1])}, got {got}; {loss} "
            f"has no form for soft labels, so leave mixup and cutmix out or {way_out}"
        )
    check_integer_labels(labels, logits.shape[:-1], logits.shape[-1])
    return torch.arange(logits.shape[-1], device=logits.device) == labels.unsqueeze(-1)


def log_own(log_p: Tensor, own: Tensor) -> Tensor:
    """log p[y], (*)."""
    return log_p.masked_fill(~own, 0.0).sum(-1)


def log_all_others(log_p: Tensor, own: Tensor) -> Tensor:
    """log(1 - p[y]), (*): a sum over the other classes, exact where p[y] rounds to 1. -inf without another class."""
    others = log_p.masked_fill(own, -torch.inf)
    empty = torch.isneginf(others).all(-1, keepdim=True)  # logsumexp of nothing but -inf has a NaN gradient
    return others.masked_fill(empty, 0.0).logsumexp(-1).masked_fill(empty.squeeze(-1), -torch.inf)


def log_among_others(tempered: Tensor, own: Tensor) -> Tensor:
    """Log-softmax over the classes but y, (*, C) with -inf at y; -inf everywhere without another class."""
    others = tempered.masked_fill(own, -torch.inf)
    empty = torch.isneginf(others).all(-1, keepdim=True)
    return torch.log_softmax(others.masked_fill(empty, 0.0), -1).masked_fill(empty | own, -torch.inf)
