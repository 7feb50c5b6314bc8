"""IKL as a module: GKL with the options of the first paper."""

from __future__ import annotations

from limbeck.functional._check import Reduction
from limbeck.functional._engine import Impl
from limbeck.functional._terms import Normalizer
from limbeck.losses.gkl import GKLLoss, Prior


class IKLLoss(GKLLoss):
    """Improved KL: GKL at weight power 1, its weighted MSE divided by the number of samples.

    Args:
        num_classes: C, needed for `prior="class"`.
        prior: "class" or "sample". The public CIFAR distillation settings are sample-wise with prior_temperature 100.
        mse_weight: factor of the weighted MSE, the quarter inside.
        ce_weight: factor of the soft cross-entropy.
        temperature: T > 0 of the soft cross-entropy; no T squared.
        prior_temperature: tau > 0 of the softmax that the weights are made of.
        ramp_epochs: over the first so many epochs the loss is multiplied by epoch / ramp_epochs.
        normalizer: as in `GKLLoss`; rows sum to 1, so that all three words agree.
        reduction: "none", "mean" or "sum".
        impl: "auto", "torch" or "triton", see `limbeck.functional.gkl_divergence`.

    Gradient:
        As `GKLLoss`.

    Example:
        >>> import torch
        >>> loss = IKLLoss(prior="sample", mse_weight=8.0, temperature=4.0, prior_temperature=100.0)
        >>> loss(torch.zeros(2, 3), torch.zeros(2, 3))  # ln 3
        tensor(1.0986)

    Reference:
        arXiv 2305.13948, Eq. 9-10.
    """

    def __init__(
        self,
        num_classes: int | None = None,
        *,
        prior: Prior = "class",
        mse_weight: float = 1.0,
        ce_weight: float = 1.0,
        temperature: float = 1.0,
        prior_temperature: float = 1.0,
        ramp_epochs: int = 0,
        normalizer: Normalizer = "samples",
        reduction: Reduction = "mean",
        impl: Impl = "auto",
    ) -> None:
        super().__init__(
            num_classes,
            prior=prior,
            mse_weight=mse_weight,
            ce_weight=ce_weight,
            temperature=temperature,
            prior_temperature=prior_temperature,
            ramp_epochs=ramp_epochs,
            normalizer=normalizer,
            reduction=reduction,
            impl=impl,
        )
