"""The hint of FitNet: the squared difference of two maps."""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor

from limbeck.functional._check import Reduction, check_reduction, full_precision, reduce
from limbeck.functional._maps import check_maps, check_word, in_full

HintMode = Literal["code", "paper"]


@full_precision
def hint_mse(
    features: Tensor, target_features: Tensor, *, mode: HintMode = "code", reduction: Reduction = "mean"
) -> Tensor:
    r"""Hint of FitNet: the mean squared difference of two maps.

    .. math:: \frac{1}{D H W} \sum_{dhw} (s_{dhw} - t_{dhw})^2

    This is `mode="code"`, of the comparisons' code, which the published weight of 100 belongs to: it does not change
    with the size of the map. FitNet's own (`mode="paper"`) is half the sum over the channels, averaged over the
    positions: D / 2 times as large. The student's map has been brought to the target's shape by a regressor.

    Args:
        features: (N, D, H, W), any floating dtype; what trains.
        target_features: (N, D, H, W); what it is drawn to.
        mode: "code" or "paper".
        reduction: "none" (N), "mean" (as published) or "sum".

    Returns:
        Squared feature units, in [0, inf); float32 (float64 for float64 inputs).

    Raises:
        TypeError: not tensors, or not floating.
        ValueError: not maps of one shape; an unknown mode or reduction.

    Gradient:
        To `features`; the target is detached.

    Example:
        >>> import torch
        >>> target = torch.zeros(1, 6, 2, 2)
        >>> hint_mse(target + 2, target), hint_mse(target + 2, target, mode="paper")
        (tensor(4.), tensor(12.))

    Reference:
        Romero et al., "FitNets: Hints for Thin Deep Nets", arXiv 1412.6550, Eq. 3; HobbitLong/RepDistiller,
        `distiller_zoo/FitNet.py`; adri-romsor/FitNets (paper).
    """
    check_maps(features, target_features, same="DHW")
    check_word("mode", mode, get_args(HintMode))
    check_reduction(reduction)
    student, target = in_full(features, target_features)
    values = (student - target).square().mean((1, 2, 3))
    return reduce(values * (features.shape[1] / 2) if mode == "paper" else values, reduction)
