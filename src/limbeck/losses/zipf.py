"""Zipf's label smoothing as a module."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from limbeck.functional._check import Reduction
from limbeck.functional.zipf import dense_votes, zipf_loss
from limbeck.losses.base import DivergenceLoss
from limbeck.losses.feature import Features


class ZipfLoss(DivergenceLoss):
    """KL to Zipf's law among the classes but the label's: `loss(logits, labels, features, head)`.

    The ranks come from votes: each position of the student's own last map votes for the class that the classifier
    gives it. It needs integer labels.

    Args:
        dense: rank by votes of the map; False ranks by the logits, and needs neither `features` nor `head`.
        upsample: at least 1; the map is enlarged so many times a side before the vote. Published 2 on CIFAR-100.
        reduction: "none", "mean" or "sum".

    Raises:
        ValueError: `upsample` below 1; at a call, no features, or a map that the classifier does not read.

    Gradient:
        To `logits`; votes are detached.

    Example:
        >>> import torch
        >>> logits, labels = torch.tensor([[4.0, 0.0, 0.0]]), torch.tensor([0])
        >>> maps, head = torch.ones(1, 2, 3, 3), torch.nn.Linear(2, 3)
        >>> ZipfLoss()(logits, labels, maps, head).shape
        torch.Size([])
        >>> bool(ZipfLoss(dense=False)(logits, labels).abs() < 1e-6)  # the others tie, and are even
        True

    Reference:
        arXiv 2207.12980; see `limbeck.functional.zipf.zipf_loss`.
    """

    def __init__(self, *, dense: bool = True, upsample: int = 1, reduction: Reduction = "mean") -> None:
        super().__init__(reduction)
        if upsample < 1:
            raise ValueError(f"`upsample` expected at least 1, got {upsample}")
        self.dense = dense
        self.upsample = upsample

    def forward(
        self, logits: Tensor, labels: Tensor, features: Features | None = None, head: nn.Linear | None = None
    ) -> Tensor:
        """Logits (N, C), `labels` (N,) integers, one or several maps (N, D, H, W), and the classifier that reads D."""
        votes = None
        if self.dense:
            if features is None or head is None:
                raise ValueError(
                    "`features` and `head` expected the last map and the classifier behind it, got None; "
                    "`dense=False` needs neither"
                )
            maps = [features] if isinstance(features, Tensor) else features
            votes = torch.stack([dense_votes(x, head.weight, head.bias, upsample=self.upsample) for x in maps]).sum(0)
        return zipf_loss(logits, labels, votes, reduction=self.reduction)

    def extra_repr(self) -> str:
        """Return the options for `repr`."""
        return f"dense={self.dense}, upsample={self.upsample}"
