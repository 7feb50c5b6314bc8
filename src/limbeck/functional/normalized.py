"""Normalised knowledge distillation (NKD): the label's likelihood by the target's belief, and the rest renormalised."""

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
from limbeck.functional._rest import log_among_others, log_own, own_class
from limbeck.functional.kl import tempered


@full_precision
def nkd_loss(
    logits: Tensor,
    target_logits: Tensor,
    labels: Tensor,
    *,
    target_weight: float = 1.0,
    rest_weight: float = 1.5,
    temperature: float | Tensor = 1.0,
    scale_by_t2: bool = True,
    subtract_entropy: bool = False,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Normalised distillation: a label cross-entropy weighted by p_t[y], and a cross-entropy among the other classes.

    .. math:: -\alpha \, \mathrm{sg}(p_t[y]) \log p_s[y]
        - \gamma \, T^2 \sum_{k \ne y} \hat p_t[k] \log \hat p_s[k], \quad
        \hat p = \mathrm{softmax}_{k \ne y}(\text{logits}_k / T)

    The temperature and its square act on the second part only; the first is at T = 1. The labels' plain cross-entropy,
    which the paper counts into its loss, is not inside: add it with weight 1. Paper and public code write both parts as
    cross-entropies, so the value at equal logits is not 0; `subtract_entropy=True` makes a divergence of the second
    part (and the same gradient, for a fixed target).

    Args:
        logits: (*, C), any floating dtype; what trains.
        target_logits: (*, C); what it is drawn to.
        labels: (*), integers in [0, C).
        target_weight: alpha, at least 0; 1 as published.
        rest_weight: gamma, at least 0; published 1.5 on ImageNet (1 for DeiT students), 3.5 on CIFAR-100.
        temperature: T > 0, a float or a 0-d tensor; of the second part. Published 1 on ImageNet, 3 on CIFAR-100.
        scale_by_t2: multiply the second part by T squared, as published.
        subtract_entropy: take the target's entropy out of the second part, KL in place of the cross-entropy.
        reduction: "none" (*), "mean" over all leading axes (as published), or "sum".

    Returns:
        Nats, in [0, inf]; float32 (float64 for float64 inputs). Without another class the second part is 0.

    Raises:
        TypeError: logits not floating; labels not integers.
        ValueError: shapes differ or are empty; a label, a weight or `temperature` out of range; unknown reduction.

    Gradient:
        To `logits` from both parts, to `target_logits` and a tensor `temperature` from the second; all orders. The
        weight p_t[y] is detached, as in the public code, which runs the whole teacher under `no_grad`. Equal logits are
        not stationary: the first part draws to the label.

    Example:
        >>> import torch
        >>> nkd_loss(torch.zeros(1, 2), torch.zeros(1, 2), torch.tensor([0]))  # half of ln 2; the rest is one class
        tensor(0.3466)

    Reference:
        Yang et al., "From Knowledge Distillation to Self-Knowledge Distillation: A Unified Approach with Normalized
        Loss and Customized Soft Labels", arXiv 2303.13005; yzd-v/cls_KD, `mmcls/models/dis_losses/nkd.py`.
    """
    check_pair(logits, target_logits)
    own = own_class(labels, logits, "NKD")
    check_range("target_weight", target_weight, 0.0, float("inf"))
    check_range("rest_weight", rest_weight, 0.0, float("inf"))
    check_positive("temperature", temperature)
    check_reduction(reduction)
    dtype = widest(logits, target_logits)
    s, t = logits.to(dtype), target_logits.to(dtype)
    values = s.new_zeros(s.shape[:-1])
    if target_weight:
        values = values + target_weight * _label_part(s, t.detach(), own)
    if rest_weight:
        rest = _rest_part(tempered(s, temperature), tempered(t, temperature), own, subtract_entropy)
        values = values + rest_weight * (rest * temperature**2 if scale_by_t2 else rest)
    return reduce(values, reduction)


def _label_part(logits: Tensor, target_logits: Tensor, own: Tensor) -> Tensor:
    """-p_t[y] log p_s[y]; 0 where the target gives the label no mass."""
    belief = log_own(torch.log_softmax(target_logits, -1), own).exp()
    return -belief * log_own(torch.log_softmax(logits, -1), own).masked_fill(belief == 0, 0.0)


def _rest_part(logits: Tensor, target_logits: Tensor, own: Tensor, subtract_entropy: bool) -> Tensor:
    """Cross-entropy, or KL, of the softmax among the classes but the label's."""
    log_q, log_p = log_among_others(logits, own), log_among_others(target_logits, own)
    p = log_p.exp()
    surprise = log_p - log_q if subtract_entropy else -log_q
    return (p * surprise.masked_fill(p == 0, 0.0)).sum(-1)
