"""Layers that several networks are made of, and how their weights start."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from limbeck.models.network import Network


def convolution(incoming: int, outgoing: int, size: int, *, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """Build a convolution that keeps the side at stride 1; BatchNorm follows or went before, so it has no bias."""
    return nn.Conv2d(incoming, outgoing, size, stride=stride, padding=size // 2, groups=groups, bias=False)


def conv_bn(
    incoming: int, outgoing: int, size: int, *, stride: int = 1, groups: int = 1
) -> OrderedDict[str, nn.Module]:
    """Build the layers `conv` and `bn` of a `Sequential`."""
    conv = convolution(incoming, outgoing, size, stride=stride, groups=groups)
    return OrderedDict(conv=conv, bn=nn.BatchNorm2d(outgoing))


def conv_bn_relu(incoming: int, outgoing: int, size: int, *, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Build `conv`, `bn` and `relu`."""
    layers = conv_bn(incoming, outgoing, size, stride=stride, groups=groups)
    return nn.Sequential(OrderedDict(**layers, relu=nn.ReLU()))


def global_pool() -> nn.Sequential:
    """Build the average over all positions, `(N, D, H, W)` to `(N, D)`, whatever the image's side."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())


class StochasticDepth(nn.Module):
    """Drop a branch for some samples of a batch in training, and scale it for the others by 1 / (1 - rate).

    Args:
        rate: Probability that a sample goes without the branch, in [0, 1).
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, branch: Tensor) -> Tensor:
        """Return `(N, ...)`, in eval mode as it is. Drawn from torch's generator, as dropout is."""
        if not self.training or self.rate == 0:
            return branch
        kept = torch.empty(len(branch), *[1] * (branch.dim() - 1), dtype=branch.dtype, device=branch.device)
        return branch * kept.bernoulli_(1 - self.rate).div_(1 - self.rate)

    def extra_repr(self) -> str:
        """Return the options for `repr`."""
        return f"rate={self.rate:.3f}"


def kaiming_init(network: nn.Module) -> None:
    """Draw each convolution from N(0, 2 / (side² · outgoing)) and set its bias to 0; linear layers stay as they are.

    The published code of ResNets calls this `kaiming_normal_` with `fan_out`, that of WRN, VGG and MobileNetV2 writes
    the formula out. BatchNorm already starts at scale 1 and shift 0.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def small_head_init(network: Network) -> None:
    """Draw the head's weights from N(0, 0.01²) and set its bias to 0, as published for VGG and MobileNetV2."""
    nn.init.normal_(network.head.weight, std=0.01)
    nn.init.zeros_(network.head.bias)


GROUP = 8  # channels that GroupNorm standardises together


def use_group_norm(network: nn.Module) -> None:
    """Put a GroupNorm in the place of each BatchNorm; one group where the channels cannot be divided."""
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
                channels = child.num_features
                groups = channels // GROUP if channels % GROUP == 0 else 1
                parent.register_module(name, nn.GroupNorm(groups, channels))
