"""What draws two predictions of one sample together without labels: pseudo-labels, and squared probabilities."""

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
from limbeck.functional.kl import soft_cross_entropy

Targets = Literal["hard", "soft"]


@full_precision
def pseudo_label_cross_entropy(
    logits: Tensor,
    target_logits: Tensor,
    *,
    targets: Targets = "hard",
    target_temperature: float = 1.0,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Cross-entropy with what another prediction says: its class, or its distribution.

    .. math:: -\log p_s[\arg\max_j t_j] \quad\text{or}\quad -\sum_j p_t[j] \log p_s[j]

    with p_t = softmax(t / target_temperature), sharpened below 1; the student's logits have no temperature. A soft
    target at 1 gives the gradient of KL, and the value of KL plus the target's entropy. A hard one has no temperature.

    Args:
        logits: (*, C), any floating dtype; what trains.
        target_logits: (*, C); of equal largest ones the first counts.
        targets: "hard" or "soft".
        target_temperature: T > 0 of a soft target.
        reduction: "none" (*), "mean" over all leading axes, or "sum".

    Returns:
        In [0, inf]; float32 (float64 for float64 inputs).

    Raises:
        TypeError: not tensors, or not floating.
        ValueError: shapes differ or are empty; temperature not above 0; unknown word.

    Gradient:
        To `logits`; the target is detached.

    Example:
        >>> import torch
        >>> target = torch.tensor([[3.0, 0.0]])
        >>> pseudo_label_cross_entropy(torch.zeros(1, 2), target)  # ln 2, whatever the target's confidence
        tensor(0.6931)
        >>> pseudo_label_cross_entropy(target, target, targets="soft")  # the target's entropy
        tensor(0.1909)

    Reference:
        Sohn et al., "FixMatch", arXiv 2001.07685, Eq. 4; sharpening: MixMatch, arXiv 1905.02249, Eq. 7; with a frozen
        teacher the hard form is DeiT's, arXiv 2012.12877, Eq. 3.
    """
    check_pair(logits, target_logits)
    check_targets(targets)
    check_positive("target_temperature", target_temperature)
    check_reduction(reduction)
    dtype = widest(logits, target_logits)
    target = target_logits.detach().to(dtype)
    if targets == "soft":
        return soft_cross_entropy(logits, target / target_temperature, reduction=reduction)
    said = target.argmax(-1, keepdim=True)
    return reduce(-torch.log_softmax(logits.to(dtype), -1).gather(-1, said).squeeze(-1), reduction)


def check_targets(targets: str) -> None:
    """One of the two words."""
    if targets not in ("hard", "soft"):
        raise ValueError(f"`targets` expected 'hard' or 'soft', got {targets!r}")


@full_precision
def probability_mse(logits: Tensor, target_logits: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    r"""Mean squared difference of the probabilities (Brier), the consistency cost of Mean-Teacher.

    .. math:: \frac1C \sum_j (p_s[j] - p_t[j])^2

    The division by C is the original's: its weight of 100 on ten classes is 10 per sum over classes.

    Args:
        logits: (*, C), any floating dtype; what trains.
        target_logits: (*, C); what it is drawn to.
        reduction: "none" (*), "mean" over all leading axes, or "sum".

    Returns:
        In [0, 2 / C]; float32 (float64 for float64 inputs).

    Raises:
        TypeError: not tensors, or not floating.
        ValueError: shapes differ or are empty; unknown reduction.

    Gradient:
        To both sides, all orders; it vanishes where a side is certain, however far they are apart.

    Example:
        >>> import torch
        >>> probability_mse(torch.tensor([[50.0, 0.0]]), torch.tensor([[0.0, 0.0]]))
        tensor(0.2500)

    Reference:
        Tarvainen, Valpola, "Mean teachers are better role models", arXiv 1703.01780, section 2.
    """
    check_pair(logits, target_logits)
    check_reduction(reduction)
    dtype = widest(logits, target_logits)
    gap = torch.softmax(logits.to(dtype), -1) - torch.softmax(target_logits.to(dtype), -1)
    return reduce(gap.square().mean(-1), reduction)
