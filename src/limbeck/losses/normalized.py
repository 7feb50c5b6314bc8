"""Normalised knowledge distillation as a module."""

from __future__ import annotations

from torch import Tensor

from limbeck import functional
from limbeck.functional._check import Reduction, check_range
from limbeck.losses.base import TemperedLoss


class NKDLoss(TemperedLoss):
    """Normalised distillation, to be added to the labels' cross-entropy. It needs integer labels.

    Args:
        target_weight: at least 0; factor of the label's likelihood, weighted by the target's belief in it.
        rest_weight: gamma, at least 0; factor of the cross-entropy among the other classes.
        temperature: T > 0; of the second part only.
        scale_by_t2: multiply the second part by T squared, as published.
        subtract_entropy: KL in place of the cross-entropy in the second part: another value, the same gradient.
        reduction: "none", "mean" or "sum".

    Gradient:
        To `logits`, and to `target_logits` from the second part; the target's belief in the label is detached.

    Example:
        >>> import torch
        >>> NKDLoss()(torch.zeros(2, 2), torch.zeros(2, 2), torch.tensor([0, 1]))  # half of ln 2
        tensor(0.3466)

    Reference:
        arXiv 2303.13005; see `limbeck.functional.nkd_loss`.
    """

    def __init__(
        self,
        *,
        target_weight: float = 1.0,
        rest_weight: float = 1.5,
        temperature: float = 1.0,
        scale_by_t2: bool = True,
        subtract_entropy: bool = False,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(temperature, scale_by_t2, reduction)
        check_range("target_weight", target_weight, 0.0, float("inf"))
        check_range("rest_weight", rest_weight, 0.0, float("inf"))
        self.target_weight = target_weight
        self.rest_weight = rest_weight
        self.subtract_entropy = subtract_entropy

    def forward(self, logits: Tensor, target_logits: Tensor, labels: Tensor) -> Tensor:
        """Both logits (*, C); `labels` (*) integers."""
        return functional.nkd_loss(
            logits,
            target_logits,
            labels,
            target_weight=self.target_weight,
            rest_weight=self.rest_weight,
            temperature=self.temperature,
            scale_by_t2=self.scale_by_t2,
            subtract_entropy=self.subtract_entropy,
            reduction=self.reduction,
        )

    def extra_repr(self) -> str:
        """Return the options for `repr`."""
        weights = f"target_weight={self.target_weight}, rest_weight={self.rest_weight}"
        return f"{weights}, {super().extra_repr()}, subtract_entropy={self.subtract_entropy}"
