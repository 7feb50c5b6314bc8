"""DKL and GKL as modules: the functions, their options, the class prior and the ramp."""

from __future__ import annotations

import warnings
from typing import Literal

import torch
from torch import Tensor

from limbeck import functional
from limbeck.functional._check import Reduction, check_positive, check_range
from limbeck.functional._engine import Impl, check_impl
from limbeck.functional._rows import check_normalizer, class_rows, may_underflow, powered, sample_rows
from limbeck.functional._terms import Normalizer
from limbeck.losses.base import DivergenceLoss
from limbeck.losses.class_prior import ClassPrior
from limbeck.losses.presets import PresetName, preset_options

Prior = Literal["class", "sample"]
FORWARDS_BEFORE_WARNING = 100
CALLS_BEFORE_WARNING = 20_000


class ClassWiseLoss(DivergenceLoss):
    """Base of the losses whose weighted MSE takes its weights from a class prior or from the sample's own target."""

    prior: ClassPrior | None

    def __init__(
        self,
        num_classes: int | None,
        prior: Prior,
        mse_weight: float,
        ce_weight: float,
        temperature: float,
        prior_temperature: float,
        reduction: Reduction,
        impl: Impl,
    ) -> None:
        super().__init__(reduction)
        check_impl(impl)
        self.impl = impl
        check_range("mse_weight", mse_weight, 0.0, float("inf"))
        check_range("ce_weight", ce_weight, 0.0, float("inf"))
        check_positive("temperature", temperature)
        check_positive("prior_temperature", prior_temperature)
        if prior not in ("class", "sample"):
            raise ValueError(f"`prior` expected 'class' or 'sample', got {prior!r}")
        if prior == "class" and num_classes is None:
            raise ValueError("`num_classes` expected a number for `prior='class'`, got None; or use `prior='sample'`")
        self.mse_weight = mse_weight
        self.ce_weight = ce_weight
        self.temperature = temperature
        self.prior_temperature = prior_temperature
        self.prior = None
        if prior == "class" and num_classes is not None:
            self.prior = ClassPrior(num_classes, temperature=prior_temperature)
        self._forwards_unfed = 0
        self._observations = 0

    def observe(self, target_logits: Tensor, labels: Tensor) -> None:
        """Add a batch to the class prior (nothing to do for `prior="sample"`). No gradient.

        Args:
            target_logits: (N, C), the teacher's; in adversarial training the model's own clean logits.
            labels: integers (N,) or soft labels (N, C).
        """
        if self.prior is None:
            return
        self.prior.observe(target_logits, labels)
        self._observations += 1
        if self._observations == CALLS_BEFORE_WARNING and int(self.prior.refreshes) == 0:
            _warn_uniform(f"was fed {self._observations} times and never refreshed", "loss.refresh() after each epoch")

    def synchronize(self) -> None:
        """Sum what was observed over the ranks. Collective: all ranks call it, or none."""
        if self.prior is not None:
            self.prior.synchronize()

    def refresh(self) -> None:
        """End an epoch: what was observed becomes the prior of the next one. Collective."""
        if self.prior is not None:
            self.prior.refresh()

    def _check_call(self, prior: ClassPrior, logits: Tensor, labels: Tensor | None) -> Tensor:
        """Return the labels, which a class prior needs; warn once if nobody feeds it."""
        if labels is None:
            raise ValueError(
                "`labels` expected integers (N,) or soft labels (N, C) for `prior='class'`, got None; "
                "or use `prior='sample'`, which needs none"
            )
        if logits.shape[-1:] != (prior.num_classes,):
            raise ValueError(
                f"`logits` expected {prior.num_classes} classes as the last axis, got the shape {tuple(logits.shape)}; "
                "for (N, C, H, W) pass `logits.movedim(1, -1)`"
            )
        if not torch.compiler.is_compiling() and self._observations == 0:
            self.__dict__["_forwards_unfed"] += 1  # a module's own way of setting takes as long as several operations
            if self._forwards_unfed == FORWARDS_BEFORE_WARNING and int(prior.refreshes) == 0:
                _warn_uniform(
                    f"was called {self._forwards_unfed} times and never fed",
                    "loss.observe(target_logits, labels) after each batch and loss.refresh() after each epoch",
                )
        return labels


def _warn_uniform(what: str, calls: str) -> None:
    warnings.warn(
        f"the class prior {what}, so it is still uniform and `weight_power` has no effect: call {calls}, "
        "or use `prior='sample'`",
        UserWarning,
        stacklevel=4,
    )


