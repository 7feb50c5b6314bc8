"""Transformed teacher matching as a module. It ignores `labels`: all losses are called alike."""

from __future__ import annotations

from torch import Tensor

from limbeck import functional
from limbeck.functional._check import Reduction, check_positive
from limbeck.losses.base import DivergenceLoss


class TTMLoss(DivergenceLoss):
    """KL to a power of the target, the student at temperature 1; WTTM if `weighted`.

    Args:
        power: g above 0, one over the target's temperature.
        weighted: multiply each sample by the sum of the target's powers, which is largest for a flat target (WTTM).
        reduction: "none", "mean" or "sum".

    Gradient:
        To both logits; the weight of WTTM is detached.

    Example:
        >>> import torch
        >>> TTMLoss(power=0.25, weighted=True)(torch.tensor([[1.0, 0.0]]), torch.tensor([[4.0, 0.0]]))
        tensor(0.)

    Reference:
        arXiv 2402.11148; see `limbeck.functional.ttm_divergence`.
    """

    def __init__(self, *, power: float = 0.1, weighted: bool = False, reduction: Reduction = "mean") -> None:
        super().__init__(reduction)
        check_positive("power", power)
        self.power = power
        self.weighted = weighted

    def forward(self, logits: Tensor, target_logits: Tensor, labels: Tensor | None = None) -> Tensor:
        """Both logits (*, C); `labels` is ignored."""
        return functional.ttm_divergence(
            logits, target_logits, power=self.power, weighted=self.weighted, reduction=self.reduction
        )

    def extra_repr(self) -> str:
        """Return the options for `repr`."""
        return f"power={self.power}, weighted={self.weighted}"
