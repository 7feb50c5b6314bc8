"""Metrics on test images of another distribution than the training images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from limbeck.engine.metrics import ALONE, measure, predict

if TYPE_CHECKING:
    from torch import nn

    from limbeck.data import DataBundle
    from limbeck.engine.ranks import Ranks


def measure_shifted(model: nn.Module, data: DataBundle, place: Ranks = ALONE) -> dict[str, Any]:
    """Return `{"shifted": name -> metrics}`, nothing where the data have no such test images.

    Args:
        model: The network.
        data: Its `shifted` are measured, each among the classes that it has.
        place: Several ranks share the images.
    """
    if not data.shifted:
        return {}
    metrics = {}
    for name, test in data.shifted.items():
        logits = test.logits_of(predict(model, test.samples, place))
        metrics[name] = measure(logits, test.samples.labels.cpu())
    return {"shifted": metrics}
