"""Logit standardisation around any loss."""

from __future__ import annotations

from torch import Tensor

from limbeck import functional
from limbeck.losses.base import DivergenceLoss


class StandardizedLoss(DivergenceLoss):
    """Any loss, of standardised logits: neither shift nor scale of the logits counts.

    The memory of a loss that has one is fed with standardised targets as well; its schedule, its parameters and its
    state are passed through. Published for KL as `9 * StandardizedLoss(KLLoss(temperature=2.0, scale_by_t2=True))`
    beside the cross-entropy of the raw logits. With `MLKDLoss` the published method standardises the KL alone: wrap
    one with both correlations' weights 0, and add one with `instance_weight=0` that sees the raw logits.

    Args:
        loss: a loss of this package that is called with two networks' logits; its `reduction` is that of the whole.

    Gradient:
        To those that `loss` gives one, through mean and deviation.

    Example:
        >>> import torch
        >>> from limbeck import KLLoss
        >>> logits = torch.tensor([[1.0, 3.0, 5.0]])
        >>> loss = StandardizedLoss(KLLoss(temperature=2.0, scale_by_t2=True))
        >>> bool(loss(10 * logits + 7, logits).abs() < 1e-6)
        True

    Reference:
        Sun et al., arXiv 2403.01427; see `limbeck.functional.standardize_logits`.
    """

    def __init__(self, loss: DivergenceLoss) -> None:
        if not isinstance(loss, DivergenceLoss):
            raise TypeError(f"`loss` expected a loss of limbeck, such as `KLLoss()`, got {type(loss).__name__}")
        super().__init__(loss.reduction)
        self.loss = loss

    def forward(self, logits: Tensor, target_logits: Tensor, labels: Tensor | None = None) -> Tensor:
        """Both logits (*, C); `labels` as `loss` takes them."""
        value: Tensor = self.loss(
            functional.standardize_logits(logits), functional.standardize_logits(target_logits), labels
        )
        return value

    def set_epoch(self, epoch: int) -> None:
        """Tell the loss the epoch that begins, counted from 1."""
        self.loss.set_epoch(epoch)

    def observe(self, target_logits: Tensor, labels: Tensor) -> None:
        """Take in a batch's target predictions, standardised."""
        self.loss.observe(functional.standardize_logits(target_logits), labels)

    def synchronize(self) -> None:
        """Sum what was observed over the ranks. Collective: all ranks call it, or none."""
        self.loss.synchronize()

    def refresh(self) -> None:
        """End an epoch: what was observed becomes the memory that `forward` uses. Collective."""
        self.loss.refresh()
