"""DIST: Pearson correlations of the probabilities, over the classes of a sample and over the samples of a class."""

from __future__ import annotations

import torch
from torch import Tensor

from limbeck.functional._check import (
    Reduction,
    check_pair,
    check_positive,
    check_range,
    check_reduction,
    full_precision,
    reduce,
    widest,
)
from limbeck.functional.kl import tempered

FLOOR = 1e-8  # the public code's, beside the product of the norms; part of the published numbers


@full_precision
def dist_loss(
    logits: Tensor,
    target_logits: Tensor,
    *,
    inter_weight: float = 1.0,
    intra_weight: float = 1.0,
    temperature: float | Tensor = 1.0,
    scale_by_t2: bool = True,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Distance of relations: one minus Pearson's correlation, of each row and of each column of the probabilities.

    .. math:: T^2 \Bigl( \beta \, (1 - r(q_n, p_n)) + \gamma \, \frac1C \sum_c (1 - r(q_{:c}, p_{:c})) \Bigr), \quad
        r(a, b) = \frac{\langle a - \bar a, b - \bar b \rangle}{\|a - \bar a\| \, \|b - \bar b\| + 10^{-8}}

    beta is `inter_weight` (over the classes), gamma `intra_weight` (over the batch). q, p are softmax(logits / T), and
    the correlation is theirs, not the logits'. The second part is coupled across the batch: all leading axes are
    flattened into it, it is the same number for every sample, and under data parallelism each rank sees its own rows
    only. `intra_weight=0` is the alternative that does not depend on the batch. T squared is the public code's, though
    a correlation has no scale: T = 4 makes the loss 16 times larger by convention alone. Where fewer than two values
    are left to correlate (one sample, one class) the distance is 0; the public code returns the constant 1.

    Args:
        logits: (*, C), any floating dtype; what trains.
        target_logits: (*, C); what it is drawn to.
        inter_weight: beta, at least 0; 1 as published.
        intra_weight: gamma, at least 0; 1 as published. The whole is then weighted by 2 beside the cross-entropy.
        temperature: T > 0, a float or a 0-d tensor; divides both logits. Published 1 on ImageNet, 4 on CIFAR-100.
        scale_by_t2: multiply by T squared, as in the public code.
        reduction: "none" (*), "mean" over all leading axes (as published), or "sum".

    Returns:
        In [0, 2 T^2 (beta + gamma)]; float32 (float64 for float64 inputs). A constant row or column has correlation 0,
        so its distance is 1. A class at -inf on both sides is left out of its row and its column.

    Raises:
        TypeError: not tensors, or not floating.
        ValueError: shapes differ or are empty; a weight or `temperature` out of range; unknown reduction.

    Gradient:
        To both sides and a tensor `temperature`; through means and norms. A constant row or column passes none to
        itself; second derivatives exist where no row or column is constant.

    Example:
        >>> import torch
        >>> target = torch.tensor([[2.0, 0.0, 0.0], [0.0, 0.0, 3.0]])
        >>> mixed = (0.5 * target.softmax(-1) + 0.5 / 3).log()  # half uniform: the relations are the same
        >>> bool(dist_loss(mixed, target) < 1e-4)
        True

    Reference:
        Huang et al., "Knowledge Distillation from A Stronger Teacher", arXiv 2205.10536, Eq. 6-10; hunto/DIST_KD.
    """
    check_pair(logits, target_logits)
    check_range("inter_weight", inter_weight, 0.0, float("inf"))
    check_range("intra_weight", intra_weight, 0.0, float("inf"))
    check_positive("temperature", temperature)
    check_reduction(reduction)
    dtype = widest(logits, target_logits)
    classes = logits.shape[-1]
    q, p = (torch.softmax(tempered(x.to(dtype), temperature), -1).reshape(-1, classes) for x in (logits, target_logits))
    present = ~(torch.isneginf(logits) & torch.isneginf(target_logits)).reshape(-1, classes)
    inter, _ = _distance(q, p, present, -1)
    columns, related = _distance(q, p, present, 0)
    intra = columns.sum() / related.sum().clamp_min(1)
    values = (inter_weight * inter + intra_weight * intra).reshape(logits.shape[:-1])
    return reduce(values * temperature**2 if scale_by_t2 else values, reduction)


def _distance(a: Tensor, b: Tensor, present: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """1 - r along `dim` over the present values, and where at least two are present; 0 elsewhere."""
    count = present.sum(dim, keepdim=True)

    def centred(x: Tensor) -> Tensor:  # x is 0 where it is not present
        return (x - x.sum(dim, keepdim=True) / count.clamp_min(1)).masked_fill(~present, 0.0)

    a, b = centred(a), centred(b)
    norms = torch.linalg.vector_norm(a, dim=dim) * torch.linalg.vector_norm(b, dim=dim)
    related = count.squeeze(dim) > 1
    return (1 - (a * b).sum(dim) / (norms + FLOOR)).masked_fill(~related, 0.0), related
