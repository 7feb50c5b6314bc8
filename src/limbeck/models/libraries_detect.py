"""Detectors of torchvision by name, `tv:fasterrcnn_BACKBONE`. torchvision is imported when a name asks for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from limbeck.errors import UserError
from limbeck.models.libraries import IMAGENET, Wanted, imported, said, sees_its_own
from limbeck.models.prefixed import Standardisation
from limbeck.models.prefixed_detector import PrefixedDetector, fitted
from limbeck.network_names import PRETRAINED

MOBILENET = {"3": "0", "6": "1", "13": "2", "17": "3"}  # the last block of each stride from 4 to 32
MOBILENET_CHANNELS = [24, 32, 96, 320]
WIDTH = 256  # of the pyramid
COCO_FILE = "fasterrcnn_resnet50_fpn_coco"  # of torchvision, whose BatchNorms added nothing to the variance


def open_detector(wanted: Wanted, data: Standardisation | None) -> PrefixedDetector:
    """Open a detector of torchvision; its random weights are drawn from torch's generator.

    With weights its BatchNorms are frozen, as torchvision's are; every layer of convolutions trains.

    Args:
        wanted: Its name, and the images' shape.
        data: What the images' pixels are standardised by; None if that is unknown, and they are taken as they come.

    Raises:
        UserError: torchvision is not here, or has no weights of that detector.
    """
    options = wanted.options
    if options.dropout or options.stochastic_depth:
        raise UserError(f"`model.dropout` and `stochastic_depth` expected 0 for {options.name}, which has none")
    if wanted.image_shape[0] != 3:
        raise UserError(f"`model.name` {options.name} expected images of 3 channels, got {wanted.image_shape[0]}")
    with imported(wanted):
        from torchvision.models.detection import FasterRCNN, FasterRCNN_ResNet50_FPN_Weights
    backbone = wanted.name.removeprefix("fasterrcnn_").removesuffix("_fpn")
    if options.weights == PRETRAINED and backbone != "resnet50":
        raise UserError(
            f"`model.name` {options.name}: torchvision has pretrained weights of tv:fasterrcnn_resnet50 alone; name a "
            "file in `weights`, of a detector or for a student of a classifier"
        )
    network = FasterRCNN(_backbone(backbone, frozen=options.weights is not None), wanted.num_classes + 1)
    if options.weights == PRETRAINED or Path(options.weights or "").name.startswith(COCO_FILE):
        _without_eps(network)
    data = data or Standardisation((0.0,) * 3, (1.0,) * 3)
    detector = PrefixedDetector(
        network, IMAGENET if sees_its_own(options) else data, data, num_classes=wanted.num_classes
    )
    if wanted.pretrained:
        with said(wanted, {}):
            state = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.get_state_dict(progress=False, check_hash=True)
        weights, detector.new_head = fitted(state, detector.state_dict(), options.name, any_head=True)
        detector.load_state_dict(weights)
    return detector


def _backbone(name: str, *, frozen: bool) -> Any:
    """Build a pyramid on a classifier's stages."""
    from torchvision.models import mobilenet_v2
    from torchvision.models.detection.backbone_utils import BackboneWithFPN, resnet_fpn_backbone
    from torchvision.ops.misc import FrozenBatchNorm2d

    norm: type[nn.Module] = FrozenBatchNorm2d if frozen else nn.BatchNorm2d
    if name == "mobilenet_v2":
        stages = mobilenet_v2(weights=None, norm_layer=norm).features
        return BackboneWithFPN(stages, MOBILENET, MOBILENET_CHANNELS, WIDTH)
    return resnet_fpn_backbone(backbone_name=name, weights=None, norm_layer=norm, trainable_layers=5)


def _without_eps(network: nn.Module) -> None:
    frozen: Any
    for frozen in network.modules():
        if type(frozen).__name__ == "FrozenBatchNorm2d":
            frozen.eps = 0.0
