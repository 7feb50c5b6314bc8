"""What a temperature that trains against the student needs (CTKD): a scaled gradient, and its schedule."""

from __future__ import annotations

import math

from torch import Tensor

from limbeck.functional._check import check_range


def scale_gradient(value: Tensor, factor: float | Tensor) -> Tensor:
    """Return `value`, whose gradient is multiplied by `factor` on its way back: reversed below 0.

    .. math:: \\mathrm{sg}(x) + f \\, (x - \\mathrm{sg}(x))

    Args:
        value: any shape, floating, finite.
        factor: a float, or a 0-d tensor, which gets no gradient.

    Returns:
        The same numbers.

    Gradient:
        `factor` times what arrives, all orders.

    Example:
        >>> import torch
        >>> x = torch.tensor(3.0, requires_grad=True)
        >>> torch.autograd.grad(scale_gradient(x, -0.5) ** 2, x)
        (tensor(-3.),)

    Reference:
        Ganin and Lempitsky, "Unsupervised Domain Adaptation by Backpropagation", arXiv 1409.7495.
    """
    fixed = value.detach()
    return fixed + (factor.detach() if isinstance(factor, Tensor) else factor) * (value - fixed)


def reversal(epoch: float, ramp_epochs: float) -> float:
    r"""Return the factor of a reversed gradient, which falls from 0 to -1 along a half cosine.

    .. math:: \lambda = -\tfrac12 \Bigl( 1 - \cos \frac{\pi \min(e, E)}{E} \Bigr)

    It is negative already: the public code calls it lambda, speaks of -lambda, and multiplies by lambda.

    Args:
        epoch: e, at least 0; the first epoch is 1.
        ramp_epochs: E, at least 0; 0 for -1 from the start.

    Returns:
        In [-1, 0].

    Raises:
        ValueError: `epoch` or `ramp_epochs` below 0.

    Example:
        >>> [round(reversal(epoch, 10), 4) for epoch in (0, 1, 5, 10, 40)]
        [-0.0, -0.0245, -0.5, -1.0, -1.0]

    Reference:
        Li et al., "Curriculum Temperature for Knowledge Distillation", arXiv 2211.16231; zhengli97/CTKD,
        `helper/util.py`.
    """
    check_range("epoch", epoch, 0.0, float("inf"))
    check_range("ramp_epochs", ramp_epochs, 0.0, float("inf"))
    share = min(epoch / ramp_epochs, 1.0) if ramp_epochs else 1.0
    return -0.5 * (1 - math.cos(math.pi * share))
