"""Class attention transfer as a module."""

from __future__ import annotations

from torch import Tensor, nn

from limbeck.functional._check import Reduction
from limbeck.functional.class_attention import class_attention_transfer
from limbeck.losses.feature import FeatureLoss, Features


class CATLoss(FeatureLoss):
    """Class attention transfer (CAT-KD): `loss(features, target_features, head, target_head)`.

    The class maps are the classifiers' weights applied at each position of the last map. The published networks have a
    1 x 1 convolution without bias in place of the classifier; here the networks stay as they are, and the biases are
    left out of the class maps.

    Args:
        pool: r, the positions along an axis after pooling; published 2; 4 with ShuffleNets and for ResNet34 to
            ResNet18 on ImageNet.
        normalize: bring each class map to length 1; published for pairs of different architectures.
        reduction: "none", "mean" or "sum".

    Gradient:
        To the student's map and its classifier's weight; the target's are detached.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> features, head = torch.rand(2, 16, 8, 8), nn.Linear(16, 10)
        >>> CATLoss()(features, features, head, head).item()
        0.0

    Reference:
        Guo et al., CVPR 2023; see `limbeck.functional.class_attention_transfer`.
    """

    def __init__(self, *, pool: int = 2, normalize: bool = False, reduction: Reduction = "mean") -> None:
        super().__init__(reduction)
        if not isinstance(pool, int) or pool < 1:
            raise ValueError(f"`pool` expected a whole number of at least 1, got {pool!r}")
        self.pool, self.normalize = pool, normalize

    def forward(self, features: Features, target_features: Features, head: nn.Linear, target_head: nn.Linear) -> Tensor:
        """Maps (N, D, H, W) of one layer, the last; `head` and `target_head` are the classifiers behind them."""
        pairs = self.pairs(features, target_features)
        if len(pairs) != 1:
            raise ValueError(f"`features` expected one layer, the map before the classifier, got {len(pairs)}")
        for name, layer in (("head", head), ("target_head", target_head)):
            if not isinstance(layer, nn.Linear):
                raise TypeError(f"`{name}` expected a linear classifier `nn.Linear`, got {type(layer).__name__}")
        return class_attention_transfer(
            *pairs[0],
            head.weight,
            target_head.weight,
            pool=self.pool,
            normalize=self.normalize,
            reduction=self.reduction,
        )

    def extra_repr(self) -> str:
        """Return the options for `repr`."""
        return f"pool={self.pool}, normalize={self.normalize}"
