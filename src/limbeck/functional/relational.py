"""Relational distillation (RKD): distances of pairs and angles of triplets of a batch's samples."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import smooth_l1_loss
from torch.utils.checkpoint import checkpoint

from limbeck.functional._check import full_precision
from limbeck.functional._samples import flat_pair

Seen = tuple[Tensor, Tensor, Tensor]
BLOCK_ELEMENTS = 2**22  # cosines held at a time: 16 MB in float32, all of a batch of 161


@full_precision
def relational_distance(features: Tensor, target_features: Tensor) -> Tensor:
    r"""Difference of the distances between samples, each side's in units of its own mean distance.

    .. math:: \frac{1}{N^2} \sum_{ij} \ell\Bigl( \frac{\|f_i - f_j\|}{\mu_f}, \frac{\|g_i - g_j\|}{\mu_g} \Bigr), \quad
        \mu_f = \frac{1}{N(N-1)} \sum_{i \ne j} \|f_i - f_j\|, \quad \ell = \text{smooth } L_1

    The mean is over all N^2 pairs, the diagonal's zeros included, as in the public code. It couples the batch, so it
    has no `reduction`; under data parallelism each rank relates its own samples. Distances come from one product of
    the centred features; two samples that lie nearer than its rounding (about 1e-3 of their distance from the batch's
    mean in float32) have distance 0, where the public code has its floor of 1e-6.

    Args:
        features: (N, D) or (N, D, ...), flattened behind N, any floating dtype; what trains.
        target_features: the same N samples; its D may differ.

    Returns:
        At least 0, without unit; 0-d float32 (float64 for float64 inputs). One sample gives 0.

    Raises:
        TypeError: not tensors, or not floating.
        ValueError: empty, without a feature axis, or of different N.

    Gradient:
        To `features`, through the mean distance too; none to `target_features`. Coinciding samples pull nothing.

    Example:
        >>> import torch
        >>> target = torch.tensor([[0.0], [1.0], [3.0]])
        >>> relational_distance(5 * target, target) < 1e-12  # no unit, and no width of its own
        tensor(True)

    Reference:
        Park et al., "Relational Knowledge Distillation", arXiv 1904.05068, Eq. 5-7; lenscloth/RKD, `metric/loss.py`.
    """
    sides = flat_pair(features, target_features)
    related, target_related = (_in_mean_units(_geometry(x)[1]) for x in sides)
    return smooth_l1_loss(related, target_related)


@full_precision
def relational_angle(features: Tensor, target_features: Tensor) -> Tensor:
    r"""Difference of the angles that samples see each other at.

    .. math:: \frac{1}{N^3} \sum_{ijk} \ell( \cos\angle f_j f_i f_k, \; \cos\angle g_j g_i g_k ), \quad
        \ell = \text{smooth } L_1

    The mean is over all N^3 triplets, as in the public code; where two of three samples coincide the cosine is 0 (1
    between a direction and itself). It couples the batch, so it has no `reduction`; under data parallelism each rank
    relates its own samples. All cosines come from one product of the centred features, never from (N, N, D)
    differences; above 161 samples they are made block by block, and again in the backward pass.

    Args:
        features: (N, D) or (N, D, ...), flattened behind N, any floating dtype; what trains.
        target_features: the same N samples; its D may differ.

    Returns:
        In [0, 1.5]; 0-d float32 (float64 for float64 inputs). One or two samples give 0.

    Raises:
        TypeError: not tensors, or not floating.
        ValueError: empty, without a feature axis, or of different N.

    Gradient:
        To `features`; none to `target_features`. Coinciding samples pull nothing.

    Example:
        >>> import torch
        >>> corner = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> turned = corner @ torch.tensor([[0.0, 2.0], [-2.0, 0.0]]) + 7  # turned, doubled and moved: the same angles
        >>> relational_angle(turned, corner) < 1e-12
        tensor(True)

    Reference:
        Park et al., "Relational Knowledge Distillation", arXiv 1904.05068, Eq. 8-9; lenscloth/RKD, `metric/loss.py`.
    """
    sides = flat_pair(features, target_features)
    seen, target_seen = (_seen(x) for x in sides)
    samples = len(features)
    anchors = max(1, BLOCK_ELEMENTS // samples**2)
    if anchors >= samples:
        return _angles(seen, target_seen, 0, samples) / samples**3
    parts = [
        checkpoint(_angles, seen, target_seen, start, start + anchors, use_reentrant=False, preserve_rng_state=False)
        for start in range(0, samples, anchors)
    ]
    return torch.stack(parts).sum() / samples**3


def _geometry(x: Tensor) -> tuple[Tensor, Tensor]:
    """Products of the centred rows, and their distances; (N, N) each."""
    x = x - x.detach().mean(0)  # distances do not feel it, the product's rounding does
    products = x @ x.mT
    squares = products.diagonal()
    both = squares.unsqueeze(-1) + squares
    squared = both - 2 * products
    apart = squared > 8 * torch.finfo(x.dtype).eps * both.detach()
    return products, torch.where(apart, torch.where(apart, squared, 1.0).sqrt(), 0.0)


def _in_mean_units(distances: Tensor) -> Tensor:
    samples = len(distances)
    mean = distances.sum() / max(samples * (samples - 1), 1)
    return distances / torch.where(mean > 0, mean, 1.0)


def _seen(x: Tensor) -> Seen:
    """What a block of cosines is made of: products P, P_ij - P_ii / 2, and reciprocal distances, 0 for no distance."""
    products, distances = _geometry(x)
    apart = distances > 0
    reciprocal = torch.where(apart, torch.where(apart, distances, 1.0).reciprocal(), 0.0)
    return products, products - products.diagonal().unsqueeze(-1) / 2, reciprocal


def _angles(seen: Seen, target_seen: Seen, start: int, stop: int) -> Tensor:
    """The sum of smooth L1 over the anchors from `start` to `stop`."""
    cosines, target = (_cosines(side, slice(start, stop)) for side in (seen, target_seen))
    return smooth_l1_loss(cosines, target, reduction="sum")


def _cosines(seen: Seen, anchors: slice) -> Tensor:
    """cos(j, i, k) = (f_j - f_i)(f_k - f_i) / (d_ij d_ik), (anchors, N, N)."""
    products, offsets, reciprocal = seen[0], seen[1][anchors], seen[2][anchors]
    between = products - offsets.unsqueeze(-1) - offsets.unsqueeze(-2)
    return between * reciprocal.unsqueeze(-1) * reciprocal.unsqueeze(-2)
