"""One-for-all distillation (OFA): soft cross-entropy whose pull to the label grows with the target's belief in it."""

from __future__ import annotations

from typing import Literal

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
from limbeck.functional._rest import log_own, own_class
from limbeck.functional.kl import tempered

Boost = Literal["code", "paper"]


@full_precision
def ofa_loss(
    logits: Tensor,
    target_logits: Tensor,
    labels: Tensor,
    *,
    power: float = 1.0,
    mode: Boost = "code",
    temperature: float | Tensor = 1.0,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""One-for-all: soft cross-entropy with the label boosted by the target's belief, for teachers of another kind.

    .. math:: \text{code:}\quad -\bigl((1 + p_t[y])^{\epsilon} - 1\bigr) \log p_s[y]
        - \sum_{k \ne y} p_t[k]^{\epsilon} \log p_s[k] \\
        \text{paper:}\quad -(1 + p_t[y])^{\gamma} \log p_s[y] - \sum_{k \ne y} p_t[k] \log p_s[k]

    epsilon and gamma are `power`, p is softmax(logits / T), and there is no T squared. "code" produced the published
    numbers: it raises the other classes' mass to the power as well, and takes one label cross-entropy out (add the
    labels' plain cross-entropy with weight 1); at power 1 it is `soft_cross_entropy`. "paper" leaves the other classes
    alone and has that cross-entropy inside: at power 1 it is the sum of the two.

    Args:
        logits: (*, C), any floating dtype; what trains: the network's, or those of an exit head on one of its stages.
        target_logits: (*, C); what it is drawn to.
        labels: (*), integers in [0, C).
        power: above 0; published 1 (CIFAR-100, Swin-T to ResNet-18) and 1.5 (ImageNet, DeiT-T to ResNet-18).
        mode: "code" or "paper".
        temperature: T > 0, a float or a 0-d tensor; divides both logits. Published 1.
        reduction: "none" (*), "mean" over all leading axes (as published), or "sum".

    Returns:
        Nats, in [0, inf]; float32 (float64 for float64 inputs).

    Raises:
        TypeError: logits not floating; labels not integers.
        ValueError: shapes differ or are empty; a label, `power` or `temperature` out of range; unknown `mode` or
            `reduction`.

    Gradient:
        To `logits`, and to a tensor `temperature` on their side, all orders; the target's weights are detached. Equal
        logits are stationary in mode "code" at power 1 only.

    Example:
        >>> import torch
        >>> zeros, labels = torch.zeros(1, 2), torch.tensor([0])
        >>> ofa_loss(zeros, zeros, labels), ofa_loss(zeros, zeros, labels, mode="paper")  # ln 2, and twice that
        (tensor(0.6931), tensor(1.3863))

    Reference:
        Hao et al., "One-for-All: Bridge the Gap Between Heterogeneous Architectures in Knowledge Distillation",
        arXiv 2310.19444, Eq. 5; Hao840/OFAKD, `distillers/ofa.py`.
    """
    check_pair(logits, target_logits)
    own = own_class(labels, logits, "OFA")
    check_positive("power", power)
    check_mode(mode)
    check_positive("temperature", temperature)
    check_reduction(reduction)
    dtype = widest(logits, target_logits)
    log_q = torch.log_softmax(tempered(logits.to(dtype), temperature), -1)
    log_p = torch.log_softmax(tempered(target_logits.to(dtype), temperature), -1).detach()
    weights = _weights(log_p, own, power, mode)
    return reduce(-(weights * log_q.masked_fill(weights == 0, 0.0)).sum(-1), reduction)


def check_mode(mode: str) -> None:
    """One of the two formulas."""
    if mode not in ("code", "paper"):
        raise ValueError(f"`mode` expected 'code' (what ran) or 'paper' (what was printed), got {mode!r}")


def _weights(log_p: Tensor, own: Tensor, power: float, mode: Boost) -> Tensor:
    """What each -log p_s[k] is multiplied by."""
    boosted = power * log_own(log_p, own).exp().log1p()
    if mode == "code":
        return torch.where(own, boosted.expm1().unsqueeze(-1), (power * log_p).exp())
    return torch.where(own, boosted.exp().unsqueeze(-1), log_p.exp())
