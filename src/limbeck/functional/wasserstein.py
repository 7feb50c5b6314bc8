"""Entropic transport between class distributions, with one cost for the whole batch.

All samples share the (C, C) kernel, so a half-sweep is one (N, C) @ (C, C) product and no plan is ever made. The sweeps
are part of the loss: ten, the published number, are far from convergence.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

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
from limbeck.functional._rest import own_class
from limbeck.functional.kl import tempered

Mode = Literal["log", "published"]
FLOOR = 1e-8  # of the published code: on every entry of the cost and in every denominator


class WKDTerms(NamedTuple):
    """The two terms of logit distillation by transport; the loss is `target` plus a weight times `transport`."""

    target: Tensor
    transport: Tensor


class Kernel(NamedTuple):
    """exp(-cost / reg) and its product with the cost, both (C, C)."""

    kernel: Tensor
    kernel_cost: Tensor


def gibbs_kernel(cost: Tensor, reg: float, mode: Mode) -> Kernel:
    """Make what the sweeps need of a cost; the published mode floors it as the paper's code does."""
    cost = cost.detach()
    if mode == "published":
        cost = cost.relu() + FLOOR
    kernel = torch.exp(-cost / reg)
    return Kernel(kernel, kernel * cost)


def transport_cost(log_a: Tensor, log_b: Tensor, kernel: Kernel, iterations: int, mode: Mode) -> Tensor:
    """Per sample sum_ij Q_ij c_ij after the sweeps; a class at -inf on both sides takes no part, not even in the start.

    Without any class the cost is 0.
    """
    absent = torch.isneginf(log_a) & torch.isneginf(log_b)
    none = absent.all(-1, keepdim=True)
    log_start = torch.zeros_like(log_a).masked_fill(absent & ~none, -torch.inf)
    log_start = log_start - (~absent).sum(-1, keepdim=True).clamp_min(1).to(log_a.dtype).log()
    log_a, log_b = log_a.masked_fill(none, 0.0), log_b.masked_fill(none, 0.0)
    sweep = _log_sweeps if mode == "log" else _published_sweeps
    return sweep(log_a, log_b, log_start, kernel, iterations).masked_fill(none.squeeze(-1), 0.0)


def _shifted(log_x: Tensor) -> Tensor:
    """exp(log_x), a row's largest entry at 1. The other potential takes up a row's factor, so none has to be kept."""
    return (log_x - log_x.detach().amax(-1, keepdim=True)).exp()


def _log_sweeps(log_a: Tensor, log_b: Tensor, log_u: Tensor, kernel: Kernel, iterations: int) -> Tensor:
    k = kernel.kernel
    for _ in range(iterations):
        v = _shifted(log_b - (_shifted(log_u) @ k).log())
        kv = v @ k.mT
        log_u = log_a - kv.log()
    return (log_a.exp() * ((v @ kernel.kernel_cost.mT) / kv)).sum(-1)  # u = a / (K v)


def _published_sweeps(log_a: Tensor, log_b: Tensor, log_u: Tensor, kernel: Kernel, iterations: int) -> Tensor:
    a, b, u, k = log_a.exp(), log_b.exp(), log_u.exp(), kernel.kernel
    for _ in range(iterations):
        v = b / (u @ k + FLOOR)
        u = a / (v @ k.mT + FLOOR)
    return (u * (v @ kernel.kernel_cost.mT)).sum(-1)


