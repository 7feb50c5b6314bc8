"""How good a network is: numbers from what it says of a split. One judge for each task beyond classification."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

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


# Called with a network, a validation or test part, the data and the processes that share the part; all get the verdict.
Judge: TypeAlias = Callable[..., Verdict]

JUDGES: Mapping[str, Judge] = {}
