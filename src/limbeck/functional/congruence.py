"""Correlation congruence (CC): two losses that share the name, the public code's and the paper's."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from limbeck.functional._check import check_positive, full_precision
from limbeck.functional._samples import flat_pair, unit_rows

Kernel = Literal["gaussian", "bilinear"]


@full_precision
def neighbour_congruence(features: Tensor, target_features: Tensor) -> Tensor:
    r"""Correlation congruence as the public code has it: a sample's error times its neighbour's.

    .. math:: \frac{1}{N - 1} \sum_{n<N} \langle d_n, d_{n+1} \rangle, \quad d_n = |f_n - g_n|

    Neighbours are those in the order of the batch, so the value depends on the shuffling; it is not the loss of the
    paper, which is `kernel_congruence`. It is what produced the numbers of the tables of CRD and of later papers, at
    the weight 0.02. It couples the batch, so it has no `reduction`; under data parallelism each rank relates its own
    samples.

    Args:
        features: (N, D) embeddings of one width, any floating dtype; more axes are flattened behind N.
        target_features: of the same shape.

    Returns:
        At least 0; 0-d float32 (float64 for float64 inputs). One sample, which has no neighbour, gives 0.

    Raises:
        TypeError: not tensors, or not floating.
        ValueError: empty, without a feature axis, or of different shapes.

    Gradient:
        To both sides: both embeddings are trained in the public code. Detach the target where it is not an embedding.

    Example:
        >>> import torch
        >>> neighbour_congruence(torch.tensor([[1.0], [2.0], [3.0]]), torch.zeros(3, 1))  # (1 * 2 + 2 * 3) / 2
        tensor(4.)

    Reference:
        HobbitLong/RepDistiller, `distiller_zoo/CC.py`, given by the authors of arXiv 1904.01802 (ICCV 2019).
    """
    a, b = flat_pair(features, target_features, one_width=True, live_target=True)
    difference = (a - b).abs()
    return (difference[:-1] * difference[1:]).sum() / max(len(a) - 1, 1)


@full_precision
def kernel_congruence(
    features: Tensor,
    target_features: Tensor,
    *,
    kernel: Kernel = "gaussian",
    gamma: float = 0.4,
    degree: int = 2,
    normalize: bool = True,
    squared: bool = True,
) -> Tensor:
    r"""Correlation congruence as the paper has it: the samples' kernel matrices.

    .. math:: \frac{1}{N^2} \| K(f) - K(g) \|_F^2, \quad
        K_{ij} = e^{-2 \gamma} \sum_{p=0}^{P} \frac{(2 \gamma)^p}{p!} \langle f_i, f_j \rangle^p
        \;\text{ or }\; K_{ij} = \langle f_i, f_j \rangle

    The sum is Taylor's, of exp(-gamma |f_i - f_j|^2) between vectors of length one. The defaults are the paper's;
    torchdistill, the only public code of this form, neither normalises nor squares the norm (`normalize=False,
    squared=False`). It couples the batch, so it has no `reduction`; under data parallelism each rank relates its own
    samples.

    Args:
        features: (N, D) or (N, D, ...), flattened behind N, any floating dtype.
        target_features: the same N samples; its D may differ.
        kernel: "gaussian" or "bilinear".
        gamma: of the Gaussian kernel, above 0.
        degree: P of the Gaussian kernel, at least 1.
        normalize: bring all vectors to length one first.
        squared: square the Frobenius norm.

    Returns:
        At least 0; 0-d float32 (float64 for float64 inputs).

    Raises:
        TypeError: not tensors, or not floating.
        ValueError: empty, without a feature axis, or of different N; an option out of range.

    Gradient:
        To both sides, since both embeddings are trained; detach the target where it is not one. A row of zeros receives
        none; nor does anything where the matrices are equal.

    Example:
        >>> import torch
        >>> target = torch.eye(3)
        >>> kernel_congruence(target.flip(1), target)  # the same relations between samples
        tensor(0.)

    Reference:
        Peng et al., "Correlation Congruence for Knowledge Distillation", arXiv 1904.01802, Eq. 5-10; torchdistill,
        `CCKDLoss`.
    """
    check_kernel(kernel, gamma, degree)
    sides = flat_pair(features, target_features, live_target=True)
    if normalize:
        sides = unit_rows(sides[0]), unit_rows(sides[1])
    products = [x @ x.mT for x in sides]
    if kernel == "gaussian":
        products = [_gaussian(x, gamma, degree) for x in products]
    difference = products[0] - products[1]
    norm = difference.square().sum() if squared else torch.linalg.vector_norm(difference)
    return norm / len(features) ** 2


def check_kernel(kernel: str, gamma: float, degree: int) -> None:
    """The options of a kernel."""
    if kernel not in get_args(Kernel):
        raise ValueError(f"`kernel` expected 'gaussian' or 'bilinear', got {kernel!r}")
    check_positive("gamma", gamma)
    if not isinstance(degree, int) or degree < 1:
        raise ValueError(f"`degree` expected a whole number of at least 1, got {degree!r}")


def _gaussian(products: Tensor, gamma: float, degree: int) -> Tensor:
    """Taylor's sum, by Horner's rule from the last power down."""
    total = torch.ones_like(products)
    for p in range(degree, 0, -1):
        total = 1 + total * products * (2 * gamma / p)
    return math.exp(-2 * gamma) * total
