"""One-for-all distillation as a module, with its exit heads."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from limbeck.functional._check import Reduction, check_positive, check_range
from limbeck.functional.one_for_all import Boost, check_mode, ofa_loss
from limbeck.losses.base import DivergenceLoss
from limbeck.losses.exits import apply_exit, exit_head
from limbeck.losses.feature import Features, Shapes, channels_of


class OFALoss(DivergenceLoss):
    r"""One-for-all: the OFA loss of the student's logits and of an exit head on each of its stages.

    .. math:: w_l \, \ell(z_s) + w_e \sum_i \ell(h_i(f_i))

    The public code taps four stages, with one power for all five losses and both weights 1, beside the labels'
    cross-entropy with weight 1. An exit of the i-th of n maps halves the sides n - i times by separable convolutions
    (a 1x1 convolution on the last), tokens pass max(n - i, 1) transformer blocks. The heads train with the student and
    are thrown away.

    Args:
        num_classes: C.
        shapes: of the student's features without the batch's axis, in order: maps (D, H, W), tokens (L, D) or
            vectors (D,).
        power: above 0, see `limbeck.functional.one_for_all.ofa_loss`.
        mode: "code" or "paper", the formula.
        temperature: T > 0, divides both logits; no T squared.
        logit_weight: at least 0; factor of the loss of the student's logits.
        exit_weight: at least 0; factor of each exit's loss. At 0 no heads are built and no features are read.
        width: channels before each exit's linear layer; None for those of the last features. The public code takes the
            larger of the student's and the teacher's.
        reduction: "none", "mean" or "sum".

    Raises:
        ValueError: an option out of range; features of no known shape; another number of features than shapes.

    Gradient:
        To `logits`, `features` and the heads; the target is detached.

    Example:
        >>> import torch
        >>> loss = OFALoss(10, [(8, 8, 8), (16, 4, 4)])
        >>> features = [torch.randn(2, 8, 8, 8), torch.randn(2, 16, 4, 4)]
        >>> loss(torch.zeros(2, 10), torch.zeros(2, 10), torch.tensor([0, 9]), features).shape
        torch.Size([])

    Reference:
        arXiv 2310.19444; see `limbeck.functional.one_for_all.ofa_loss`.
    """

    def __init__(
        self,
        num_classes: int,
        shapes: Shapes,
        *,
        power: float = 1.0,
        mode: Boost = "code",
        temperature: float = 1.0,
        logit_weight: float = 1.0,
        exit_weight: float = 1.0,
        width: int | None = None,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(reduction)
        check_positive("power", power)
        check_mode(mode)
        check_positive("temperature", temperature)
        check_range("logit_weight", logit_weight, 0.0, float("inf"))
        check_range("exit_weight", exit_weight, 0.0, float("inf"))
        self.power = power
        self.mode: Boost = mode
        self.temperature = temperature
        self.logit_weight = logit_weight
        self.exit_weight = exit_weight
        tapped = list(shapes) if exit_weight else []
        if exit_weight and not tapped:
            raise ValueError("`shapes` expected one shape per layer, got none; `exit_weight=0` needs none")
        if width is None and tapped:
            width = channels_of(tapped[-1])
        if width is not None and width < 1:
            raise ValueError(f"`width` expected at least 1 channel, got {width}")
        self.heads = nn.ModuleList(
            exit_head(shape, width or 1, len(tapped) - 1 - place, num_classes) for place, shape in enumerate(tapped)
        )

    def forward(
        self, logits: Tensor, target_logits: Tensor, labels: Tensor, features: Features | None = None
    ) -> Tensor:
        """Both logits (N, C), `labels` (N,) integers, and the student's features, one tensor per layer."""
        total = self.logit_weight * self._one(logits, target_logits, labels)
        for head, feature in zip(self.heads, self._layers(features), strict=True):
            total = total + self.exit_weight * self._one(apply_exit(head, feature), target_logits, labels)
        return total

    def _one(self, logits: Tensor, target_logits: Tensor, labels: Tensor) -> Tensor:
        return ofa_loss(
            logits,
            target_logits,
            labels,
            power=self.power,
            mode=self.mode,
            temperature=self.temperature,
            reduction=self.reduction,
        )

    def _layers(self, features: Features | None) -> Sequence[Tensor]:
        """One tensor per head."""
        if not self.heads:
            return []
        layers = [features] if isinstance(features, Tensor) else list(features or ())
        if len(layers) != len(self.heads):
            raise ValueError(f"`features` expected {len(self.heads)} tensors, one per exit head, got {len(layers)}")
        return layers

    def extra_repr(self) -> str:
        """Return the options for `repr`."""
        return (
            f"power={self.power}, mode={self.mode!r}, temperature={self.temperature}, "
            f"logit_weight={self.logit_weight}, exit_weight={self.exit_weight}"
        )
