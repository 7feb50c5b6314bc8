"""MobileNets: V1 for ImageNet (arXiv 1704.04861), V2 at half width for CIFAR (arXiv 1801.04381)."""

from __future__ import annotations

from collections import OrderedDict
from typing import cast

from torch import Tensor, nn

from limbeck.models.layers import conv_bn, conv_bn_relu, global_pool, kaiming_init, small_head_init
from limbeck.models.network import Network


class InvertedResidual(nn.Module):
    """1x1 convolution to more channels, 3x3 on each channel, 1x1 to few without activation; a shortcut where it fits.

    The published network for CIFAR has ReLU where the paper has ReLU6, and expands by a convolution even at factor 1.
    """

    def __init__(self, incoming: int, outgoing: int, stride: int, expansion: int) -> None:
        super().__init__()
        width = incoming * expansion
        self.expand = conv_bn_relu(incoming, width, 1)
        self.depthwise = conv_bn_relu(width, width, 3, stride=stride, groups=width)
        self.project = nn.Sequential(conv_bn(width, outgoing, 1))
        self.has_shortcut = stride == 1 and incoming == outgoing

    def forward(self, maps: Tensor) -> Tensor:
        """Map `(N, incoming, H, W)` to `(N, outgoing, H / stride, W / stride)`."""
        residual = self.project(self.depthwise(self.expand(maps)))
        return cast("Tensor", maps + residual if self.has_shortcut else residual)


def _inverted_residuals(incoming: int, outgoing: int, blocks: int, stride: int, expansion: int) -> nn.Sequential:
    first = InvertedResidual(incoming, outgoing, stride, expansion)
    return nn.Sequential(first, *(InvertedResidual(outgoing, outgoing, 1, expansion) for _ in range(blocks - 1)))


def mobilenet_v2(image_shape: tuple[int, int, int], num_classes: int, *, dropout: float = 0.0) -> Network:
    """Build MobileNetV2 at half width with expansion 6, as distillation on CIFAR uses it.

    Its stages end without activation, one for each side: 16, 8, 4 and 2 of 32 pixels.

    Args:
        image_shape: `(C, H, W)`; any side, 32 in the papers.
        num_classes: Number of classes.
        dropout: Before the head.

    Returns:
        A network with 1280 features.
    """
    groups = (  # per stage: channels, blocks, stride and expansion
        ((16, 8, 1, 1, 1), (8, 12, 2, 1, 6)),
        ((12, 16, 3, 2, 6),),
        ((16, 32, 4, 2, 6), (32, 48, 3, 1, 6)),
        ((48, 80, 3, 2, 6), (80, 160, 1, 1, 6)),
    )
    stages: dict[str, nn.Module] = {"stem": conv_bn_relu(image_shape[0], 16, 3, stride=2)}
    for stage, group in enumerate(groups, start=1):
        stages[f"stage{stage}"] = nn.Sequential(*(_inverted_residuals(*sizes) for sizes in group))
    stages["neck"] = conv_bn_relu(160, 1280, 1)
    network = Network({**stages, "pooled": global_pool()}, 1280, num_classes, dropout)
    kaiming_init(network)
    small_head_init(network)
    return network


def mobilenet_v2_imagenet(image_shape: tuple[int, int, int], num_classes: int, *, dropout: float = 0.0) -> Network:
    """Build MobileNetV2 at full width; its stages have strides of 4, 8, 16 and 32, and ReLU where the paper has ReLU6.

    Args:
        image_shape: `(C, H, W)`; 224 pixels in the paper.
        num_classes: Number of classes.
        dropout: Before the head.
    """
    groups = (  # per stage: channels, blocks, stride and expansion
        ((16, 24, 2, 2, 6),),
        ((24, 32, 3, 2, 6),),
        ((32, 64, 4, 2, 6), (64, 96, 3, 1, 6)),
        ((96, 160, 3, 2, 6), (160, 320, 1, 1, 6)),
    )
    stem = nn.Sequential(conv_bn_relu(image_shape[0], 32, 3, stride=2), _inverted_residuals(32, 16, 1, 1, 1))
    stages: dict[str, nn.Module] = {"stem": stem}
    for stage, group in enumerate(groups, start=1):
        stages[f"stage{stage}"] = nn.Sequential(*(_inverted_residuals(*sizes) for sizes in group))
    stages["neck"] = conv_bn_relu(320, 1280, 1)
    network = Network({**stages, "pooled": global_pool()}, 1280, num_classes, dropout)
    kaiming_init(network)
    small_head_init(network)
    return network


def _separable(incoming: int, outgoing: int, stride: int) -> nn.Sequential:
    """Build a 3x3 convolution on each channel and a 1x1 convolution over them, each with BatchNorm and ReLU."""
    depthwise = conv_bn_relu(incoming, incoming, 3, stride=stride, groups=incoming)
    return nn.Sequential(OrderedDict(depthwise=depthwise, pointwise=conv_bn_relu(incoming, outgoing, 1)))


def mobilenet_v1(image_shape: tuple[int, int, int], num_classes: int, *, dropout: float = 0.0) -> Network:
    """Build MobileNetV1: a strided stem and 13 separable convolutions, in stages that end before the next stride.

    Each stage is a `Sequential` of them; the last one's `pointwise.relu` reads the stage's map before the activation.

    Args:
        image_shape: `(C, H, W)`; 224 pixels in the papers.
        num_classes: Number of classes.
        dropout: Before the head.

    Returns:
        A network with 1024 features.
    """
    stages: dict[str, nn.Module] = {"stem": conv_bn_relu(image_shape[0], 32, 3, stride=2)}
    groups = (
        ((32, 64, 1), (64, 128, 2), (128, 128, 1)),
        ((128, 256, 2), (256, 256, 1)),
        ((256, 512, 2), *[(512, 512, 1)] * 5),
        ((512, 1024, 2), (1024, 1024, 1)),
    )
    for stage, group in enumerate(groups, start=1):
        stages[f"stage{stage}"] = nn.Sequential(*(_separable(*sizes) for sizes in group))
    return Network({**stages, "pooled": global_pool()}, 1024, num_classes, dropout)
