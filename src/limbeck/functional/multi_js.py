"""How far apart several predictions of one sample are."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from limbeck.functional._check import Reduction, check_positive, check_reduction, full_precision, reduce, widest


@full_precision
def multi_js_divergence(view_logits: Tensor, *, temperature: float = 1.0, reduction: Reduction = "mean") -> Tensor:
    r"""Jensen-Shannon divergence of V predictions of each sample: the mean of their divergences from their mean.

    .. math:: \frac1V \sum_v KL(p_v \| m), \quad m = \frac1V \sum_v p_v

    It is what the predictions' entropies lack on average of that of their mean. Of two predictions it is
    `js_divergence` with `beta=0.5`.

    Args:
        view_logits: (V, *, C), any floating dtype; V views of each sample, which count alike.
        temperature: T > 0; divides all logits.
        reduction: "none" (*), "mean" over all samples, or "sum".

    Returns:
        Nats, in [0, ln V]; float32 (float64 for float64 inputs).

    Raises:
        TypeError: not a tensor, or not floating.
        ValueError: fewer than two axes or no view; temperature not above 0; unknown reduction.

    Gradient:
        To all views, all orders; a class at -inf in all views counts as absent.

    Example:
        >>> import torch
        >>> apart = 100 * torch.eye(3).unsqueeze(1)  # three views of one sample, each sure of a class of its own
        >>> multi_js_divergence(apart)  # ln 3
        tensor(1.0986)

    Reference:
        Hendrycks et al., "AugMix", arXiv 1912.02781, Eq. 1; the public code floors m at 1e-7, this one does not.
    """
    if not isinstance(view_logits, Tensor) or not view_logits.is_floating_point():
        got = view_logits.dtype if isinstance(view_logits, Tensor) else type(view_logits).__name__
        raise TypeError(f"`view_logits` expected a floating tensor, got {got}")
    if view_logits.dim() < 2 or not view_logits.numel():
        raise ValueError(f"`view_logits` expected the shape (V, *, C), not empty, got {tuple(view_logits.shape)}")
    check_positive("temperature", temperature)
    check_reduction(reduction)
    logits = view_logits.to(widest(view_logits))
    floor = torch.finfo(logits.dtype).min / 4  # absent classes: -inf - -inf has no value
    log_p = torch.log_softmax(logits / temperature, -1).clamp_min(floor)
    log_m = torch.logsumexp(log_p, 0) - math.log(len(log_p))
    p = log_p.exp()
    gaps = (log_p - log_m).masked_fill(p == 0, 0.0)
    return reduce((p * gaps).sum(-1).mean(0), reduction)
