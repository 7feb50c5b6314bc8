"""VGG (arXiv 1409.1556) with BatchNorm for small images: global average pooling and one linear layer at the end."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from limbeck.models.layers import global_pool, kaiming_init, small_head_init
from limbeck.models.network import Network

CHANNELS = (64, 128, 256, 512, 512)


def vgg(image_shape: tuple[int, int, int], num_classes: int, *, convolutions: int, dropout: float = 0.0) -> Network:
    """Build a stem and four stages of `convolutions` times 3x3 convolution (with bias), BatchNorm and ReLU.

    The first three stages begin with pooling, so that 32 pixels become 4; the last `relu` of a stage reads its map
    before the activation.

    Args:
        image_shape: `(C, H, W)`; any side, 32 in the papers.
        num_classes: Number of classes.
        convolutions: In each stage: 1 for VGG-8, 2 for VGG-13.
        dropout: Before the head.

    Returns:
        A network with 512 features.
    """
    stages: dict[str, nn.Module] = {}
    incoming = image_shape[0]
    for stage, outgoing in enumerate(CHANNELS):
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        if 1 <= stage <= 3:
            layers["pool"] = nn.MaxPool2d(2, ceil_mode=True)  # keeps a pixel of small images; 32 leaves no rest
        for number in range(1, convolutions + 1):
            layers[f"conv{number}"] = nn.Conv2d(incoming, outgoing, 3, padding=1)
            layers[f"bn{number}"] = nn.BatchNorm2d(outgoing)
            layers[f"relu{number}"] = nn.ReLU()
            incoming = outgoing
        stages[f"stage{stage}" if stage else "stem"] = nn.Sequential(layers)
    network = Network({**stages, "pooled": global_pool()}, incoming, num_classes, dropout)
    kaiming_init(network)
    small_head_init(network)
    return network
