"""Adaptive Kullback-Leibler (AKL): KL and reverse KL, weighted by where the student is wrong."""

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
)
from limbeck.functional.kl import _kl, _log_softmaxes


@full_precision
def akl_divergence(
    logits: Tensor,
    target_logits: Tensor,
    *,
    head_mass: float = 0.5,
    temperature: float | Tensor = 1.0,
    scale_by_t2: bool = False,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Adaptive KL: KL counts as much as the student errs on the target's head, reverse KL as much as on the tail.

    .. math:: \frac{g_h}{g_h + g_t} KL(p_t \| p_s) + \frac{g_t}{g_h + g_t} KL(p_s \| p_t), \quad
        g_h = \sum_{j \in H} |p_t[j] - p_s[j]|, \quad g_t = \sum_{j \notin H} |p_t[j] - p_s[j]|

    H, the head, is the target's most likely classes while their summed probability is at most `head_mass`, and always
    the first one. The weights are constants. Where the student equals the target both are 0 / 0; the value is then 0
    (the public code returns NaN). Leading axes are samples, such as the tokens of a text.

    Args:
        logits: (*, C), any floating dtype; what trains.
        target_logits: (*, C); what it is drawn to.
        head_mass: mu in [0, 1]; published 0.5. At 0 the head is the first class, at 1 all of them (plain KL).
        temperature: T > 0, a float or a 0-d tensor; divides both logits, also for the weights. Published 1.
        scale_by_t2: multiply by T squared; not in the public code.
        reduction: "none" (*), "mean" over all leading axes (as published), or "sum".

    Returns:
        Nats, in [0, inf]; float32 (float64 for float64 inputs). A class at -inf on both sides counts for nothing.

    Raises:
        TypeError: not tensors, or not floating.
        ValueError: shapes differ or are empty; `head_mass` or `temperature` out of range; unknown reduction.

    Gradient:
        To `logits`, and to a tensor `temperature` on their side; the target and the weights are detached. It does not
        see the order of the classes, so it jumps where two of them change places at the head's edge.

    Example:
        >>> import torch
        >>> akl_divergence(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 2.0]]))
        tensor(0.)

    Reference:
        Wu et al., "Rethinking Kullback-Leibler Divergence in Knowledge Distillation for Large Language Models", arXiv
        2404.02657, Eq. 11-12; wutaiqiang/LLM_KD_AKL.
    """
    check_pair(logits, target_logits)
    check_range("head_mass", head_mass, 0.0, 1.0)
    check_positive("temperature", temperature)
    check_reduction(reduction)
    log_q, log_p = _log_softmaxes(logits, target_logits.detach(), temperature)
    log_p = log_p.detach()
    head, tail = _gaps(log_q.detach().exp(), log_p.exp(), head_mass)
    whole = head + tail
    share = torch.where(whole > 0, head / whole.masked_fill(whole == 0, 1.0), 0.5)
    forward = _kl(log_p, log_q).masked_fill(share == 0, 0.0)  # a weight of 0 counts, even times infinity
    backward = _kl(log_q, log_p).masked_fill(share == 1, 0.0)
    values = share * forward + (1 - share) * backward
    return reduce(values * temperature**2 if scale_by_t2 else values, reduction)


def _gaps(q: Tensor, p: Tensor, head_mass: float) -> tuple[Tensor, Tensor]:
    """Summed |p - q| over the head and over the tail of p, each (*)."""
    ranked, order = p.sort(dim=-1, descending=True, stable=True)
    first = torch.arange(p.shape[-1], device=p.device) == 0
    edge = head_mass if head_mass < 1 else float("inf")  # a sum that rounds to more than 1 is all of the mass
    head = (ranked.cumsum(-1) <= edge) | first
    gaps = (p - q).abs().gather(-1, order)
    return gaps.masked_fill(~head, 0.0).sum(-1), gaps.masked_fill(head, 0.0).sum(-1)