class DKLLoss(ClassWiseLoss):
    """Decoupled KL: the gradients of KL in two parts, and the two switches that lead to GKL.

    Args:
        num_classes: C, needed for `prior="class"`.
        prior: "sample" weighs pairs by the target's own softmax (Theorem 1), "class" by the class prior ("GI").
        symmetric: let the weighted MSE reach `logits` ("BA").
        mse_weight: factor of the weighted MSE, the quarter inside.
        ce_weight: factor of the soft cross-entropy.
        temperature: T > 0, divides both logits in both parts, and those of the class prior.
        scale_by_t2: multiply by T squared.
        reduction: "none", "mean" or "sum".
        impl: "auto", "torch" or "triton", see `limbeck.functional.gkl_divergence`.

    Gradient:
        `target_logits` from the first part; `logits` from the second, and from the first if `symmetric`.

    Example:
        >>> import torch
        >>> loss = DKLLoss(temperature=4.0, scale_by_t2=True)  # with a frozen target: the gradient of Hinton's KL
        >>> loss(torch.zeros(2, 3), torch.zeros(2, 3))  # 16 ln 3
        tensor(17.5778)

    Reference:
        arXiv 2305.13948, Theorem 1; see `limbeck.functional.dkl_divergence`.
    """

    def __init__(
        self,
        num_classes: int | None = None,
        *,
        prior: Prior = "sample",
        symmetric: bool = False,
        mse_weight: float = 1.0,
        ce_weight: float = 1.0,
        temperature: float = 1.0,
        scale_by_t2: bool = False,
        reduction: Reduction = "mean",
        impl: Impl = "auto",
    ) -> None:
        super().__init__(num_classes, prior, mse_weight, ce_weight, temperature, temperature, reduction, impl)
        self.symmetric = symmetric
        self.scale_by_t2 = scale_by_t2

    def forward(self, logits: Tensor, target_logits: Tensor, labels: Tensor | None = None) -> Tensor:
        """Both logits (*, C); `labels` integers (*) or soft (*, C), needed for `prior="class"` only."""
        weight = None
        if self.prior is not None:
            labels = self._check_call(self.prior, logits, labels)
            weight = class_rows(self.prior.prior, labels, logits)
        return functional.dkl_divergence(
            logits,
            target_logits,
            weight,
            symmetric=self.symmetric,
            mse_weight=self.mse_weight,
            ce_weight=self.ce_weight,
            temperature=self.temperature,
            scale_by_t2=self.scale_by_t2,
            reduction=self.reduction,
            impl=self.impl,
        )

    def extra_repr(self) -> str:
        """Return the options for `repr`."""
        return (
            f"symmetric={self.symmetric}, mse_weight={self.mse_weight}, ce_weight={self.ce_weight}, "
            f"temperature={self.temperature}, scale_by_t2={self.scale_by_t2}"
        )


