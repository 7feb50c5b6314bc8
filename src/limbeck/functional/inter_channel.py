"""Inter-channel correlation (ICKD-C): how alike the channels of a map are to each other."""

from __future__ import annotations

import torch
from torch import Tensor

from limbeck.functional._check import Reduction, check_reduction, full_precision, reduce
from limbeck.functional._maps import FLOOR, check_maps, in_full, norm, unit


@full_precision
def inter_channel_correlation(features: Tensor, target_features: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    r"""Inter-channel correlation: squared difference of the channels' Gram matrices, their rows of length 1.

    .. math:: \frac{1}{D} \| \bar G^s - \bar G^t \|_F^2, \quad G = F F^\top, \quad
        \bar G_d = G_d / \|G_d\|_2, \quad F \in \mathbb{R}^{D \times HW}

    The Gram matrix has no positions, so the maps' sizes may differ; the channels are paired, so their number may not:
    a trained embedding of the student's map comes before. Where the maps have fewer positions than channels (the usual
    last map), rows and their products are computed through HW x HW, and no N x D x D tensor exists.

    Args:
        features: (N, D, H, W), any floating dtype; what trains.
        target_features: (N, D, H', W'); what it is drawn to.
        reduction: "none" (N), "mean" (as published: the sum over all divided by N D) or "sum".

    Returns:
        In [0, 4]; float32 (float64 for float64 inputs). The row of a channel that is 0 everywhere is 0.

    Raises:
        TypeError: not tensors, or not floating.
        ValueError: not maps of the same N and D; unknown reduction.

    Gradient:
        To `features`; the target is detached. Where the maps agree it is 0 up to rounding. A dead channel receives
        none through its own row.

    Example:
        >>> import torch
        >>> target = torch.eye(2).view(1, 2, 1, 2)  # two channels with nothing in common
        >>> same = torch.ones(1, 2, 1, 2)  # two equal ones
        >>> inter_channel_correlation(3 * target, target), inter_channel_correlation(same, target)
        (tensor(0.), tensor(0.5858))

    Reference:
        Liu et al., "Exploring Inter-Channel Correlation for Diversity-preserved Knowledge Distillation", ICCV 2021;
        ADLab-AutoDrive/ICKD, `Cifar100/distiller_zoo/ICKD.py`.
    """
    check_maps(features, target_features, same="D")
    check_reduction(reduction)
    student, target = (_scaled(x.flatten(2)) for x in in_full(features, target_features))
    channels = student.shape[1]
    if max(student.shape[2], target.shape[2]) >= channels:
        grams = (x @ x.mT for x in (student, target))
        rows, target_rows = (unit(gram, norm(gram)) for gram in grams)
        return reduce((rows - target_rows).square().sum((1, 2)) / channels, reduction)
    (factors, alive), (target_factors, target_alive) = (_row_factors(x) for x in (student, target))
    products = ((factors @ (student.mT @ target)) * target_factors).sum(-1)
    values = (alive + target_alive - 2 * products).mean(-1)
    return reduce(values.clamp_min(0.0), reduction)


def _scaled(x: Tensor) -> Tensor:
    """The largest entry of a sample becomes 1: rows of length 1 do not see the scale, fourth powers do."""
    largest = x.detach().abs().amax((1, 2), keepdim=True)
    return unit(x, largest)


def _row_factors(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows A_d = F_d / |G_d| (N, D, HW), so that G / |G| = A F', and 1 where the row is not 0 (N, D)."""
    squares = ((x @ (x.mT @ x)) * x).sum(-1, keepdim=True)
    alive = squares > FLOOR**2
    factors = torch.where(alive, x * torch.where(alive, squares, 1.0).rsqrt(), 0.0)
    return factors, alive.squeeze(-1).to(x.dtype)
