"""What a judge finds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


class Verdict(NamedTuple):
    """What a judge finds.

    Attributes:
        metrics: Numbers by name: shares in [0, 1], those of `limbeck.headlines` among them, and `samples`.
        arrays: What pictures need, kept small.
    """

    metrics: dict[str, Any]
    arrays: dict[str, Tensor]
