"""Variational information distillation as a module, with its regressors and variances."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.functional._check import Reduction, check_positive
from limbeck.functional.variational import variational_information
from limbeck.losses.connected import ConnectedLoss, total
from limbeck.losses.feature import Features, Shapes

VARIANCE_FLOOR = 1e-5  # of the published code, added to the softplus


class VIDLoss(ConnectedLoss):
    """Variational information distillation (VID): likelihood of the teacher's maps under a regressor of the student's.

    Per layer: three 1 x 1 convolutions without bias, a ReLU between them, and a variance per channel, softplus(a) +
    1e-5. Both train with the student, as in RepDistiller. mdistiller keeps the variances in a plain list, outside the
    module, the optimizer and the checkpoint: there they stay 5, and its VID is a tenth of a mean squared difference.

    Args:
        shapes: (D, H, W) of the student's maps of one sample, one per layer.
        target_shapes: of the teacher's; the larger map is average-pooled to the smaller one's size.
        initial_variance: of every channel, above 1e-5, squared units of the teacher's features; published 5.
        reduction: "none", "mean" or "sum".

    Gradient:
        To the student's maps, the regressors and the variances; the target's maps are detached.

    Example:
        >>> import torch
        >>> loss = VIDLoss([(16, 8, 8)], [(32, 4, 4)])
        >>> loss(torch.rand(2, 16, 8, 8), torch.rand(2, 32, 4, 4)) > 0.8  # log(5) / 2 and the squares
        tensor(True)

    Reference:
        arXiv 1904.05835; see `limbeck.functional.variational_information`.
    """

    def __init__(
        self,
        shapes: Shapes,
        target_shapes: Shapes,
        *,
        initial_variance: float = 5.0,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(shapes, target_shapes, _regressor, same_size=True, reduction=reduction)
        check_positive("initial_variance", initial_variance)
        soft = initial_variance - VARIANCE_FLOOR
        if soft <= 0:
            raise ValueError(f"`initial_variance` expected a number above {VARIANCE_FLOOR:g}, got {initial_variance}")
        self.initial_variance = initial_variance
        start = soft + math.log(-math.expm1(-soft))  # softplus of it is `soft`
        self.scales = nn.ParameterList(torch.full((channels,), start) for _, channels in self.channels)

    def variances(self) -> list[Tensor]:
        """Return sigma squared of each layer, (D,)."""
        return [F.softplus(scale) + VARIANCE_FLOOR for scale in self.scales]

    def forward(self, features: Features, target_features: Features) -> Tensor:
        """Maps (N, D, H, W), one or one per layer, of the channels that the loss was built for."""
        pairs = self.connected(features, target_features)
        return total(
            variational_information(feature, target, variance, reduction=self.reduction)
            for (feature, target), variance in zip(pairs, self.variances(), strict=True)
        )

    def extra_repr(self) -> str:
        """Return the options for `repr`."""
        return f"initial_variance={self.initial_variance}"


def _regressor(channels: int, target_channels: int) -> nn.Module:
    """Return three 1 x 1 convolutions, as wide as the target's map, a ReLU between them."""
    return nn.Sequential(
        nn.Conv2d(channels, target_channels, 1, bias=False),
        nn.ReLU(),
        nn.Conv2d(target_channels, target_channels, 1, bias=False),
        nn.ReLU(),
        nn.Conv2d(target_channels, target_channels, 1, bias=False),
    )
