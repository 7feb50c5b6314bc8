"""Neuron selectivity transfer (NST): the channels of two maps as samples of two distributions."""

from __future__ import annotations

from torch import Tensor

from limbeck.functional._check import Reduction, check_reduction, full_precision, reduce
from limbeck.functional._maps import check_maps, in_full, norm, to_smaller, unit


@full_precision
def neuron_selectivity(features: Tensor, target_features: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    r"""Neuron selectivity transfer: squared maximum mean discrepancy between the channels of two maps.

    .. math:: \frac{1}{D_t^2} \sum_{dd'} k(t_d, t_{d'}) + \frac{1}{D_s^2} \sum_{dd'} k(s_d, s_{d'})
        - \frac{2}{D_s D_t} \sum_{dd'} k(s_d, t_{d'}), \quad k(x, y) = \langle x, y \rangle^2

    A channel is its map over the positions, brought to length 1. The public code writes the products out as a tensor
    N x D_s x D_t x HW. With this kernel the sum over channels is also

    .. math:: \bigl\| S^\top S / D_s - T^\top T / D_t \bigr\|_F^2

    with S (D_s, HW), T (D_t, HW): the smaller one of HW x HW and D x D is computed. The first publication leaves the
    target's own term out, a constant. Channels may differ in number; the larger map is average-pooled to the smaller
    one's size.

    Args:
        features: (N, D, H, W), any floating dtype; what trains.
        target_features: (N, D', H', W'); what it is drawn to.
        reduction: "none" (N), "mean" (as published) or "sum".

    Returns:
        In [0, 2]; float32 (float64 for float64 inputs). A channel that is 0 everywhere adds nothing, but is counted.

    Raises:
        TypeError: not tensors, or not floating.
        ValueError: not maps of the same N; unknown reduction.

    Gradient:
        To `features`; the target is detached. A dead channel receives none.

    Example:
        >>> import torch
        >>> target = torch.eye(2).view(1, 2, 1, 2)  # one channel per position
        >>> neuron_selectivity(5 * target.flip(1), target)  # neither order nor scale of the channels is seen
        tensor(0.)

    Reference:
        Huang, Wang, arXiv 1707.01219, with the polynomial kernel (d = 2, c = 0);
        TuSimple/neuron-selectivity-transfer; HobbitLong/RepDistiller, `distiller_zoo/NST.py`.
    """
    check_maps(features, target_features)
    check_reduction(reduction)
    student, target = (
        unit(x, norm(x)) for x in (y.flatten(2) for y in to_smaller(*in_full(features, target_features)))
    )
    channels, target_channels, positions = student.shape[1], target.shape[1], student.shape[2]
    if positions <= max(channels, target_channels):
        relation = student.mT @ student / channels - target.mT @ target / target_channels
        return reduce(relation.square().sum((1, 2)), reduction)
    own, targets, cross = student @ student.mT, target @ target.mT, student @ target.mT
    own, targets, cross = (x.square().mean((1, 2)) for x in (own, targets, cross))
    return reduce((own + targets - 2 * cross).clamp_min(0.0), reduction)
