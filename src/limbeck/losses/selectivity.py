"""Neuron selectivity transfer as a module."""

from __future__ import annotations

from torch import Tensor

from limbeck.functional.selectivity import neuron_selectivity
from limbeck.losses.connected import total
from limbeck.losses.feature import FeatureLoss, Features


class NSTLoss(FeatureLoss):
    """Neuron selectivity transfer: discrepancy between the channels of two maps, summed over the layers.

    Args:
        reduction: "none", "mean" or "sum".

    Gradient:
        To the student's maps; the target's are detached.

    Example:
        >>> import torch
        >>> maps = torch.rand(2, 32, 4, 4)
        >>> NSTLoss()(3 * maps.flip(1), maps) < 1e-6  # neither order nor scale of the channels is seen
        tensor(True)

    Reference:
        arXiv 1707.01219; see `limbeck.functional.neuron_selectivity`.
    """

    def forward(self, features: Features, target_features: Features) -> Tensor:
        """Maps (N, D, H, W), one or one per layer; D, H, W may differ between the networks."""
        return total(
            neuron_selectivity(feature, target, reduction=self.reduction)
            for feature, target in self.pairs(features, target_features)
        )
