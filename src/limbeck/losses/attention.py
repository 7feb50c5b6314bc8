"""Attention transfer as a module."""

from __future__ import annotations

from typing import get_args

from torch import Tensor

from limbeck.functional._check import Reduction, check_positive
from limbeck.functional._maps import check_word
from limbeck.functional.attention import AttentionMode, attention_transfer
from limbeck.losses.connected import total
from limbeck.losses.feature import FeatureLoss, Features


class ATLoss(FeatureLoss):
    """Attention transfer: distance between the directions of two attention maps, summed over the layers.

    Args:
        power: p > 0, of the entries in an attention map; published 2.
        mode: "code", the squared mean of the published numbers (weight 1000), or "paper", the norm.
        reduction: "none", "mean" or "sum".

    Gradient:
        To the student's maps; the target's are detached.

    Example:
        >>> import torch
        >>> maps = [torch.rand(2, 4, 8, 8), torch.rand(2, 8, 4, 4)]
        >>> ATLoss()(maps, maps)
        tensor(0.)

    Reference:
        arXiv 1612.03928; see `limbeck.functional.attention_transfer`.
    """

    def __init__(self, *, power: float = 2.0, mode: AttentionMode = "code", reduction: Reduction = "mean") -> None:
        super().__init__(reduction)
        check_positive("power", power)
        check_word("mode", mode, get_args(AttentionMode))
        self.power, self.mode = power, mode

    def forward(self, features: Features, target_features: Features) -> Tensor:
        """Maps (N, D, H, W), one or one per layer; D, H, W may differ between the networks."""
        return total(
            attention_transfer(feature, target, power=self.power, mode=self.mode, reduction=self.reduction)
            for feature, target in self.pairs(features, target_features)
        )

    def extra_repr(self) -> str:
        """Return the options for `repr`."""
        return f"power={self.power}, mode={self.mode!r}"
