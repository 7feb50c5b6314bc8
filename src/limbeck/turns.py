"""Processes that share an evaluation: which one this is, and how their parts come together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

T = TypeVar("T")


class Turns(Protocol):
    """One process of several, which take the pieces of an evaluation in turns."""

    @property
    def rank(self) -> int:
        """Its number, from 0."""

    @property
    def world(self) -> int:
        """How many there are."""

    def in_turns(self, parts: Sequence[T]) -> list[T]:
        """Return what all of them made of every world-th piece, in the order of the pieces (a collective)."""


@dataclass(frozen=True)
class Alone:
    """The only process."""

    rank: int = 0
    world: int = 1

    def in_turns(self, parts: Sequence[T]) -> list[T]:
        """Return the parts."""
        return list(parts)


def own(pieces: Iterable[T], turns: Turns) -> Iterator[tuple[int, T]]:
    """Yield the pieces of one process, with their numbers among all.

    >>> list(own("abcde", Alone(rank=1, world=2)))
    [(1, 'b'), (3, 'd')]
    """
    return ((number, piece) for number, piece in enumerate(pieces) if number % turns.world == turns.rank)
