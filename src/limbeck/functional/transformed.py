"""Transformed teacher matching (TTM, WTTM): a temperature on the target alone."""

from __future__ import annotations

import torch
from torch import Tensor

from limbeck.functional._check import (
    Reduction,
    check_pair,
    check_positive,
    check_reduction,
    full_precision,
    reduce,
    widest,
)
from limbeck.functional.kl import _kl


@full_precision
def ttm_divergence(
    logits: Tensor,
    target_logits: Tensor,
    *,
    power: float = 0.1,
    weighted: bool = False,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""KL from the student at temperature 1 to a power of the target; TTM, or WTTM if `weighted`.

    .. math:: \sum_j \hat p_t[j] \, (\log \hat p_t[j] - \log p_s[j]), \quad
        \hat p_t = \frac{p_t^g}{\sum_k p_t[k]^g} = \mathrm{softmax}(g \, t), \quad U = \sum_k p_t[k]^g

    `weighted=True` multiplies each sample by sg(U), which is 1 for a certain target and C^(1 - g) for a flat one, so
    that its factor does not carry over between class counts. g is `power`, one over the target's temperature; there is
    no T squared. Both are computed from logits, since powers of small probabilities underflow in half precision.

    Args:
        logits: (*, C), any floating dtype; what trains.
        target_logits: (*, C); what it is drawn to.
        power: g above 0; 1 is KL (U = 1). The public code's examples: 0.1 with factor 45, 0.2 for WTTM with CRD.
        weighted: multiply by sg(U).
        reduction: "none" (*), "mean" over all leading axes (as in the public code), or "sum".

    Returns:
        Nats, times U if weighted; in [0, inf], float32 (float64 for float64 inputs). 0 at s = g t + constant.

    Raises:
        TypeError: not tensors, or not floating.
        ValueError: shapes differ or are empty; `power` not above 0; unknown reduction.

    Gradient:
        To both sides, all orders; to `logits` it is p_s - softmax(g t), times U if weighted. U is detached.

    Example:
        >>> import torch
        >>> target = torch.tensor([[4.0, 0.0]])
        >>> ttm_divergence(0.25 * target, target, power=0.25)
        tensor(0.)

    Reference:
        Zheng and Yang, "Knowledge Distillation Based on Transformed Teacher Matching", arXiv 2402.11148; zkxufo/TTM,
        `distiller_zoo/ttm.py`, `wttm.py`.
    """
    check_pair(logits, target_logits)
    check_positive("power", power)
    check_reduction(reduction)
    dtype = widest(logits, target_logits)
    s, t = logits.to(dtype), target_logits.to(dtype)
    values = _kl(torch.log_softmax(t * power, -1), torch.log_softmax(s, -1))
    if weighted:
        values = values * (power * torch.log_softmax(t.detach(), -1)).logsumexp(-1).exp()
    return reduce(values, reduction)
