"""Residual networks: those for CIFAR's 32 pixels, and those for ImageNet's 224 (arXiv 1512.03385, 1611.05431).

Each stage is a `Sequential` of blocks. The last block's `relu` reads the stage's map before the activation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

from torch import Tensor, nn

from limbeck.models.layers import StochasticDepth, conv_bn, conv_bn_relu, convolution, global_pool, kaiming_init
from limbeck.models.network import Network


def _shortcut(incoming: int, outgoing: int, stride: int) -> nn.Module:
    """Build the way around a block: nothing if the shape stays, otherwise a 1x1 convolution."""
    if stride == 1 and incoming == outgoing:
        return nn.Identity()
    return nn.Sequential(conv_bn(incoming, outgoing, 1, stride=stride))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut: relu(bn2(conv2(relu1(bn1(conv1(x))))) + shortcut(x))."""

    def __init__(self, incoming: int, outgoing: int, stride: int) -> None:
        super().__init__()
        self.conv1 = convolution(incoming, outgoing, 3, stride=stride)
        self.bn1 = nn.BatchNorm2d(outgoing)
        self.relu1 = nn.ReLU()
        self.conv2 = convolution(outgoing, outgoing, 3)
        self.bn2 = nn.BatchNorm2d(outgoing)
        self.drop_path: nn.Module = nn.Identity()
        self.shortcut = _shortcut(incoming, outgoing, stride)
        self.relu = nn.ReLU()

    def forward(self, maps: Tensor) -> Tensor:
        """Map `(N, incoming, H, W)` to `(N, outgoing, H / stride, W / stride)`."""
        inner = self.relu1(self.bn1(self.conv1(maps)))
        return cast("Tensor", self.relu(self.drop_path(self.bn2(self.conv2(inner))) + self.shortcut(maps)))


class Bottleneck(nn.Module):
    """A 3x3 convolution on `outgoing / reduction` channels between two of 1x1, beside a shortcut.

    The 3x3 convolution has the stride. With several `groups` this is ResNeXt's block.
    """

    def __init__(self, incoming: int, outgoing: int, stride: int, *, reduction: int = 4, groups: int = 1) -> None:
        super().__init__()
        width = outgoing // reduction
        self.conv1 = convolution(incoming, width, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.conv2 = convolution(width, width, 3, stride=stride, groups=groups)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu2 = nn.ReLU()
        self.conv3 = convolution(width, outgoing, 1)
        self.bn3 = nn.BatchNorm2d(outgoing)
        self.drop_path: nn.Module = nn.Identity()
        self.shortcut = _shortcut(incoming, outgoing, stride)
        self.relu = nn.ReLU()

    def forward(self, maps: Tensor) -> Tensor:
        """Map `(N, incoming, H, W)` to `(N, outgoing, H / stride, W / stride)`."""
        inner = self.relu1(self.bn1(self.conv1(maps)))
        inner = self.relu2(self.bn2(self.conv2(inner)))
        return cast("Tensor", self.relu(self.drop_path(self.bn3(self.conv3(inner))) + self.shortcut(maps)))


Block = Callable[[int, int, int], nn.Module]  # of incoming and outgoing channels, and stride


def resnet(
    stem: nn.Module, channels: Sequence[int], blocks: Sequence[int], block: Block, num_classes: int, dropout: float
) -> Network:
    """Build a residual network on a stem: stage i has `blocks[i]` blocks and, but for the first, halves the side.

    Args:
        stem: Maps images to `channels[0]` channels.
        channels: Of the stem and of each stage.
        blocks: Number of blocks of each stage.
        block: Builds one.
        num_classes: Number of classes.
        dropout: Before the head.

    Returns:
        A network with `channels[-1]` features.
    """
    stages = {"stem": stem}
    for stage, depth in enumerate(blocks, start=1):
        first = block(channels[stage - 1], channels[stage], 1 if stage == 1 else 2)
        rest = (block(channels[stage], channels[stage], 1) for _ in range(depth - 1))
        stages[f"stage{stage}"] = nn.Sequential(first, *rest)
    network = Network({**stages, "pooled": global_pool()}, channels[-1], num_classes, dropout)
    kaiming_init(network)
    return network


def resnet_cifar(
    image_shape: tuple[int, int, int],
    num_classes: int,
    *,
    blocks: Sequence[int],
    channels: Sequence[int] = (16, 16, 32, 64),
    block: Block = BasicBlock,
    dropout: float = 0.0,
) -> Network:
    """Build a network for small images: its stem is a 3x3 convolution and keeps the side.

    Args:
        image_shape: `(C, H, W)`; any side, 32 in the papers.
        num_classes: Number of classes.
        blocks: Number of blocks of each stage; three stages of n basic blocks make ResNet-(6n+2).
        channels: Of the stem and of each stage.
        block: Builds one.
        dropout: Before the head.
    """
    stem = conv_bn_relu(image_shape[0], channels[0], 3)
    return resnet(stem, channels, blocks, block, num_classes, dropout)


def resnet_imagenet(
    image_shape: tuple[int, int, int],
    num_classes: int,
    *,
    blocks: Sequence[int],
    channels: Sequence[int],
    block: Block,
    dropout: float = 0.0,
    stochastic_depth: float = 0.0,
) -> Network:
    """Build a network for large images: its stem, a 7x7 convolution and a 3x3 pooling, quarters the side.

    Args:
        image_shape: `(C, H, W)`; 224 pixels in the papers.
        num_classes: Number of classes.
        blocks: Number of blocks of each of the four stages.
        channels: Of the stem and of each stage.
        block: Builds one.
        dropout: Before the head.
        stochastic_depth: Rate at which the last block is skipped, in [0, 1); it rises linearly from 0 in the first
            block (arXiv 1603.09382).
    """
    stem = conv_bn_relu(image_shape[0], channels[0], 7, stride=2)
    stem.add_module("pool", nn.MaxPool2d(3, stride=2, padding=1))
    network = resnet(stem, channels, blocks, block, num_classes, dropout)
    if stochastic_depth:
        residual = [module for module in network.modules() if isinstance(module, BasicBlock | Bottleneck)]
        for index, module in enumerate(residual):
            module.drop_path = StochasticDepth(stochastic_depth * index / (len(residual) - 1))
    return network
