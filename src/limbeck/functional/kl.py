"""Kullback-Leibler and its plain relatives, in log space.

Conventions of the room: class axis last, all leading axes are samples; `logits` is what trains, `target_logits` what it
is drawn to. A class at -inf on both sides counts as absent, with gradient exactly 0.
"""

from __future__ import annotations

import math
from typing import Any

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
from limbeck.functional._engine import Impl, kl_by_kernel, takes_kernel


def _log_softmaxes(logits: Tensor, target_logits: Tensor, temperature: float | Tensor) -> tuple[Tensor, Tensor]:
    dtype = widest(logits, target_logits)
    return (
        torch.log_softmax(tempered(logits.to(dtype), temperature), -1),
        torch.log_softmax(tempered(target_logits.to(dtype), temperature), -1),
    )


def tempered(x: Tensor, temperature: float | Tensor) -> Tensor:
    """Logits over temperature."""
    if not isinstance(temperature, Tensor):
        return x if temperature == 1 else x / temperature
    # A temperature that learns would meet 0 * inf at a masked class in the backward pass.
    absent = torch.isneginf(x)
    return (x.masked_fill(absent, 0.0) / temperature).masked_fill(absent, -torch.inf)


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) per sample. 0 log 0 = 0: without the fill, 0 * inf is NaN forward and 0 * NaN backward."""
    p = log_p.exp()
    return (p * (log_p - log_q).masked_fill(p == 0, 0.0)).sum(-1)


def _log_mixture(log_p: Tensor, log_q: Tensor, share: float) -> Tensor:
    """log(share p + (1 - share) q). logaddexp(-inf, -inf) has a NaN gradient, hence the floor below all logits."""
    floor = torch.finfo(log_p.dtype).min
    return torch.logaddexp(
        log_p.clamp_min(floor) + math.log(share),
        log_q.clamp_min(floor) + math.log1p(-share),
    )


def _finish(values: Tensor, temperature: float | Tensor, scale_by_t2: bool, reduction: Reduction) -> Tensor:
    return reduce(values * temperature**2 if scale_by_t2 else values, reduction)


def _check(logits: Tensor, target_logits: Tensor, temperature: float | Tensor, reduction: str) -> None:
    check_pair(logits, target_logits)
    check_positive("temperature", temperature)
    check_reduction(reduction)


@full_precision
def kl_divergence(
    logits: Tensor,
    target_logits: Tensor,
    *,
    temperature: float | Tensor = 1.0,
    scale_by_t2: bool = False,
    reduction: Reduction = "mean",
    impl: Impl = "auto",
) -> Tensor:
    r"""Kullback-Leibler divergence KL(p_t || p_s) from the student to the target.

    .. math:: \sum_j p_t[j] \, (\log p_t[j] - \log p_s[j]), \quad p = \mathrm{softmax}(\text{logits} / T)

    With `scale_by_t2=True` and a fixed target this is Hinton's distillation loss.

    Args:
        logits: (*, C), any floating dtype; what trains.
        target_logits: (*, C); what it is drawn to.
        temperature: T > 0, a float or a 0-d tensor; divides both logits.
        scale_by_t2: multiply by T squared, so that gradients keep their size as T grows.
        reduction: "none" (*), "mean" over all leading axes, or "sum".
        impl: "torch" operations, the "triton" kernel, or "auto", the kernel where it can serve.

    Returns:
        Nats, in [0, inf]; float32 (float64 for float64 inputs). +inf where only the student has -inf and p_t > 0.

    Raises:
        TypeError: not tensors, or not floating.
        ValueError: shapes differ or are empty; temperature not above 0; unknown reduction.

    Gradient:
        To both sides and a tensor `temperature`; all orders. To `logits` it is (p_s - p_t) / T.

    Example:
        >>> import torch
        >>> logits, target = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 0.0]])
        >>> kl_divergence(logits, target)
        tensor(0.)

    Reference:
        Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", arXiv 1503.02531, section 2.
    """
    _check(logits, target_logits, temperature, reduction)
    if takes_kernel("kl", impl, logits, target_logits, temperature):
        return kl_by_kernel("kl", logits, target_logits, temperature, scale_by_t2, reduction)
    log_q, log_p = _log_softmaxes(logits, target_logits, temperature)
    return _finish(_kl(log_p, log_q), temperature, scale_by_t2, reduction)


@full_precision
def reverse_kl_divergence(
    logits: Tensor,
    target_logits: Tensor,
    *,
    temperature: float | Tensor = 1.0,
    scale_by_t2: bool = False,
    reduction: Reduction = "mean",
    impl: Impl = "auto",
) -> Tensor:
    r"""Reverse Kullback-Leibler divergence KL(p_s || p_t): mode seeking.

    .. math:: \sum_j p_s[j] \, (\log p_s[j] - \log p_t[j])

    Args:
        logits: (*, C), any floating dtype; what trains.
        target_logits: (*, C); what it is drawn to.
        temperature: T > 0, a float or a 0-d tensor; divides both logits.
        scale_by_t2: multiply by T squared.
        reduction: "none" (*), "mean" over all leading axes, or "sum".
        impl: "torch" operations, the "triton" kernel, or "auto", the kernel where it can serve.

    Returns:
        Nats, in [0, inf]; float32 (float64 for float64 inputs). +inf where only the target has -inf and p_s > 0.

    Raises:
        TypeError: not tensors, or not floating.
        ValueError: shapes differ or are empty; temperature not above 0; unknown reduction.

    Gradient:
        To both sides and a tensor `temperature`; all orders.

    Example:
        >>> import torch
        >>> a, b = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 1.0]])
        >>> bool(reverse_kl_divergence(a, b) == kl_divergence(b, a))
        True

    Reference:
        Gu et al., "MiniLLM", arXiv 2306.08543, Eq. 2.
    """
    _check(logits, target_logits, temperature, reduction)
    if takes_kernel("kl", impl, target_logits, logits, temperature):
        return kl_by_kernel("kl", target_logits, logits, temperature, scale_by_t2, reduction)
    log_q, log_p = _log_softmaxes(logits, target_logits, temperature)
    return _finish(_kl(log_q, log_p), temperature, scale_by_t2, reduction)


@full_precision
def js_divergence(
    logits: Tensor,
    target_logits: Tensor,
    *,
    beta: float = 0.5,
    temperature: float | Tensor = 1.0,
    scale_by_t2: bool = False,
    reduction: Reduction = "mean",
    impl: Impl = "auto",
) -> Tensor:
    r"""Jensen-Shannon divergence, generalised: both ends are KL and reverse KL.

    .. math:: \beta \, KL(p_t \| m) + (1 - \beta) \, KL(p_s \| m), \quad m = \beta p_t + (1 - \beta) p_s

    `beta=0.5` is the symmetric Jensen-Shannon divergence. The formula vanishes at both ends; divided by
    beta (1 - beta) it tends to KL(p_t || p_s) at 0 and to KL(p_s || p_t) at 1, and those are what the ends return, as
    in the language-model libraries. Values near an end are therefore much smaller than at the end.

    Args:
        logits: (*, C), any floating dtype; what trains.
        target_logits: (*, C); what it is drawn to.
        beta: share of the target in the mixture, in [0, 1].
        temperature: T > 0, a float or a 0-d tensor; divides both logits.
        scale_by_t2: multiply by T squared.
        reduction: "none" (*), "mean" over all leading axes, or "sum".
        impl: "torch" operations, the "triton" kernel, or "auto", the kernel where it can serve.

    Returns:
        Nats, float32 (float64 for float64 inputs); in [0, ln 2] at beta = 0.5, always finite inside (0, 1).

    Raises:
        TypeError: not tensors, or not floating.
        ValueError: shapes differ or are empty; `beta` or `temperature` out of range; unknown reduction.

    Gradient:
        To both sides and a tensor `temperature`; all orders.

    Example:
        >>> import torch
        >>> a, b = torch.tensor([[50.0, -50.0]]), torch.tensor([[-50.0, 50.0]])
        >>> js_divergence(a, b)  # ln 2
        tensor(0.6931)

    Reference:
        Agarwal et al., "On-Policy Distillation of Language Models" (GKD), arXiv 2306.13649, Eq. 1; compared with GKL in
        arXiv 2503.08038, Eq. 15-18.
    """
    _check(logits, target_logits, temperature, reduction)
    check_range("beta", beta, 0.0, 1.0)
    if beta in (0, 1):
        end: Any = reverse_kl_divergence if beta else kl_divergence
        options = {"temperature": temperature, "scale_by_t2": scale_by_t2, "reduction": reduction, "impl": impl}
        value: Tensor = end(logits, target_logits, **options)
        return value
    if takes_kernel("js", impl, logits, target_logits, temperature):
        return _js_by_kernel(logits, target_logits, beta, float(temperature), scale_by_t2, reduction)
    values = js_values(logits, target_logits, beta=beta, temperature=temperature)
    return _finish(values, temperature, scale_by_t2, reduction)


def js_values(logits: Tensor, target_logits: Tensor, *, beta: float, temperature: float | Tensor) -> Tensor:
    """`js_divergence` between the ends, per sample and by plain operations, its options checked."""
    log_q, log_p = _log_softmaxes(logits, target_logits, temperature)
    log_m = _log_mixture(log_p, log_q, beta)
    return beta * _kl(log_p, log_m) + (1 - beta) * _kl(log_q, log_m)


def _js_by_kernel(
    logits: Tensor, target_logits: Tensor, beta: float, temperature: float, scale_by_t2: bool, reduction: Reduction
) -> Tensor:
    from limbeck.kernels.js import Mixture, js

    shape = logits.shape
    student, target = (x.reshape(-1, shape[-1]) for x in (logits, target_logits))
    factor = (temperature**2 if scale_by_t2 else 1.0) / (math.prod(shape[:-1]) if reduction == "mean" else 1)
    values = js(student, target, Mixture(beta, temperature, factor, reduction != "none"))
    return values.view(shape[:-1]) if reduction == "none" else values


@full_precision
def skew_kl_divergence(
    logits: Tensor,
    target_logits: Tensor,
    *,
    skew: float = 0.1,
    temperature: float | Tensor = 1.0,
    scale_by_t2: bool = False,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Skew divergence KL(p_t || skew p_t + (1 - skew) p_s): KL that stays finite.

    Args:
        logits: (*, C), any floating dtype; what trains.
        target_logits: (*, C); what it is drawn to.
        skew: share of the target in the mixture, in [0, 1); 0 is KL, towards 1 it vanishes.
        temperature: T > 0, a float or a 0-d tensor; divides both logits.
        scale_by_t2: multiply by T squared.
        reduction: "none" (*), "mean" over all leading axes, or "sum".

    Returns:
        Nats, float32 (float64 for float64 inputs), in [0, -ln skew].

    Raises:
        TypeError: not tensors, or not floating.
        ValueError: shapes differ or are empty; `skew` or `temperature` out of range; unknown reduction.

    Gradient:
        To both sides and a tensor `temperature`; all orders.

    Example:
        >>> import torch
        >>> a, b = torch.tensor([[90.0, -90.0]]), torch.tensor([[-90.0, 90.0]])
        >>> skew_kl_divergence(a, b, skew=0.5)  # ln 2, where KL is 180
        tensor(0.6931)

    Reference:
        Lee, "On the Effectiveness of the Skew Divergence", AISTATS 2001; Ko et al., "DistiLLM", arXiv 2402.03898.
    """
    _check(logits, target_logits, temperature, reduction)
    if not 0 <= skew < 1:
        raise ValueError(f"`skew` expected a number in [0, 1), got {skew}; at 1 the divergence is 0 everywhere")
    log_q, log_p = _log_softmaxes(logits, target_logits, temperature)
    log_m = log_q if skew == 0 else _log_mixture(log_p, log_q, skew)
    return _finish(_kl(log_p, log_m), temperature, scale_by_t2, reduction)


