"""Decoupled knowledge distillation as a module."""

from __future__ import annotations

from torch import Tensor

from limbeck import functional
from limbeck.functional._check import Reduction, check_range
from limbeck.losses.base import TemperedLoss


class DKDLoss(TemperedLoss):
    """Decoupled distillation: the label against the rest, and the rest among themselves. It needs integer labels.

    Args:
        target_weight: alpha, at least 0; factor of the label's class against the rest (TCKD).
        rest_weight: beta, at least 0; factor of the rest among themselves (NCKD).
        temperature: T > 0, divides both logits.
        scale_by_t2: multiply by T squared, as published.
        reduction: "none", "mean" or "sum".

    Gradient:
        To both logits; detach the target (or run the teacher under `no_grad`) in distillation.

    Example:
        >>> import torch
        >>> DKDLoss()(torch.zeros(2, 3), torch.zeros(2, 3), torch.tensor([0, 2]))
        tensor(0.)

    Reference:
        arXiv 2203.08679, Eq. 7; see `limbeck.functional.dkd_divergence`.
    """

    def __init__(
        self,
        *,
        target_weight: float = 1.0,
        rest_weight: float = 8.0,
        temperature: float = 4.0,
        scale_by_t2: bool = True,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(temperature, scale_by_t2, reduction)
        check_range("target_weight", target_weight, 0.0, float("inf"))
        check_range("rest_weight", rest_weight, 0.0, float("inf"))
        self.target_weight = target_weight
        self.rest_weight = rest_weight

    def forward(self, logits: Tensor, target_logits: Tensor, labels: Tensor) -> Tensor:
        """Both logits (*, C); `labels` (*) integers."""
        return functional.dkd_divergence(
            logits,
            target_logits,
            labels,
            target_weight=self.target_weight,
            rest_weight=self.rest_weight,
            temperature=self.temperature,
            scale_by_t2=self.scale_by_t2,
            reduction=self.reduction,
        )

    def extra_repr(self) -> str:
        """Return the options for `repr`."""
        return f"target_weight={self.target_weight}, rest_weight={self.rest_weight}, {super().extra_repr()}"
