"""The learning rate as a function of the step: nothing to save, nothing to restore."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from limbeck.config import ScheduleOptions

ONECYCLE_START = 1 / 25  # of the peak, as in Smith & Topin (2018) and in torch


def learning_rate_factor(options: ScheduleOptions, step: int, *, steps_per_epoch: int, epochs: int) -> float:
    """Return the learning rate of a step as a factor of the peak.

    Args:
        options: Shape and warm-up.
        step: Optimizer step of the run, from 1.
        steps_per_epoch: Optimizer steps of an epoch.
        epochs: Epochs of the run.

    Returns:
        A factor in [0, 1]. The warm-up reaches 1 at its last step; cosine and onecycle reach `final_factor` at the
        last step of the run.

    >>> from limbeck.config import ScheduleOptions
    >>> steps = ScheduleOptions(name="multistep", milestones=(2, 3))
    >>> [round(learning_rate_factor(steps, step, steps_per_epoch=1, epochs=4), 3) for step in (1, 2, 3, 4)]
    [1.0, 1.0, 0.1, 0.01]
    """
    total = steps_per_epoch * epochs
    if options.name == "onecycle":
        peak = max(1.0, options.warmup_fraction * total)
        if step <= peak and peak > 1:
            return _cosine(ONECYCLE_START, 1.0, (step - 1) / (peak - 1))
        return _cosine(1.0, options.final_factor, (step - peak) / max(total - peak, 1))
    warmup = options.warmup_epochs * steps_per_epoch
    rise = min(step / warmup, 1.0) if warmup else 1.0
    match options.name:
        case "constant":
            return rise
        case "multistep":
            epochs_done = (step - 1) // steps_per_epoch
            return float(rise * options.decay_factor ** sum(epochs_done >= mark for mark in options.milestones))
        case "cosine":
            start = max(warmup, 1.0)
            return rise * _cosine(1.0, options.final_factor, (step - start) / max(total - start, 1))
        case "fixmatch":  # arXiv 2001.07685, section 2.4
            start = max(warmup, 1.0)
            return rise * math.cos(7 / 16 * math.pi * max((step - start) / max(total - start, 1), 0.0))
        case "poly":  # t is the share of the steps done, so that the last step has still some
            return float(rise * (1 - max(step - 1 - warmup, 0.0) / max(total - warmup, 1)) ** options.power)


def _cosine(start: float, end: float, progress: float) -> float:
    """Go from start to end on half a cosine while progress goes from 0 to 1."""
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * min(max(progress, 0.0), 1.0)))
