"""Adaptive Kullback-Leibler as a module. It ignores `labels`: all losses are called alike."""

from __future__ import annotations

from torch import Tensor

from limbeck.functional._check import Reduction, check_range
from limbeck.functional.adaptive import akl_divergence
from limbeck.losses.base import TemperedLoss


class AKLLoss(TemperedLoss):
    """KL and reverse KL, weighted per sample by where the student is wrong: on the target's head, or on its tail.

    Args:
        head_mass: in [0, 1]; the target's most likely classes up to this mass, at least one, are the head.
        temperature: T > 0, divides both logits.
        scale_by_t2: multiply by T squared.
        reduction: "none", "mean" or "sum".

    Gradient:
        To `logits`; the target and the weights are detached.

    Example:
        >>> import torch
        >>> AKLLoss()(torch.zeros(2, 3), torch.zeros(2, 3))
        tensor(0.)

    Reference:
        arXiv 2404.02657; see `limbeck.functional.adaptive.akl_divergence`.
    """

    def __init__(
        self,
        *,
        head_mass: float = 0.5,
        temperature: float = 1.0,
        scale_by_t2: bool = False,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(temperature, scale_by_t2, reduction)
        check_range("head_mass", head_mass, 0.0, 1.0)
        self.head_mass = head_mass

    def forward(self, logits: Tensor, target_logits: Tensor, labels: Tensor | None = None) -> Tensor:
        """Both logits (*, C); `labels` is ignored."""
        return akl_divergence(
            logits,
            target_logits,
            head_mass=self.head_mass,
            temperature=self.temperature,
            scale_by_t2=self.scale_by_t2,
            reduction=self.reduction,
        )

    def extra_repr(self) -> str:
        """Return the options for `repr`."""
        return f"head_mass={self.head_mass}, {super().extra_repr()}"
