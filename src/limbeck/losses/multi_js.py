"""The divergence of several views, as AugMix has it."""

from __future__ import annotations

from torch import Tensor

from limbeck import functional
from limbeck.functional._check import Reduction, check_positive
from limbeck.losses.base import DivergenceLoss


class MultiJSLoss(DivergenceLoss):
    """Jensen-Shannon divergence of several predictions of each sample; it is called with them alone.

    Args:
        temperature: T > 0, divides all logits.
        reduction: "none", "mean" or "sum".

    Gradient:
        To all views.

    Example:
        >>> import torch
        >>> MultiJSLoss()(100 * torch.eye(3).unsqueeze(1))  # ln 3
        tensor(1.0986)

    Reference:
        arXiv 1912.02781, Eq. 1; see `limbeck.functional.multi_js_divergence`.
    """

    def __init__(self, *, temperature: float = 1.0, reduction: Reduction = "mean") -> None:
        super().__init__(reduction)
        check_positive("temperature", temperature)
        self.temperature = temperature

    def forward(self, view_logits: Tensor) -> Tensor:
        """Logits (V, *, C) of V views of each sample."""
        return functional.multi_js_divergence(view_logits, temperature=self.temperature, reduction=self.reduction)

    def extra_repr(self) -> str:
        """Return the options for `repr`."""
        return f"temperature={self.temperature}"
