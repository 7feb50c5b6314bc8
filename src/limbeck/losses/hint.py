"""FitNet's hint as a module, with its regressor."""

from __future__ import annotations

from typing import get_args

from torch import Tensor

from limbeck.functional._check import Reduction
from limbeck.functional._maps import check_word
from limbeck.functional.hint import HintMode, hint_mse
from limbeck.losses.connected import check_channels, total
from limbeck.losses.feature import Features, Shapes
from limbeck.losses.projectors import ProjectedLoss


class FitNetLoss(ProjectedLoss):
    """FitNet: mean squared difference between a regressor of the student's middle map and the teacher's.

    The regressor is one convolution that matches the size, batch normalisation and a ReLU; see
    `limbeck.losses.projectors.build_projector`, "conv1x1". FitNet itself trains the student up to the hint first and
    distils logits afterwards; the comparisons, whose numbers are quoted, train with the hint beside the cross-entropy.

    Args:
        shapes: (D, H, W) of the student's maps of one sample, one per layer; usually one middle map.
        target_shapes: of the teacher's.
        activation: end the regressor in a ReLU; wrong for a target before its activation.
        mode: "code", the mean of the published numbers (weight 100), or "paper", half the sum over the channels.
        reduction: "none", "mean" or "sum".

    Gradient:
        To the student's maps and the regressor; the target's maps are detached.

    Example:
        >>> import torch
        >>> loss = FitNetLoss([(16, 8, 8)], [(32, 8, 8)])
        >>> loss(torch.rand(2, 16, 8, 8), torch.rand(2, 32, 8, 8)).shape
        torch.Size([])

    Reference:
        arXiv 1412.6550; see `limbeck.functional.hint_mse`.
    """

    def __init__(
        self,
        shapes: Shapes,
        target_shapes: Shapes,
        *,
        activation: bool = True,
        mode: HintMode = "code",
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(shapes, target_shapes, projector="conv1x1", activation=activation, reduction=reduction)
        check_word("mode", mode, get_args(HintMode))
        self.mode = mode
        self.channels = [(shape[0], target[0]) for shape, target in zip(shapes, target_shapes, strict=True)]

    def forward(self, features: Features, target_features: Features) -> Tensor:
        """Maps (N, D, H, W), one or one per layer, of the shapes that the loss was built for."""
        check_channels(self.pairs(features, target_features, len(self.channels)), self.channels)
        return total(
            hint_mse(feature, target, mode=self.mode, reduction=self.reduction)
            for feature, target in self.projected(features, target_features)
        )

    def extra_repr(self) -> str:
        """Return the options for `repr`."""
        return f"activation={self.activation}, mode={self.mode!r}"