@full_precision
def sinkhorn(
    log_probs: Tensor,
    target_log_probs: Tensor,
    cost: Tensor,
    *,
    reg: float = 0.05,
    iterations: int = 10,
    mode: Mode = "log",
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Cost of moving one class distribution to another, by a fixed number of Sinkhorn sweeps over one shared cost.

    .. math:: \sum_{jk} u_j K_{jk} v_k \, c_{jk}, \quad K = e^{-c / \text{reg}}

    where u starts uniform and each sweep sets v = b / (K^T u), then u = a / (K v). So the plan's rows sum to a, the
    student's probabilities, and its columns come to b, the target's, only as the sweeps converge: the number of sweeps
    and their order are part of the value. The entropy is not added ("sharp" value), and equal sides do not cost 0.

    Args:
        log_probs: (*, C), any floating dtype; logarithms of what trains, as `log_softmax` gives. A class at -inf on
            both sides takes no part, and its column and row of the cost are not used.
        target_log_probs: (*, C); logarithms of what it is drawn to.
        cost: (C, C), not negative; from the student's class (row) to the target's (column). In log mode at most
            80 `reg`, or a kernel in float32 underflows; `WKDLogitLoss` checks that.
        reg: entropic regularisation, above 0.
        iterations: number of sweeps, at least 1.
        mode: "log" keeps log u and log v, two matrix products a sweep, stable down to `cost` = 80 `reg` in float32.
            "published" is the formula of the paper's code: it adds 1e-8 to the cost and to each denominator, which
            counts where the kernel is as small (cost / reg above about 14).
        reduction: "none" (*), "mean" over all leading axes, or "sum".

    Returns:
        Units of the cost, in [0, max cost]; float32 (float64 for float64 inputs). Products are as precise as
        `torch.get_float32_matmul_precision()`; leave it at "highest".

    Raises:
        TypeError: not tensors, or not floating.
        ValueError: shapes differ or are empty; an option out of range; unknown mode or reduction.

    Gradient:
        To both sides through all sweeps, all orders; none to `cost`.

    Example:
        >>> import torch
        >>> a, b = torch.tensor([[0.9, 0.1]]).log(), torch.tensor([[0.5, 0.5]]).log()
        >>> cost = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
        >>> sinkhorn(a, b, cost, reg=0.1, iterations=100)  # 0.4 of the mass moves by 1
        tensor(0.4000)

    Reference:
        Cuturi, "Sinkhorn Distances", NIPS 2013; Lv, Yang, Li, "Wasserstein Distance Rivals Kullback-Leibler Divergence
        for Knowledge Distillation", arXiv 2412.08139; order, start and floors are those of its public code.
    """
    check_pair(log_probs, target_log_probs, names=("log_probs", "target_log_probs"))
    _check_cost(cost, log_probs.shape[-1])
    check_transport(reg, iterations, mode)
    check_reduction(reduction)
    dtype = widest(log_probs, target_log_probs)
    kernel = gibbs_kernel(cost.to(dtype), reg, mode)
    return reduce(transport_cost(log_probs.to(dtype), target_log_probs.to(dtype), kernel, iterations, mode), reduction)


def wkd_logit(
    logits: Tensor,
    target_logits: Tensor,
    labels: Tensor,
    cost: Tensor,
    *,
    temperature: float | Tensor,
    reg: float = 0.05,
    iterations: int = 10,
    separate_target: bool = True,
    mode: Mode = "log",
    reduction: Reduction = "mean",
) -> WKDTerms:
    r"""Logit distillation by transport (WKD-L): the label's class by cross-entropy, the other classes by `sinkhorn`.

    .. math:: \text{target} = -p_t[y] \log p_s[y], \quad
        \text{transport} = \mathrm{sinkhorn}(p_s^{\setminus y}, p_t^{\setminus y}, c)

    p^{\y} is the softmax of the logits over temperature among the classes other than y. The label's class has no mass
    on either side and none in the start, which equals solving each sample's (C - 1) x (C - 1) problem.

    Temperature acts on the transport only, and there is no factor T squared: the weight of the transport, 10 to 600 in
    the published settings, absorbs it. Ten sweeps are far from convergence; with another number the weight has to be
    tuned again.

    Args:
        logits: (*, C), any floating dtype; what trains.
        target_logits: (*, C); what it is drawn to.
        labels: (*), integers in [0, C); not looked at without `separate_target`.
        cost: (C, C), not negative, diagonal 0; in log mode at most 80 `reg`. See `sinkhorn`.
        temperature: T > 0, a float or a 0-d tensor; divides both logits in the transport.
        reg: entropic regularisation, above 0.
        iterations: number of sweeps, at least 1.
        separate_target: `False` transports the softmax over all classes, and the target term is 0 (an ablation).
        mode: "log", or "published" with its floors of 1e-8; see `sinkhorn`.
        reduction: "none" (*), "mean" over all leading axes, or "sum"; of both terms.

    Returns:
        `target` in nats and `transport` in units of the cost, both in [0, inf); float32 (float64 for float64 inputs).

    Raises:
        TypeError: logits or cost not floating; labels not integers.
        ValueError: shapes differ or are empty; a label or an option out of range; unknown mode or reduction.

    Gradient:
        `target`: to `logits`; the target's probability is detached. `transport`: to both sides and a tensor
        `temperature`, all orders, exactly 0 to the label's logit; none to `cost`.

    Example:
        >>> import torch
        >>> cost, labels = 1 - torch.eye(3), torch.tensor([0])
        >>> wkd_logit(torch.zeros(1, 3), torch.tensor([[0.0, 9.0, -9.0]]), labels, cost, temperature=1.0).target
        tensor(0.0001)

    Reference:
        Lv, Yang, Li, arXiv 2412.08139, the loss WKD-L.
    """
    check_pair(logits, target_logits)
    _check_cost(cost, logits.shape[-1])
    check_positive("temperature", temperature)
    check_transport(reg, iterations, mode)
    check_reduction(reduction)
    return wkd_terms(
        logits,
        target_logits,
        labels,
        gibbs_kernel(cost.to(widest(logits, target_logits)), reg, mode),
        temperature=temperature,
        iterations=iterations,
        separate_target=separate_target,
        mode=mode,
        reduction=reduction,
    )


@full_precision
def wkd_terms(
    logits: Tensor,
    target_logits: Tensor,
    labels: Tensor,
    kernel: Kernel,
    *,
    temperature: float | Tensor,
    iterations: int,
    separate_target: bool,
    mode: Mode,
    reduction: Reduction,
) -> WKDTerms:
    """`wkd_logit` with its options checked and the kernel at hand."""
    dtype = widest(logits, target_logits)
    student, target = logits.to(dtype), target_logits.to(dtype)
    absent = torch.isneginf(student) & torch.isneginf(target)
    own = torch.zeros_like(absent)
    if separate_target:
        own = own_class(labels, logits, "setting one class apart", "say `separate_target=False`")
    log_a, log_b = (_log_softmax_without(absent | own, x, temperature) for x in (student, target))
    transport = transport_cost(log_a, log_b, kernel, iterations, mode)
    p = torch.softmax(target.detach(), -1).masked_fill(~own, 0.0)
    cross_entropy = -(p * torch.log_softmax(student, -1).masked_fill(p == 0, 0.0)).sum(-1)
    return WKDTerms(reduce(cross_entropy, reduction), reduce(transport, reduction))


def _log_softmax_without(absent: Tensor, logits: Tensor, temperature: float | Tensor) -> Tensor:
    """Log probabilities among the classes that are not `absent`, which are at -inf; a row may have none."""
    none = absent.all(-1, keepdim=True)
    kept = logits.masked_fill(absent, -torch.inf).masked_fill(none, 0.0)
    return torch.log_softmax(tempered(kept, temperature), -1).masked_fill(absent, -torch.inf)


def check_transport(reg: float, iterations: int, mode: str) -> None:
    """The options of the sweeps."""
    if isinstance(reg, Tensor):
        raise TypeError("`reg` expected a number above 0, got a tensor; convert it with `float(reg)`")
    check_positive("reg", reg)
    if not isinstance(iterations, int) or iterations < 1:
        raise ValueError(f"`iterations` expected a whole number of at least 1, got {iterations!r}; published: 10")
    if mode not in get_args(Mode):
        raise ValueError(f"`mode` expected 'log' or 'published', got {mode!r}")


def _check_cost(cost: Tensor, num_classes: int) -> None:
    check_square(cost)
    if cost.shape[-1] != num_classes:
        raise ValueError(
            f"`cost` expected the shape {(num_classes, num_classes)}, got {tuple(cost.shape)}; its classes are the "
            "logits' last axis, in the same order"
        )


def check_square(cost: Tensor) -> None:
    """A floating (C, C) tensor."""
    if not isinstance(cost, Tensor):
        raise TypeError(f"`cost` expected a tensor, got {type(cost).__name__}")
    if not cost.is_floating_point():
        raise TypeError(f"`cost` expected a floating dtype, got {cost.dtype}; convert it with `.float()`")
    if cost.dim() != 2 or cost.shape[0] != cost.shape[1] or cost.numel() == 0:
        raise ValueError(f"`cost` expected a square matrix (C, C), got {tuple(cost.shape)}; samples share one cost")
