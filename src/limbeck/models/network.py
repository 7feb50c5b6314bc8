"""What all networks share: features, dropout, a linear head."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn


class Network(nn.Module):
    """Features, dropout and a linear layer: forward(x) = head(dropout(forward_features(x))).

    Args:
        features: Maps images `(N, C, H, W)` to `(N, D)`.
        feature_size: D.
        num_classes: K.
        dropout: Probability that a feature is dropped in training, in [0, 1).
    """

    def __init__(self, features: nn.Module, feature_size: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.features = features
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(feature_size, num_classes)

    def forward_features(self, images: Tensor) -> Tensor:
        """Return the penultimate features `(N, D)` of images `(N, C, H, W)`, before dropout."""
        return cast("Tensor", self.features(images))

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits `(N, K)` of images `(N, C, H, W)`."""
        return cast("Tensor", self.head(self.dropout(self.forward_features(images))))
