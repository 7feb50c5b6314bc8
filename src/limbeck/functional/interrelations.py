"""How alike classes are, seen through a network: matrices of similarity, and the cost of transport they become.

All of it is made once, before a training, so values are checked wherever the tensors lie. Arithmetic is in float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

from limbeck.functional._alignment import (
    Negative,
    block_products,
    checked,
    checked_features,
    checked_floats,
    cosines,
    gram_products,
    kernel_alignment,
    normalised,
    refuse_classes,
)
from limbeck.functional._check import check_positive, check_range, full_precision

ROUNDING = 1e-5  # what float32 may leave between an entry and its mirror image, or above 1


@full_precision
def linear_cka(features: Tensor) -> Tensor:
    r"""Linear centred kernel alignment between classes, in the published pairing: sample n of one with n of another.

    .. math:: \frac{\langle G_i, G_j \rangle}{\|G_i\| \|G_j\|} = \frac{\|X_i^T X_j\|^2}{\|X_i^T X_i\| \|X_j^T X_j\|},
        \quad G_i = X_i X_i^T

    X_i (N, D) are a class's features less their mean. CKA is made for two descriptions of the same N samples. Here the
    samples of two classes are paired by their place alone, so what is left of a relation between the classes is what
    chance leaves; and the means, in which classes differ, are taken off. Prefer `centroid_cosine`,
    `classifier_cosine` or `covariance_alignment`, which no order of the samples changes.

    All pairs are one product of the centred Gram matrices as rows (C, N^2), made in pieces of 64 MiB, or, where N is
    far above D, products of the features themselves; whichever has fewer operations.

    Args:
        features: (C, N, D), any floating dtype, finite: N samples of each class, N at least 2.

    Returns:
        float64 (C, C), symmetric, in [0, 1], diagonal 1.

    Raises:
        TypeError: not a tensor, or not floating.
        ValueError: not of three axes, empty, fewer than two samples, not finite, or a class whose samples are all one.

    Gradient:
        None; the features are detached.

    Example:
        >>> import torch
        >>> x = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> linear_cka(torch.stack([x, 2 * x + 5]))  # neither scale nor place matters
        tensor([[1., 1.],
                [1., 1.]], dtype=torch.float64)

    Reference:
        Kornblith et al., arXiv 1905.00414; between classes: Lv, Yang, Li, arXiv 2412.08139.
    """
    x = checked_features(features)
    x -= x.mean(1, keepdim=True)
    classes, samples, size = x.shape
    gram, block = samples * (size + classes), classes * size**2
    return normalised(gram_products(x) if gram <= block else block_products(x))


@full_precision
def rbf_cka(features: Tensor, *, bandwidth: float = 0.4) -> Tensor:
    r"""CKA between classes with a Gaussian kernel; what `linear_cka` says of the pairing holds here too.

    .. math:: K_{mn} = \exp \bigl( - \|x_m - x_n\|^2 / (2 \, a^2 \, \mathrm{med}) \bigr)

    a is `bandwidth`, med the median of the class's N^2 squared distances, zeros of the diagonal included (as in the
    code of CKA's authors), the lower of the two in the middle. Kernels are centred on both sides.

    Args:
        features: (C, N, D), any floating dtype, finite: N samples of each class, N at least 2.
        bandwidth: a, above 0; the paper's ablation has 0.2, 0.4 and 0.6.

    Returns:
        float64 (C, C), symmetric, in [0, 1], diagonal 1.

    Raises:
        TypeError: not a tensor, or not floating.
        ValueError: as `linear_cka`; `bandwidth` out of range; a median of 0, where most samples of a class are one.

    Gradient:
        None; the features are detached.

    Example:
        >>> import torch
        >>> x = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> bool(rbf_cka(torch.stack([x, 2 * x + 5]))[0, 1] > 1 - 1e-12)
        True

    Reference:
        Kornblith et al., arXiv 1905.00414; between classes: Lv, Yang, Li, arXiv 2412.08139, ablation of kernels.
    """
    check_positive("bandwidth", bandwidth)
    x = checked_features(features)
    x -= x.mean(1, keepdim=True)  # distances are the same, and squares of a far mean would swallow them
    squares: Tensor = torch.linalg.vector_norm(x, dim=-1).square()

    def distances(rows: slice, c: slice) -> Tensor:
        products = x[c, rows] @ x[c].mT
        return (squares[c, rows].unsqueeze(-1) + squares[c].unsqueeze(1) - 2 * products).clamp_min(0.0)

    everything, each = slice(None), (slice(c, c + 1) for c in range(len(x)))
    medians = torch.stack([distances(everything, c).flatten().median() for c in each]).view(-1, 1, 1)
    refuse_classes(medians.flatten() <= 0, "samples of which fewer than half are equal", "take more of them")
    scale = 2 * bandwidth**2 * medians
    return kernel_alignment(x, lambda rows, c: torch.exp(-distances(rows, c) / scale[c]))


@full_precision
def polynomial_cka(features: Tensor, *, power: int = 2) -> Tensor:
    r"""CKA between classes with the kernel (x y + 1)^k; what `linear_cka` says of the pairing holds here too.

    .. math:: K_{mn} = (\langle x_m, x_n \rangle + 1)^k

    Features enter as they are: their mean and scale matter, unlike with the two other kernels.

    Args:
        features: (C, N, D), any floating dtype, finite: N samples of each class, N at least 2.
        power: k, at least 1; the paper's ablation has 2, 3 and 4.

    Returns:
        float64 (C, C), symmetric, in [0, 1], diagonal 1.

    Raises:
        TypeError: not a tensor, or not floating.
        ValueError: as `linear_cka`; `power` out of range; a kernel beyond float64.

    Gradient:
        None; the features are detached.

    Example:
        >>> import torch
        >>> x = torch.tensor([[[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]], [[1.0, 1.0], [2.0, 0.0], [0.0, 3.0]]])
        >>> bool((polynomial_cka(x, power=1) - linear_cka(x)).abs().max() < 1e-12)
        True

    Reference:
        Lv, Yang, Li, arXiv 2412.08139, ablation of kernels.
    """
    if not isinstance(power, int) or power < 1:
        raise ValueError(f"`power` expected a whole number of at least 1, got {power!r}")
    x = checked_features(features)
    return kernel_alignment(x, lambda rows, c: (x[c, rows] @ x[c].mT + 1) ** power)


@full_precision
def centroid_cosine(means: Tensor, *, center: bool = True, negative: Negative = "shift") -> Tensor:
    r"""Cosines between the classes' mean features.

    .. math:: \cos(\mu_i - \bar\mu, \mu_j - \bar\mu), \quad \bar\mu = \frac1C \sum_i \mu_i

    Features behind a ReLU are not negative, so their means have much in common, and all cosines are near 1; without
    `center` that is what the matrix shows first. With it, half of the cosines or more are below 0. A cost has to lie
    in [0, 1], so "shift" takes (1 + cos) / 2, which keeps the order of all pairs, and "clip" takes max(cos, 0), for
    which all classes at a right angle or more are equally far.

    Args:
        means: (C, D), any floating dtype, finite.
        center: subtract the mean of the classes' means; the published form does not.
        negative: "shift" or "clip".

    Returns:
        float64 (C, C), symmetric, in [0, 1], diagonal 1.

    Raises:
        TypeError: not a tensor, or not floating.
        ValueError: not of two axes, empty or not finite; a mean of length 0; unknown `negative`.

    Gradient:
        None; the means are detached.

    Example:
        >>> import torch
        >>> centroid_cosine(torch.tensor([[1.0, 0.0], [1.0, 1.0], [-1.0, 0.0]]), center=False)[0]
        tensor([1.0000, 0.8536, 0.0000], dtype=torch.float64)

    Reference:
        Lv, Yang, Li, arXiv 2412.08139, ablation of interrelations, without `center` and with 1 - cos as the cost.
    """
    x = checked("means", means, "(C, D)", 2)
    scale = torch.linalg.vector_norm(x, dim=-1).max()
    return cosines(x - x.mean(0) if center else x, negative, "a mean other than the mean of all", scale)


@full_precision
def classifier_cosine(weight: Tensor, *, negative: Negative = "shift") -> Tensor:
    r"""Cosines between the rows of a linear classifier, one row per class: no data are needed.

    .. math:: \cos(w_i, w_j)

    The public code's cost is 1 - cos, up to 2, which a cost has not to be. See `centroid_cosine` for `negative`;
    "shift" gives half of the public code's cost.

    Args:
        weight: (C, D), any floating dtype, finite; such as `network.head.weight`.
        negative: "shift" takes (1 + cos) / 2, "clip" max(cos, 0).

    Returns:
        float64 (C, C), symmetric, in [0, 1], diagonal 1.

    Raises:
        TypeError: not a tensor, or not floating.
        ValueError: not of two axes, empty or not finite; a row of length 0; unknown `negative`.

    Gradient:
        None; the weight is detached (the public code keeps the teacher's graph, and its second step fails).

    Example:
        >>> import torch
        >>> classifier_cosine(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
        tensor([[1.0000, 0.5000],
                [0.5000, 1.0000]], dtype=torch.float64)

    Reference:
        Lv, Yang, Li, arXiv 2412.08139, ablation of interrelations; "fc" in the public code.
    """
    x = checked("weight", weight, "(C, D)", 2)
    return cosines(x, negative, "a row other than 0", torch.zeros_like(x[0, 0]))


@full_precision
def covariance_alignment(covariances: Tensor) -> Tensor:
    r"""Alignment of the classes' covariance matrices: do two classes vary in the same directions?

    .. math:: \frac{\langle S_i, S_j \rangle}{\|S_i\| \|S_j\|}

    No order of the samples changes it, unlike CKA. It does not see where the classes are.

    Args:
        covariances: (C, D, D), any floating dtype, finite; how they are normalised does not matter.

    Returns:
        float64 (C, C), symmetric, in [0, 1], diagonal 1.

    Raises:
        TypeError: not a tensor, or not floating.
        ValueError: not of three axes, empty, not square, not finite; a class without variance.

    Gradient:
        None; the covariances are detached.

    Example:
        >>> import torch
        >>> covariance_alignment(torch.stack([torch.eye(2), torch.diag(torch.tensor([1.0, 0.0]))]))[0, 1]
        tensor(0.7071, dtype=torch.float64)

    Reference:
        The inner product of Hilbert-Schmidt between covariances, with the cosine's normalisation.
    """
    x = checked("covariances", covariances, "(C, D, D)", 3)
    if x.shape[1] != x.shape[2]:
        raise ValueError(f"`covariances` expected square matrices (C, D, D), got {tuple(x.shape)}")
    rows = x.flatten(1)
    return normalised(rows @ rows.mT)


def uniform_interrelations(num_classes: int) -> Tensor:
    """No class is more like a second than like a third: the identity. The control of all others.

    The transport of its cost is a smoothed total variation.

    Args:
        num_classes: C, at least 1.

    Returns:
        float64 (C, C).

    Raises:
        ValueError: `num_classes` out of range.

    Gradient:
        None.

    Example:
        >>> uniform_interrelations(2)
        tensor([[1., 0.],
                [0., 1.]], dtype=torch.float64)

    Reference:
        None: a control.
    """
    if not isinstance(num_classes, int) or num_classes < 1:
        raise ValueError(f"`num_classes` expected a whole number of at least 1, got {num_classes!r}")
    return torch.eye(num_classes, dtype=torch.float64)


def cost_from_interrelations(interrelations: Tensor, *, sharpness: float = 1.0) -> Tensor:
    r"""Make the transport's cost of a matrix of similarity.

    .. math:: 1 - e^{-\kappa (1 - \mathrm{IR})}

    The more alike two classes are, the cheaper it is to move mass between them. kappa is `sharpness`; 0 stands for no
    sharpening, 1 - IR, as in the public code.

    Args:
        interrelations: (C, C), floating, symmetric, in [0, 1], diagonal 1.
        sharpness: kappa, at least 0; published 1, and 2 in one setting.

    Returns:
        (C, C) in [0, 1), or in [0, 1] without sharpening, diagonal 0; the dtype is the argument's.

    Raises:
        TypeError: not a tensor, or not floating.
        ValueError: not square, not symmetric, values outside of [0, 1], a diagonal other than 1; `sharpness` negative.

    Gradient:
        None; the similarities are detached.

    Example:
        >>> import torch
        >>> cost_from_interrelations(torch.eye(2))
        tensor([[0.0000, 0.6321],
                [0.6321, 0.0000]])

    Reference:
        Lv, Yang, Li, arXiv 2412.08139, Eq. 3.
    """
    check_range("sharpness", sharpness, 0.0, float("inf"))
    ir = checked_floats("interrelations", interrelations, "(C, C)", 2)
    if ir.shape[0] != ir.shape[1]:
        raise ValueError(f"`interrelations` expected a square matrix (C, C), got {tuple(ir.shape)}")
    low, high = (float(bound) for bound in torch.aminmax(ir))
    if low < -ROUNDING or high > 1 + ROUNDING:
        raise ValueError(
            f"`interrelations` expected values in [0, 1], got {low:.4g} to {high:.4g}; of cosines take (1 + cos) / 2"
        )
    if float((ir.diagonal() - 1).abs().max()) > ROUNDING:
        raise ValueError(f"`interrelations` expected a diagonal of 1, got {float(ir.diagonal().min()):.4g} on it")
    if float((ir - ir.mT).abs().max()) > ROUNDING:
        raise ValueError("`interrelations` expected a symmetric matrix, got one that is not; (IR + IR.T) / 2 is")
    distance = (1 - (ir + ir.mT) / 2).clamp(0.0, 1.0).fill_diagonal_(0.0)
    return -torch.expm1(-sharpness * distance) if sharpness else distance
