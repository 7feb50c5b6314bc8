"""Other distributions over the positions of features, and how far two of them are apart: WKD-F's rivals.

Each function takes maps (N, D, H, W) or tokens (N, L, D), reads every position as a draw of a D-dimensional variable,
and compares a sample's draws with those of its target. Unless said otherwise the sides may differ in their positions,
not in D; channels are summed, as in `gaussian_wasserstein`. Which of them is best is the paper's ablation of WKD-F.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from limbeck.functional._check import Reduction, check_positive, check_reduction, full_precision, reduce
from limbeck.functional.gaussian import VARIANCE_FLOOR, compressed, moments, paired_maps

Axis = Literal["channel", "spatial"]
SCALE_FLOOR = VARIANCE_FLOOR**0.5  # of a Laplace scale and an exponential mean, as of a Gaussian's deviation


@full_precision
def gaussian_kl(
    features: Tensor,
    target_features: Tensor,
    *,
    symmetric: bool = False,
    unbiased: bool = True,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""KL between diagonal Gaussians over positions, from the target to the features.

    .. math:: \tfrac12 \sum_d \Bigl( \frac{(\mu^t_d - \mu^s_d)^2 + v^t_d}{v^s_d} - \log \frac{v^t_d}{v^s_d} - 1 \Bigr),
        \quad v = \mathrm{var} + 10^{-5}

    Unlike the Wasserstein distance it has no unit, and a channel that is nearly constant in the features weighs much.

    Args:
        features: (N, D, H, W) or (N, L, D), any floating dtype; what trains.
        target_features: the same N and D; what it is drawn to.
        symmetric: add KL the other way round.
        unbiased: divide the variance by the number of positions less 1.
        reduction: "none" (N), "mean" or "sum".

    Returns:
        Nats, in [0, inf); float32 (float64 for float64 inputs).

    Raises:
        TypeError: not tensors, or not floating.
        ValueError: N or D differ; a side is empty, neither maps nor tokens, or of one position; unknown reduction.

    Gradient:
        To both sides, all orders; detach the target in distillation.

    Example:
        >>> import torch
        >>> features = torch.tensor([-1.0, 1.0]).view(1, 1, 1, 2)
        >>> gaussian_kl(features + 2, features, unbiased=False)  # 2 deviations apart
        tensor(2.0000)

    Reference:
        Lv, Yang, Li, arXiv 2412.08139, appendix A.2.
    """
    check_reduction(reduction)
    student, target = (moments(x, unbiased=unbiased) for x in paired_maps(features, target_features))
    gap = (target.mean - student.mean).square()
    variance, target_variance = student.variance + VARIANCE_FLOOR, target.variance + VARIANCE_FLOOR
    values = (gap + target_variance) / variance - 1
    if symmetric:
        values = values + (gap + variance) / target_variance - 1  # the logarithms cancel
    else:
        values = values - (target_variance / variance).log()
    return reduce(values.sum((-2, -1)) / 2, reduction)


