"""ShuffleNets (arXiv 1707.01083, 1807.11164) for CIFAR: the stem is a 1x1 convolution and keeps the side."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from limbeck.models.layers import conv_bn_relu, convolution, global_pool
from limbeck.models.network import Network


def shuffle(maps: Tensor, groups: int) -> Tensor:
    """Deal the channels of `(N, C, H, W)` out, so that each of `groups` groups gets some of every group."""
    samples, channels, *sides = maps.shape
    return maps.reshape(samples, groups, channels // groups, *sides).transpose(1, 2).reshape(maps.shape)


class GroupedBottleneck(nn.Module):
    """V1: grouped 1x1, shuffle, 3x3 on each channel, grouped 1x1; added to x, or at stride 2 set beside its average."""

    def __init__(self, incoming: int, outgoing: int, stride: int, groups: int) -> None:
        super().__init__()
        branch = outgoing - incoming if stride == 2 else outgoing
        width = branch // 4
        # The stem's channels are too few for groups.
        self.first_groups = 1 if incoming == 24 else groups
        self.conv1 = convolution(incoming, width, 1, groups=self.first_groups)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.conv2 = convolution(width, width, 3, stride=stride, groups=width)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu2 = nn.ReLU()
        self.conv3 = convolution(width, branch, 1, groups=groups)
        self.bn3 = nn.BatchNorm2d(branch)
        self.pool = nn.AvgPool2d(3, stride=2, padding=1) if stride == 2 else None
        self.relu = nn.ReLU()

    def forward(self, maps: Tensor) -> Tensor:
        """Map `(N, incoming, H, W)` to `(N, outgoing, H / stride, W / stride)`."""
        inner = shuffle(self.relu1(self.bn1(self.conv1(maps))), self.first_groups)
        branch = self.bn3(self.conv3(self.relu2(self.bn2(self.conv2(inner)))))
        joined = branch + maps if self.pool is None else torch.cat([branch, self.pool(maps)], 1)
        return cast("Tensor", self.relu(joined))


def shufflenet_v1(image_shape: tuple[int, int, int], num_classes: int, *, dropout: float = 0.0) -> Network:
    """Build ShuffleNetV1 with 3 groups. The last `relu` of a stage reads its map before the activation.

    Args:
        image_shape: `(C, H, W)`; any side, 32 in the papers.
        num_classes: Number of classes.
        dropout: Before the head.

    Returns:
        A network with 960 features.
    """
    stages: dict[str, nn.Module] = {"stem": conv_bn_relu(image_shape[0], 24, 1)}
    incoming = 24
    for stage, (outgoing, blocks) in enumerate(((240, 4), (480, 8), (960, 4)), start=1):
        first = GroupedBottleneck(incoming, outgoing, 2, groups=3)
        rest = (GroupedBottleneck(outgoing, outgoing, 1, groups=3) for _ in range(blocks - 1))
        stages[f"stage{stage}"] = nn.Sequential(first, *rest)
        incoming = outgoing
    return Network({**stages, "pooled": global_pool()}, incoming, num_classes, dropout)


class SplitBlock(nn.Module):
    """V2: half of the channels pass, the others go through 1x1, 3x3 on each channel and 1x1; then both are shuffled."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1 = convolution(half, half, 1)
        self.bn1 = nn.BatchNorm2d(half)
        self.relu1 = nn.ReLU()
        self.conv2 = convolution(half, half, 3, groups=half)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = convolution(half, half, 1)
        self.bn3 = nn.BatchNorm2d(half)
        self.relu3 = nn.ReLU()

    def forward(self, maps: Tensor) -> Tensor:
        """Map `(N, channels, H, W)` to the same shape."""
        passed, branch = maps.chunk(2, dim=1)
        branch = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(branch)))))
        branch = self.relu3(self.bn3(self.conv3(branch)))
        return shuffle(torch.cat([passed, branch], 1), 2)


class DownBlock(nn.Module):
    """V2 at stride 2: all channels go both ways, (3x3 on each channel, 1x1) and (1x1, 3x3 on each channel, 1x1)."""

    def __init__(self, incoming: int, outgoing: int) -> None:
        super().__init__()
        half = outgoing // 2
        self.conv1 = convolution(incoming, incoming, 3, stride=2, groups=incoming)
        self.bn1 = nn.BatchNorm2d(incoming)
        self.conv2 = convolution(incoming, half, 1)
        self.bn2 = nn.BatchNorm2d(half)
        self.relu2 = nn.ReLU()
        self.conv3 = convolution(incoming, half, 1)
        self.bn3 = nn.BatchNorm2d(half)
        self.relu3 = nn.ReLU()
        self.conv4 = convolution(half, half, 3, stride=2, groups=half)
        self.bn4 = nn.BatchNorm2d(half)
        self.conv5 = convolution(half, half, 1)
        self.bn5 = nn.BatchNorm2d(half)
        self.relu5 = nn.ReLU()

    def forward(self, maps: Tensor) -> Tensor:
        """Map `(N, incoming, H, W)` to `(N, outgoing, H / 2, W / 2)`."""
        left = self.relu2(self.bn2(self.conv2(self.bn1(self.conv1(maps)))))
        right = self.bn4(self.conv4(self.relu3(self.bn3(self.conv3(maps)))))
        right = self.relu5(self.bn5(self.conv5(right)))
        return shuffle(torch.cat([left, right], 1), 2)


def shufflenet_v2(image_shape: tuple[int, int, int], num_classes: int, *, dropout: float = 0.0) -> Network:
    """Build ShuffleNetV2 of size 1.0.

    Half of the channels of a stage's map are its last block's `relu3`, dealt among those that passed.

    Args:
        image_shape: `(C, H, W)`; any side, 32 in the papers.
        num_classes: Number of classes.
        dropout: Before the head.

    Returns:
        A network with 1024 features.
    """
    stages: dict[str, nn.Module] = {"stem": conv_bn_relu(image_shape[0], 24, 1)}
    incoming = 24
    for stage, (outgoing, blocks) in enumerate(((116, 3), (232, 7), (464, 3)), start=1):
        rest = (SplitBlock(outgoing) for _ in range(blocks))
        stages[f"stage{stage}"] = nn.Sequential(DownBlock(incoming, outgoing), *rest)
        incoming = outgoing
    stages["neck"] = conv_bn_relu(incoming, 1024, 1)
    return Network({**stages, "pooled": global_pool()}, 1024, num_classes, dropout)
