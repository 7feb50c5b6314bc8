"""Teacher-free distillation as a module."""

from __future__ import annotations

from torch import Tensor

from limbeck.functional._check import Reduction
from limbeck.functional.teacher_free import Teacher, check_tf_kd, tf_kd_loss
from limbeck.losses.base import DivergenceLoss


class TfKDLoss(DivergenceLoss):
    """KL to a virtual teacher that gives the label most of the mass: `loss(logits, labels)`. It needs integer labels.

    Args:
        correct: in (0, 1), the virtual teacher's probability of the label.
        temperature: T > 0, of the virtual teacher, and of the student in mode "paper".
        mode: "code" (softmax of probabilities, the student at T = 1) or "paper" (both softened).
        reduction: "none", "mean" or "sum"; "mean" divides by the samples, the public code by the classes as well.

    Gradient:
        To `logits`.

    Example:
        >>> import torch
        >>> bool(TfKDLoss()(torch.zeros(2, 3), torch.tensor([0, 2])) < 1e-3)  # an almost uniform teacher
        True

    Reference:
        arXiv 1909.11723; see `limbeck.functional.teacher_free.tf_kd_loss` for the published weights.
    """

    def __init__(
        self,
        *,
        correct: float = 0.99,
        temperature: float = 20.0,
        mode: Teacher = "code",
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(reduction)
        check_tf_kd(correct, temperature, mode)
        self.correct = correct
        self.temperature = temperature
        self.mode: Teacher = mode

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Logits (*, C); `labels` (*) integers."""
        return tf_kd_loss(
            logits,
            labels,
            correct=self.correct,
            temperature=self.temperature,
            mode=self.mode,
            reduction=self.reduction,
        )

    def extra_repr(self) -> str:
        """Return the options for `repr`."""
        return f"correct={self.correct}, temperature={self.temperature}, mode={self.mode!r}"
