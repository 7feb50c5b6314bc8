"""The loss of ReviewKD: two maps compared at several scales."""

from __future__ import annotations

from torch import Tensor

from limbeck.functional._check import Reduction, check_reduction, full_precision, reduce
from limbeck.functional._maps import check_maps, in_full, pooled_to

LEVELS = (4, 2, 1)  # positions along an axis after pooling


@full_precision
def hierarchical_context_loss(features: Tensor, target_features: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    r"""Hierarchical context loss (HCL): mean squared difference of two maps and of their pooled forms.

    .. math:: \frac{\sum_{j=0}^{J} 2^{-j} \, \mathrm{mse}(\mathrm{pool}_{l_j}(s), \mathrm{pool}_{l_j}(t))}
        {\sum_{j=0}^{J} 2^{-j}}, \quad l_0 = (H, W), \ l_1, \dots \in \{4, 2, 1\}

    A level takes part where it is smaller than the map (its shorter side), and only those halve the weight. On maps of
    one position it is their mean squared difference.

    Args:
        features: (N, D, H, W), any floating dtype; what trains.
        target_features: (N, D, H, W); what it is drawn to.
        reduction: "none" (N), "mean" (as published) or "sum".

    Returns:
        Squared feature units, in [0, inf); float32 (float64 for float64 inputs).

    Raises:
        TypeError: not tensors, or not floating.
        ValueError: not maps of one shape; unknown reduction.

    Gradient:
        To `features`; the target is detached.

    Example:
        >>> import torch
        >>> checks = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).view(1, 1, 2, 2)  # pooled to one position they cancel
        >>> hierarchical_context_loss(checks, torch.zeros_like(checks))  # (1 + 0 / 2) / (1 + 1 / 2)
        tensor(0.6667)

    Reference:
        Chen et al., "Distilling Knowledge via Knowledge Review", arXiv 2104.09044;
        dvlab-research/ReviewKD.
    """
    check_maps(features, target_features, same="DHW")
    check_reduction(reduction)
    student, target = in_full(features, target_features)
    difference = student - target  # pooling is linear
    smallest = min(difference.shape[-2:])
    values, weight, total = difference.square().mean((1, 2, 3)), 1.0, 1.0
    for level in LEVELS:
        if level < smallest:
            weight /= 2
            values = values + weight * pooled_to(difference, (level, level)).square().mean((1, 2, 3))
            total += weight
    return reduce(values / total, reduction)
