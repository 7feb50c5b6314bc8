"""Similarities between a batch's samples as modules: PKT and SP. Neither has an option."""

from __future__ import annotations

import torch
from torch import Tensor

from limbeck.functional.similarity import probabilistic_transfer, similarity_preserving
from limbeck.losses.feature import FeatureLoss, Features


class PKTLoss(FeatureLoss):
    """KL between the probabilities of each sample's neighbours, usually of pooled features.

    It couples the batch, so it has no `reduction`. Several layers are summed. The published weight is 30000.

    Gradient:
        To `features`; none to `target_features`.

    Example:
        >>> import torch
        >>> target = torch.randn(4, 8)
        >>> PKTLoss()(3 * target, target) < 1e-6
        tensor(True)

    Reference:
        arXiv 1803.10837; see `limbeck.functional.probabilistic_transfer`.
    """

    def __init__(self) -> None:
        super().__init__()

    def forward(self, features: Features, target_features: Features) -> Tensor:
        """(N, D) or (N, D, H, W) of each layer."""
        return torch.stack([probabilistic_transfer(*pair) for pair in self.pairs(features, target_features)]).sum()


class SPLoss(FeatureLoss):
    """Difference of the samples' Gram matrices, usually of the last stage's maps.

    It couples the batch, so it has no `reduction`. Several layers are summed. The published weight is 3000.

    Gradient:
        To `features`; none to `target_features`.

    Example:
        >>> import torch
        >>> target = torch.randn(4, 8, 2, 2)
        >>> SPLoss()(3 * target, target) < 1e-6
        tensor(True)

    Reference:
        arXiv 1907.09682; see `limbeck.functional.similarity_preserving`.
    """

    def __init__(self) -> None:
        super().__init__()

    def forward(self, features: Features, target_features: Features) -> Tensor:
        """(N, D, H, W) or (N, D) of each layer."""
        return torch.stack([similarity_preserving(*pair) for pair in self.pairs(features, target_features)]).sum()
