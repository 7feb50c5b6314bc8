"""KL, Jensen-Shannon, IKL and GKL of dense predictions (N, C, *space) as modules: each pixel is a sample.

Options are those of `KLLoss`, `JSLoss`, `IKLLoss` and `GKLLoss`; pixels whose label is `ignore_index` take no part.
"""

from __future__ import annotations

import torch
from torch import Tensor

from limbeck import functional
from limbeck.functional._check import Reduction
from limbeck.functional._terms import Normalizer
from limbeck.losses.gkl import GKLLoss, Prior
from limbeck.losses.kl import JSLoss, KLLoss

IGNORED = 255  # as data sets of segmentation mark pixels that belong to no class


class DenseKLLoss(KLLoss):
    """KL(target || student) of each pixel.

    Args:
        temperature: T > 0, divides both logits.
        scale_by_t2: multiply by T squared.
        ignore_index: label of the pixels that are left out.
        reduction: "none" (N, *space), "mean" over the pixels that take part, or "sum".

    Gradient:
        As `KLLoss`.

    Example:
        >>> import torch
        >>> DenseKLLoss()(torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 4))
        tensor(0.)

    Reference:
        arXiv 1903.04197, Eq. 1; see `limbeck.functional.dense_kl_divergence`.
    """

    def __init__(
        self,
        *,
        temperature: float = 1.0,
        scale_by_t2: bool = False,
        ignore_index: int = IGNORED,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(temperature=temperature, scale_by_t2=scale_by_t2, reduction=reduction)
        self.ignore_index = ignore_index

    def forward(self, logits: Tensor, target_logits: Tensor, labels: Tensor | None = None) -> Tensor:
        """Both logits (N, C, *space); `labels` (N, *space) are read for `ignore_index` alone."""
        return functional.dense_kl_divergence(
            logits,
            target_logits,
            labels=labels,
            ignore_index=self.ignore_index,
            temperature=self.temperature,
            scale_by_t2=self.scale_by_t2,
            reduction=self.reduction,
        )


class DenseJSLoss(JSLoss):
    """Generalised Jensen-Shannon divergence of each pixel.

    Args:
        beta: share of the target in the mixture, in [0, 1].
        temperature: T > 0, divides both logits.
        scale_by_t2: multiply by T squared.
        ignore_index: label of the pixels that are left out.
        reduction: "none" (N, *space), "mean" over the pixels that take part, or "sum".

    Gradient:
        As `JSLoss`.

    Example:
        >>> import torch
        >>> DenseJSLoss()(torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 4))
        tensor(0.)

    Reference:
        arXiv 2306.13649, Eq. 1; see `limbeck.functional.dense_js_divergence`.
    """

    def __init__(
        self,
        *,
        beta: float = 0.5,
        temperature: float = 1.0,
        scale_by_t2: bool = False,
        ignore_index: int = IGNORED,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(beta=beta, temperature=temperature, scale_by_t2=scale_by_t2, reduction=reduction)
        self.ignore_index = ignore_index

    def forward(self, logits: Tensor, target_logits: Tensor, labels: Tensor | None = None) -> Tensor:
        """Both logits (N, C, *space); `labels` (N, *space) are read for `ignore_index` alone."""
        return functional.dense_js_divergence(
            logits,
            target_logits,
            labels=labels,
            ignore_index=self.ignore_index,
            beta=self.beta,
            temperature=self.temperature,
            scale_by_t2=self.scale_by_t2,
            reduction=self.reduction,
        )


class DenseGKLLoss(GKLLoss):
    """Generalised KL of each pixel with its class prior: row y is the mean prediction over the pixels of class y.

    A loop makes the three calls of `GKLLoss`, with maps and their labels.

    Args:
        num_classes: C, needed for `prior="class"`.
        prior: "class" or "sample".
        mse_weight: factor of the weighted MSE, the quarter inside.
        ce_weight: factor of the soft cross-entropy.
        weight_power: gamma >= 0 of the weights; 1 is IKL, 0 weighs all classes alike.
        temperature: T > 0 of the soft cross-entropy.
        prior_temperature: tau > 0 of the softmax that the weights are made of.
        ramp_epochs: over the first so many epochs the loss is multiplied by epoch / ramp_epochs.
        normalizer: "weights", "row" or "samples", see `limbeck.functional.gkl_divergence`.
        ignore_index: label of the pixels that are left out.
        reduction: "none" (N, *space), "mean" over the pixels that take part, or "sum".

    Raises:
        ValueError: an option out of range; `num_classes` or labels missing where the class prior needs them.

    Gradient:
        As `GKLLoss`.

    Example:
        >>> import torch
        >>> loss = DenseGKLLoss(num_classes=3)
        >>> maps, labels = torch.zeros(1, 3, 4, 4), torch.zeros(1, 4, 4, dtype=torch.int64)
        >>> loss(maps, maps, labels)  # ln 3
        tensor(1.0986)
        >>> loss.observe(maps, labels)
        >>> loss.refresh()

    Reference:
        arXiv 2503.08038, Eq. 12-13 and Table XXI; see `limbeck.functional.dense_gkl_divergence`.
    """

    def __init__(
        self,
        num_classes: int | None = None,
        *,
        prior: Prior = "class",
        mse_weight: float = 1.0,
        ce_weight: float = 1.0,
        weight_power: float = 1.0,
        temperature: float = 1.0,
        prior_temperature: float = 1.0,
        ramp_epochs: int = 0,
        normalizer: Normalizer = "weights",
        ignore_index: int = IGNORED,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(
            num_classes,
            prior=prior,
            mse_weight=mse_weight,
            ce_weight=ce_weight,
            weight_power=weight_power,
            temperature=temperature,
            prior_temperature=prior_temperature,
            ramp_epochs=ramp_epochs,
            normalizer=normalizer,
            reduction=reduction,
        )
        self.ignore_index = ignore_index

    def forward(
        self,
        logits: Tensor,
        target_logits: Tensor,
        labels: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        normalizer: Tensor | None = None,
    ) -> Tensor:
        """Both logits (N, C, *space); `labels` (N, *space) integers, needed for `prior="class"`.

        `mask` (N, *space) bool keeps the pixels where it is True; `normalizer` is a denominator summed by the caller,
        see `limbeck.functional.dense_gkl_normalizer`.
        """
        value = functional.dense_gkl_divergence(
            logits,
            target_logits,
            self._rows(target_logits, labels),
            labels=labels,
            ignore_index=self.ignore_index,
            mask=mask,
            mse_weight=self.mse_weight,
            ce_weight=self.ce_weight,
            weight_power=self.weight_power,
            temperature=self.temperature,
            prior_temperature=self.prior_temperature,
            normalizer=self.normalizer if normalizer is None else normalizer,
            reduction=self.reduction,
        )
        return self._ramped(value) if self.ramp_epochs else value

    def _rows(self, target_logits: Tensor, labels: Tensor | None) -> Tensor | None:
        if self.prior is None:
            return None
        if target_logits.dim() > 1:
            self._check_call(self.prior, target_logits.movedim(1, -1), labels)
        return self.prior.prior

    @torch.no_grad()
    def denominator(self, target_logits: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return what `normalizer="weights"` divides the MSE of some images by; shares are of pixels.

        Args:
            target_logits: (N, C, *space), as `forward` takes them.
            labels: As `forward` takes them.

        Returns:
            0-d.
        """
        return functional.dense_gkl_normalizer(
            target_logits,
            self._rows(target_logits, labels),
            labels=labels,
            ignore_index=self.ignore_index,
            weight_power=self.weight_power,
            prior_temperature=self.prior_temperature,
        )

    def observe(self, target_logits: Tensor, labels: Tensor) -> None:
        """Add the pixels of a batch to the class prior (nothing to do for `prior="sample"`). No gradient.

        Args:
            target_logits: (N, C, *space), the teacher's.
            labels: integers (N, *space).
        """
        if self.prior is not None:
            self.prior.observe_dense(target_logits, labels, ignore_index=self.ignore_index)
            self._observations += 1


class DenseIKLLoss(DenseGKLLoss):
    """Improved KL of each pixel: dense GKL at weight power 1, its weighted MSE divided by the number of pixels.

    Args:
        num_classes: C, needed for `prior="class"`.
        prior: "class" or "sample".
        mse_weight: factor of the weighted MSE, the quarter inside.
        ce_weight: factor of the soft cross-entropy.
        temperature: T > 0 of the soft cross-entropy.
        prior_temperature: tau > 0 of the softmax that the weights are made of.
        ramp_epochs: over the first so many epochs the loss is multiplied by epoch / ramp_epochs.
        normalizer: as in `DenseGKLLoss`; rows sum to 1, so that all three words agree.
        ignore_index: label of the pixels that are left out.
        reduction: "none" (N, *space), "mean" over the pixels that take part, or "sum".

    Gradient:
        As `GKLLoss`.

    Example:
        >>> import torch
        >>> DenseIKLLoss(prior="sample")(torch.zeros(1, 3, 2, 2), torch.zeros(1, 3, 2, 2))  # ln 3
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
        ignore_index: int = IGNORED,
        reduction: Reduction = "mean",
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
            ignore_index=ignore_index,
            reduction=reduction,
        )
