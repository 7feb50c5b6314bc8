"""Detectors by name: a small one for small images, and Faster R-CNN on this library's own backbones."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from limbeck.models.detector import Detector, Geometry
from limbeck.models.layers import conv_bn_relu, kaiming_init
from limbeck.models.network import Network

SMALL = Geometry(strides=(4, 8, 16), anchor_cells=4, region_cells=4, side=4, candidates=128, proposals=64)
PUBLISHED = Geometry(
    strides=(4, 8, 16, 32, 64), anchor_cells=8, region_cells=14, side=7, candidates=4000, proposals=1000
)


def detector(
    image_shape: tuple[int, int, int], num_classes: int, *, width: int = 16, depth: int = 1, dropout: float = 0.0
) -> Detector:
    """Build a small detector for images of 48 pixels or more: three stages, each a level of the pyramid.

    Args:
        image_shape: `(C, H, W)`.
        num_classes: Number of classes, without the background.
        width: Channels of the stem; the stages have 2, 4 and 4 times as many, the pyramid twice as many.
        depth: Convolutions of each stage.
        dropout: Before the last layers.
    """
    stem = conv_bn_relu(image_shape[0], width, 3, stride=2)
    stages: list[nn.Module] = [stem]
    incoming = width
    for channels in (2 * width, 4 * width, 4 * width):
        first = conv_bn_relu(incoming, channels, 3, stride=2)
        stages.append(nn.Sequential(first, *(conv_bn_relu(channels, channels, 3) for _ in range(depth - 1))))
        incoming = channels
    kaiming_init(nn.ModuleList(stages))
    return Detector(
        stages,
        (2 * width, 4 * width, 4 * width),
        num_classes=num_classes,
        channels=2 * width,
        hidden=8 * width,
        geometry=SMALL,
        dropout=dropout,
    )


def faster_rcnn(
    image_shape: tuple[int, int, int],
    num_classes: int,
    *,
    backbone: Callable[..., Network],
    stage_channels: tuple[int, ...],
    dropout: float = 0.0,
) -> Detector:
    """Build Faster R-CNN with a pyramid of 256 channels, of the published sizes, on the stages of a classifier.

    Args:
        image_shape: `(C, H, W)`.
        num_classes: Number of classes, without the background.
        backbone: Builds the classifier; its last four stages have strides of 4, 8, 16 and 32.
        stage_channels: Of these.
        dropout: Before the last layers.
    """
    network = backbone(image_shape, 1)
    stages = [stage for name, stage in network.features.named_children() if name not in ("neck", "pooled")]
    return Detector(
        stages,
        stage_channels,
        num_classes=num_classes,
        channels=256,
        hidden=1024,
        geometry=PUBLISHED,
        extra_level=True,
        boxes_per_class=True,
        dropout=dropout,
    )
