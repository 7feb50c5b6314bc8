"""Transport between a batch's features of two networks (EMD), by inexact proximal steps (IPOT)."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from limbeck.functional._check import check_positive, full_precision, widest
from limbeck.functional._samples import flat_pair, unit_rows

Metric = Literal["cosine", "squared_euclidean"]


@full_precision
def ipot_plan(cost: Tensor, *, beta: float = 1.0, iterations: int = 50) -> Tensor:
    r"""Plan of optimal transport between uniform masses, by inexact proximal steps.

    .. math:: \Pi^{(l+1)} = \arg\min_\Pi \langle \Pi, C \rangle + \beta \, KL(\Pi \| \Pi^{(l)}), \quad
        \Pi 1 = 1/n, \; \Pi^\top 1 = 1/m

    Each step is approached by one sweep of scaling, as published. Unlike a Sinkhorn plan it tends to the plan without
    regularisation, whatever `beta`, if that is not far below the costs: at a hundredth of their spread one sweep is too
    little for so long a step, and the plan may stop short. All in log space, so that no cost is too large.

    Args:
        cost: (n, m), any floating dtype, finite.
        beta: length of a step is 1 / beta; above 0. Published 0.5 to 2.
        iterations: number of steps, at least 1. Published 20 to 50.

    Returns:
        (n, m), at least 0, float32 (float64 for float64 inputs); columns sum to 1/m, rows to 1/n in the limit.

    Raises:
        TypeError: not a tensor, or not floating.
        ValueError: not a non-empty matrix; an option out of range.

    Gradient:
        None: the plan is a constant.

    Example:
        >>> import torch
        >>> (2 * ipot_plan(torch.tensor([[3.0, 0.0], [0.0, 3.0]]), iterations=20)).round()
        tensor([[0., 1.],
                [1., 0.]])

    Reference:
        Xie et al., "A Fast Proximal Point Method for Computing Exact Wasserstein Distance", arXiv 1802.04307,
        Algorithm 1; xieyujia/IPOT, `ipot.py`.
    """
    if not isinstance(cost, Tensor):
        raise TypeError(f"`cost` expected a tensor, got {type(cost).__name__}")
    if not cost.is_floating_point():
        raise TypeError(f"`cost` expected a floating dtype, got {cost.dtype}; convert it with `.float()`")
    if cost.dim() != 2 or cost.numel() == 0:
        raise ValueError(f"`cost` expected a non-empty matrix (n, m), got {tuple(cost.shape)}")
    check_steps(beta, iterations)
    with torch.no_grad():
        kernel = -cost.to(widest(cost)) / beta
        log_n, log_m = (math.log(size) for size in cost.shape)
        log_plan = torch.zeros_like(kernel)
        column = torch.full_like(kernel[0], -log_m)
        for _ in range(iterations):
            log_plan = log_plan + kernel
            row = -log_n - torch.logsumexp(log_plan + column, 1)
            log_plan = log_plan + row.unsqueeze(1)
            column = -log_m - torch.logsumexp(log_plan, 0)
            log_plan = log_plan + column
        return log_plan.exp()


@full_precision
def ipot_transport(
    features: Tensor,
    target_features: Tensor,
    *,
    metric: Metric = "cosine",
    beta: float = 1.0,
    iterations: int = 50,
) -> Tensor:
    r"""Transport between the batch's features of the student and those of the teacher.

    .. math:: \langle \mathrm{sg}(\Pi), C \rangle, \quad
        C_{ij} = 1 - \cos(f_i, g_j) \;\text{ or }\; \tfrac1D \|f_i - g_j\|^2

    The plan is that of `ipot_plan`. It couples the batch, so it has no `reduction`; under data parallelism each rank
    moves its own samples. A good student's plan tends to the identity, and the loss to the mean of C_nn. No public code
    of the method exists: the solver is its authors', the costs are those the paper names, beta and the number of steps
    those of the solver's users.

    Args:
        features: (N, D) or (N, D, ...), flattened behind N, any floating dtype; what trains.
        target_features: of the same width; project the student's first.
        metric: "cosine", or "squared_euclidean", the mean over D.
        beta: length of a step is 1 / beta; above 0, in the cost's unit.
        iterations: number of steps, at least 1.

    Returns:
        In the cost's unit, cosine in [0, 2]; 0-d float32 (float64 for float64 inputs).

    Raises:
        TypeError: not tensors, or not floating.
        ValueError: empty, without a feature axis, or of different shapes; an option out of range.

    Gradient:
        To `features` through the cost alone, which is the gradient of exact transport at convergence; none to
        `target_features`. A row of zeros has cosine 0 with all and receives none.

    Example:
        >>> import torch
        >>> target = torch.eye(3)
        >>> ipot_transport(2 * target.flip(0), target) < 1e-6  # as a set, the samples are the same
        tensor(True)

    Reference:
        Lohit, Jones, "Model Compression Using Optimal Transport", arXiv 2012.03907 (WACV 2022); the solver: arXiv
        1802.04307.
    """
    check_metric(metric)
    a, b = flat_pair(features, target_features, one_width=True)
    costs = _costs(a, b, metric)
    return (ipot_plan(costs, beta=beta, iterations=iterations) * costs).sum()


def check_metric(metric: str) -> None:
    """One of the two words."""
    if metric not in get_args(Metric):
        raise ValueError(f"`metric` expected 'cosine' or 'squared_euclidean', got {metric!r}")


def check_steps(beta: float, iterations: int) -> None:
    """The options of the solver."""
    check_positive("beta", beta)
    if not isinstance(iterations, int) or iterations < 1:
        raise ValueError(f"`iterations` expected a whole number of at least 1, got {iterations!r}")


def _costs(a: Tensor, b: Tensor, metric: Metric) -> Tensor:
    """(N, N)."""
    if metric == "cosine":
        return 1 - unit_rows(a) @ unit_rows(b).mT
    centre = b.mean(0)
    a, b = a - centre, b - centre
    return (a.square().sum(1).unsqueeze(1) + b.square().sum(1) - 2 * a @ b.mT) / a.shape[1]
