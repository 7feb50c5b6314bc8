"""Entropic transport between class distributions, with one cost for the whole batch.

All samples share the (C, C) kernel, so a half-sweep is one (N, C) @ (C, C) product and no plan is ever made. The sweeps
are part of the loss: ten, the published number, are far from convergence.
"""

from __future__ import annotations

from typing import Any, NamedTuple, get_args

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
from limbeck.functional._engine import Impl
from limbeck.functional._rest import own_class
from limbeck.functional._sweeps import Gradient, Kernel, Mode, Sweeps, gibbs_kernel, transport_cost
from limbeck.functional.kl import tempered


class WKDTerms(NamedTuple):
    """The two terms of logit distillation by transport; the loss is `target` plus a weight times `transport`."""

    target: Tensor
    transport: Tensor


@full_precision
def sinkhorn(
    log_probs: Tensor,
    target_log_probs: Tensor,
    cost: Tensor,
    *,
    reg: float = 0.05,
    iterations: int = 10,
    mode: Mode = "log",
    gradient: Gradient = "unrolled",
    reduction: Reduction = "mean",
    impl: Impl = "auto",
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
        gradient: "unrolled" goes back through the sweeps as they were: exact after any number of them. "implicit", in
            log mode only, is the gradient of what the sweeps come to, by the implicit function theorem. It means
            something only after many sweeps (hundreds; at ten it is not the gradient of the value), where it agrees
            with the unrolled one and keeps (*, C) numbers however many sweeps there are. A weight that was tuned with
            ten sweeps has to be tuned again.
        reduction: "none" (*), "mean" over all leading axes, or "sum".
        impl: "triton" does all sweeps and the unrolled gradient in one kernel, for at most 128 classes in float32 on a
            GPU. "auto" is "torch", since no measurement has shown yet that the kernel is faster.

    Returns:
        Units of the cost, in [0, max cost]; float32 (float64 for float64 inputs). Products are as precise as
        `torch.get_float32_matmul_precision()`; leave it at "highest".

    Raises:
        TypeError: not tensors, or not floating.
        ValueError: shapes differ or are empty; an option is out of range or unknown; implicit in published mode.

    Gradient:
        To both sides, all orders when unrolled; none to `cost`. Implicit: first order, by conjugate gradients, as many
        steps as sweeps and at most C; a side's gradient is known up to a multiple of its probabilities, which no
        softmax passes on, and the one given to `log_probs` sums to 0. Asking for second derivatives raises, but
        `torch.func` and `torch.compile` take them for 0.

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
    check_transport(reg, iterations, mode, gradient)
    check_reduction(reduction)
    dtype = widest(log_probs, target_log_probs)
    kernel = gibbs_kernel(cost.to(dtype), reg, mode)
    sweeps = Sweeps(iterations, mode, gradient, impl)
    return reduce(transport_cost(log_probs.to(dtype), target_log_probs.to(dtype), kernel, sweeps), reduction)


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
    gradient: Gradient = "unrolled",
    reduction: Reduction = "mean",
    impl: Impl = "auto",
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
        gradient: "unrolled" through the sweeps, or "implicit", that of their limit; see `sinkhorn`.
        reduction: "none" (*), "mean" over all leading axes, or "sum"; of both terms.
        impl: of the transport, "torch", "triton" or "auto", which is "torch"; see `sinkhorn`.

    Returns:
        `target` in nats and `transport` in units of the cost, both in [0, inf); float32 (float64 for float64 inputs).

    Raises:
        TypeError: logits or cost not floating; labels not integers.
        ValueError: shapes differ or are empty; a label or an option is out of range or unknown.

    Gradient:
        `target`: to `logits`; the target's probability is detached. `transport`: to both sides and a tensor
        `temperature`, all orders when unrolled, exactly 0 to the label's logit; none to `cost`.

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
    check_transport(reg, iterations, mode, gradient)
    check_reduction(reduction)
    kernel = gibbs_kernel(cost.to(widest(logits, target_logits)), reg, mode)
    sweeps = Sweeps(iterations, mode, gradient, impl)
    options: Any = {"temperature": temperature, "separate_target": separate_target, "reduction": reduction}
    return WKDTerms(
        wkd_target(logits, target_logits, labels, separate_target=separate_target, reduction=reduction),
        wkd_transport(logits, target_logits, labels, kernel, sweeps, **options),
    )


@full_precision
def wkd_target(
    logits: Tensor, target_logits: Tensor, labels: Tensor, *, separate_target: bool, reduction: Reduction
) -> Tensor:
    """The first term of `wkd_logit`, its options checked; 0 unless `separate_target`."""
    dtype = widest(logits, target_logits)
    student, target = logits.to(dtype), target_logits.detach().to(dtype)
    p = torch.softmax(target, -1).masked_fill(~_set_apart(labels, logits, separate_target), 0.0)
    return reduce(-(p * torch.log_softmax(student, -1).masked_fill(p == 0, 0.0)).sum(-1), reduction)


@full_precision
def wkd_transport(
    logits: Tensor,
    target_logits: Tensor,
    labels: Tensor,
    kernel: Kernel,
    sweeps: Sweeps,
    *,
    temperature: float | Tensor,
    separate_target: bool,
    reduction: Reduction,
) -> Tensor:
    """The second term of `wkd_logit`, with its options checked and the kernel at hand."""
    dtype = widest(logits, target_logits)
    student, target = logits.to(dtype), target_logits.to(dtype)
    absent = torch.isneginf(student) & torch.isneginf(target) | _set_apart(labels, logits, separate_target)
    log_a, log_b = (_log_softmax_without(absent, x, temperature) for x in (student, target))
    return reduce(transport_cost(log_a, log_b, kernel, sweeps), reduction)


def _set_apart(labels: Tensor, logits: Tensor, separate_target: bool) -> Tensor:
    """(*, C), True at each sample's label, or nowhere."""
    if not separate_target:
        return torch.zeros_like(logits, dtype=torch.bool)
    return own_class(labels, logits, "setting one class apart", "say `separate_target=False`")


def _log_softmax_without(absent: Tensor, logits: Tensor, temperature: float | Tensor) -> Tensor:
    """Log probabilities among the classes that are not `absent`, which are at -inf; a row may have none."""
    none = absent.all(-1, keepdim=True)
    kept = logits.masked_fill(absent, -torch.inf).masked_fill(none, 0.0)
    return torch.log_softmax(tempered(kept, temperature), -1).masked_fill(absent, -torch.inf)


def check_transport(reg: float, iterations: int, mode: str, gradient: str) -> None:
    """The options of the sweeps."""
    if isinstance(reg, Tensor):
        raise TypeError("`reg` expected a number above 0, got a tensor; convert it with `float(reg)`")
    check_positive("reg", reg)
    if not isinstance(iterations, int) or iterations < 1:
        raise ValueError(f"`iterations` expected a whole number of at least 1, got {iterations!r}; published: 10")
    if mode not in get_args(Mode):
        raise ValueError(f"`mode` expected 'log' or 'published', got {mode!r}")
    if gradient not in get_args(Gradient):
        raise ValueError(f"`gradient` expected 'unrolled' or 'implicit', got {gradient!r}")
    if gradient == "implicit" and mode == "published":
        raise ValueError("`gradient` expected 'unrolled' in mode 'published', got 'implicit'; take `mode='log'`")


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
