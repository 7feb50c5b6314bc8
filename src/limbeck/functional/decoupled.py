"""Decoupled knowledge distillation (DKD): KL's two parts with weights of their own, in log space."""

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
from limbeck.functional._rest import log_all_others, log_among_others, log_own, own_class
from limbeck.functional.kl import _kl, tempered


@full_precision
def dkd_divergence(
    logits: Tensor,
    target_logits: Tensor,
    labels: Tensor,
    *,
    target_weight: float = 1.0,
    rest_weight: float = 8.0,
    temperature: float | Tensor = 4.0,
    scale_by_t2: bool = True,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Decoupled distillation: the label's class against the rest, and the rest among themselves.

    .. math:: T^2 \bigl( \alpha \, KL(b_t \| b_s) + \beta \, KL(\hat p_t \| \hat p_s) \bigr), \quad
        b = (p[y], 1 - p[y]), \quad \hat p = \mathrm{softmax}_{k \ne y}(\text{logits}_k / T)

    alpha is `target_weight` (TCKD), beta `rest_weight` (NCKD). With alpha = 1 and beta = 1 - p_t[y] it would be KL.
    Paper and public code state one formula; the code takes the logarithm of summed probabilities, which is infinite
    once 1 - p_s[y] underflows, and leaves y out of the rest by subtracting 1000 from its logit. Here 1 - p[y] is a sum
    in log space and y is left out exactly, so the value is finite at any gap. The code also multiplies the loss by
    min(epoch / 20, 1) on CIFAR-100 (epochs from 1); that factor is the caller's.

    Args:
        logits: (*, C), any floating dtype; what trains.
        target_logits: (*, C); what it is drawn to.
        labels: (*), integers in [0, C).
        target_weight: alpha, at least 0; 1 in all published settings.
        rest_weight: beta, at least 0; published 2, 6 or 8 by pair on CIFAR-100, 0.5 or 2 on ImageNet.
        temperature: T > 0, a float or a 0-d tensor; divides both logits. Published 4 on CIFAR-100, 1 on ImageNet.
        scale_by_t2: multiply by T squared, as published.
        reduction: "none" (*), "mean" over all leading axes (as published), or "sum".

    Returns:
        Nats, in [0, inf]; float32 (float64 for float64 inputs). Without another class the second part is 0.

    Raises:
        TypeError: logits not floating; labels not integers.
        ValueError: shapes differ or are empty; a label, a weight or `temperature` out of range; unknown reduction.

    Gradient:
        To both sides and a tensor `temperature`, all orders. The public code runs the teacher under `no_grad`: detach
        the target in distillation.

    Example:
        >>> import torch
        >>> far, labels = torch.tensor([[1e4, 0.0]]), torch.tensor([0])
        >>> dkd_divergence(far, -far, labels, temperature=1.0)  # the gap, not inf
        tensor(10000.)

    Reference:
        Zhao et al., "Decoupled Knowledge Distillation", arXiv 2203.08679, Eq. 7; megvii-research/mdistiller,
        `mdistiller/distillers/DKD.py`.
    """
    check_pair(logits, target_logits)
    own = own_class(labels, logits, "DKD")
    check_range("target_weight", target_weight, 0.0, float("inf"))
    check_range("rest_weight", rest_weight, 0.0, float("inf"))
    check_positive("temperature", temperature)
    check_reduction(reduction)
    dtype = widest(logits, target_logits)
    s, t = (tempered(x.to(dtype), temperature) for x in (logits, target_logits))
    values = _weighted(target_weight, _kl(_two_way(t, own), _two_way(s, own)))
    values = values + _weighted(rest_weight, _kl(log_among_others(t, own), log_among_others(s, own)))
    return reduce(values * temperature**2 if scale_by_t2 else values, reduction)


def _two_way(logits: Tensor, own: Tensor) -> Tensor:
    """(log p[y], log(1 - p[y])), (*, 2)."""
    log_p = torch.log_softmax(logits, -1)
    return torch.stack((log_own(log_p, own), log_all_others(log_p, own)), -1)


def _weighted(weight: float, values: Tensor) -> Tensor:
    """A part whose weight is 0 is left out, even where it is infinite."""
    return weight * values if weight else torch.zeros_like(values)
