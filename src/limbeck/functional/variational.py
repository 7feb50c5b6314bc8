"""Variational information distillation (VID): how much a map says about the target's."""

from __future__ import annotations

from torch import Tensor

from limbeck.functional._check import Reduction, check_reduction, full_precision, reduce, widest
from limbeck.functional._maps import check_maps, in_full


@full_precision
def variational_information(
    features: Tensor, target_features: Tensor, variance: Tensor, *, reduction: Reduction = "mean"
) -> Tensor:
    r"""Variational information: negative log-likelihood of a map under a Gaussian, one variance per channel.

    .. math:: \frac{1}{D H W} \sum_{dhw} \frac12 \Bigl( \frac{(t_{dhw} - \mu_{dhw})^2}{\sigma_d^2}
        + \log \sigma_d^2 \Bigr)

    mu is `features`, what a regressor makes of the student's map. The constant log(2 pi) / 2 is left out, as
    published, so the value may be negative.

    Args:
        features: (N, D, H, W), any floating dtype; the mean, which trains.
        target_features: (N, D, H, W); what it is drawn to.
        variance: (D,), above 0, squared units of the features; it trains too.
        reduction: "none" (N), "mean" (as published) or "sum".

    Returns:
        Nats per entry of the map, less the constant; float32 (float64 for float64 inputs).

    Raises:
        TypeError: not tensors, or not floating.
        ValueError: not maps of one shape; `variance` not (D,); unknown reduction.

    Gradient:
        To `features` and `variance`; the target is detached. Where the maps agree `features` has none, and `variance`
        is drawn to 0.

    Example:
        >>> import torch
        >>> target = torch.zeros(1, 3, 2, 2)
        >>> variational_information(target + 2, target, torch.ones(3))
        tensor(2.)

    Reference:
        Ahn et al., "Variational Information Distillation for Knowledge Transfer", arXiv 1904.05835;
        HobbitLong/RepDistiller, `distiller_zoo/VID.py`.
    """
    check_maps(features, target_features, same="DHW")
    check_reduction(reduction)
    if not isinstance(variance, Tensor) or not variance.is_floating_point():
        got = variance.dtype if isinstance(variance, Tensor) else type(variance).__name__
        raise TypeError(f"`variance` expected a floating tensor (D,), got {got}")
    if variance.shape != features.shape[1:2]:
        raise ValueError(
            f"`variance` expected the shape ({features.shape[1]},), one per channel, got {tuple(variance.shape)}"
        )
    dtype = widest(features, target_features, variance)
    mean, target = (x.to(dtype) for x in in_full(features, target_features))
    variance = variance.to(dtype)
    squares = (target - mean).square().mean((2, 3))
    return reduce(((squares / variance + variance.log()) / 2).mean(1), reduction)
