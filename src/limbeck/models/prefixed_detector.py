"""torchvision's Faster R-CNN as a detector that is called part by part, as `limbeck.models.detector.Detector` is."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.models.detector import MOST_BOXES, Geometry, Proposed
from limbeck.models.prefixed import PrefixedNetwork, Standardisation
from limbeck.models.public_names import INNER, STANDARDISATION, our_name
from limbeck.models.regions import whole_sizes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    Shapes = list[tuple[int, int]]

DIVISOR = 32  # sides of padded images are multiples of it
# Names of torchvision's files before its layers had places for activations, and those of today.
OLD_NAMES = (
    (re.compile(r"(rpn\.head\.conv)\.(weight|bias)$"), r"\1.0.0.\2"),
    (re.compile(r"(fpn\.(?:inner|layer)_blocks\.\d+)\.(weight|bias)$"), r"\1.0.\2"),
)
BODY = "network.backbone.body."
PREDICTOR = "network.roi_heads.box_predictor."
COUNTER = "num_batches_tracked"  # frozen BatchNorms have none
# COCO's categories have ids up to 90, of which ten are of nothing; a file of torchvision has a row for each id.
COCO_ROWS = 91
NOT_IN_COCO = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)


class PrefixedDetector(PrefixedNetwork):
    """A `FasterRCNN` of torchvision with the background last and the same number of proposals for each image.

    What it reports is computed by torchvision's own functions. Where suppression leaves too few proposals to learn
    from, they are repeated. Images come at the size that they are looked at; its `transform` is not used.

    Args:
        network: With a pyramid of 5 levels, of strides from 4 to 64.
        own: What its pixels are standardised by.
        data: What the images' are.
        num_classes: C, without the background.
        new_head: Number of classes of the head that a new one has replaced, if it has.
    """

    def __init__(
        self,
        network: nn.Module,
        own: Standardisation,
        data: Standardisation,
        *,
        num_classes: int,
        new_head: int | None = None,
    ) -> None:
        super().__init__(network, own, data, new_head=new_head)
        parts: Any = network
        self.num_classes, self.channels = num_classes, int(parts.backbone.out_channels)
        most = parts.rpn._post_nms_top_n["training"]
        self.geometry = Geometry((4, 8, 16, 32, 64), 8, 14, 7, most, most)
        parts.roi_heads.box_predictor.cls_score.background_first = True  # whoever reads its rows has to know

    def look(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the levels of the pyramid of images `(N, C, H, W)`, padded to multiples of 32."""
        network: Any = self.network
        bottom, right = (-side % DIVISOR for side in images.shape[2:])
        return tuple(network.backbone(F.pad(self.rescaled(images), (0, right, 0, bottom))).values())

    def propose(self, maps: tuple[Tensor, ...], sizes: Tensor) -> Proposed:
        """Return what the first stage says of maps from `look`; `sizes` are the images' heights and widths `(N, 2)`."""
        anchors, scores, offsets, boxes = self._first_stage(maps, _shapes(sizes))
        count = self._most()
        same = torch.stack([_repeated(each, count, size) for each, size in zip(boxes, sizes, strict=True)])
        return Proposed(maps, anchors, scores, offsets, same)

    def pool(self, maps: Sequence[Tensor], boxes: Tensor, side: int | None = None) -> Tensor:
        """Return the maps inside of boxes `(N, P, 4)`, `(N · P, D, S, S)`; S is the box head's unless given."""
        return self._pool(maps, list(boxes), side or self.geometry.side)

    def classify(self, regions: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits `(R, C + 1)`, the background last, and offsets `(R, C, 4)`, of pooled maps."""
        logits, offsets = self._second_stage(regions)
        return logits.roll(-1, dims=1), offsets.view(len(offsets), -1, 4)[:, 1:]

    def forward(self, images: Tensor, sizes: Tensor | None = None) -> Tensor:
        """Return the boxes found in images, `(N, 100, 6)`: see `Detector.forward`."""
        if sizes is None:
            sizes = whole_sizes(images)
        network: Any = self.network
        maps, shapes = self.look(images), _shapes(sizes)
        boxes = self._first_stage(maps, shapes)[3]
        said = (_full(each) for each in self._second_stage(self._pool(maps, boxes, self.geometry.side)))
        found = network.roi_heads.postprocess_detections(*said, boxes, shapes)
        rows = []
        for place, scores, labels in zip(*found, strict=True):
            row = torch.cat([place, scores.unsqueeze(1), labels.unsqueeze(1) - 1], dim=1)
            rows.append(F.pad(row, (0, 0, 0, MOST_BOXES - len(row)), value=-1.0))
        return torch.stack(rows)

    def _most(self) -> int:
        network: Any = self.network
        return int(network.rpn.post_nms_top_n())

    def _first_stage(self, maps: Sequence[Tensor], shapes: Shapes) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
        """Return anchors, scores, offsets, and the proposals of each image."""
        network: Any = self.network
        rpn = network.rpn
        scores, offsets = rpn.head(list(maps))
        counts = [each[0].numel() for each in scores]
        scores = torch.cat([each.permute(0, 2, 3, 1).flatten(1) for each in scores], dim=1)
        offsets = torch.cat([each.permute(0, 2, 3, 1).reshape(len(each), -1, 4) for each in offsets], dim=1)
        anchors = self._anchors(maps)
        found = rpn.box_coder.decode(_full(offsets.detach()).flatten(0, 1), [anchors] * len(shapes))
        boxes, _ = rpn.filter_proposals(found.view(len(shapes), -1, 4), _full(scores), shapes, counts)
        return anchors, scores, offsets, boxes

    def _anchors(self, maps: Sequence[Tensor]) -> Tensor:
        from torchvision.models.detection.image_list import ImageList

        network: Any = self.network
        height, width = _padded(maps)
        dtype = torch.promote_types(maps[0].dtype, torch.float32)
        image = maps[0].new_empty((1, 1, height, width), dtype=dtype)
        levels = [each.new_empty((1, 1, *each.shape[2:]), dtype=dtype) for each in maps]
        anchors: Tensor = network.rpn.anchor_generator(ImageList(image, [(height, width)]), levels)[0]
        return anchors

    def _pool(self, maps: Sequence[Tensor], boxes: list[Tensor], side: int) -> Tensor:
        network: Any = self.network
        pooler = network.roi_heads.box_roi_pool
        # A new one: the pooler keeps the scales of the first images that it sees.
        pooler = type(pooler)(pooler.featmap_names, side, pooler.sampling_ratio)
        levels = dict(zip(pooler.featmap_names, map(_full, maps), strict=False))
        boxes = [each.to(levels[pooler.featmap_names[0]].dtype) for each in boxes]
        pooled: Tensor = pooler(levels, boxes, [_padded(maps)])
        return pooled

    def _second_stage(self, regions: Tensor) -> tuple[Tensor, Tensor]:
        network: Any = self.network
        logits, offsets = network.roi_heads.box_predictor(network.roi_heads.box_head(regions))
        return logits, offsets


def _padded(maps: Sequence[Tensor]) -> tuple[int, int]:
    """Return height and width of the padded images of maps."""
    height, width = maps[0].shape[2:]
    return 4 * height, 4 * width


def _shapes(sizes: Tensor) -> Shapes:
    return [(int(height), int(width)) for height, width in sizes.tolist()]


def _full(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _repeated(boxes: Tensor, count: int, size: Tensor) -> Tensor:
    """Return so many boxes: those given, again and again; the whole image if there are none."""
    if not len(boxes):
        height, width = size.to(boxes.dtype)
        boxes = torch.stack([torch.zeros_like(width), torch.zeros_like(width), width, height]).unsqueeze(0)
    return boxes[torch.arange(count, device=boxes.device) % len(boxes)]


def fitted(
    tensors: Mapping[str, Tensor], own: Mapping[str, Tensor], name: str, *, any_head: bool
) -> tuple[dict[str, Tensor], int | None]:
    """Return a file's weights as those of a detector of torchvision, and the classes of a head that was left out.

    Files from before torchvision's layers were renamed are read, and those for COCO's 91 ids by a network of its 80
    categories.

    Args:
        tensors: Of the file: a detector's, or with `any_head` a classifier's, for the stages alone.
        own: The network's.
        name: Of the network.
        any_head: Leave the network its head where the file's is for another number of classes.
    """
    weights = {our_name(key, name) or key: value for key, value in tensors.items()}
    for pattern, new in OLD_NAMES:
        weights = {pattern.sub(new, key): value for key, value in weights.items()}
    weights = {key: value for key, value in weights.items() if key in own or not key.endswith(COUNTER)}
    if any_head and not any(key.startswith(INNER + "backbone.") for key in weights):
        inside = ((key, BODY + key.removeprefix(INNER).removeprefix("features.")) for key in weights)
        stages = {ours: weights[key] for key, ours in inside if ours in own}
        head = next((weights[key] for key in (INNER + "fc.bias", INNER + "classifier.1.bias") if key in weights), ())
        return ({**own, **stages}, len(head)) if stages else (weights, None)
    constants = {key: own[key] for key in STANDARDISATION}
    weights = {**constants, **weights}
    scores = PREDICTOR + "cls_score.bias"
    rows, wanted = weights[scores].numel() if scores in weights else 0, len(own[scores])
    if (rows, wanted) == (COCO_ROWS, COCO_ROWS - len(NOT_IN_COCO)):
        kept = torch.tensor([place for place in range(COCO_ROWS) if place not in NOT_IN_COCO])
        for key in own:
            each = weights.get(key)
            if each is not None and key.startswith(PREDICTOR) and each.dim() and len(each) % COCO_ROWS == 0:
                weights[key] = each.view(COCO_ROWS, -1, *each.shape[1:])[kept].view(-1, *each.shape[1:])
    elif any_head and rows not in (0, wanted):
        return {**weights, **{key: own[key] for key in own if key.startswith(PREDICTOR)}}, rows - 1
    return weights, None
