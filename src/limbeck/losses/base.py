"""What every loss is: a function, its options checked once, and (some) a memory."""

from __future__ import annotations

from torch import Tensor, nn

from limbeck.functional._check import Reduction, check_positive, check_reduction
from limbeck.functional._engine import Impl, check_impl


class DivergenceLoss(nn.Module):
    """Base of the losses: `loss(logits, target_logits, labels=None)`.

    A loss with a memory or a schedule overrides the calls below; for others they do nothing, so that a loop can make
    them whatever its loss is. `forward` changes no state and runs no collective.
    """

    reduction: Reduction

    def __init__(self, reduction: Reduction = "mean") -> None:
        super().__init__()
        check_reduction(reduction)
        self.reduction = reduction

    def set_epoch(self, epoch: int) -> None:
        """Tell the loss the epoch that begins, counted from 1. Only a loss with a schedule of its own listens."""

    def observe(self, target_logits: Tensor, labels: Tensor) -> None:
        """Take in a batch's target predictions, (N, C), by label. No gradient."""

    def synchronize(self) -> None:
        """Sum what was observed over the ranks. Collective: all ranks call it, or none."""

    def refresh(self) -> None:
        """End an epoch: what was observed becomes the memory that `forward` uses. Collective."""


class TemperedLoss(DivergenceLoss):
    """A loss without memory whose temperature divides both logits."""

    def __init__(
        self,
        temperature: float = 1.0,
        scale_by_t2: bool = False,
        reduction: Reduction = "mean",
        impl: Impl = "auto",
    ) -> None:
        super().__init__(reduction)
        check_positive("temperature", temperature)
        check_impl(impl)
        self.impl = impl
        self.temperature = temperature
        self.scale_by_t2 = scale_by_t2

    def extra_repr(self) -> str:
        """Return the options for `repr`."""
        return f"temperature={self.temperature}, scale_by_t2={self.scale_by_t2}"
