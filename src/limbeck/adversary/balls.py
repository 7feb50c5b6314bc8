"""The ball around each image: where an attack starts, how it steps, what brings it back."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from limbeck import draws

Norm = Literal["linf", "l2"]
Start = Literal["none", "uniform", "gaussian"]

GAUSSIAN_SCALE = 0.001  # standard deviation of TRADES' start, whatever the radius


def ascend(points: Tensor, gradient: Tensor, step_size: float, norm: Norm) -> Tensor:
    """Take one step of steepest ascent: the step of length `step_size` that climbs a linear loss most.

    Args:
        points: Where the attack stands, `(N, ...)`.
        gradient: Of the loss at `points`, the same shape.
        step_size: Length of the step in the norm, in units of the pixels.
        norm: "linf" steps by the sign of each component, "l2" along the gradient of each sample.

    Returns:
        `(N, ...)`. A sample whose gradient is 0 stays where it is.

    Raises:
        ValueError: Unknown norm.

    Example:
        >>> ascend(torch.zeros(1, 2), torch.tensor([[3.0, -4.0]]), 0.5, "l2")
        tensor([[ 0.3000, -0.4000]])
    """
    if norm == "linf":
        return points + step_size * gradient.sign()
    _check_norm(norm)
    # Through the largest component first: the squares of a vanishing gradient would underflow to a norm of 0.
    tiny = torch.finfo(gradient.dtype).tiny
    scaled = gradient / gradient.abs().amax(_sample_dims(gradient), keepdim=True).clamp_min(tiny)
    return points + step_size * (scaled / _l2_norms(scaled).clamp_min(tiny))


def project(points: Tensor, centre: Tensor, epsilon: float, norm: Norm) -> Tensor:
    """Move each point to the nearest one of the ball around its centre.

    Args:
        points: `(N, ...)`.
        centre: Centres of the balls, the same shape.
        epsilon: Radius in the norm, in units of the pixels.
        norm: "linf" or "l2".

    Returns:
        `(N, ...)`; what lies in its ball is returned bit for bit.

    Raises:
        ValueError: Unknown norm.

    Example:
        >>> project(torch.tensor([[3.0, -4.0]]), torch.zeros(1, 2), 1.0, "linf")
        tensor([[ 1., -1.]])
    """
    if norm == "linf":
        return points.clamp(centre - epsilon, centre + epsilon)
    _check_norm(norm)
    offset = points - centre
    distance = _l2_norms(offset)
    return torch.where(distance > epsilon, centre + offset * (epsilon / distance), points)


def start_points(
    images: Tensor, start: Start, *, epsilon: float, norm: Norm, seed: int, epoch: int, indices: Tensor
) -> Tensor:
    """Return where an attack starts, a pure function of the seed, the epoch and each sample's index.

    Args:
        images: Centres of the balls, `(N, ...)`.
        start: "none", the image; "uniform", anywhere in the ball; "gaussian", the image plus .001 · N(0, 1), which is
            neither projected nor clipped, as TRADES published it.
        epsilon: Radius of the ball, in units of the pixels.
        norm: "linf" or "l2".
        seed: Seed of the draw.
        epoch: Epoch, or any other counter that the draw depends on.
        indices: Which samples these are, int64 `(N,)`. A sample's start does not depend on the others.

    Returns:
        `(N, ...)` in the images' dtype and memory format.

    Raises:
        TypeError: `indices` is not int64 of one dimension.
        ValueError: Unknown start or norm; not one index per image.

    Example:
        >>> where = {"epsilon": 0.1, "norm": "linf", "seed": 0, "epoch": 1}
        >>> both = start_points(torch.zeros(2, 3), "uniform", **where, indices=torch.tensor([7, 9]))
        >>> torch.equal(start_points(torch.zeros(1, 3), "uniform", **where, indices=torch.tensor([9])), both[1:])
        True
    """
    _check_norm(norm)
    if len(indices) != len(images):
        raise ValueError(f"`indices` expected one per image, shape ({len(images)},), got {tuple(indices.shape)}")
    shape = tuple(images.shape[1:])
    match start:
        case "none":
            return images.clone()
        case "uniform" if norm == "linf":
            noise = epsilon * (2 * draws.uniform(seed, epoch, indices, "attack start", shape) - 1)
        case "uniform":
            direction = _normal(seed, epoch, indices, shape)
            # The volume within radius r grows as r^D, so u^(1/D) spreads the points evenly.
            radius = draws.uniform(seed, epoch, indices, "attack radius").pow(1 / math.prod(shape))
            noise = epsilon * radius.view(-1, *[1] * len(shape)) * (direction / _l2_norms(direction))
        case "gaussian":
            noise = GAUSSIAN_SCALE * _normal(seed, epoch, indices, shape)
        case _:
            raise ValueError(f"`start` expected 'none', 'uniform' or 'gaussian', got {start!r}")
    return images + noise.to(images.dtype)


def _normal(seed: int, epoch: int, indices: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Draw from N(0, 1), float64 `(N, *shape)`, by Box and Muller; log1p(-u) is finite since u < 1."""
    first, second = draws.uniform(seed, epoch, indices, "attack start", (2, *shape)).unbind(1)
    return (-2 * torch.log1p(-first)).sqrt() * torch.cos(2 * math.pi * second)


def _sample_dims(points: Tensor) -> tuple[int, ...]:
    return tuple(range(1, points.dim()))


def _l2_norms(points: Tensor) -> Tensor:
    """Return the L2 norm of each sample, `(N, 1, ...)`."""
    norms: Tensor = torch.linalg.vector_norm(points, dim=_sample_dims(points), keepdim=True)
    return norms


def _check_norm(norm: str) -> None:
    if norm not in ("linf", "l2"):
        raise ValueError(f"`norm` expected 'linf' or 'l2', got {norm!r}")
