"""Networks that classify each pixel: a small encoder-decoder, and ResNets with pyramid pooling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.models.layers import conv_bn_relu, kaiming_init
from limbeck.models.resnet import BasicBlock, Block, Bottleneck, resnet

PYRAMID = (1, 2, 3, 6)  # sides of the grids that maps are pooled to (Zhao et al., arXiv 1612.01105)
DECODED = 512  # channels of the map that PSPNet's classifier reads


class DenseNetwork(nn.Module):
    """A network whose logits `(N, K, H, W)` have the size of its images.

    Its `decoder` makes the map that the classifier `head`, a 1x1 convolution, reads. In training an `auxiliary` head,
    where there is one, reads an earlier map, for a loss that looks at it; the logits do not depend on it.
    """

    decoder: nn.Module
    head: nn.Conv2d


class EncoderDecoder(DenseNetwork):
    """A small network for small images: each stage halves the side, and each step back joins the stage's map.

    Args:
        channels: Of the images.
        num_classes: K.
        width: Channels of the first stage; each next one has twice as many.
        depth: Stages.
        dropout: Before the classifier.
    """

    def __init__(self, channels: int, num_classes: int, width: int, depth: int, dropout: float) -> None:
        super().__init__()
        widths = [width * 2**stage for stage in range(depth)]
        self.encoder = nn.ModuleList(
            nn.Sequential(conv_bn_relu(incoming, outgoing, 3), conv_bn_relu(outgoing, outgoing, 3))
            for incoming, outgoing in zip([channels, *widths], widths, strict=False)
        )
        self.joins = nn.ModuleList(
            conv_bn_relu(widths[stage] + widths[stage - 1], widths[stage - 1], 3) for stage in range(depth - 1, 0, -1)
        )
        self.decoder = conv_bn_relu(width, width, 3)
        self.dropout = nn.Dropout2d(dropout)
        self.head = nn.Conv2d(width, num_classes, 1)
        kaiming_init(self)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits `(N, K, H, W)` of images `(N, C, H, W)`."""
        maps = [self.encoder[0](images)]
        for stage in self.encoder[1:]:
            maps.append(stage(F.max_pool2d(maps[-1], 2, ceil_mode=True)))
        joined = maps.pop()
        for join in self.joins:
            beside = maps.pop()
            larger = F.interpolate(joined, beside.shape[2:], mode="bilinear")
            joined = join(torch.cat([larger, beside], dim=1))
        return cast("Tensor", self.head(self.dropout(self.decoder(joined))))


def encoder_decoder(
    image_shape: tuple[int, int, int], num_classes: int, *, width: int = 16, depth: int = 3, dropout: float = 0.0
) -> EncoderDecoder:
    """Build a small network for segmentation.

    Args:
        image_shape: `(C, H, W)`, of any side.
        num_classes: Number of classes.
        width: Channels of the first stage, on the whole side.
        depth: Stages, at least 1.
        dropout: Before the classifier, of whole channels.

    Example:
        >>> encoder_decoder((3, 24, 30), 5, width=4)(torch.zeros(2, 3, 24, 30)).shape
        torch.Size([2, 5, 24, 30])
    """
    return EncoderDecoder(image_shape[0], num_classes, width, depth, dropout)


class PyramidPooling(nn.Module):
    """Averages of a map over grids of several sides, each reduced, enlarged and put beside the map."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        reduced = channels // len(PYRAMID)
        self.grids = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(side), conv_bn_relu(channels, reduced, 1)) for side in PYRAMID
        )

    def forward(self, maps: Tensor) -> Tensor:
        """Map `(N, D, H, W)` to `(N, 2D, H, W)`."""
        pooled = [F.interpolate(grid(maps), maps.shape[2:], mode="bilinear", align_corners=True) for grid in self.grids]
        return torch.cat([maps, *pooled], dim=1)


class PSPNet(DenseNetwork):
    """Pyramid pooling on a dilated ResNet, whose last two stages keep the side: maps of an eighth of the images' side.

    Args:
        channels: Of the images.
        num_classes: K.
        blocks: Of each of the four stages.
        widths: Channels of the stem and of each stage.
        block: Builds a block.
        dropout: Before the classifier.
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        blocks: Sequence[int],
        widths: Sequence[int],
        block: Block,
        dropout: float,
    ) -> None:
        super().__init__()
        stem = nn.Sequential(
            *(conv_bn_relu(channels, 64, 3, stride=2), conv_bn_relu(64, 64, 3), conv_bn_relu(64, widths[0], 3)),
            nn.MaxPool2d(3, stride=2, padding=1),
        )
        stages = resnet(stem, widths, blocks, block, num_classes, 0.0).features
        del stages.pooled
        self.features = stages
        for stage, dilation in (("stage3", 2), ("stage4", 4)):
            _dilate(self.features.get_submodule(stage), dilation)
        self.decoder = nn.Sequential(PyramidPooling(widths[-1]), conv_bn_relu(2 * widths[-1], DECODED, 3))
        self.dropout = nn.Dropout2d(dropout)
        self.head = nn.Conv2d(DECODED, num_classes, 1)
        aside = DECODED // 2
        self.auxiliary = nn.Sequential(
            conv_bn_relu(widths[-2], aside, 3), nn.Dropout2d(dropout), nn.Conv2d(aside, num_classes, 1)
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits `(N, K, H, W)` of images `(N, C, H, W)`."""
        maps = images
        for name, stage in self.features.named_children():
            maps = stage(maps)
            if name == "stage3" and self.training:
                self.auxiliary(maps)
        logits = self.head(self.dropout(self.decoder(maps)))
        return F.interpolate(logits, images.shape[2:], mode="bilinear", align_corners=True)


def _dilate(stage: nn.Module, dilation: int) -> None:
    """Let a stage keep the side: its strides become 1, and its 3x3 convolutions look `dilation` pixels far."""
    for module in stage.modules():
        if isinstance(module, nn.Conv2d):
            module.stride = (1, 1)
            if module.kernel_size == (3, 3):
                module.dilation, module.padding = (dilation, dilation), (dilation, dilation)


def pspnet(
    image_shape: tuple[int, int, int],
    num_classes: int,
    *,
    blocks: Sequence[int],
    widths: Sequence[int],
    block: Block,
    dropout: float = 0.1,
) -> PSPNet:
    """Build a PSPNet (arXiv 1612.01105) on a ResNet with a stem of three convolutions, as its public code has it.

    Args:
        image_shape: `(C, H, W)`; 473 pixels in the paper.
        num_classes: Number of classes.
        blocks: Of each of the four stages.
        widths: Channels of the stem and of each stage.
        block: Builds a block.
        dropout: Before both classifiers, of whole channels.
    """
    return PSPNet(image_shape[0], num_classes, blocks, widths, block, dropout)


def pspnet_resnet18(image_shape: tuple[int, int, int], num_classes: int, *, dropout: float = 0.1) -> PSPNet:
    """Build PSPNet on ResNet-18."""
    widths = (128, 64, 128, 256, 512)
    return pspnet(image_shape, num_classes, blocks=(2, 2, 2, 2), widths=widths, block=BasicBlock, dropout=dropout)


def pspnet_resnet101(image_shape: tuple[int, int, int], num_classes: int, *, dropout: float = 0.1) -> PSPNet:
    """Build PSPNet on ResNet-101."""
    widths = (128, 256, 512, 1024, 2048)
    return pspnet(image_shape, num_classes, blocks=(3, 4, 23, 3), widths=widths, block=Bottleneck, dropout=dropout)
