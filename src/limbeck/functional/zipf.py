"""Zipf's label smoothing: the classes but the label's follow the law of their ranks."""

from __future__ import annotations

import torch
from torch import Tensor

from limbeck.functional._check import (
    Reduction,
    check_pair,
    check_reduction,
    full_precision,
    reduce,
    widest,
)
from limbeck.functional._rest import log_among_others, own_class


def ranks(scores: Tensor) -> Tensor:
    r"""Rank of each class by its score, the largest first; ties share the smallest rank.

    .. math:: r_k = 1 + |\{ j : s_j > s_k \}|

    Args:
        scores: (*, C), numbers without NaN.

    Returns:
        (*, C) int64, in [1, C].

    Gradient:
        None.

    Example:
        >>> import torch
        >>> ranks(torch.tensor([5, 0, 9, 5]))
        tensor([2, 4, 1, 2])
    """
    scores = scores.detach().contiguous()
    ascending = scores.sort(dim=-1).values
    return 1 + scores.shape[-1] - torch.searchsorted(ascending, scores, right=True)


@full_precision
def dense_votes(features: Tensor, weight: Tensor, bias: Tensor | None = None, *, upsample: int = 1) -> Tensor:
    r"""Votes of a map's positions: how often each class is the classifier's first choice at one of them.

    Args:
        features: (N, D, H, W), the last map, any floating dtype.
        weight: (C, D), of the linear classifier behind the pooling.
        bias: (C,) or None.
        upsample: at least 1; the map is enlarged so many times a side, bilinearly, before the vote. Published 2 on
            CIFAR-100.

    Returns:
        (N, C) int64; each row sums to the number of positions.

    Raises:
        TypeError: `features` not a floating tensor.
        ValueError: shapes do not fit; `upsample` below 1.

    Gradient:
        None.

    Example:
        >>> import torch
        >>> maps = torch.tensor([[[[3.0, 1.0, 0.0]], [[0.0, 2.0, 1.0]]]])  # one image, 2 features, 1 x 3 positions
        >>> dense_votes(maps, torch.eye(2))
        tensor([[1, 2]])

    Reference:
        Liang et al., arXiv 2207.12980 (ECCV 2022), the dense votes.
    """
    if not isinstance(features, Tensor) or not features.is_floating_point():
        got = features.dtype if isinstance(features, Tensor) else type(features).__name__
        raise TypeError(f"`features` expected a floating map (N, D, H, W), got {got}")
    if features.dim() != 4 or weight.dim() != 2 or features.shape[1] != weight.shape[1] or not features.numel():
        raise ValueError(
            f"`features` expected a map (N, {weight.shape[-1]}, H, W) that the classifier {tuple(weight.shape)} reads, "
            f"got {tuple(features.shape)}; take the last stage's, or rank by the logits (`dense=False`)"
        )
    if upsample < 1:
        raise ValueError(f"`upsample` expected at least 1, got {upsample}")
    dtype = widest(features, weight)
    maps, weight = features.detach().to(dtype), weight.detach().to(dtype)
    if upsample > 1:
        maps = torch.nn.functional.interpolate(maps, scale_factor=upsample, mode="bilinear", align_corners=False)
    scores = maps.flatten(2).mT @ weight.T
    if bias is not None:
        scores = scores + bias.detach().to(dtype)
    first = scores.argmax(-1)
    votes = first.new_zeros(len(first), len(weight))
    return votes.scatter_add_(1, first, torch.ones_like(first))


@full_precision
def zipf_loss(logits: Tensor, labels: Tensor, votes: Tensor | None = None, *, reduction: Reduction = "mean") -> Tensor:
    r"""Zipf's label smoothing: KL from the student among the classes but the label's to the law of their ranks.

    .. math:: KL(q \| \hat p_s), \quad q[k] = \frac{1 / r_k}{\sum_{j \ne y} 1 / r_j}, \quad
        \hat p_s = \mathrm{softmax}_{k \ne y}(\text{logits}_k)

    r_k is the rank of class k among all by its votes, such as `dense_votes` of the student's own last map, or by the
    logits where none are given (the paper's variant without dense votes). Ties share the smallest rank. Added to the
    labels' cross-entropy with weight 0.1 (CIFAR-100, ImageNet) or 1 (TinyImageNet, INaturalist). The public code also
    trains classifiers on the last stages by cross-entropy, which vote too; those belong to the network and are not
    here.

    Args:
        logits: (*, C), any floating dtype; what trains.
        labels: (*), integers in [0, C).
        votes: (*, C), numbers by which the classes are ranked; the logits by default.
        reduction: "none" (*), "mean" over all leading axes (as published), or "sum".

    Returns:
        Nats, in [0, inf); float32 (float64 for float64 inputs). 0 without another class. A class whose logit is -inf
        counts as absent.

    Raises:
        TypeError: logits not floating; labels not integers.
        ValueError: shapes differ or are empty; a label out of range; unknown reduction.

    Gradient:
        To `logits` through the student's side; the target is detached. None to the label's logit.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[0.0, 1.0, 0.5]]).log()  # the label's, then twice as likely as the last
        >>> bool(zipf_loss(logits, torch.tensor([0]), torch.tensor([[0, 9, 5]])) < 1e-6)
        True

    Reference:
        Liang et al., "Efficient One Pass Self-distillation with Zipf's Label Smoothing", arXiv 2207.12980, Eq. 3-6;
        megvii-research/zipfls.
    """
    check_pair(logits, logits)
    own = own_class(labels, logits, "Zipf's label smoothing")
    check_reduction(reduction)
    if votes is not None and votes.shape != logits.shape:
        raise ValueError(f"`votes` expected one number per class, {tuple(logits.shape)}, got {tuple(votes.shape)}")
    s = logits.to(widest(logits))
    q = by_rank(ranks(s if votes is None else votes), own | torch.isneginf(logits), s.dtype)
    log_p = log_among_others(s, own)
    surprise = q.masked_fill(q == 0, 1.0).log() - log_p
    return reduce((q * surprise.masked_fill(q == 0, 0.0)).sum(-1), reduction)


def by_rank(rank: Tensor, left_out: Tensor, dtype: torch.dtype) -> Tensor:
    """1 / rank over its sum, 0 where left out; all 0 where every class is."""
    weights = rank.to(dtype).reciprocal().masked_fill(left_out, 0.0)
    whole = weights.sum(-1, keepdim=True)
    return weights / whole.masked_fill(whole == 0, 1.0)
