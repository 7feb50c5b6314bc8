"""Universal self-distillation (USKD): soft labels of the student's own making, for the label and for the rest."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from limbeck.functional._check import check_pair, check_range, full_precision, widest
from limbeck.functional._rest import log_among_others, log_own, own_class
from limbeck.functional.zipf import by_rank, ranks

Score = Literal["code", "paper"]
FLOOR = 1e-6  # the public code's, beside 1 - p[y]; part of the published ranks
WEAK_SMOOTHING = 0.1


@full_precision
def uskd_loss(
    logits: Tensor,
    weak_logits: Tensor,
    labels: Tensor,
    *,
    target_weight: float = 1.0,
    rest_weight: float = 0.1,
    weak_weight: float = 0.005,
    mode: Score = "code",
) -> Tensor:
    r"""Self-distillation for any network: a target for the label, one for the other classes, and a weak classifier.

    .. math:: -\frac1N \sum_n \bigl( \alpha \, \mathrm{sg}(P_n) \log s_n[y_n]
        + \beta \sum_{k \ne y_n} \mathrm{sg}(q_n[k]) \log \hat s_n[k]
        + \mu \sum_k (0.9 \, 1[k = y_n] + 0.1 / C) \log w_n[k] \bigr) \\
        P_n = s_n[y_n]^2 + 1 - \frac1N \sum_m s_m[y_m]^2, \quad
        q[k] = \frac{1 / r_k}{\sum_{j \ne y} 1 / r_j}

    s and w are the softmaxes of `logits` and of `weak_logits`, s-hat that among the classes but y. r_k is the rank of
    class k among all by `mode`: "paper" scores w / (1 - w[y]) + s / (1 - s[y]); "code", which produced the published
    numbers, has overwritten s by its logarithm there, so that log s / (1 - log s[y]) stands in place of the second
    summand. Ties share the smallest rank (the public code breaks them). P couples the batch, so there is no
    `reduction`; under data parallelism each rank takes the mean over its own samples. Add the labels' cross-entropy
    with weight 1.

    Args:
        logits: (N, C), any floating dtype; the network's.
        weak_logits: (N, C); those of a linear classifier behind the mean of an earlier stage's map.
        labels: (N,), integers in [0, C).
        target_weight: alpha, at least 0; published 1 on ImageNet, 0.1 on CIFAR-100.
        rest_weight: beta, at least 0; published 0.1.
        weak_weight: mu, at least 0; published 0.005 on ImageNet, 0.1 on CIFAR-100.
        mode: "code" or "paper", the score.

    Returns:
        0-d, nats, at least 0; float32 (float64 for float64 inputs). A class whose logit is -inf counts as absent.

    Raises:
        TypeError: logits not floating; labels not integers.
        ValueError: shapes differ or are empty; a label or a weight out of range; unknown `mode`.

    Gradient:
        To `logits` from the first two parts, to `weak_logits` from the last; P and q are detached. Never stationary:
        all three parts are cross-entropies.

    Example:
        >>> import torch
        >>> zeros, labels = torch.zeros(2, 2), torch.tensor([0, 1])
        >>> uskd_loss(zeros, zeros, labels, weak_weight=0.0)  # ln 2; the rest is one class
        tensor(0.6931)

    Reference:
        Yang et al., "From Knowledge Distillation to Self-Knowledge Distillation: A Unified Approach with Normalized
        Loss and Customized Soft Labels", arXiv 2303.13005, section 3.2; yzd-v/cls_KD,
        `mmcls/models/dis_losses/uskd.py`.
    """
    check_pair(logits, weak_logits, names=("logits", "weak_logits"))
    own = own_class(labels, logits, "USKD")
    check_uskd(target_weight, rest_weight, weak_weight, mode)
    dtype = widest(logits, weak_logits)
    s, w = logits.to(dtype), weak_logits.to(dtype)
    log_s = torch.log_softmax(s, -1)
    total = s.new_zeros(())
    if target_weight:
        total = total + target_weight * _label_part(log_own(log_s, own))
    if rest_weight:
        q = by_rank(ranks(_score(log_s.detach(), w.detach(), own, mode)), own | torch.isneginf(logits), dtype)
        among = log_among_others(s, own).masked_fill(q == 0, 0.0)
        total = total - rest_weight * (q * among).sum(-1).mean()
    if weak_weight:
        total = total + weak_weight * _weak_part(w, own)
    return total


def check_uskd(target_weight: float, rest_weight: float, weak_weight: float, mode: str) -> None:
    """Check the options."""
    check_range("target_weight", target_weight, 0.0, float("inf"))
    check_range("rest_weight", rest_weight, 0.0, float("inf"))
    check_range("weak_weight", weak_weight, 0.0, float("inf"))
    if mode not in ("code", "paper"):
        raise ValueError(f"`mode` expected 'code' (what ran) or 'paper' (what was printed), got {mode!r}")


def _label_part(log_s: Tensor) -> Tensor:
    """-P log s[y], from log s[y]."""
    squares = (2 * log_s.detach()).exp()
    return -((squares + 1 - squares.mean()) * log_s).mean()


def _weak_part(logits: Tensor, own: Tensor) -> Tensor:
    """Cross-entropy with smoothed labels."""
    log_w = torch.log_softmax(logits, -1)
    return -((1 - WEAK_SMOOTHING) * log_own(log_w, own) + WEAK_SMOOTHING * log_w.mean(-1)).mean()


def _score(log_s: Tensor, weak_logits: Tensor, own: Tensor, mode: Score) -> Tensor:
    """What the classes are ranked by."""
    w = torch.softmax(weak_logits, -1)
    s = log_s if mode == "code" else log_s.exp()
    return sum((x / (1 - log_own(x, own) + FLOOR).unsqueeze(-1) for x in (w, s)), torch.zeros_like(s))
