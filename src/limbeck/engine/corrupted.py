"""Accuracy on corrupted test images, and what such images and the views of the training look like."""

from __future__ import annotations

from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch

from limbeck.data.augmix import AugMixed, augmix
from limbeck.data.corruptions import SEVERITIES
from limbeck.engine.metrics import ALONE, predict

if TYPE_CHECKING:
    from torch import Tensor, nn

    from limbeck.config import Recipe
    from limbeck.data import DataBundle
    from limbeck.engine.ranks import Ranks

EXAMPLES = 6  # images whose views are kept


def with_corrupted(metrics: dict[str, Any], model: nn.Module, data: DataBundle, place: Ranks = ALONE) -> dict[str, Any]:
    """Return metrics by split with those of the corrupted test images; as they are where the data have none.

    Args:
        metrics: Has `test`, metrics or None.
        model: The network.
        data: Its `corrupted` are looked at.
        place: Several ranks share the images.

    Returns:
        In `test` also `corrupted`, the mean over the corruptions of the mean over their strengths; beside the splits
        `corruptions`: by name, the accuracy at each strength.
    """
    if data.corrupted is None or metrics["test"] is None:
        return metrics
    found: dict[str, list[float]] = {}
    for name in data.corrupted.names:
        found[name] = []
        for severity in range(1, SEVERITIES + 1):
            samples = data.corrupted.samples(name, severity)
            right = predict(model, samples, place).argmax(dim=-1) == samples.labels.cpu()
            found[name].append(right.double().mean().item())
    mean = fmean(map(fmean, found.values()))
    return {**metrics, "test": {**metrics["test"], "corrupted": mean}, "corruptions": found}


def example_images(data: DataBundle, recipe: Recipe) -> dict[str, Tensor]:
    """Return a few images for pictures, uint8 of 256 levels: some with their first views, and one corrupted.

    Args:
        data: Of the run.
        recipe: Of the run.

    Returns:
        `view_images` `(K, 1 + V, C, H, W)`, clean ones first, and `corrupted_images` `(corruptions, 5, C, H, W)`, of
        the first test image; each only where the run has such images.
    """
    arrays = {}
    if isinstance(data.train, AugMixed):
        source, options = data.train.source, data.train.options
        places = torch.linspace(0, len(source) - 1, min(EXAMPLES, len(source))).long()
        images, _ = source.take(places)
        views = [
            augmix(images, options, view=view, seed=recipe.seed, epoch=1, indices=places)
            for view in range(options.views)
        ]
        arrays["view_images"] = torch.stack([images, *(view.round().to(torch.uint8) for view in views)], dim=1)
    if data.corrupted is not None and len(data.test):
        arrays["corrupted_images"] = torch.stack(
            [
                torch.stack([data.corrupted.samples(name, severity).image(0) for severity in range(1, SEVERITIES + 1)])
                for name in data.corrupted.names
            ]
        )
    return arrays