@full_precision
def laplace_kl(features: Tensor, target_features: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    r"""KL between Laplace distributions of each channel over positions, from the target to the features.

    .. math:: \sum_d \Bigl( \log \frac{v^s_d}{v^t_d} + \frac{|\mu^t_d - \mu^s_d|}{v^s_d}
        + \frac{v^t_d}{v^s_d} e^{-|\mu^t_d - \mu^s_d| / v^t_d} - 1 \Bigr)

    The scale v is the mean absolute deviation from the mean mu, plus the root of 1e-5.

    Args:
        features: (N, D, H, W) or (N, L, D), any floating dtype; what trains.
        target_features: the same N and D; what it is drawn to.
        reduction: "none" (N), "mean" or "sum".

    Returns:
        Nats, in [0, inf); float32 (float64 for float64 inputs).

    Raises:
        TypeError: not tensors, or not floating.
        ValueError: N or D differ; a side is empty, neither maps nor tokens, or of one position; unknown reduction.

    Gradient:
        To both sides; detach the target in distillation. 0 through the deviation of a position on the mean.

    Example:
        >>> import torch
        >>> features = torch.tensor([-1.0, 1.0]).view(1, 1, 1, 2)
        >>> laplace_kl(features, features)
        tensor(0.)

    Reference:
        Lv, Yang, Li, arXiv 2412.08139, appendix A.2, which names no estimator of the scale.
    """
    check_reduction(reduction)
    (mean, scale), (target_mean, target_scale) = (_laplace(x) for x in paired_maps(features, target_features))
    gap = (target_mean - mean).abs()
    ratio = target_scale / scale
    values = gap / scale + ratio * (-gap / target_scale).exp() - ratio.log() - 1
    return reduce(values.sum(-1), reduction)


def _laplace(maps: Tensor) -> tuple[Tensor, Tensor]:
    mean = maps.mean((-2, -1), keepdim=True)
    return mean[..., 0, 0], (maps - mean).abs().mean((-2, -1)) + SCALE_FLOOR


@full_precision
def exponential_kl(features: Tensor, target_features: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    r"""KL between exponential distributions of each channel over positions, from the target to the features.

    .. math:: \sum_d \Bigl( \log \frac{b^t_d}{b^s_d} + \frac{b^s_d}{b^t_d} - 1 \Bigr), \quad
        b = \frac{1}{\mathrm{mean} + \sqrt{10^{-5}}}

    It compares means by their ratio and is for features that are not negative, such as those after a ReLU. A mean
    below 0 counts as 0.

    Args:
        features: (N, D, H, W) or (N, L, D), any floating dtype, not negative; what trains.
        target_features: the same N and D; what it is drawn to.
        reduction: "none" (N), "mean" or "sum".

    Returns:
        Nats, in [0, inf); float32 (float64 for float64 inputs).

    Raises:
        TypeError: not tensors, or not floating.
        ValueError: N or D differ; a side is empty, neither maps nor tokens, or of one position; unknown reduction.

    Gradient:
        To both sides, all orders; detach the target in distillation. None to a channel whose mean is below 0.

    Example:
        >>> import torch
        >>> features = torch.tensor([1.0, 3.0]).view(1, 1, 1, 2)
        >>> bool(exponential_kl(features, features) == 0)
        True

    Reference:
        Lv, Yang, Li, arXiv 2412.08139, appendix A.2.
    """
    check_reduction(reduction)
    mean, target_mean = (x.mean((-2, -1)).clamp_min(0.0) + SCALE_FLOOR for x in paired_maps(features, target_features))
    ratio = target_mean / mean
    return reduce((ratio - 1 - ratio.log()).sum(-1), reduction)


@full_precision
def pmf_transport(
    features: Tensor,
    target_features: Tensor,
    *,
    reg: float = 0.01,
    iterations: int = 50,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Transport between positions as atoms of equal mass, at the cost of one minus the cosine of their vectors.

    .. math:: \sum_{ij} Q_{ij} \, (1 - \cos(f^s_i, f^t_j)), \quad
        \sum_j Q_{ij} = \tfrac1M, \quad \sum_i Q_{ij} = \tfrac1{M'}

    The plan Q is that of entropic transport, from Sinkhorn sweeps in log space: over the first half of them the
    regularisation falls to `reg` as 1 / sweep, over the second it stays there. A sweep scales the columns and, last,
    the rows to their masses. The defaults come within 0.01 of the optimum without regularisation at 7 x 7 positions.
    The value is the transport's cost without an entropy, so on equal sides it is not 0 but tends to it with `reg`.
    The paper names no solver.

    Args:
        features: (N, D, H, W) or (N, L, D), any floating dtype; what trains.
        target_features: the same N and D; what it is drawn to.
        reg: entropic regularisation of the last sweeps, above 0.
        iterations: number of sweeps, at least 1.
        reduction: "none" (N), "mean" or "sum".

    Returns:
        In [0, 2]; float32 (float64 for float64 inputs). A position whose vector is 0 has the cosine 0 with all. One
        (N, M, M') tensor a sweep, for M and M' positions.

    Raises:
        TypeError: not tensors, or not floating.
        ValueError: N or D differ; a side is empty, neither maps nor tokens, or of one position; an option out of
            range; unknown reduction.

    Gradient:
        To both sides through the cost; the plan is a constant, which is exact at the unregularised optimum. Detach the
        target in distillation. None to a position whose vector is 0.

    Example:
        >>> import torch
        >>> tokens = torch.eye(3).unsqueeze(0)  # three orthogonal vectors, in any order
        >>> bool(pmf_transport(tokens.flip(1), tokens) < 1e-6)
        True

    Reference:
        Lv, Yang, Li, arXiv 2412.08139, appendix A.2; Cuturi, "Sinkhorn Distances", NIPS 2013.
    """
    check_positive("reg", reg)
    if not isinstance(iterations, int) or iterations < 1:
        raise ValueError(f"`iterations` expected a whole number of at least 1, got {iterations!r}")
    check_reduction(reduction)
    student, target = (_unit(x.flatten(2)) for x in paired_maps(features, target_features))
    cost = 1 - student.mT @ target
    return reduce((_plan(cost.detach(), reg, iterations) * cost).sum((-2, -1)), reduction)


def _unit(positions: Tensor) -> Tensor:
    """Vectors (N, D, M) of norm 1; one that is next to 0 becomes 0 and gets no gradient."""
    norm = torch.linalg.vector_norm(positions, dim=1, keepdim=True)
    return positions * torch.where(norm > VARIANCE_FLOOR, norm.clamp_min(VARIANCE_FLOOR).reciprocal(), 0.0)


def _plan(cost: Tensor, reg: float, iterations: int) -> Tensor:
    log_plan = torch.zeros_like(cost)
    falling = (iterations + 1) // 2
    for sweep in range(iterations):
        if sweep < falling:
            log_plan = log_plan - cost / (reg * falling)
        log_plan = log_plan.log_softmax(-2).log_softmax(-1)
    return log_plan.exp() / cost.shape[-2]


@full_precision
def moment_distance(
    features: Tensor,
    target_features: Tensor,
    *,
    axis: Axis = "channel",
    order: Literal[1, 2] = 1,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Squared Frobenius distance of moments: of the channels over positions, or of the positions over channels.

    .. math:: \|m(F_t) - m(F_s)\|_F^2, \quad m_\text{channel}(F) = \tfrac1M F \mathbf 1 \text{ or } \tfrac1M F F^\top,
        \quad m_\text{spatial}(F) = \tfrac1D F^\top \mathbf 1 \text{ or } \tfrac1D F^\top F

    F is (D, M). The second moments are not centred. With "channel" and 1 it is the means' part of WKD-F. ICKD-C is
    close to "channel" and 2, on rows of the D x D matrix scaled to unit norm; NST to "spatial" and 2, on maps of unit
    norm per channel.

    Args:
        features: (N, D, H, W) or (N, L, D), any floating dtype; what trains.
        target_features: the same N and D, and with "spatial" as many positions; what it is drawn to.
        axis: "channel": D means or D x D products; "spatial": M means or M x M products.
        order: 1 or 2.
        reduction: "none" (N), "mean" or "sum".

    Returns:
        Squared feature units at order 1, their square at order 2, in [0, inf); float32 (float64 for float64 inputs).
        The larger of the D x D and M x M products is avoided where the sides have as many positions.

    Raises:
        TypeError: not tensors, or not floating.
        ValueError: N or D differ; a side is empty, neither maps nor tokens, or of one position; positions differ where
            they may not; unknown axis, order or reduction.

    Gradient:
        To both sides, all orders; detach the target in distillation.

    Example:
        >>> import torch
        >>> features = torch.ones(1, 2, 4, 4)
        >>> moment_distance(3 * features, features), moment_distance(3 * features, features, axis="spatial")
        (tensor(8.), tensor(64.))

    Reference:
        Lv, Yang, Li, arXiv 2412.08139, appendix A.2.
    """
    if axis not in get_args(Axis):
        raise ValueError(f"`axis` expected 'channel' or 'spatial', got {axis!r}")
    if order not in (1, 2):
        raise ValueError(f"`order` expected 1 or 2, got {order!r}")
    check_reduction(reduction)
    student, target = (x.flatten(2) for x in paired_maps(features, target_features))
    if axis == "spatial":
        if student.shape != target.shape:
            raise ValueError(
                "`target_features` expected as many positions as `features` for spatial moments, got "
                f"{target.shape[-1]} and {student.shape[-1]}; a projector matches sizes"
            )
        student, target = student.mT, target.mT
    if order == 1:
        return reduce((target.mean(-1) - student.mean(-1)).square().sum(-1), reduction)
    return reduce(_second_moment_distance(student, target), reduction)


def _second_moment_distance(x: Tensor, y: Tensor) -> Tensor:
    """||Y Y^T / m - X X^T / m||^2 of (N, n, m), by n x n or m x m products; both vanish with y - x."""
    if x.shape != y.shape or x.shape[-2] <= x.shape[-1]:
        return (y @ y.mT / y.shape[-1] - x @ x.mT / x.shape[-1]).square().sum((-2, -1))
    gap, total = (y - x) / x.shape[-1], y + x  # Y Y^T - X X^T = (gap total^T + total gap^T) / 2
    cross = gap.mT @ total
    products = (gap.mT @ gap) * (total.mT @ total)
    return (products + cross * cross.mT).sum((-2, -1)) / 2


@full_precision
def gaussian_embedding_distance(features: Tensor, target_features: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    r"""Squared Frobenius distance between the embeddings of full Gaussians as symmetric matrices (G2DeNet).

    .. math:: \|E_t - E_s\|_F^2, \quad
        E = \begin{pmatrix} S + \mu \mu^\top & \mu \\ \mu^\top & 1 \end{pmatrix}^{1/2}

    S is the biased covariance; 1e-5 is added to the diagonal under the root. With M positions fewer than channels no
    (D + 1) x (D + 1) matrix is made: the roots are those of M x M products.

    Args:
        features: (N, D, H, W) or (N, L, D), any floating dtype; what trains.
        target_features: the same N and D; what it is drawn to.
        reduction: "none" (N), "mean" or "sum".

    Returns:
        Squared feature units, in [0, inf); float32 (float64 for float64 inputs). It is a difference of larger numbers:
        in float32 expect errors of 1e-6 times the features' squared size.

    Raises:
        TypeError: not tensors, or not floating.
        ValueError: N or D differ; a side is empty, neither maps nor tokens, or of one position; unknown reduction.

    Gradient:
        To both sides, first order only; finite also where positions are fewer than channels or equal. Detach the
        target in distillation.

    Example:
        >>> import torch
        >>> features = torch.tensor([1.0, 3.0]).view(1, 1, 1, 2)
        >>> gaussian_embedding_distance(features, features)
        tensor(0.)

    Reference:
        Wang, Li, Zhang, "G2DeNet: Global Gaussian Distribution Embedding Network", CVPR 2017; Lv, Yang, Li, arXiv
        2412.08139, appendix A.2.
    """
    check_reduction(reduction)
    (x, h), (y, g) = (_embedding(maps) for maps in paired_maps(features, target_features))
    values = _inner(x, h, x, h) + _inner(y, g, y, g) - 2 * _inner(x, h, y, g)
    return reduce(values.clamp_min(0.0), reduction)


def _embedding(maps: Tensor) -> tuple[Tensor, Tensor]:
    """X and h with E = X h X^T + sqrt(floor): X X^T is the matrix under the root, h = 1 / (root of X^T X + sqrt)."""
    positions = maps.flatten(2)
    homogeneous = torch.cat((positions, torch.ones_like(positions[:, :1])), 1) / positions.shape[-1] ** 0.5
    x = compressed(homogeneous)
    eye = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
    root = _root(x.mT @ x + VARIANCE_FLOOR * eye)
    return x, torch.linalg.inv(root + VARIANCE_FLOOR**0.5 * eye)


def _root(matrix: Tensor) -> Tensor:
    """Square root of a symmetric matrix whose eigenvalues are at least the floor.

    The derivative solves R dR + dR R = dA, where no difference of eigenvalues is divided by.
    """
    values, vectors = torch.linalg.eigh(matrix.detach())
    roots = values.clamp_min(VARIANCE_FLOOR).sqrt()
    change = vectors.mT @ (matrix - matrix.detach()) @ vectors / (roots.unsqueeze(-1) + roots.unsqueeze(-2))
    root: Tensor = vectors @ (torch.diag_embed(roots) + change) @ vectors.mT
    return root


def _inner(x: Tensor, h: Tensor, y: Tensor, g: Tensor) -> Tensor:
    """<x h x^T, y g y^T>."""
    product = x.mT @ y
    return ((h @ product @ g) * product).sum((-2, -1))
