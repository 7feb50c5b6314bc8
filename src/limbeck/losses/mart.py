"""MART as a module."""

from __future__ import annotations

from torch import Tensor

from limbeck import functional
from limbeck.functional._check import Reduction, check_range
from limbeck.losses.base import DivergenceLoss


class MARTLoss(DivergenceLoss):
    """Misclassification-aware adversarial training: boosted cross-entropy and weighted KL. It needs integer labels.

    Args:
        kl_weight: lambda, at least 0; factor of the weighted KL.
        reduction: "none", "mean" or "sum".

    Gradient:
        To both logits; nothing is detached.

    Example:
        >>> import torch
        >>> MARTLoss()(torch.zeros(2, 2), torch.zeros(2, 2), torch.tensor([0, 1]))  # 2 ln 2
        tensor(1.3863)

    Reference:
        Wang et al., ICLR 2020, section 3; see `limbeck.functional.mart_loss`.
    """

    def __init__(self, *, kl_weight: float = 5.0, reduction: Reduction = "mean") -> None:
        super().__init__(reduction)
        check_range("kl_weight", kl_weight, 0.0, float("inf"))
        self.kl_weight = kl_weight

    def forward(self, logits: Tensor, target_logits: Tensor, labels: Tensor) -> Tensor:
        """Logits (*, C) of the adversarial and of the clean images; `labels` (*) integers."""
        return functional.mart_loss(logits, target_logits, labels, kl_weight=self.kl_weight, reduction=self.reduction)

    def extra_repr(self) -> str:
        """Return the options for `repr`."""
        return f"kl_weight={self.kl_weight}"
