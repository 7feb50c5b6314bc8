"""Attention transfer (AT): where a map is active, its channels averaged away."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from limbeck.functional._check import Reduction, check_positive, check_reduction, full_precision, reduce
from limbeck.functional._maps import check_maps, check_word, in_full, norm, to_smaller, unit

AttentionMode = Literal["code", "paper"]


@full_precision
def attention_transfer(
    features: Tensor,
    target_features: Tensor,
    *,
    power: float = 2.0,
    mode: AttentionMode = "code",
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Attention transfer: distance between the directions of two attention maps.

    .. math:: \frac{1}{HW} \Bigl\| \frac{Q^s}{\|Q^s\|} - \frac{Q^t}{\|Q^t\|} \Bigr\|_2^2, \quad
        Q = \sum_d |F_d|^{\,p} \in \mathbb{R}^{HW}

    This is `mode="code"`, what the authors' code computes and what the published weight of 1000 belongs to. The paper
    (`mode="paper"`) has half the norm itself, not squared and not divided by the positions. In the code's form large,
    early maps weigh less. Channels may differ in number; the larger map is average-pooled to the smaller one's size.

    Args:
        features: (N, D, H, W), any floating dtype; what trains.
        target_features: (N, D', H', W'); what it is drawn to.
        power: p > 0; published 2.
        mode: "code" or "paper".
        reduction: "none" (N), "mean" (as published) or "sum".

    Returns:
        In [0, 2 / HW] ("code") or [0, 1 / sqrt(2)] ("paper"); float32 (float64 for float64 inputs). A map that is 0
        everywhere has attention 0.

    Raises:
        TypeError: not tensors, or not floating.
        ValueError: not maps of the same N; `power` out of range; an unknown mode or reduction.

    Gradient:
        To `features`; the target is detached. A dead map receives none. "paper" has the gradient 0 where the maps
        agree, and one of constant length beside that.

    Example:
        >>> import torch
        >>> left, right = torch.tensor([[[[1.0, 0.0]]]]), torch.tensor([[[[0.0, 3.0]]]])
        >>> attention_transfer(left, right)  # two orthogonal directions, two positions
        tensor(1.)

    Reference:
        Zagoruyko, Komodakis, arXiv 1612.03928, Eq. 2; szagoruyko/attention-transfer, `utils.py`.
    """
    check_maps(features, target_features)
    check_positive("power", power)
    check_word("mode", mode, get_args(AttentionMode))
    check_reduction(reduction)
    student, target = (_attention(x, power) for x in to_smaller(*in_full(features, target_features)))
    difference = student - target
    if mode == "paper":
        return reduce(norm(difference).squeeze(-1) / 2, reduction)
    return reduce(difference.square().mean(-1), reduction)


def _attention(x: Tensor, power: float) -> Tensor:
    """(N, HW), of length 1: the direction does not see the scale, so the largest entry is 1 before the power."""
    largest = x.detach().abs().amax((1, 2, 3), keepdim=True)
    x = x / torch.where(largest > 0, largest, 1.0)
    powers = x.square() if power == 2 else _power(x.abs(), power)
    attention = powers.mean(1).flatten(1)
    return unit(attention, norm(attention))


def _power(x: Tensor, power: float) -> Tensor:
    """x^p, x not negative; 0 without a gradient at 0, where a power below 1 is infinitely steep."""
    dead = x == 0
    return x.masked_fill(dead, 1.0).pow(power).masked_fill(dead, 0.0)
