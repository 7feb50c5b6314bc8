"""Class attention transfer (CAT-KD): where a classifier sees each class on the last map."""

from __future__ import annotations

import torch
from torch import Tensor

from limbeck.functional._check import Reduction, check_reduction, full_precision, reduce, widest
from limbeck.functional._maps import check_maps, in_full, norm, pooled_to, unit


@full_precision
def class_attention_transfer(
    features: Tensor,
    target_features: Tensor,
    weight: Tensor,
    target_weight: Tensor,
    *,
    pool: int = 2,
    normalize: bool = False,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Class attention transfer: mean squared difference of the class maps, pooled to a few positions.

    .. math:: \frac{1}{C r^2} \sum_{cp} (A^s_{cp} - A^t_{cp})^2, \quad A = W \, \mathrm{pool}_{r \times r}(F)

    F is the map before the global average pooling and W the weight of the linear classifier behind it, so that the
    logits are the mean of A over the positions, but for the bias: the published networks have none there, and the
    teacher's is dropped. Pooling and W are both linear: F is pooled first, and no N x C x H x W tensor exists. Channels
    and sizes of the maps may differ.

    Args:
        features: (N, D, H, W), any floating dtype; what trains.
        target_features: (N, D', H', W'); what it is drawn to.
        weight: (C, D), of the student's classifier; it trains too.
        target_weight: (C, D'), of the teacher's.
        pool: r, from 1 to the size of the smaller map; published 2; 4 with
            ShuffleNets and for ResNet34 to ResNet18 on ImageNet.
        normalize: bring each class map to length 1; published for pairs of different architectures, whose weights are
            then 10 to 600, in place of 0.5 to 15.
        reduction: "none" (N), "mean" (as published) or "sum".

    Returns:
        Squared logits, in [0, inf), at most 4 / r^2 if normalised; float32 (float64 for float64 inputs).

    Raises:
        TypeError: not tensors, or not floating.
        ValueError: not maps of the same N; weights that fit neither the maps nor each other; `pool` out of range;
            unknown reduction.

    Gradient:
        To `features` and `weight`; the target's are detached. A class map that is 0 everywhere receives none if
        normalised.

    Example:
        >>> import torch
        >>> features, weight = torch.ones(1, 3, 4, 4), torch.eye(2, 3)
        >>> class_attention_transfer(features, features, 3 * weight, weight)  # every class is 2 off everywhere
        tensor(4.)

    Reference:
        Guo et al., "Class Attention Transfer Based Knowledge Distillation", CVPR 2023; GzyAftermath/CAT-KD,
        `mdistiller/distillers/CAT_KD.py`.
    """
    check_maps(features, target_features)
    _check_weights(features, target_features, weight, target_weight)
    _check_pool(pool, features, target_features)
    check_reduction(reduction)
    dtype = widest(features, target_features, weight, target_weight)
    student, target = (x.to(dtype) for x in in_full(features, target_features))
    maps = _class_maps(student, weight.to(dtype), pool, normalize)
    target_maps = _class_maps(target, target_weight.detach().to(dtype), pool, normalize)
    return reduce((maps - target_maps).square().mean((1, 2)), reduction)


def _class_maps(features: Tensor, weight: Tensor, pool: int, normalize: bool) -> Tensor:
    """(N, C, r^2)."""
    maps = torch.einsum("ndp,cd->ncp", pooled_to(features, (pool, pool)).flatten(2), weight)
    return unit(maps, norm(maps)) if normalize else maps


def _check_weights(features: Tensor, target_features: Tensor, weight: Tensor, target_weight: Tensor) -> None:
    for name, value, maps in (("weight", weight, features), ("target_weight", target_weight, target_features)):
        if not isinstance(value, Tensor) or not value.is_floating_point():
            got = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"`{name}` expected the floating weight (C, D) of a linear classifier, got {got}")
        if value.dim() != 2 or value.shape[1] != maps.shape[1]:
            raise ValueError(
                f"`{name}` expected (C, D) with D = {maps.shape[1]}, the channels of the map, got "
                f"{tuple(value.shape)}; take the map that the classifier's features are averaged from"
            )
    if len(weight) != len(target_weight):
        raise ValueError(f"`weight` expected the target's {len(target_weight)} classes, got {len(weight)}")


def _check_pool(pool: int, features: Tensor, target_features: Tensor) -> None:
    size = min(*features.shape[-2:], *target_features.shape[-2:])
    if not isinstance(pool, int) or not 1 <= pool <= size:
        raise ValueError(f"`pool` expected a whole number in [1, {size}], the size of the smaller map, got {pool!r}")
