"""Inter-channel correlation as a module, with its embedding."""

from __future__ import annotations

from torch import Tensor

from limbeck.functional._check import Reduction
from limbeck.functional.inter_channel import inter_channel_correlation
from limbeck.losses.connected import ConnectedLoss, connector, total
from limbeck.losses.feature import Features, Shapes


class ICKDLoss(ConnectedLoss):
    """Inter-channel correlation (ICKD-C): the Gram matrix of the student's embedded channels is the teacher's.

    The embedding is a 1 x 1 convolution without bias and a batch normalisation, to the teacher's channels. The public
    code builds one for the teacher too and never calls it; there is none here.

    Args:
        shapes: (D, H, W) of the student's maps of one sample, one per layer; usually the last map alone.
        target_shapes: of the teacher's; H and W may differ from the student's.
        reduction: "none", "mean" or "sum".

    Gradient:
        To the student's maps and the embedding; the target's maps are detached.

    Example:
        >>> import torch
        >>> loss = ICKDLoss([(16, 8, 8)], [(32, 4, 4)])
        >>> loss(torch.rand(2, 16, 8, 8), torch.rand(2, 32, 4, 4)).shape
        torch.Size([])

    Reference:
        Liu et al., ICCV 2021; see `limbeck.functional.inter_channel_correlation`.
    """

    def __init__(self, shapes: Shapes, target_shapes: Shapes, *, reduction: Reduction = "mean") -> None:
        super().__init__(shapes, target_shapes, connector, same_size=False, reduction=reduction)

    def forward(self, features: Features, target_features: Features) -> Tensor:
        """Maps (N, D, H, W), one or one per layer, of the shapes that the loss was built for."""
        return total(
            inter_channel_correlation(feature, target, reduction=self.reduction)
            for feature, target in self.connected(features, target_features)
        )
