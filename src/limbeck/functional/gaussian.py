"""Transport between the features' Gaussians: means and (co)variances over positions, of maps or of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from limbeck.functional._check import Reduction, check_range, check_reduction, full_precision, reduce, widest

Covariance = Literal["diagonal", "full"]
VARIANCE_FLOOR = 1e-5  # of the published code, inside the root: the deviation of a constant channel has a gradient


@full_precision
def gaussian_wasserstein(
    features: Tensor,
    target_features: Tensor,
    *,
    mean_weight: float = 1.0,
    covariance: Covariance = "diagonal",
    grid: int = 1,
    unbiased: bool = True,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Squared Wasserstein distance between Gaussians of two feature maps, or of two sets of tokens (WKD-F).

    .. math:: \gamma \sum_d (\mu^t_d - \mu^s_d)^2 + \sum_d (\sigma^t_d - \sigma^s_d)^2, \quad
        \sigma = \sqrt{\mathrm{var} + 10^{-5}}

    and with `covariance="full"`, S with 1e-5 added to its diagonal,

    .. math:: \gamma \sum_d (\mu^t_d - \mu^s_d)^2
        + \mathrm{tr} \bigl( S_t + S_s - 2 (S_t^{1/2} S_s S_t^{1/2})^{1/2} \bigr)

    Mean and variance are over a channel's positions; on a `grid` of k x k cells, over those of a cell, and the cells'
    distances are averaged. Cell a of k spans [floor(a H / k), ceil((a + 1) H / k)): cells overlap where k does not
    divide H. At `mean_weight=1` and up to the floor it is the closed form of 2-Wasserstein, squared.

    Channels are summed, so the size of the loss grows with the target's width: a weight tuned for 512 channels is not
    one for 2048. The sides may differ in their positions, not in D; a projector of the caller brings the student's D
    to the target's.

    The full form needs no D x D matrix where D is large: with M positions the trace of the root is a nuclear norm of
    at most 3 M values a side. It costs a singular value decomposition per sample and cell; the paper's ablation finds
    it no better.

    Args:
        features: (N, D, H, W), or tokens (N, L, D), any floating dtype; what trains. RoI maps of detectors are maps.
        target_features: the same N and D; what it is drawn to.
        mean_weight: gamma, at least 0; factor of the means' part. Published: 2 to 8.
        covariance: "diagonal", or "full" (an ablation of the paper).
        grid: k, at least 1; each cell needs two positions or more. Tokens have no grid.
        unbiased: divide the variance by the number of positions less 1, as the public code; the paper divides by the
            number.
        reduction: "none" (N), "mean" or "sum".

    Returns:
        Squared feature units, in [0, inf); float32 (float64 for float64 inputs). Products are as precise as
        `torch.get_float32_matmul_precision()`; leave it at "highest".

    Raises:
        TypeError: not tensors, or not floating.
        ValueError: N or D differ; a side is empty, or neither maps nor tokens; an option out of range; a cell with
            fewer than two positions; unknown covariance or reduction.

    Gradient:
        To both sides; detach the target (or run the teacher under `no_grad`) in distillation. Finite also where
        positions are fewer than channels. Of the diagonal form of all orders, of the full form of the first.

    Example:
        >>> import torch
        >>> features = torch.tensor([1.0, 3.0]).view(1, 1, 1, 2)
        >>> gaussian_wasserstein(features + 2, features, mean_weight=4.0)  # means differ by 2, deviations do not
        tensor(16.)

    Reference:
        Lv, Yang, Li, arXiv 2412.08139, the loss WKD-F; its public code has the diagonal form.
    """
    maps = paired_maps(features, target_features, grid)
    check_range("mean_weight", mean_weight, 0.0, float("inf"))
    check_covariance(covariance)
    check_reduction(reduction)
    student, target = (moments(x, grid, unbiased) for x in maps)
    values = mean_weight * (target.mean - student.mean).square().sum((-2, -1)) / grid**2
    if covariance == "diagonal":
        deviation, target_deviation = ((side.variance + VARIANCE_FLOOR).sqrt() for side in (student, target))
        values = values + (target_deviation - deviation).square().sum((-2, -1)) / grid**2
    else:
        values = values + _full(*maps, grid, unbiased)
    return reduce(values, reduction)


class Moments(NamedTuple):
    """Of each channel in each cell, (N, D, k * k)."""

    mean: Tensor
    variance: Tensor


def moments(maps: Tensor, grid: int = 1, unbiased: bool = True) -> Moments:
    """Mean and variance of the cells of maps (N, D, H, W): two matrix products, whatever the grid."""
    flat = maps.flatten(2)
    centre = flat.detach().mean(-1, keepdim=True)  # the squares of a far mean would swallow the variance
    shifted = flat - centre
    inside = _cells(maps, grid).to(maps.dtype)
    counts = inside.sum(0)
    pool = inside / counts
    offset = shifted @ pool
    variance = (shifted.square() @ pool - offset.square()).clamp_min(0.0)
    return Moments(offset + centre, variance * (counts / (counts - 1)) if unbiased else variance)


def _cells(maps: Tensor, grid: int) -> Tensor:
    """(H * W, k * k), whether a position is in a cell."""

    def along(size: int) -> Tensor:
        position = torch.arange(size, device=maps.device).unsqueeze(-1)
        cell = torch.arange(grid, device=maps.device)
        return ((position + 1) * grid > cell * size) & (position * grid < (cell + 1) * size)

    rows, columns = along(maps.shape[-2]), along(maps.shape[-1])
    inside: Tensor = rows[:, None, :, None] & columns[None, :, None, :]
    return inside.reshape(-1, grid**2)


