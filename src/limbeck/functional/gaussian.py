"""Transport between the feature maps' Gaussians: means and variances over positions, channel by channel."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from limbeck.functional._check import (
    Reduction,
    check_pair,
    check_range,
    check_reduction,
    full_precision,
    reduce,
    widest,
)

VARIANCE_FLOOR = 1e-5  # of the published code, inside the root: the deviation of a constant channel has a gradient


@full_precision
def gaussian_wasserstein(
    features: Tensor,
    target_features: Tensor,
    *,
    mean_weight: float = 1.0,
    grid: int = 1,
    unbiased: bool = True,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Squared Wasserstein distance between diagonal Gaussians of two feature maps (WKD-F).

    .. math:: \gamma \sum_d (\mu^t_d - \mu^s_d)^2 + \sum_d (\sigma^t_d - \sigma^s_d)^2, \quad
        \sigma = \sqrt{\mathrm{var} + 10^{-5}}

    Mean and variance are over a channel's positions; on a `grid` of k x k cells, over those of a cell, and the cells'
    distances are averaged. Cell a of k spans [floor(a H / k), ceil((a + 1) H / k)): cells overlap where k does not
    divide H. At `mean_weight=1` and up to the floor it is the closed form of 2-Wasserstein, squared.

    Channels are summed, so the size of the loss grows with the target's width: a weight tuned for 512 channels is not
    one for 2048. The student's map is brought to the target's shape by a projector of the caller.

    Args:
        features: (N, D, H, W), any floating dtype; what trains.
        target_features: (N, D, H, W); what it is drawn to.
        mean_weight: gamma, at least 0; factor of the means' part. Published: 2 to 8.
        grid: k, at least 1; each cell needs two positions or more.
        unbiased: divide the variance by the number of positions less 1, as the public code; the paper divides by the
            number.
        reduction: "none" (N), "mean" or "sum".

    Returns:
        Squared feature units, in [0, inf); float32 (float64 for float64 inputs).

    Raises:
        TypeError: not tensors, or not floating.
        ValueError: shapes differ, are empty or not 4-d; an option out of range; a cell with fewer than two positions;
            unknown reduction.

    Gradient:
        To both sides; detach the target (or run the teacher under `no_grad`) in distillation.

    Example:
        >>> import torch
        >>> features = torch.tensor([1.0, 3.0]).view(1, 1, 1, 2)
        >>> gaussian_wasserstein(features + 2, features, mean_weight=4.0)  # means differ by 2, deviations do not
        tensor(16.)

    Reference:
        Lv, Yang, Li, arXiv 2412.08139, the loss WKD-F with diagonal covariances.
    """
    check_pair(features, target_features, names=("features", "target_features"))
    check_range("mean_weight", mean_weight, 0.0, float("inf"))
    check_reduction(reduction)
    counts = _cell_counts(features, grid)
    dtype = widest(features, target_features)
    (mean, deviation), (target_mean, target_deviation) = (
        _moments(x.to(dtype), grid, counts, unbiased) for x in (features, target_features)
    )
    cells = mean_weight * (target_mean - mean).square() + (target_deviation - deviation).square()
    return reduce(cells.sum((-3, -2, -1)) / grid**2, reduction)


def _moments(x: Tensor, grid: int, counts: Tensor, unbiased: bool) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each cell, (N, D, k, k)."""
    if grid == 1:
        variance, mean = torch.var_mean(x, (-2, -1), correction=int(unbiased), keepdim=True)
    else:
        centre = x.detach().mean((-2, -1), keepdim=True)  # the squares of a far mean would swallow the variance
        shifted = x - centre
        offset = adaptive_avg_pool2d(shifted, grid)
        variance = (adaptive_avg_pool2d(shifted.square(), grid) - offset.square()).clamp_min(0.0)
        mean = offset + centre
        if unbiased:
            variance = variance * (counts / (counts - 1))
    return mean, (variance + VARIANCE_FLOOR).sqrt()


def _cell_counts(features: Tensor, grid: int) -> Tensor:
    """(k, k), the number of positions of each cell."""
    if features.dim() != 4:
        raise ValueError(
            f"`features` expected the shape (N, D, H, W), got {tuple(features.shape)}; tokens (N, L, D) are "
            "`tokens.mT.unsqueeze(-1)`"
        )
    if not isinstance(grid, int) or grid < 1:
        raise ValueError(f"`grid` expected a whole number of at least 1, got {grid!r}")
    height, width = (
        [-(-(cell + 1) * size // grid) - cell * size // grid for cell in range(grid)] for size in features.shape[-2:]
    )
    if min(height) * min(width) < 2:
        raise ValueError(
            f"`grid` expected cells of at least 2 positions, got {grid} x {grid} cells on a map of "
            f"{features.shape[-2]} x {features.shape[-1]}; take a smaller `grid` or an earlier map"
        )
    rows, columns = (torch.tensor(sizes, device=features.device) for sizes in (height, width))
    return (rows[:, None] * columns).to(widest(features))
