"""The loss of misclassification-aware adversarial training (MART), in log space."""

from __future__ import annotations

import torch
from torch import Tensor

from limbeck.functional._check import (
    Reduction,
    check_pair,
    check_range,
    check_reduction,
    full_precision,
    reduce,
    widest,
)
from limbeck.functional._rest import log_own, own_class
from limbeck.functional.kl import kl_divergence


@full_precision
def mart_loss(
    logits: Tensor,
    target_logits: Tensor,
    labels: Tensor,
    *,
    kl_weight: float = 5.0,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""MART: a boosted cross-entropy, and a KL that counts where the clean image is misclassified.

    .. math:: -\log p_s[y] - \log \bigl(1 - \max_{k \ne y} p_s[k]\bigr)
        + \lambda \, (1 - p_t[y]) \sum_j p_t[j] \, (\log p_t[j] - \log p_s[j])

    The student's side are the adversarial images, the target's the clean ones, both of the network that trains. The
    public code adds 1e-4, 1e-12 and 1e-7 inside the logarithms and the weight so that they stay finite; here the
    complements are sums over the other classes, in log space, and need no floor.

    Args:
        logits: (*, C), any floating dtype; of the adversarial images.
        target_logits: (*, C); of the clean images.
        labels: (*), integers in [0, C).
        kl_weight: lambda, at least 0; factor of the weighted KL.
        reduction: "none" (*), "mean" over all leading axes, or "sum".

    Returns:
        Nats, in [0, inf]; float32 (float64 for float64 inputs).

    Raises:
        TypeError: logits not floating; labels not integers.
        ValueError: shapes differ or are empty; a label or `kl_weight` out of range; unknown reduction.

    Gradient:
        To both sides, all orders: the weight 1 - p_t[y] and the target of the KL are not detached. The strongest wrong
        class is a maximum, with a subgradient where two of them meet.

    Example:
        >>> import torch
        >>> labels = torch.tensor([0])
        >>> mart_loss(torch.zeros(1, 2), torch.zeros(1, 2), labels)  # 2 ln 2: p[y] and 1 - p[k] are both a half
        tensor(1.3863)

    Reference:
        Wang et al., "Improving Adversarial Robustness Requires Revisiting Misclassified Examples", ICLR 2020,
        section 3.
    """
    check_pair(logits, target_logits)
    own = own_class(labels, logits, "MART")
    check_range("kl_weight", kl_weight, 0.0, float("inf"))
    check_reduction(reduction)
    dtype = widest(logits, target_logits)
    misclassified = torch.softmax(target_logits.to(dtype), -1).masked_fill(own, 0.0).sum(-1)  # 1 - p_t[y]
    kl = kl_divergence(logits, target_logits, reduction="none")
    return reduce(_boosted_cross_entropy(logits.to(dtype), own) + kl_weight * misclassified * kl, reduction)


def _boosted_cross_entropy(logits: Tensor, own: Tensor) -> Tensor:
    """-log p[y] - log(1 - max p[k != y]) per sample; `own` (*, C) marks y. Without another class the second is 0."""
    log_p = torch.log_softmax(logits, -1)
    strongest = log_p.masked_fill(own, -torch.inf).argmax(-1, keepdim=True)
    wrong = torch.zeros_like(own).scatter(-1, strongest, True) & ~own
    return -log_own(log_p, own) - log_p.masked_fill(wrong, -torch.inf).logsumexp(-1)
