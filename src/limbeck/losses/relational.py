"""Relational distillation (RKD) as a module."""

from __future__ import annotations

import torch
from torch import Tensor

from limbeck.functional._check import check_range
from limbeck.functional.relational import relational_angle, relational_distance
from limbeck.losses.feature import FeatureLoss, Features


class RKDLoss(FeatureLoss):
    """Distances and angles between a batch's samples, usually of pooled features.

    It couples the batch, so it has no `reduction`. Several layers are summed.

    Args:
        distance_weight: factor of the distances' difference, at least 0; 25 in the tables of CRD and later, 1 in the
            authors' code of metric learning.
        angle_weight: factor of the angles' difference, at least 0; 50, and 2.

    Gradient:
        To `features`; none to `target_features`.

    Example:
        >>> import torch
        >>> target = torch.randn(4, 8)
        >>> RKDLoss()(3 * target + 1, target) < 1e-6
        tensor(True)

    Reference:
        arXiv 1904.05068; see `limbeck.functional.relational_distance` and `relational_angle`.
    """

    def __init__(self, *, distance_weight: float = 25.0, angle_weight: float = 50.0) -> None:
        super().__init__()
        check_range("distance_weight", distance_weight, 0.0, float("inf"))
        check_range("angle_weight", angle_weight, 0.0, float("inf"))
        self.distance_weight, self.angle_weight = distance_weight, angle_weight

    def forward(self, features: Features, target_features: Features) -> Tensor:
        """(N, D) or (N, D, H, W) of each layer."""
        parts = ((self.distance_weight, relational_distance), (self.angle_weight, relational_angle))
        pairs = self.pairs(features, target_features)
        values = [weight * relation(*pair) for weight, relation in parts if weight for pair in pairs]
        return torch.stack(values).sum() if values else pairs[0][0].sum() * 0.0

    def extra_repr(self) -> str:
        """Return the options for `repr`."""
        return f"distance_weight={self.distance_weight}, angle_weight={self.angle_weight}"
