"""A network whose weights are the average of another one's over its steps: the teacher of Mean-Teacher."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn


class AveragedNetwork(nn.Module):
    """An exponential moving average of a network, which looks at images itself.

    At the s-th step its decay is min(1 - 1 / (s + 1), decay): first the mean of all steps, then the last 1 / (1 -
    decay) of them (Tarvainen & Valpola 2017, public code).

    In train mode only parameters are averaged: BatchNorms normalise by their batch and keep statistics of what this
    network saw, as published. In eval mode buffers are averaged as parameters are; integers are copied.

    Args:
        network: What is averaged; it is copied, and its own tensors are never written to.
        decay: In [0, 1).
        train: Whether the average runs in train mode.
    """

    steps: Tensor

    def __init__(self, network: nn.Module, decay: float, *, train: bool) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).requires_grad_(False)
        self.decay = decay
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self._made = 0  # as `steps`, for which nobody waits
        self.train(train)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Return the logits `(N, C)` of the images, without a graph."""
        logits: Tensor = self.network(images)
        return logits

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Take in a step's weights."""
        self._made += 1
        self.steps += 1
        decay = min(1 - 1 / (self._made + 1), self.decay)
        ours: list[Tensor] = list(self.network.parameters())
        theirs: list[Tensor] = list(network.parameters())
        if not self.training:
            ours += [buffer for buffer in self.network.buffers() if buffer.is_floating_point()]
            theirs += [buffer for buffer in network.buffers() if buffer.is_floating_point()]
            for own, other in zip(self.network.buffers(), network.buffers(), strict=True):
                if not own.is_floating_point():
                    own.copy_(other)
        torch._foreach_lerp_(ours, theirs, 1 - decay)

    def _load_from_state_dict(self, *arguments: Any) -> None:
        super()._load_from_state_dict(*arguments)
        self._made = int(self.steps)
