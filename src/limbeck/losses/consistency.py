"""Pseudo-labels and squared probabilities as modules. They ignore `labels`: all losses are called alike."""

from __future__ import annotations

from torch import Tensor

from limbeck import functional
from limbeck.functional._check import Reduction, check_positive
from limbeck.functional.consistency import Targets, check_targets
from limbeck.losses.base import DivergenceLoss


class PseudoLabelLoss(DivergenceLoss):
    """Cross-entropy with the class that the target names, or with its whole distribution.

    Args:
        targets: "hard" takes the target's largest logit for the label, "soft" its softmax.
        target_temperature: T > 0 of a soft target; below 1 sharpens it.
        reduction: "none", "mean" or "sum".

    Gradient:
        To `logits`; the target is detached.

    Example:
        >>> import torch
        >>> PseudoLabelLoss()(torch.zeros(1, 2), torch.tensor([[3.0, 0.0]]))  # ln 2
        tensor(0.6931)

    Reference:
        arXiv 2001.07685, Eq. 4; see `limbeck.functional.pseudo_label_cross_entropy`.
    """

    def __init__(
        self, *, targets: Targets = "hard", target_temperature: float = 1.0, reduction: Reduction = "mean"
    ) -> None:
        super().__init__(reduction)
        check_targets(targets)
        check_positive("target_temperature", target_temperature)
        self.targets: Targets = targets
        self.target_temperature = target_temperature

    def forward(self, logits: Tensor, target_logits: Tensor, labels: Tensor | None = None) -> Tensor:
        """Both logits (*, C); `labels` is ignored."""
        return functional.pseudo_label_cross_entropy(
            logits,
            target_logits,
            targets=self.targets,
            target_temperature=self.target_temperature,
            reduction=self.reduction,
        )

    def extra_repr(self) -> str:
        """Return the options for `repr`."""
        return f"targets={self.targets!r}, target_temperature={self.target_temperature}"


class ProbabilityMSELoss(DivergenceLoss):
    """Mean squared difference of the probabilities, Mean-Teacher's consistency.

    Args:
        reduction: "none", "mean" or "sum".

    Gradient:
        To both logits; detach the target, or run it under `no_grad`, where it is a teacher's.

    Example:
        >>> import torch
        >>> ProbabilityMSELoss()(torch.tensor([[50.0, 0.0]]), torch.tensor([[0.0, 0.0]]))
        tensor(0.2500)

    Reference:
        arXiv 1703.01780; see `limbeck.functional.probability_mse`.
    """

    def __init__(self, *, reduction: Reduction = "mean") -> None:
        super().__init__(reduction)

    def forward(self, logits: Tensor, target_logits: Tensor, labels: Tensor | None = None) -> Tensor:
        """Both logits (*, C); `labels` is ignored."""
        return functional.probability_mse(logits, target_logits, reduction=self.reduction)
