"""Mean intersection over union, from a confusion matrix of pixels that is added up image by image."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from limbeck.measures.verdict import Verdict

if TYPE_CHECKING:
    from torch import Tensor, nn

    from limbeck.data import DataBundle
    from limbeck.data.masked import MaskedPart
    from limbeck.turns import Turns

IGNORED = 255
SHOWN, SHOWN_SIDE = 8, 128  # images that are kept for pictures, and their longest side


def confusion_matrix(predicted: Tensor, labels: Tensor, num_classes: int, ignore_index: int = IGNORED) -> Tensor:
    """Count the pixels of each class by what they are taken for.

    Args:
        predicted: Integers of any shape, from 0 to C - 1.
        labels: Integers of the same shape; `ignore_index` is left out.
        num_classes: C.
        ignore_index: Label of pixels that belong to no class.

    Returns:
        int64 `(C, C)`: row the label, column the prediction.

    Example:
        >>> confusion_matrix(torch.tensor([0, 1, 1, 0]), torch.tensor([0, 1, 0, 255]), 2).tolist()
        [[1, 1], [0, 1]]
    """
    kept = labels != ignore_index
    places = labels[kept].long() * num_classes + predicted[kept].long()
    return places.bincount(minlength=num_classes**2).view(num_classes, num_classes)


def class_iou(confusion: Tensor) -> Tensor:
    """Return the intersection over union of each class, float64 `(C,)`; NaN of a class that is nowhere.

    Args:
        confusion: As `confusion_matrix` counts.

    Example:
        >>> class_iou(torch.tensor([[1, 1], [0, 1]])).tolist()
        [0.5, 0.5]
    """
    hits = confusion.diagonal().double()
    return hits / (confusion.sum(dim=0) + confusion.sum(dim=1) - hits)


def mean_iou(confusion: Tensor) -> float:
    """Return the mean of `class_iou` over the classes that are somewhere, in labels or predictions; NaN of none."""
    return float(class_iou(confusion).nanmean())


def pixel_accuracy(confusion: Tensor) -> float:
    """Return the share of pixels that are taken for what they are; NaN of none."""
    return float(confusion.diagonal().sum().double() / confusion.sum())


def predict_classes(model: nn.Module, images: Tensor, size: tuple[int, ...]) -> Tensor:
    """Return the class of each pixel, int64 `(N, *size)`: the largest logit, enlarged to the size of the labels."""
    logits: Tensor = model(images).float()
    if logits.shape[2:] != size:
        logits = F.interpolate(logits, size, mode="bilinear")
    return logits.argmax(dim=1)


@torch.no_grad()
def judge(model: nn.Module, part: MaskedPart, data: DataBundle, place: Turns) -> Verdict:
    """Return mean IoU and pixel accuracy of a network in eval mode, at the labels' own size.

    Args:
        model: Maps images to logits `(N, C, H, W)`.
        part: Images and masks, `batches` of one size each.
        data: Its number of classes is read.
        place: Processes that share the part.

    Returns:
        `miou`, `pixel_accuracy`, `class_iou` (None of a class that is nowhere) and `samples`; arrays `confusion`, and
        `images`, `masks`, `predicted` of the first ones.
    """
    confusion = torch.zeros(data.num_classes, data.num_classes, dtype=torch.int64, device=data.device)
    for images, labels in part.batches(place.rank, place.world):
        predicted = predict_classes(model, images, labels.shape[1:])
        confusion += confusion_matrix(predicted, labels, data.num_classes)
    confusion = torch.stack([each.cpu() for each in place.in_turns([confusion])]).sum(dim=0)
    values = [None if value != value else value for value in class_iou(confusion).tolist()]
    metrics = {
        "miou": mean_iou(confusion),
        "pixel_accuracy": pixel_accuracy(confusion),
        "class_iou": values,
        "samples": len(part),
    }
    return Verdict(metrics, {"confusion": confusion, **_shown(model, part)})


def _shown(model: nn.Module, part: MaskedPart) -> dict[str, Tensor]:
    """Return the first images, uint8, their masks and what they are taken for, as squares of one size."""
    found: dict[str, list[Tensor]] = {"images": [], "masks": [], "predicted": []}
    for pixels, images, labels in part.first(SHOWN):
        square = [min(SHOWN_SIDE, part.side)] * 2
        predicted = predict_classes(model, images, labels.shape[1:])
        found["images"].append(F.interpolate(pixels.float(), square, mode="bilinear", antialias=True)[0])
        for name, classes in (("masks", labels), ("predicted", predicted)):
            found[name].append(F.interpolate(classes[None].float(), square)[0, 0])
    return {name: torch.stack(values).round().to(torch.uint8) for name, values in found.items()}
