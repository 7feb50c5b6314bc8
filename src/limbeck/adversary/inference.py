"""A network as an evaluation attacks it: evaluation mode, frozen, eager, float32 logits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from limbeck.adversary.modes import attack_mode


class Inference(nn.Module):
    """Float32 logits of a network, a part of the batch at a time.

    Inside, autocast is off.

    Args:
        model: From images to logits `(N, C)`.
        batch_size: Largest part. Where a gradient is asked for and there are several parts, each is computed a second
            time in the backward pass, so that the activations of one part are the most that memory holds.

    Attributes:
        batch_size: Largest part.
        device: Where the weights lie; the CPU without any.
    """

    def __init__(self, model: nn.Module, batch_size: int) -> None:
        super().__init__()
        self.model = model
        self.batch_size = batch_size
        weights = [weight for weight in model.parameters() if weight.is_floating_point()]
        self._dtype = weights[0].dtype if weights else torch.float32
        self.device = weights[0].device if weights else torch.device("cpu")

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits, float32 `(N, C)`, of images `(N, ...)` on the device of the weights."""
        with torch.autocast(images.device.type, enabled=False):
            parts = torch.split(images.to(self._dtype), self.batch_size)
            if len(parts) > 1 and images.requires_grad and torch.is_grad_enabled():
                logits = [checkpoint(self.model, part, use_reentrant=False) for part in parts]
            else:
                logits = [self.model(part) for part in parts]
        return torch.cat(logits).float()

    def predict(self, images: Tensor) -> Tensor:
        """Return the logits of any number of images on any device, float32 `(N, C)` on the CPU, without a graph."""
        with torch.no_grad():
            return torch.cat([self(part.to(self.device)).cpu() for part in torch.split(images, self.batch_size)])


@contextmanager
def inference(model: nn.Module, batch_size: int) -> Iterator[Inference]:
    """Make a network ready to be attacked for a while, and then exactly what it was.

    Each submodule's mode, BatchNorm's buffers, each parameter's `requires_grad` and `.grad`, and torch's random state
    are restored, on exceptions too. A compiled network runs eagerly: attacks shrink their batches, and each size would
    be compiled anew.

    Args:
        model: From images to logits.
        batch_size: Images of one forward pass.

    Returns:
        A context manager that gives an `Inference`.

    Raises:
        TypeError: `model` is no module.
        ValueError: `batch_size` is below 1.

    Example:
        >>> network = nn.Sequential(nn.Flatten(), nn.Linear(4, 2), nn.Dropout())
        >>> with inference(network, batch_size=8) as attacked:
        ...     print(attacked(torch.zeros(3, 1, 2, 2)).shape, network.training)
        torch.Size([3, 2]) False
        >>> network.training
        True
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"`model` expected a torch.nn.Module, got {type(model).__name__}; wrap a function in a module")
    if batch_size < 1:
        raise ValueError(f"`batch_size` expected at least 1, got {batch_size}")
    if hasattr(model, "_orig_mod"):  # of torch.compile
        model = cast("nn.Module", model._orig_mod)
    network = Inference(model, batch_size)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng([network.device] if network.device.type == "cuda" else []))
        stack.enter_context(attack_mode(model))
        # FAB calls `.backward()`, which would leave gradients behind and compute those of the weights for nothing.
        stack.callback(lambda: [weight.requires_grad_(True) for weight in trained])
        for weight in trained:
            weight.requires_grad_(False)
        yield network
