"""Residual networks with pre-activation for small images, wide (arXiv 1605.07146) or not, as robust training has them.

Each stage is a `Sequential` of blocks and ends before an activation. What comes next is `bn1` and `activation1` of the
following stage's first block, or `bn` and `activation` of `neck` after the last stage.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from limbeck.models.layers import convolution, global_pool, kaiming_init
from limbeck.models.network import Network

# Means and standard deviations of the red, green and blue channel that the published variant divides by.
CIFAR10_PIXELS = ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616))
CIFAR100_PIXELS = ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))


class PreactivationBlock(nn.Module):
    """Two times BatchNorm, activation, 3x3 convolution; the shortcut is x, or a convolution of the activated x.

    Args:
        incoming: Channels of its input.
        outgoing: Channels of its output.
        stride: Of the first convolution.
        activation: Builds the activations.
        momentum: Of the running statistics of BatchNorm.
        same_padding: Pad at stride 2 as TensorFlow's "SAME" does.
    """

    def __init__(
        self,
        incoming: int,
        outgoing: int,
        stride: int,
        *,
        activation: Callable[[], nn.Module] = nn.ReLU,
        momentum: float = 0.1,
        same_padding: bool = False,
    ) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(incoming, momentum=momentum)
        self.activation1 = activation()
        strided = SameConvolution if same_padding and stride == 2 else partial(convolution, stride=stride)
        self.conv1 = strided(incoming, outgoing, 3)
        self.bn2 = nn.BatchNorm2d(outgoing, momentum=momentum)
        self.activation2 = activation()
        self.conv2 = convolution(outgoing, outgoing, 3)
        self.shortcut = None if incoming == outgoing else convolution(incoming, outgoing, 1, stride=stride)

    def forward(self, maps: Tensor) -> Tensor:
        """Map `(N, incoming, H, W)` to `(N, outgoing, H / stride, W / stride)`."""
        activated = self.activation1(self.bn1(maps))
        residual = self.conv2(self.activation2(self.bn2(self.conv1(activated))))
        return cast("Tensor", residual + (maps if self.shortcut is None else self.shortcut(activated)))


class SameConvolution(nn.Conv2d):
    """A 3x3 convolution of stride 2 that pads an even side at its end alone, as TensorFlow's "SAME" does."""

    def __init__(self, incoming: int, outgoing: int, size: int) -> None:
        super().__init__(incoming, outgoing, size, stride=2, bias=False)

    def forward(self, maps: Tensor) -> Tensor:
        """Map `(N, incoming, H, W)` to `(N, outgoing, H / 2, W / 2)`, rounded up."""
        height, width = maps.shape[-2:]
        return super().forward(nn.functional.pad(maps, (width % 2, 1, height % 2, 1)))


class Standardise(nn.Module):
    """Subtract each channel's mean and divide by its standard deviation. No state: both belong to the architecture."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Standardise images `(N, 3, H, W)` with pixels in [0, 1]."""
        return (images - self.mean) / self.std


def wide_resnet(
    image_shape: tuple[int, int, int], num_classes: int, *, depth: int, widen: int, dropout: float = 0.0
) -> Network:
    """Build WRN-`depth`-`widen`.

    Args:
        image_shape: `(C, H, W)`; any side, 32 in the paper.
        num_classes: Number of classes.
        depth: 6n + 4 for n blocks in each of the three stages.
        widen: Factor of the stages' 16, 32 and 64 channels.
        dropout: Before the head; the published networks have none.

    Returns:
        A network with `64 * widen` features.
    """
    stem = nn.Sequential(OrderedDict(conv=convolution(image_shape[0], 16, 3)))
    return _wide_resnet(stem, num_classes, depth=depth, widen=widen, dropout=dropout)


