"""KL, reverse KL and generalised Jensen-Shannon as modules. They ignore `labels`: all losses are called alike."""

from __future__ import annotations

from torch import Tensor

from limbeck import functional
from limbeck.functional._check import Reduction, check_range
from limbeck.functional._engine import Impl
from limbeck.losses.base import TemperedLoss


class KLLoss(TemperedLoss):
    """KL(target || student). Hinton's distillation is `KLLoss(temperature=4.0, scale_by_t2=True)`.

    Args:
        temperature: T > 0, divides both logits.
        scale_by_t2: multiply by T squared.
        reduction: "none", "mean" or "sum".
        impl: "auto", "torch" or "triton", see `limbeck.functional.kl_divergence`.

    Gradient:
        To both logits; detach the target (or run the teacher under `no_grad`) in distillation.

    Example:
        >>> import torch
        >>> KLLoss(temperature=4.0, scale_by_t2=True)(torch.zeros(2, 3), torch.zeros(2, 3))
        tensor(0.)

    Reference:
        arXiv 1503.02531, section 2; see `limbeck.functional.kl_divergence`.
    """

    def __init__(
        self,
        *,
        temperature: float = 1.0,
        scale_by_t2: bool = False,
        reduction: Reduction = "mean",
        impl: Impl = "auto",
    ) -> None:
        super().__init__(temperature, scale_by_t2, reduction, impl)

    def forward(self, logits: Tensor, target_logits: Tensor, labels: Tensor | None = None) -> Tensor:
        """Both logits (*, C); `labels` is ignored."""
        return functional.kl_divergence(
            logits,
            target_logits,
            temperature=self.temperature,
            scale_by_t2=self.scale_by_t2,
            reduction=self.reduction,
            impl=self.impl,
        )


class ReverseKLLoss(TemperedLoss):
    """KL(student || target): mode seeking.

    Args:
        temperature: T > 0, divides both logits.
        scale_by_t2: multiply by T squared.
        reduction: "none", "mean" or "sum".
        impl: "auto", "torch" or "triton", see `limbeck.functional.kl_divergence`.

    Gradient:
        To both logits.

    Example:
        >>> import torch
        >>> ReverseKLLoss()(torch.zeros(2, 3), torch.zeros(2, 3))
        tensor(0.)

    Reference:
        arXiv 2306.08543, Eq. 2; see `limbeck.functional.reverse_kl_divergence`.
    """

    def __init__(
        self,
        *,
        temperature: float = 1.0,
        scale_by_t2: bool = False,
        reduction: Reduction = "mean",
        impl: Impl = "auto",
    ) -> None:
        super().__init__(temperature, scale_by_t2, reduction, impl)

    def forward(self, logits: Tensor, target_logits: Tensor, labels: Tensor | None = None) -> Tensor:
        """Both logits (*, C); `labels` is ignored."""
        return functional.reverse_kl_divergence(
            logits,
            target_logits,
            temperature=self.temperature,
            scale_by_t2=self.scale_by_t2,
            reduction=self.reduction,
            impl=self.impl,
        )


class JSLoss(TemperedLoss):
    """Generalised Jensen-Shannon divergence; `beta` 0 is KL, 1 is reverse KL.

    Args:
        beta: share of the target in the mixture, in [0, 1].
        temperature: T > 0, divides both logits.
        scale_by_t2: multiply by T squared.
        reduction: "none", "mean" or "sum".
        impl: "auto", "torch" or "triton", see `limbeck.functional.kl_divergence`.

    Gradient:
        To both logits.

    Example:
        >>> import torch
        >>> JSLoss(beta=0.5)(torch.tensor([[50.0, -50.0]]), torch.tensor([[-50.0, 50.0]]))  # ln 2
        tensor(0.6931)

    Reference:
        arXiv 2306.13649, Eq. 1; see `limbeck.functional.js_divergence`.
    """

    def __init__(
        self,
        *,
        beta: float = 0.5,
        temperature: float = 1.0,
        scale_by_t2: bool = False,
        reduction: Reduction = "mean",
        impl: Impl = "auto",
    ) -> None:
        super().__init__(temperature, scale_by_t2, reduction, impl)
        check_range("beta", beta, 0.0, 1.0)
        self.beta = beta

    def forward(self, logits: Tensor, target_logits: Tensor, labels: Tensor | None = None) -> Tensor:
        """Both logits (*, C); `labels` is ignored."""
        return functional.js_divergence(
            logits,
            target_logits,
            beta=self.beta,
            temperature=self.temperature,
            scale_by_t2=self.scale_by_t2,
            reduction=self.reduction,
            impl=self.impl,
        )

    def extra_repr(self) -> str:
        """Return the options for `repr`."""
        return f"beta={self.beta}, {super().extra_repr()}"