def _full(maps: Tensor, target_maps: Tensor, grid: int, unbiased: bool) -> Tensor:
    """The covariances' part with all of their entries, (N,)."""
    values = maps.new_zeros(len(maps))
    for row in range(grid):
        for column in range(grid):
            cells = (
                x[:, :, _span(row, grid, x.shape[2]), _span(column, grid, x.shape[3])] for x in (maps, target_maps)
            )
            values = values + _covariance_distance(*(_root_factor(cell.flatten(2), unbiased) for cell in cells))
    return values / grid**2


def _span(cell: int, grid: int, size: int) -> slice:
    return slice(cell * size // grid, -(-(cell + 1) * size // grid))


def _root_factor(positions: Tensor, unbiased: bool) -> Tensor:
    """R (N, D, M) with R R^T the covariance."""
    count = positions.shape[-1]
    factor: Tensor = (positions - positions.mean(-1, keepdim=True)) / (count - int(unbiased)) ** 0.5
    return factor


def _covariance_distance(a: Tensor, b: Tensor) -> Tensor:
    """tr(A + B - 2 (A^1/2 B A^1/2)^1/2) of A = a a^T + floor, B = b b^T + floor, (N,).

    The root's trace is the nuclear norm of R^T Q for any factors A = R R^T and B = Q Q^T, whose gradient is bounded.
    Outside the span of both, A and B are the floor alone: nothing to transport there.
    """
    traces = a.square().sum((-2, -1)) + b.square().sum((-2, -1))
    channels = a.shape[-2]
    if channels > a.shape[-1] + b.shape[-1]:
        basis = torch.linalg.qr(torch.cat((a, b), -1).detach()).Q
        a, b = basis.mT @ a, basis.mT @ b
    inner = a.shape[-2]
    floor = VARIANCE_FLOOR**0.5 * torch.eye(inner, dtype=a.dtype, device=a.device).expand(len(a), -1, -1)
    product = torch.cat((compressed(a), floor), -1).mT @ torch.cat((compressed(b), floor), -1)
    common: Tensor = torch.linalg.svdvals(product).sum(-1)
    return (traces + 2 * VARIANCE_FLOOR * inner - 2 * common).clamp_min(0.0)


def compressed(factor: Tensor) -> Tensor:
    """A factor (N, D, at most D) of the same product with its transpose.

    The rotation is a constant: of a function of R R^T, the gradient to R lies in its rows' span, whatever the rotation.
    """
    if factor.shape[-1] <= factor.shape[-2]:
        return factor
    rotated: Tensor = factor @ torch.linalg.qr(factor.detach().mT).Q
    return rotated


def paired_maps(features: Tensor, target_features: Tensor, grid: int = 1) -> tuple[Tensor, Tensor]:
    """Both sides as maps (N, D, H, W) of the arithmetic's dtype; tokens (N, L, D) become (N, D, L, 1).

    Raises:
        TypeError: Not tensors, or not floating.
        ValueError: Neither maps nor tokens, empty, of other N or D, or with cells of fewer than two positions.
    """
    sides = {"features": features, "target_features": target_features}
    for name, value in sides.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"`{name}` expected a tensor, got {type(value).__name__}")
        if not value.is_floating_point():
            raise TypeError(f"`{name}` expected a floating dtype, got {value.dtype}; convert it with `.float()`")
        if value.numel() == 0:
            raise ValueError(f"`{name}` expected features that are not empty, got the shape {tuple(value.shape)}")
        check_cells(name, value.shape[1:], grid)
    dtype = widest(features, target_features)
    maps, target_maps = (x.to(dtype) if x.dim() == 4 else x.to(dtype).mT.unsqueeze(-1) for x in sides.values())
    if maps.shape[:2] != target_maps.shape[:2]:
        raise ValueError(
            "`features` and `target_features` expected the same N and D, got the shapes "
            f"{tuple(features.shape)} and {tuple(target_features.shape)}; a projector changes D"
        )
    return maps, target_maps


def check_covariance(covariance: str) -> None:
    """One of the two words."""
    if covariance not in get_args(Covariance):
        raise ValueError(f"`covariance` expected 'diagonal' or 'full', got {covariance!r}")


def check_cells(name: str, shape: Sequence[int], grid: int) -> None:
    """Of a sample's shape, (D, H, W) or tokens (L, D), each of grid x grid cells has two positions or more."""
    if not isinstance(grid, int) or grid < 1:
        raise ValueError(f"`grid` expected a whole number of at least 1, got {grid!r}")
    if len(shape) not in (2, 3):
        raise ValueError(
            f"`{name}` expected maps (D, H, W) or tokens (L, D) of a sample, got the shape {tuple(shape)}; a vector "
            "has no distribution over positions"
        )
    if len(shape) == 2:
        if grid > 1:
            raise ValueError(
                f"`grid` expected 1 for the tokens (L, D) of `{name}`, got {grid}; as a map (N, D, H, W) they are "
                "`tokens.mT.unflatten(-1, (height, width))`"
            )
        if shape[0] < 2:
            raise ValueError(f"`{name}` expected at least 2 tokens, got {shape[0]}; one has no variance")
        return
    height, width = shape[1:]
    smallest = [min(-(-(cell + 1) * size // grid) - cell * size // grid for cell in range(grid)) for size in shape[1:]]
    if smallest[0] * smallest[1] < 2:
        raise ValueError(
            f"`grid` expected cells of at least 2 positions, got {grid} x {grid} cells on a map of "
            f"{height} x {width} (`{name}`); take a smaller `grid` or an earlier map"
        )
