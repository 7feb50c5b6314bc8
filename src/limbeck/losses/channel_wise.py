"""Channel-wise distillation as a module."""

from __future__ import annotations

from torch import Tensor

from limbeck import functional
from limbeck.functional._check import Reduction
from limbeck.losses.base import TemperedLoss


class CWDLoss(TemperedLoss):
    r"""KL between two maps of each channel, as distributions over the positions.

    .. math:: \frac{T^2}{N C} \sum_{n, c} KL(\phi(t_{nc} / T) \| \phi(s_{nc} / T))

    with the softmax phi over the positions of a channel. No position is left out, whatever its label.

    Args:
        temperature: T > 0, divides both logits.
        scale_by_t2: multiply by T squared.
        reduction: "none" (N, C), "mean" over samples and channels, or "sum".

    Raises:
        ValueError: an option out of range; logits without positions.

    Gradient:
        To both logits.

    Example:
        >>> import torch
        >>> CWDLoss()(torch.zeros(1, 3, 4, 4), torch.ones(1, 3, 4, 4))  # the same distributions
        tensor(0.)

    Reference:
        arXiv 2011.13256, Eq. 3-4.
    """

    def __init__(self, *, temperature: float = 4.0, scale_by_t2: bool = True, reduction: Reduction = "mean") -> None:
        super().__init__(temperature, scale_by_t2, reduction)

    def forward(self, logits: Tensor, target_logits: Tensor, labels: Tensor | None = None) -> Tensor:
        """Both logits (N, C, *space); `labels` are ignored."""
        if logits.dim() < 3:
            raise ValueError(f"`logits` expected the shape (N, C, *space), got {tuple(logits.shape)}")
        return functional.kl_divergence(
            logits.flatten(2),
            target_logits.flatten(2),
            temperature=self.temperature,
            scale_by_t2=self.scale_by_t2,
            reduction=self.reduction,
        )