class GKLLoss(ClassWiseLoss):
    """Generalised KL with its class prior. Temperature acts on the soft cross-entropy only, without T squared.

    A loop with `prior="class"` makes three calls: `loss(logits, target_logits, labels)` and
    `loss.observe(target_logits, labels)` each batch, `loss.refresh()` after each epoch. `prior="sample"` needs the
    first alone. The state is in buffers: save `loss.state_dict()` (after `loss.synchronize()` in mid-epoch).

    Args:
        num_classes: C, needed for `prior="class"`.
        prior: "class" weighs pairs of classes by the mean prediction over the sample's class, "sample" by the softmax
            of the sample's own target.
        mse_weight: factor of the weighted MSE, the quarter inside.
        ce_weight: factor of the soft cross-entropy.
        weight_power: gamma >= 0 of the weights; 1 is IKL, 0 weighs all classes alike.
        temperature: T > 0 of the soft cross-entropy.
        prior_temperature: tau > 0 of the softmax that the weights are made of.
        ramp_epochs: over the first so many epochs (calls of `refresh`) the loss is multiplied by epoch / ramp_epochs,
            the first epoch counting 1.
        normalizer: "weights", "row" or "samples", see `limbeck.functional.gkl_divergence`.
        reduction: "none", "mean" or "sum".
        impl: "auto", "torch" or "triton", see `limbeck.functional.gkl_divergence`.

    Raises:
        ValueError: an option out of range; `num_classes` or labels missing where the class prior needs them.

    Gradient:
        `logits` from both parts, `target_logits` from the weighted MSE. Weights and the cross-entropy's target are
        detached.

    Example:
        >>> import torch
        >>> loss = GKLLoss(prior="sample", mse_weight=4.0, temperature=4.0)
        >>> loss(torch.zeros(2, 3), torch.zeros(2, 3))  # ln 3
        tensor(1.0986)

    Reference:
        arXiv 2503.08038, Eq. 12-13; see `limbeck.functional.gkl_divergence`.
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
        reduction: Reduction = "mean",
        impl: Impl = "auto",
    ) -> None:
        super().__init__(num_classes, prior, mse_weight, ce_weight, temperature, prior_temperature, reduction, impl)
        check_range("weight_power", weight_power, 0.0, float("inf"))
        if ramp_epochs < 0:
            raise ValueError(f"`ramp_epochs` expected at least 0, got {ramp_epochs}")
        check_normalizer(normalizer, weight_power)
        self.weight_power = weight_power
        self.ramp_epochs = ramp_epochs
        self.normalizer = normalizer
        self._forwards = 0
        self.epoch: Tensor
        self.register_buffer("epoch", torch.ones((), dtype=torch.int64))
        self._cached: tuple[tuple[int, int, float], Tensor] | None = None

    @classmethod
    def preset(cls, name: PresetName, num_classes: int | None = None) -> GKLLoss:
        """Return the loss with published values, whose sources stand in `limbeck/losses/presets.py`.

        Args:
            name: "cifar-distillation", "imagenet", "long-tailed", "adversarial" or "consistency".
            num_classes: C; not needed for "consistency", which is sample-wise.

        Example:
            >>> GKLLoss.preset("long-tailed", num_classes=1000).weight_power
            0.3
        """
        if cls is not GKLLoss:
            raise TypeError(f"presets are options of GKL: expected `GKLLoss.preset`, got `{cls.__name__}.preset`")
        return GKLLoss(num_classes, **preset_options(name))

    def forward(
        self,
        logits: Tensor,
        target_logits: Tensor,
        labels: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        normalizer: Tensor | None = None,
    ) -> Tensor:
        """Both logits (*, C); `labels` integers (*) or soft (*, C), needed for `prior="class"` only.

        `mask` (*) bool keeps the samples where it is True; `normalizer` is a denominator summed by the caller, see
        `limbeck.functional.gkl_divergence`.
        """
        prior = self.prior
        rows: Tensor | None = None
        if prior is None:
            labels, power = None, self.weight_power
        else:
            labels = self._check_call(prior, logits, labels)
            rows, power = self._table(prior, labels)
        value = functional.gkl_divergence(
            logits,
            target_logits,
            rows,
            labels=labels,
            mse_weight=self.mse_weight,
            ce_weight=self.ce_weight,
            weight_power=power,
            temperature=self.temperature,
            prior_temperature=self.prior_temperature,
            normalizer=self.normalizer if normalizer is None else normalizer,
            mask=mask,
            reduction=self.reduction,
            impl=self.impl,
        )
        return self._ramped(value) if self.ramp_epochs else value

    @torch.no_grad()
    def denominator(self, target_logits: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return what `normalizer="weights"` divides the MSE of some samples by, to be summed over parts of a batch.

        With the sum over all parts times a part's share of the samples as `normalizer`, the parts' values times their
        shares add up to the whole batch's.

        Args:
            target_logits: (N, C), as `forward` takes them; classes at -inf, absent on both sides there, weigh nothing.
            labels: As `forward` takes them.

        Returns:
            0-d.
        """
        if self.prior is None:
            rows, power = sample_rows(target_logits, self.weight_power, self.prior_temperature)
        else:
            labels = self._check_call(self.prior, target_logits, labels)
            table, power = self._table(self.prior, labels)
            rows = class_rows(table, labels, target_logits)
        weights = powered(rows, power, fresh=False)
        return functional.gkl_normalizer(weights.masked_fill(torch.isneginf(target_logits), 0.0))

    def _ramped(self, value: Tensor) -> Tensor:
        if not torch.compiler.is_compiling():
            self._forwards += 1
            if self._forwards == CALLS_BEFORE_WARNING and int(self.epoch) == 1:
                warnings.warn(
                    f"the loss was called {self._forwards} times and `ramp_epochs={self.ramp_epochs}` still multiplies "
                    "it by its first step: call loss.refresh() after each epoch",
                    UserWarning,
                    stacklevel=4,
                )
        return value * (self.epoch / self.ramp_epochs).clamp_max(1.0)

    def _table(self, prior: ClassPrior, labels: Tensor) -> tuple[Tensor, float]:
        """Return the class prior, powered once per refresh where that can be, and the power still to be applied."""
        table = prior.prior
        # Powers of soft mixtures are not mixtures of powers, powers that underflow take a factor of the batch out
        # first, and a compiled graph holds no cache.
        soft = labels.is_floating_point()
        if self.weight_power == 1 or soft or torch.compiler.is_compiling() or may_underflow(table, self.weight_power):
            return table, self.weight_power
        version = 0 if table.is_inference() else table._version  # in-place changes by others than the prior itself
        key = (prior.revision, version, self.weight_power)
        if self._cached is None or self._cached[0] != key:
            self._cached = (key, table.detach().pow(self.weight_power))
        return self._cached[1], 1.0

    def refresh(self) -> None:
        """End an epoch: what was observed becomes the prior, and the ramp goes one step on. Collective."""
        super().refresh()
        self.epoch += 1

    def extra_repr(self) -> str:
        """Return the options for `repr`."""
        return (
            f"mse_weight={self.mse_weight}, ce_weight={self.ce_weight}, weight_power={self.weight_power}, "
            f"temperature={self.temperature}, prior_temperature={self.prior_temperature}, "
            f"ramp_epochs={self.ramp_epochs}, normalizer={self.normalizer!r}"
        )