@full_precision
def total_variation(
    logits: Tensor,
    target_logits: Tensor,
    *,
    temperature: float | Tensor = 1.0,
    scale_by_t2: bool = False,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Total variation distance, half the L1 distance of the probabilities.

    .. math:: \tfrac12 \sum_j |p_t[j] - p_s[j]|

    Args:
        logits: (*, C), any floating dtype; what trains.
        target_logits: (*, C); what it is drawn to.
        temperature: T > 0, a float or a 0-d tensor; divides both logits.
        scale_by_t2: multiply by T squared.
        reduction: "none" (*), "mean" over all leading axes, or "sum".

    Returns:
        In [0, 1]; float32 (float64 for float64 inputs).

    Raises:
        TypeError: not tensors, or not floating.
        ValueError: shapes differ or are empty; temperature not above 0; unknown reduction.

    Gradient:
        To both sides and a tensor `temperature`; a subgradient where probabilities meet.

    Example:
        >>> import torch
        >>> total_variation(torch.tensor([[90.0, 0.0]]), torch.tensor([[0.0, 90.0]]))
        tensor(1.)

    Reference:
        Wen et al., "f-Divergence Minimization for Sequence-Level Knowledge Distillation", arXiv 2307.15190.
    """
    _check(logits, target_logits, temperature, reduction)
    log_q, log_p = _log_softmaxes(logits, target_logits, temperature)
    values = 0.5 * (log_p.exp() - log_q.exp()).abs().sum(-1)
    return _finish(values, temperature, scale_by_t2, reduction)


@full_precision
def soft_cross_entropy(
    logits: Tensor,
    target_logits: Tensor,
    *,
    temperature: float | Tensor = 1.0,
    scale_by_t2: bool = False,
    reduction: Reduction = "mean",
    impl: Impl = "auto",
) -> Tensor:
    r"""Cross-entropy with the target's probabilities: KL plus the target's entropy.

    .. math:: -\sum_j p_t[j] \log p_s[j]

    Args:
        logits: (*, C), any floating dtype; what trains.
        target_logits: (*, C); what it is drawn to.
        temperature: T > 0, a float or a 0-d tensor; divides both logits.
        scale_by_t2: multiply by T squared.
        reduction: "none" (*), "mean" over all leading axes, or "sum".
        impl: "torch" operations, the "triton" kernel, or "auto", the kernel where it can serve.

    Returns:
        Nats, in [0, inf]; float32 (float64 for float64 inputs).

    Raises:
        TypeError: not tensors, or not floating.
        ValueError: shapes differ or are empty; temperature not above 0; unknown reduction.

    Gradient:
        To both sides and a tensor `temperature`; all orders. To `logits` it equals that of `kl_divergence`; to
        `target_logits` it does not (detach the target for distillation).

    Example:
        >>> import torch
        >>> soft_cross_entropy(torch.zeros(1, 4), torch.zeros(1, 4))  # ln 4
        tensor(1.3863)

    Reference:
        The second part of arXiv 2305.13948, Eq. 5.
    """
    _check(logits, target_logits, temperature, reduction)
    if takes_kernel("kl", impl, logits, target_logits, temperature):
        return kl_by_kernel("soft_cross_entropy", logits, target_logits, temperature, scale_by_t2, reduction)
    log_q, log_p = _log_softmaxes(logits, target_logits, temperature)
    p = log_p.exp()
    values = -(p * log_q.masked_fill(p == 0, 0.0)).sum(-1)
    return _finish(values, temperature, scale_by_t2, reduction)
