"""How good a network is: numbers from what it says of a split. One judge for each task beyond classification."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

from limbeck.measures import detection, image_text, segmentation
from limbeck.measures.verdict import Verdict

__all__ = ["JUDGES", "Judge", "Verdict"]

# Called with a network, a validation or test part, the data and the processes that share the part; all get the verdict.
Judge: TypeAlias = Callable[..., Verdict]

JUDGES: Mapping[str, Judge] = {"detect": detection.judge, "image_text": image_text.judge, "segment": segmentation.judge}
