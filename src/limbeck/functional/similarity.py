"""Similarities between a batch's samples: as probabilities (PKT), and as rows of a Gram matrix (SP)."""

from __future__ import annotations

import torch
from torch import Tensor

from limbeck.functional._check import full_precision
from limbeck.functional._samples import SMALLEST_NORM, flat_pair, unit_rows

FLOOR = 1e-7  # the public code's, beside norms and probabilities; part of the published numbers


@full_precision
def probabilistic_transfer(features: Tensor, target_features: Tensor) -> Tensor:
    r"""Probabilistic knowledge transfer (PKT): KL between the probabilities of each sample's neighbours.

    .. math:: \frac{1}{N^2} \sum_{ij} P^t_{ij} \log \frac{P^t_{ij} + 10^{-7}}{P^s_{ij} + 10^{-7}}, \quad
        P_{ij} = \frac{1 + \cos(f_i, f_j)}{\sum_k 1 + \cos(f_i, f_k)}

    The diagonal is included, and the mean is over N^2 entries, as in the public code: a row's KL divided by N, which is
    why the published weight is 30000. It couples the batch, so it has no `reduction`; under data parallelism each rank
    relates its own samples.

    Args:
        features: (N, D) or (N, D, ...), flattened behind N, any floating dtype; what trains.
        target_features: the same N samples; its D may differ.

    Returns:
        Nats, at least 0 up to the floors; 0-d float32 (float64 for float64 inputs). One sample gives 0.

    Raises:
        TypeError: not tensors, or not floating.
        ValueError: empty, without a feature axis, or of different N.

    Gradient:
        To `features`; none to `target_features`. On equal features it is 0 but for the floors, of the order of
        1e-8. A row of zeros has the cosine 0 with all and receives none.

    Example:
        >>> import torch
        >>> target = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
        >>> probabilistic_transfer(-3 * target, target) < 1e-7  # cosines have no scale and no sign of their own
        tensor(True)

    Reference:
        Passalis, Tefas, "Learning Deep Representations with Probabilistic Knowledge Transfer", arXiv 1803.10837,
        Eq. 4-8; passalis/probabilistic_kt, `nn/pkt.py`.
    """
    sides = flat_pair(features, target_features)
    p, target = (_neighbours(x) for x in sides)
    return (target * ((target + FLOOR) / (p + FLOOR)).log()).mean()


@full_precision
def similarity_preserving(features: Tensor, target_features: Tensor) -> Tensor:
    r"""Similarity-preserving distillation (SP): the samples' Gram matrices, their rows of length one.

    .. math:: \frac{1}{N^2} \Bigl\| \frac{G^t_{i:}}{\|G^t_{i:}\|} - \frac{G^s_{i:}}{\|G^s_{i:}\|} \Bigr\|_F^2, \quad
        G = F F^\top, \; F: (N, D \cdot H \cdot W)

    The diagonal is included. It couples the batch, so it has no `reduction`; under data parallelism each rank relates
    its own samples. The published weight is 3000.

    Args:
        features: (N, D, H, W) or (N, D), flattened behind N, any floating dtype; what trains.
        target_features: the same N samples; its D, H, W may differ.

    Returns:
        In [0, 4 / N]; 0-d float32 (float64 for float64 inputs). One sample gives 0.

    Raises:
        TypeError: not tensors, or not floating.
        ValueError: empty, without a feature axis, or of different N.

    Gradient:
        To `features`; none to `target_features`. A sample whose map is dead (all 0) receives none through its own
        row, where the public code's floor of 1e-12 would make it huge.

    Example:
        >>> import torch
        >>> target = torch.randn(4, 3, 2, 2)
        >>> similarity_preserving(2 * target.flip(1), target) < 1e-12  # scale and order of the channels do not count
        tensor(True)

    Reference:
        Tung, Mori, "Similarity-Preserving Knowledge Distillation", arXiv 1907.09682, Eq. 1-4; HobbitLong/RepDistiller,
        `distiller_zoo/SP.py`.
    """
    sides = flat_pair(features, target_features)
    rows, target_rows = (unit_rows(x @ x.mT) for x in sides)
    return (target_rows - rows).square().mean()


def _neighbours(x: Tensor) -> Tensor:
    """P, (N, N): rows of shifted cosines, each divided by its sum."""
    norms = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    x = torch.where(norms > SMALLEST_NORM, x / (norms + FLOOR), 0.0)
    shifted = (x @ x.mT + 1) / 2
    return shifted / shifted.sum(-1, keepdim=True)
