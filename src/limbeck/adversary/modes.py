"""How a network stands while it is attacked: in evaluation mode, and no statistic moves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

Model = Callable[[Tensor], Tensor]  # a module, or any function from images to logits
BatchNormMode = Literal["eval", "batch"]


@contextmanager
def attack_mode(model: Model, bn_mode: BatchNormMode = "eval") -> Iterator[None]:
    """Set a network to evaluation mode for a while, and then each submodule to exactly what it was.

    Args:
        model: A module; a plain function has no mode and is left alone.
        bn_mode: "eval", BatchNorm uses its running statistics; "batch", the batch's own without tracking them, so that
            no buffer moves.

    Returns:
        A context manager.

    Raises:
        ValueError: Unknown `bn_mode`.

    Example:
        >>> network = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout())
        >>> with attack_mode(network, "batch"):
        ...     print(network[0].training, network[1].training)
        True False
        >>> network.training
        True
    """
    if bn_mode not in ("eval", "batch"):
        raise ValueError(f"`bn_mode` expected 'eval' or 'batch', got {bn_mode!r}")
    modules = list(model.modules()) if isinstance(model, nn.Module) else []
    modes = [module.training for module in modules]
    try:
        # The flag itself: a `train()` of the user's own may do more, such as merge weights, which could not be undone.
        for module in modules:
            module.training = bn_mode == "batch" and isinstance(module, _BatchNorm)
        with frozen_statistics(model):
            yield
    finally:
        for module, training in zip(modules, modes, strict=True):
            module.training = training


@contextmanager
def frozen_statistics(model: Model) -> Iterator[None]:
    """Keep the buffers of BatchNorm from moving for a while; its output is what it was, in either mode.

    Args:
        model: A module; a plain function is left alone.

    Returns:
        A context manager.

    Example:
        >>> import torch
        >>> network = nn.BatchNorm1d(2)
        >>> with frozen_statistics(network):
        ...     output = network(torch.randn(8, 2))
        >>> network.running_mean, int(network.num_batches_tracked)
        (tensor([0., 0.]), 0)
    """
    modules = model.modules() if isinstance(model, nn.Module) else []
    norms = [module for module in modules if isinstance(module, _BatchNorm)]
    flags = [norm.track_running_stats for norm in norms]
    try:
        # In training mode BatchNorm then uses the batch's statistics and no buffer; in evaluation mode it looks at
        # whether there are buffers, not at this flag.
        for norm in norms:
            norm.track_running_stats = False
        yield
    finally:
        for norm, flag in zip(norms, flags, strict=True):
            norm.track_running_stats = flag