def wide_resnet_swish(
    image_shape: tuple[int, int, int], num_classes: int, *, depth: int, widen: int, dropout: float = 0.0
) -> Network:
    """Build the WRN of arXiv 2010.03593: SiLU, slow statistics, "SAME" padding, and pixels standardised inside.

    It expects pixels in [0, 1]: with 100 classes it standardises them as CIFAR-100's, otherwise as CIFAR-10's.

    Args:
        image_shape: `(3, H, W)`; any side, 32 in the paper.
        num_classes: Number of classes.
        depth: 6n + 4 for n blocks in each of the three stages.
        widen: Factor of the stages' 16, 32 and 64 channels.
        dropout: Before the head; the published networks have none.

    Returns:
        A network with `64 * widen` features.

    Raises:
        ValueError: The images have no three channels.
    """
    if image_shape[0] != 3:
        raise ValueError(
            f"a network with CIFAR's colour means inside expected images of 3 channels, got {image_shape[0]}; "
            "choose one without `swish` in its name"
        )
    standardise = Standardise(*(CIFAR100_PIXELS if num_classes == 100 else CIFAR10_PIXELS))
    stem = nn.Sequential(OrderedDict(standardise=standardise, conv=convolution(3, 16, 3)))
    variant = partial(_wide_resnet, activation=nn.SiLU, momentum=0.01, same_padding=True)
    return variant(stem, num_classes, depth=depth, widen=widen, dropout=dropout)


def _wide_resnet(
    stem: nn.Module,
    num_classes: int,
    *,
    depth: int,
    widen: int,
    dropout: float,
    activation: Callable[[], nn.Module] = nn.ReLU,
    momentum: float = 0.1,
    same_padding: bool = False,
) -> Network:
    """Build the stages on a stem of 16 channels."""
    block = partial(PreactivationBlock, activation=activation, momentum=momentum, same_padding=same_padding)
    channels = (16, 16 * widen, 32 * widen, 64 * widen)
    neck = OrderedDict(bn=nn.BatchNorm2d(channels[-1], momentum=momentum), activation=activation())
    blocks = ((depth - 4) // 6,) * 3
    network = _preactivation(stem, channels, blocks, block, nn.Sequential(neck), num_classes, dropout)
    kaiming_init(network)
    nn.init.zeros_(network.head.bias)
    return network


def preact_resnet(
    image_shape: tuple[int, int, int],
    num_classes: int,
    *,
    blocks: Sequence[int],
    channels: Sequence[int],
    dropout: float = 0.0,
) -> Network:
    """Build the PreActResNet that robust training on CIFAR uses (Rice et al. 2020, arXiv 2002.11569).

    Where the shape changes, the shortcut is a 1x1 convolution of the activated map, without a norm; norm and activation
    stand before the pooling too. Weights start as torch's layers do, as in the published code.

    Args:
        image_shape: `(C, H, W)`; any side, 32 in the paper.
        num_classes: Number of classes.
        blocks: Number of blocks of each stage.
        channels: Of the stem and of each stage.
        dropout: Before the head; the published networks have none.

    Returns:
        A network with `channels[-1]` features.
    """
    stem = nn.Sequential(OrderedDict(conv=convolution(image_shape[0], channels[0], 3)))
    neck = nn.Sequential(OrderedDict(bn=nn.BatchNorm2d(channels[-1]), activation=nn.ReLU()))
    return _preactivation(stem, channels, blocks, PreactivationBlock, neck, num_classes, dropout)


def _preactivation(
    stem: nn.Module,
    channels: Sequence[int],
    blocks: Sequence[int],
    block: Callable[[int, int, int], nn.Module],
    neck: nn.Module,
    num_classes: int,
    dropout: float,
) -> Network:
    """Build the stages between stem and neck: all but the first halve the side."""
    stages = {"stem": stem}
    for stage, depth in enumerate(blocks, start=1):
        incoming, outgoing = channels[stage - 1 : stage + 1]
        first = block(incoming, outgoing, 1 if stage == 1 else 2)
        rest = (block(outgoing, outgoing, 1) for _ in range(depth - 1))
        stages[f"stage{stage}"] = nn.Sequential(first, *rest)
    return Network({**stages, "neck": neck, "pooled": global_pool()}, channels[-1], num_classes, dropout)
