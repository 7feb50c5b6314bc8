"""What a task is judged by: the measure that chooses epochs and settings, and those beside it. Imports nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping


class Measure(NamedTuple):
    """A share that results.json holds; of what rows are compared by, larger is better.

    Attributes:
        key: Its name in the files.
        short: What it is called in a line.
        title: Over a column, in percent.
    """

    key: str
    short: str
    title: str


class Headline(NamedTuple):
    """Measures of a task.

    Attributes:
        main: What rows are compared by.
        training: What training steps log beside the loss.
        beside: Further columns.
    """

    main: Measure
    training: Measure
    beside: tuple[Measure, ...] = ()


_TOP1 = Measure("top1", "top-1", "top-1, %")
_CLASSIFICATION = Headline(_TOP1, _TOP1)
_INCREMENTAL = Headline(
    _TOP1,
    _TOP1,
    (
        Measure("average_incremental", "average over phases", "over phases, %"),
        Measure("within_phase", "phase told", "phase told, %"),
        Measure("forgetting", "forgotten", "forgotten, %"),
    ),
)
_PIXELS = Measure("pixel_accuracy", "pixels", "pixels, %")

HEADLINES: dict[str, Headline] = {
    "supervised": _CLASSIFICATION,
    "distill": _CLASSIFICATION,
    "incremental": _INCREMENTAL,  # distillation in phases
    "adversarial": _CLASSIFICATION,
    "semi_supervised": _CLASSIFICATION,
    "consistency": Headline(_TOP1, _TOP1, (Measure("corrupted", "corrupted", "corrupted, %"),)),
    "segment": Headline(Measure("miou", "mIoU", "mIoU, %"), _PIXELS, (_PIXELS,)),
    "detect": Headline(
        Measure("ap", "AP", "AP, %"),
        Measure("box_accuracy", "boxes", "boxes, %"),
        (Measure("ap50", "AP50", "AP50, %"), Measure("ap75", "AP75", "AP75, %")),
    ),
    "image_text": Headline(
        Measure("zero_shot", "zero-shot", "zero-shot, %"),
        Measure("batch_accuracy", "in batch", "in batch, %"),
        (
            Measure("image_to_text", "image to text", "image to text R@1, %"),
            Measure("text_to_image", "text to image", "text to image R@1, %"),
        ),
    ),
}


def headline_of(task: str) -> Headline:
    """Return what a task is judged by.

    >>> headline_of("segment").main.title
    'mIoU, %'
    """
    return HEADLINES[task]


def main_measure(metrics: Mapping[str, Any]) -> Measure:
    """Return what the metrics of a split are judged by, whatever the task.

    >>> main_measure({"pixel_accuracy": 0.9, "miou": 0.5, "samples": 3}).short
    'mIoU'
    """
    return next(headline.main for headline in HEADLINES.values() if headline.main.key in metrics)


def training_measure(train: Mapping[str, Any]) -> Measure:
    """Return what the training line of an epoch shows beside the loss, whatever the task.

    >>> training_measure({"loss": 1.2, "pixel_accuracy": 0.9}).short
    'pixels'
    """
    return next(headline.training for headline in HEADLINES.values() if headline.training.key in train)


def all_measures() -> dict[str, Measure]:
    """Return the measures of all tasks by key, main ones first.

    >>> list(all_measures())[:3]
    ['top1', 'miou', 'ap']
    """
    mains = [headline.main for headline in HEADLINES.values()]
    beside = [measure for headline in HEADLINES.values() for measure in headline.beside]
    return {measure.key: measure for measure in (*mains, *beside)}
