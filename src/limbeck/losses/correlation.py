"""DIST as a module. It ignores `labels`: all losses are called alike."""

from __future__ import annotations

from torch import Tensor

from limbeck import functional
from limbeck.functional._check import Reduction, check_range
from limbeck.losses.base import TemperedLoss


class DISTLoss(TemperedLoss):
    """Pearson distance of the probabilities, over the classes and over the batch.

    Args:
        inter_weight: at least 0; factor of the distance over the classes of a sample.
        intra_weight: at least 0; factor of the distance over the batch, of each class. 0 for no coupling of samples.
        temperature: T > 0, divides both logits.
        scale_by_t2: multiply by T squared, as in the public code.
        reduction: "none", "mean" or "sum".

    Gradient:
        To both logits; detach the target (or run the teacher under `no_grad`) in distillation.

    Example:
        >>> import torch
        >>> loss, target = DISTLoss(), torch.tensor([[2.0, 0.0, 0.0], [0.0, 0.0, 3.0]])
        >>> bool(loss(target, target) < 1e-4)
        True

    Reference:
        arXiv 2205.10536, Eq. 6-10; see `limbeck.functional.dist_loss`.
    """

    def __init__(
        self,
        *,
        inter_weight: float = 1.0,
        intra_weight: float = 1.0,
        temperature: float = 1.0,
        scale_by_t2: bool = True,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(temperature, scale_by_t2, reduction)
        check_range("inter_weight", inter_weight, 0.0, float("inf"))
        check_range("intra_weight", intra_weight, 0.0, float("inf"))
        self.inter_weight = inter_weight
        self.intra_weight = intra_weight

    def forward(self, logits: Tensor, target_logits: Tensor, labels: Tensor | None = None) -> Tensor:
        """Both logits (*, C); `labels` is ignored."""
        return functional.dist_loss(
            logits,
            target_logits,
            inter_weight=self.inter_weight,
            intra_weight=self.intra_weight,
            temperature=self.temperature,
            scale_by_t2=self.scale_by_t2,
            reduction=self.reduction,
        )

    def extra_repr(self) -> str:
        """Return the options for `repr`."""
        return f"inter_weight={self.inter_weight}, intra_weight={self.intra_weight}, {super().extra_repr()}"
