"""Universal self-distillation as a module, with its weak classifiers."""

from __future__ import annotations

from torch import Tensor, nn

from limbeck.functional.universal_self import Score, check_uskd, uskd_loss
from limbeck.losses.base import DivergenceLoss
from limbeck.losses.feature import Features, Shapes


class USKDLoss(DivergenceLoss):
    """Self-distillation by soft labels of the student's own making: `loss(logits, labels, features)`.

    A weak classifier, linear behind the mean over the positions of an earlier stage, trains with the student and is
    thrown away; the published stage is the last but one. It needs integer labels, and couples the batch, so there is
    no `reduction`.

    Args:
        num_classes: C.
        shapes: that of the stage's features without the batch's axis: a map (D, H, W), tokens (L, D) or a vector (D,).
        target_weight: alpha, at least 0; factor of the label's part. Published 1 on ImageNet, 0.1 on CIFAR-100.
        rest_weight: beta, at least 0; factor of the part among the other classes. Published 0.1.
        weak_weight: mu, at least 0; factor of the weak classifier's cross-entropy. Published 0.005 and 0.1.
        mode: "code" or "paper", the score that the other classes are ranked by.

    Raises:
        ValueError: an option out of range; not one layer; features of no known shape.

    Gradient:
        To `logits`; to the weak classifier and `features` from its cross-entropy.

    Example:
        >>> import torch
        >>> loss = USKDLoss(10, [(8, 4, 4)])
        >>> loss(torch.zeros(2, 10), torch.tensor([0, 9]), torch.ones(2, 8, 4, 4)).shape
        torch.Size([])

    Reference:
        arXiv 2303.13005; see `limbeck.functional.universal_self.uskd_loss`.
    """

    def __init__(
        self,
        num_classes: int,
        shapes: Shapes,
        *,
        target_weight: float = 1.0,
        rest_weight: float = 0.1,
        weak_weight: float = 0.005,
        mode: Score = "code",
    ) -> None:
        super().__init__()
        check_uskd(target_weight, rest_weight, weak_weight, mode)
        if len(shapes) != 1 or len(shapes[0]) not in (1, 2, 3):
            raise ValueError(
                "`shapes` expected that of one layer, a map (D, H, W), tokens (L, D) or a vector (D,), got "
                f"{[tuple(shape) for shape in shapes]}"
            )
        self.target_weight = target_weight
        self.rest_weight = rest_weight
        self.weak_weight = weak_weight
        self.mode: Score = mode
        self.weak_head = nn.Linear(shapes[0][0] if len(shapes[0]) == 3 else shapes[0][-1], num_classes)

    def forward(self, logits: Tensor, labels: Tensor, features: Features) -> Tensor:
        """Logits (N, C), `labels` (N,) integers, and the features of one stage."""
        return uskd_loss(
            logits,
            self.weak_head(_pooled(features).to(self.weak_head.weight.dtype)),
            labels,
            target_weight=self.target_weight,
            rest_weight=self.rest_weight,
            weak_weight=self.weak_weight,
            mode=self.mode,
        )

    def extra_repr(self) -> str:
        """Return the options for `repr`."""
        return (
            f"target_weight={self.target_weight}, rest_weight={self.rest_weight}, weak_weight={self.weak_weight}, "
            f"mode={self.mode!r}"
        )


def _pooled(features: Features) -> Tensor:
    """(N, D): the mean over the positions of a map or over the tokens."""
    layers = [features] if isinstance(features, Tensor) else list(features)
    if len(layers) != 1 or layers[0].dim() not in (2, 3, 4):
        raise ValueError(
            "`features` expected one map (N, D, H, W), tokens (N, L, D) or vectors (N, D), got the shapes "
            f"{[tuple(x.shape) for x in layers]}"
        )
    (x,) = layers
    if x.dim() == 4:
        return x.mean((2, 3))
    return x.mean(1) if x.dim() == 3 else x
