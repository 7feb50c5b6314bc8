"""Adversarial weight perturbation: the weights too are moved against the loss, for one step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from limbeck.adversary.modes import frozen_statistics

NORMALISATIONS = (nn.LayerNorm, nn.RMSNorm)  # the only ones whose weight may have more than one dimension
LEAST_NORM = 1e-20  # the public code's: a gradient of 0 moves nothing


@contextmanager
def awp(model: nn.Module, accumulate_gradient: Callable[[], None], *, size: float = 0.005) -> Iterator[None]:
    r"""Train a step at weights that are moved against the loss: adversarial weight perturbation.

    .. math:: \delta = \text{size} \cdot \frac{\|w\|}{\|g\|} \, g

    for each weight tensor w with gradient g. On entry the gradient is taken and the weights are moved; inside belong
    `zero_grad`, forward, backward and the optimizer's step; on exit the perturbation is subtracted from what the step
    made, as published. A weight that no step has changed, after an exception for instance, comes back bit for bit.

    The public code takes one step of SGD on a copy of the network and rescales the difference to `size` times the norm
    of each weight. So the copy's learning rate cancels, and none is needed.

    Args:
        model: The network. What moves is its convolutional and linear weights: trainable parameters of more than one
            dimension whose name contains "weight", as published. Biases and normalisations stay.
        accumulate_gradient: Runs the forward passes and `backward` of the whole step, over all micro-batches. It is
            called once, with the model in the mode it is in and the buffers of BatchNorm frozen. Under
            `DistributedDataParallel` it has to call that wrapper: the gradient is then the same on all ranks.
        size: Norm of the perturbation over the norm of the weight, above 0.

    Returns:
        A context manager. The `.grad` of all parameters is None when it is entered.

    Raises:
        TypeError: `size` is not a number.
        ValueError: `size` is not above 0; the model has no such weight, or none received a gradient.

    Example:
        >>> model = nn.Linear(4, 3)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> images, labels = torch.rand(8, 4), torch.arange(8) % 3
        >>> loss = lambda: nn.functional.cross_entropy(model(images), labels)
        >>> with awp(model, lambda: loss().backward()):
        ...     optimizer.zero_grad()
        ...     loss().backward()
        ...     optimizer.step()

    Reference:
        Wu, Xia, Wang, "Adversarial Weight Perturbation Helps Robust Generalization", arXiv 2004.05884, Eq. 10 and
        algorithm 1.
    """
    _check_size(size)
    weights, perturbation = _perturbation(model, accumulate_gradient, size)
    originals = [weight.detach().clone() for weight in weights]
    with torch.no_grad():
        torch._foreach_add_(weights, perturbation)
    torch.clear_autocast_cache()  # else an autocast around all this would go on with its copies of the old weights
    versions = [weight._version for weight in weights]
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, delta, original, version in zip(weights, perturbation, originals, versions, strict=True):
                if weight._version != version:
                    weight.sub_(delta)
                else:
                    # An optimizer that writes through `.data` leaves the version alone, so the values decide.
                    weight.copy_(torch.where(weight == original + delta, original, weight - delta))
        torch.clear_autocast_cache()


def _perturbation(
    model: nn.Module, accumulate_gradient: Callable[[], None], size: float
) -> tuple[list[Tensor], list[Tensor]]:
    """Return the weights that received a gradient, and how far to move each."""
    candidates = _weights(model)
    if not candidates:
        raise ValueError("`model` expected parameters of more than one dimension with `weight` in their name, got none")
    model.zero_grad(set_to_none=True)
    try:
        with frozen_statistics(model):
            accumulate_gradient()
        weights = [weight for weight in candidates if weight.grad is not None]
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        if not weights:
            raise ValueError("`accumulate_gradient` expected to call `backward`, got no gradient in any weight")
        with torch.no_grad():
            norms = zip(torch._foreach_norm(weights), torch._foreach_norm(gradients), strict=True)
            factors = [size * of_weight / (of_gradient + LEAST_NORM) for of_weight, of_gradient in norms]
            # New tensors: DistributedDataParallel may keep `.grad` as views of its buckets.
            return weights, list(torch._foreach_mul(gradients, factors))
    finally:
        model.zero_grad(set_to_none=True)


def _weights(model: nn.Module) -> list[Tensor]:
    normalisations = [module for module in model.modules() if isinstance(module, NORMALISATIONS)]
    spared = {id(parameter) for module in normalisations for parameter in module.parameters(recurse=False)}
    return [
        parameter
        for name, parameter in model.named_parameters()  # a tied parameter is named once
        if "weight" in name and parameter.dim() > 1 and id(parameter) not in spared
    ]


def _check_size(size: float) -> None:
    if not isinstance(size, (int, float)):
        raise TypeError(f"`size` expected a number above 0, got {size!r}")
    if not 0 < size < math.inf:
        raise ValueError(f"`size` expected a finite number above 0, got {size}")
