"""The mean squared difference of logits as a module. It ignores `labels`: all losses are called alike."""

from __future__ import annotations

from torch import Tensor

from limbeck import functional
from limbeck.functional._check import Reduction
from limbeck.losses.base import DivergenceLoss


class LogitMSELoss(DivergenceLoss):
    """Mean squared difference of the logits; LBGAT draws the robust network to its guide with it.

    Args:
        reduction: "none", "mean" or "sum".

    Gradient:
        To both logits; detach the target (or run the teacher under `no_grad`) in distillation.

    Example:
        >>> import torch
        >>> LogitMSELoss()(torch.tensor([[1.0, 3.0]]), torch.zeros(1, 2))
        tensor(5.)

    Reference:
        arXiv 2011.11164; see `limbeck.functional.logit_mse`.
    """

    def __init__(self, *, reduction: Reduction = "mean") -> None:
        super().__init__(reduction)

    def forward(self, logits: Tensor, target_logits: Tensor, labels: Tensor | None = None) -> Tensor:
        """Both logits (*, C); `labels` is ignored."""
        return functional.logit_mse(logits, target_logits, reduction=self.reduction)
