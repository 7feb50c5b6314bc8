"""How well a network detects: average precision of the boxes that it finds in a part of the data."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from limbeck.measures.average_precision import Found, Truth, average_precision
from limbeck.measures.verdict import Verdict

if TYPE_CHECKING:
    from torch import Tensor, nn

    from limbeck.data import DataBundle
    from limbeck.data.boxes import Boxed
    from limbeck.turns import Turns

BATCH = 32  # images that are looked at together: a constant, so that no measure depends on the training's
SHOWN = 12  # images whose boxes a picture shows
LARGEST_SHOWN = 512 * 512 * 3 * SHOWN  # pixels that a run keeps for its picture


def judge(model: nn.Module, part: Boxed, data: DataBundle, place: Turns) -> Verdict:
    """Return the average precision of a detector, and the boxes that it finds.

    Args:
        model: Called with images and their sizes, it returns boxes `(N, K, 6)`: x0, y0, x1, y1, score, class, the
            class -1 where there is none.
        part: Images and their true boxes.
        data: Its number of classes is read.
        place: Processes share the images.

    Returns:
        `ap`, `ap50`, `ap75`, `samples`; and of the first images, for a picture, pixels, found and true boxes.
    """
    device = next(model.parameters()).device
    batches = part.seen(BATCH, place.rank, place.world)
    mine = [model(images.to(device), sizes.to(device)).float().cpu() for images, sizes in batches]
    rows = torch.cat(place.in_turns(mine))
    found = _found(rows, part.scales)
    truth = Truth(*(value.cpu() for value in part.objects))
    precision = average_precision(found, truth, data.num_classes)
    metrics = {"ap": precision.ap, "ap50": precision.ap50, "ap75": precision.ap75, "samples": len(part)}
    return Verdict(metrics, {"class_ap": precision.per_class, **_shown(rows, part)})


def _found(rows: Tensor, scales: Tensor) -> Found:
    """Return the boxes of all images, in the pixels of the images as they were found."""
    image, place = (rows[..., 5] >= 0).nonzero(as_tuple=True)
    boxes = rows[image, place]
    return Found(image, boxes[:, 5].long(), boxes[:, 4], boxes[:, :4] / scales[image].unsqueeze(1))


def _shown(rows: Tensor, part: Boxed) -> dict[str, Tensor]:
    """Return the first images with their true boxes and the found ones, at the detector's scale."""
    pictures = part.pictures(min(SHOWN, len(part))).cpu()
    if pictures.numel() > LARGEST_SHOWN:
        return {}
    count = len(pictures)
    objects, scales = part.objects, part.scales
    images = objects.images.cpu()
    first = images < count
    boxes = objects.boxes.cpu()[first] * scales[images[first]].unsqueeze(1)
    truth = torch.cat([images[first].unsqueeze(1).float(), objects.classes.cpu()[first].unsqueeze(1).float(), boxes], 1)
    return {"pictures": pictures, "true_boxes": truth, "found_boxes": rows[:count]}
