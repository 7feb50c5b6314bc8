"""Differences of the logits themselves."""

from __future__ import annotations

import torch
from torch import Tensor

from limbeck.functional._check import Reduction, check_pair, check_reduction, full_precision, reduce, widest


@full_precision
def logit_mse(logits: Tensor, target_logits: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    r"""Mean squared difference of the logits.

    .. math:: \frac{1}{C} \sum_j (s_j - t_j)^2

    Unlike the divergences it sees a constant added to all logits of a sample; `weighted_mse` with uniform weights does
    not. In LBGAT `logits` are the robust network's of the adversarial images and `target_logits` the guide's of the
    clean ones.

    Args:
        logits: (*, C), any floating dtype; what trains.
        target_logits: (*, C); what it is drawn to.
        reduction: "none" (*), "mean" over all leading axes, or "sum".

    Returns:
        Squared logits, in [0, inf]; float32 (float64 for float64 inputs). The mean is over the classes that are not
        -inf on both sides.

    Raises:
        TypeError: not tensors, or not floating.
        ValueError: shapes differ or are empty; unknown reduction.

    Gradient:
        To both sides, all orders; to `logits` 2 (s - t) / C, to `target_logits` the negative.

    Example:
        >>> import torch
        >>> logit_mse(torch.tensor([[1.0, 3.0]]), torch.tensor([[0.0, 0.0]]))
        tensor(5.)

    Reference:
        Cui et al., "Learnable Boundary Guided Adversarial Training", arXiv 2011.11164; Ba and Caruana, "Do Deep Nets
        Really Need to be Deep?", arXiv 1312.6184.
    """
    check_pair(logits, target_logits)
    check_reduction(reduction)
    dtype = widest(logits, target_logits)
    absent = torch.isneginf(logits) & torch.isneginf(target_logits)
    squares = (logits.to(dtype) - target_logits.to(dtype)).masked_fill(absent, 0.0).square()
    return reduce(squares.sum(-1) / (~absent).sum(-1).clamp_min(1), reduction)
