"""GKL, KL, Jensen-Shannon and the soft cross-entropy from hidden states and output embeddings as modules.

They take no logits and build none: see `limbeck.functional.linear_gkl`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from limbeck import functional
from limbeck.functional._check import Reduction, check_positive, check_range
from limbeck.functional._linear_check import check_cap, check_temperature, check_tile
from limbeck.functional._pairs import Normalizer
from limbeck.functional._rows import check_normalizer
from limbeck.losses.base import DivergenceLoss

IGNORED = -100  # as language models mark tokens that belong to no text


class LinearLoss(DivergenceLoss):
    """Base of the losses from hidden states: `loss(hidden, head, target_hidden, target_head, labels=None)`."""

    def __init__(
        self,
        temperature: float,
        logit_scale: float,
        target_logit_scale: float,
        softcap: float | None,
        target_softcap: float | None,
        ignore_index: int,
        tile: tuple[int, int] | None,
        reduction: Reduction,
    ) -> None:
        super().__init__(reduction)
        check_temperature(temperature)
        check_positive("logit_scale", logit_scale)
        check_positive("target_logit_scale", target_logit_scale)
        check_cap("softcap", softcap)
        check_cap("target_softcap", target_softcap)
        self.temperature = temperature
        self.logit_scale = logit_scale
        self.target_logit_scale = target_logit_scale
        self.softcap = softcap
        self.target_softcap = target_softcap
        self.ignore_index = ignore_index
        self.tile = None if tile is None else check_tile(tile)

    def _shared(self) -> dict[str, Any]:
        """Options that all of them take."""
        return {
            "temperature": self.temperature,
            "logit_scale": self.logit_scale,
            "target_logit_scale": self.target_logit_scale,
            "softcap": self.softcap,
            "target_softcap": self.target_softcap,
            "ignore_index": self.ignore_index,
            "tile": self.tile,
            "reduction": self.reduction,
        }

    def extra_repr(self) -> str:
        """Return the options for `repr`."""
        return ", ".join(f"{name}={value!r}" for name, value in self._shared().items())


class LinearGKLLoss(LinearLoss):
    """Generalised KL from hidden states.

    Args:
        prior: `None` for weights from each token's own target; (C,) class weights, the same for all tokens; or the
            (C, C) table that labels read, of at most 1 GiB. It becomes a buffer.
        mse_weight: factor of the weighted MSE, the quarter inside.
        ce_weight: factor of the soft cross-entropy.
        weight_power: gamma >= 0; 1 is IKL, 0 weights all classes alike.
        temperature: T > 0 of the soft cross-entropy.
        prior_temperature: tau > 0 of the token's own weights.
        normalizer: "weights", exact over all tokens that take part, "row" or "samples".
        logit_scale: factor of the student's logits.
        target_logit_scale: factor of the target's.
        softcap: bound of the student's logits, or `None`.
        target_softcap: bound of the target's, or `None`.
        ignore_index: label of the tokens that are left out.
        tile: tokens and classes whose logits are held at a time, or `None`.
        reduction: "none" (*), "mean" over the tokens that take part, or "sum".

    Gradient:
        As `limbeck.functional.linear_gkl`.

    Example:
        >>> import torch
        >>> loss = LinearGKLLoss(weight_power=0.3, temperature=2.0)
        >>> student, teacher = torch.nn.Linear(4, 9, bias=False), torch.nn.Linear(6, 9, bias=False)
        >>> value = loss(torch.zeros(2, 5, 4), student.weight, torch.zeros(2, 5, 6), teacher.weight)
        >>> value  # ln 9
        tensor(2.1972, grad_fn=<_TiledBackward>)

    Reference:
        arXiv 2503.08038, Eq. 12-13; see `limbeck.functional.linear_gkl`.
    """

    prior: Tensor | None

    def __init__(
        self,
        *,
        prior: Tensor | None = None,
        mse_weight: float = 1.0,
        ce_weight: float = 1.0,
        weight_power: float = 1.0,
        temperature: float = 1.0,
        prior_temperature: float = 1.0,
        normalizer: Normalizer = "weights",
        logit_scale: float = 1.0,
        target_logit_scale: float = 1.0,
        softcap: float | None = None,
        target_softcap: float | None = None,
        ignore_index: int = IGNORED,
        tile: tuple[int, int] | None = None,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(
            temperature, logit_scale, target_logit_scale, softcap, target_softcap, ignore_index, tile, reduction
        )
        check_range("mse_weight", mse_weight, 0.0, float("inf"))
        check_range("ce_weight", ce_weight, 0.0, float("inf"))
        check_range("weight_power", weight_power, 0.0, float("inf"))
        check_positive("prior_temperature", prior_temperature)
        check_normalizer(normalizer, weight_power)
        self.register_buffer("prior", prior)
        self.mse_weight = mse_weight
        self.ce_weight = ce_weight
        self.weight_power = weight_power
        self.prior_temperature = prior_temperature
        self.normalizer: Normalizer = normalizer

    def forward(
        self,
        hidden: Tensor,
        head: Tensor,
        target_hidden: Tensor,
        target_head: Tensor,
        labels: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        bias: Tensor | None = None,
        target_bias: Tensor | None = None,
        normalizer: Tensor | None = None,
    ) -> Tensor:
        """(*, D), (C, D), (*, E), (C, E); a 0-d `normalizer`, summed by the caller, replaces the word."""
        return functional.linear_gkl(
            hidden,
            head,
            target_hidden,
            target_head,
            self.prior,
            labels=labels,
            mask=mask,
            bias=bias,
            target_bias=target_bias,
            mse_weight=self.mse_weight,
            ce_weight=self.ce_weight,
            weight_power=self.weight_power,
            prior_temperature=self.prior_temperature,
            normalizer=self.normalizer if normalizer is None else normalizer,
            **self._shared(),
        )

    def denominator(
        self,
        target_hidden: Tensor,
        target_head: Tensor,
        labels: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        target_bias: Tensor | None = None,
    ) -> Tensor:
        """Return what `normalizer="weights"` divides the MSE of some tokens by, to be summed over parts of a batch.

        With the sum over all parts times a part's share of the tokens as `normalizer`, the parts' values times their
        shares add up to the whole batch's.

        Args:
            target_hidden: (*, E), as `forward` takes it.
            target_head: (C, E).
            labels: As `forward` takes them.
            mask: As `forward` takes it.
            target_bias: As `forward` takes it.

        Returns:
            0-d.

        Raises:
            ValueError: As `limbeck.functional.linear_gkl_normalizer`.
        """
        return functional.linear_gkl_normalizer(
            target_hidden,
            target_head,
            self.prior,
            labels=labels,
            mask=mask,
            ignore_index=self.ignore_index,
            target_bias=target_bias,
            target_logit_scale=self.target_logit_scale,
            target_softcap=self.target_softcap,
            weight_power=self.weight_power,
            prior_temperature=self.prior_temperature,
            tile=self.tile,
        )

    def extra_repr(self) -> str:
        """Return the options for `repr`."""
        prior = None if self.prior is None else tuple(self.prior.shape)
        return (
            f"prior={prior}, mse_weight={self.mse_weight}, ce_weight={self.ce_weight}, "
            f"weight_power={self.weight_power}, prior_temperature={self.prior_temperature}, "
            f"normalizer={self.normalizer!r}, {super().extra_repr()}"
        )


class _TemperedLinearLoss(LinearLoss):
    _divergence: Callable[..., Tensor]

    def __init__(
        self,
        *,
        temperature: float = 1.0,
        scale_by_t2: bool = False,
        logit_scale: float = 1.0,
        target_logit_scale: float = 1.0,
        softcap: float | None = None,
        target_softcap: float | None = None,
        ignore_index: int = IGNORED,
        tile: tuple[int, int] | None = None,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(
            temperature, logit_scale, target_logit_scale, softcap, target_softcap, ignore_index, tile, reduction
        )
        self.scale_by_t2 = scale_by_t2

    def _shared(self) -> dict[str, Any]:
        return {**super()._shared(), "scale_by_t2": self.scale_by_t2}

    def forward(
        self,
        hidden: Tensor,
        head: Tensor,
        target_hidden: Tensor,
        target_head: Tensor,
        labels: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        bias: Tensor | None = None,
        target_bias: Tensor | None = None,
    ) -> Tensor:
        """(*, D), (C, D), (*, E), (C, E); of `labels` (*) only `ignore_index` is read."""
        return self._divergence(
            hidden,
            head,
            target_hidden,
            target_head,
            labels=labels,
            mask=mask,
            bias=bias,
            target_bias=target_bias,
            **self._shared(),
        )


class LinearKLLoss(_TemperedLinearLoss):
    """KL(target || student) from hidden states.

    Args:
        temperature: T > 0, divides both logits.
        scale_by_t2: multiply by T squared.
        logit_scale: factor of the student's logits.
        target_logit_scale: factor of the target's.
        softcap: bound of the student's logits, or `None`.
        target_softcap: bound of the target's, or `None`.
        ignore_index: label of the tokens that are left out.
        tile: tokens and classes whose logits are held at a time, or `None`.
        reduction: "none" (*), "mean" over the tokens that take part, or "sum".

    Gradient:
        As `limbeck.functional.linear_kl`.

    Example:
        >>> import torch
        >>> LinearKLLoss()(torch.zeros(2, 4), torch.ones(9, 4), torch.zeros(2, 6), torch.ones(9, 6))
        tensor(0.)

    Reference:
        arXiv 1503.02531, section 2; see `limbeck.functional.linear_kl`.
    """

    _divergence = staticmethod(functional.linear_kl)


class LinearSoftCrossEntropyLoss(_TemperedLinearLoss):
    """Cross-entropy with the target's probabilities, from hidden states.

    Args:
        temperature: T > 0, divides both logits.
        scale_by_t2: multiply by T squared.
        logit_scale: factor of the student's logits.
        target_logit_scale: factor of the target's.
        softcap: bound of the student's logits, or `None`.
        target_softcap: bound of the target's, or `None`.
        ignore_index: label of the tokens that are left out.
        tile: tokens and classes whose logits are held at a time, or `None`.
        reduction: "none" (*), "mean" over the tokens that take part, or "sum".

    Gradient:
        As `limbeck.functional.linear_soft_cross_entropy`.

    Example:
        >>> import torch
        >>> loss = LinearSoftCrossEntropyLoss()
        >>> loss(torch.zeros(2, 4), torch.ones(9, 4), torch.zeros(2, 6), torch.ones(9, 6))  # ln 9
        tensor(2.1972)

    Reference:
        arXiv 2305.13948, Eq. 5; see `limbeck.functional.linear_soft_cross_entropy`.
    """

    _divergence = staticmethod(functional.linear_soft_cross_entropy)


class LinearJSLoss(_TemperedLinearLoss):
    """Generalised Jensen-Shannon divergence from hidden states.

    Args:
        beta: share of the target in the mixture, in [0, 1]; 0 is KL, 1 reverse KL.
        temperature: T > 0, divides both logits.
        scale_by_t2: multiply by T squared.
        logit_scale: factor of the student's logits.
        target_logit_scale: factor of the target's.
        softcap: bound of the student's logits, or `None`.
        target_softcap: bound of the target's, or `None`.
        ignore_index: label of the tokens that are left out.
        tile: tokens and classes whose logits are held at a time, or `None`.
        reduction: "none" (*), "mean" over the tokens that take part, or "sum".

    Gradient:
        As `limbeck.functional.linear_js`.

    Example:
        >>> import torch
        >>> LinearJSLoss()(torch.zeros(2, 4), torch.ones(9, 4), torch.zeros(2, 6), torch.ones(9, 6))
        tensor(0.)

    Reference:
        arXiv 2306.13649, Eq. 1; see `limbeck.functional.linear_js`.
    """

    def __init__(
        self,
        *,
        beta: float = 0.5,
        temperature: float = 1.0,
        scale_by_t2: bool = False,
        logit_scale: float = 1.0,
        target_logit_scale: float = 1.0,
        softcap: float | None = None,
        target_softcap: float | None = None,
        ignore_index: int = IGNORED,
        tile: tuple[int, int] | None = None,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(
            temperature=temperature,
            scale_by_t2=scale_by_t2,
            logit_scale=logit_scale,
            target_logit_scale=target_logit_scale,
            softcap=softcap,
            target_softcap=target_softcap,
            ignore_index=ignore_index,
            tile=tile,
            reduction=reduction,
        )
        check_range("beta", beta, 0.0, 1.0)
        self.beta = beta

    _divergence = staticmethod(functional.linear_js)

    def _shared(self) -> dict[str, Any]:
        return {**super()._shared(), "beta": self.beta}
