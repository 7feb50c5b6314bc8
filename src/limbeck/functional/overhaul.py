"""Overhaul of feature distillation (OFD): a distance that sees what passes the ReLU, and the margins it begins at."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from limbeck.functional._check import Reduction, check_reduction, full_precision, reduce, widest
from limbeck.functional._maps import check_maps, in_full

RARE = 1e-3  # of the published code: below this share of negative values the margin is -3 deviations


@full_precision
def partial_l2(features: Tensor, target_features: Tensor, margin: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    r"""Partial squared distance: where the target is negative, the features only need to be as low.

    .. math:: \sum_{dhw} (s_{dhw} - t'_{dhw})^2 \, [\, s_{dhw} > t'_{dhw} \text{ or } t'_{dhw} > 0 \,], \quad
        t'_{dhw} = \max(t_{dhw}, m_d)

    Both maps are before the ReLU. The sum over a map's entries is the published one: it grows with D H W, which the
    published factors of 1e-3 (CIFAR) and 1e-4 (ImageNet) answer to.

    Args:
        features: (N, D, H, W), any floating dtype; the student's, brought to the target's channels; what trains.
        target_features: (N, D, H, W), before the activation; what it is drawn to.
        margin: (D,), below 0; see `relu_margins`.
        reduction: "none" (N), "mean" over the samples (as published) or "sum".

    Returns:
        Squared feature units, in [0, inf); float32 (float64 for float64 inputs).

    Raises:
        TypeError: not tensors, or not floating.
        ValueError: not maps of one shape; `margin` not (D,); unknown reduction.

    Gradient:
        To `features`; the target and the margin are detached.

    Example:
        >>> import torch
        >>> target = torch.tensor([-5.0, -5.0, 2.0]).view(1, 3, 1, 1)
        >>> features = torch.tensor([-7.0, 0.0, 0.0]).view(1, 3, 1, 1)  # low enough, 1 above the margin, 2 too low
        >>> partial_l2(features, target, torch.full((3,), -1.0))
        tensor(5.)

    Reference:
        Heo et al., "A Comprehensive Overhaul of Feature Distillation", arXiv 1904.01866;
        clovaai/overhaul-distillation, `distiller.py`.
    """
    check_maps(features, target_features, same="DHW")
    check_reduction(reduction)
    check_margin("margin", margin, features.shape[1])
    dtype = widest(features, target_features, margin)
    student, target = (x.to(dtype) for x in in_full(features, target_features))
    target = torch.maximum(target, margin.detach().to(dtype)[:, None, None])
    difference = student - target
    seen = (difference.detach() > 0) | (target > 0)
    return reduce(difference.square().masked_fill(~seen, 0.0).sum((1, 2, 3)), reduction)


@torch.no_grad()
def relu_margins(bn: nn.BatchNorm2d) -> Tensor:
    r"""Return what a ReLU cuts off on average behind a batch normalisation: E[x | x < 0], per channel.

    .. math:: m = \beta - \sigma \, \frac{\varphi(\beta / \sigma)}{\Phi(-\beta / \sigma)}, \quad
        x \sim N(\beta, \sigma^2), \quad \sigma = |\gamma|

    gamma, beta are the layer's weight and bias. Where fewer than 1 in 1000 values are negative the margin is -3 sigma,
    as published. The quotient is taken in log space, so that it is finite at any beta / sigma.

    Args:
        bn: a batch normalisation with weight and bias, the last one before the activation.

    Returns:
        (D,), at most 0, in the dtype of the weight.

    Raises:
        TypeError: not a batch normalisation.
        ValueError: it has no weight and bias.

    Gradient:
        None.

    Example:
        >>> from torch import nn
        >>> relu_margins(nn.BatchNorm2d(2))  # of the standard normal: -sqrt(2 / pi)
        tensor([-0.7979, -0.7979])

    Reference:
        arXiv 1904.01866; clovaai/overhaul-distillation, `distiller.py`.
    """
    if not isinstance(bn, nn.modules.batchnorm._BatchNorm):
        raise TypeError(f"`bn` expected a batch normalisation, got {type(bn).__name__}")
    if bn.weight is None or bn.bias is None:
        raise ValueError("`bn` expected a batch normalisation with weight and bias, got `affine=False`")
    mean, deviation = bn.bias.double(), bn.weight.double().abs()
    z = mean / deviation.clamp_min(torch.finfo(torch.float64).tiny)
    log_negative = torch.special.log_ndtr(-z)
    log_ratio = -z.square() / 2 - math.log(2 * math.pi) / 2 - log_negative
    margin = torch.where(log_negative > math.log(RARE), mean - deviation * log_ratio.exp(), -3 * deviation)
    return margin.to(bn.weight.dtype)


def check_margin(name: str, margin: Tensor, channels: int) -> None:
    """One floating number per channel.

    Raises:
        TypeError: Not a floating tensor.
        ValueError: Another shape.
    """
    if not isinstance(margin, Tensor) or not margin.is_floating_point():
        got = margin.dtype if isinstance(margin, Tensor) else type(margin).__name__
        raise TypeError(f"`{name}` expected a floating tensor (D,), got {got}")
    if margin.shape != (channels,):
        raise ValueError(f"`{name}` expected the shape ({channels},), one per channel, got {tuple(margin.shape)}")
