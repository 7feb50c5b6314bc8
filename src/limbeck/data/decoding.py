"""Work on images in other processes, in order: torch's DataLoader over pieces of steps.

What a piece is made of is arithmetic, so nothing depends on how many processes there are or which of them makes it.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from typing import TYPE_CHECKING, Protocol, TypeVar, cast

import torch
from torch.utils.data import DataLoader, Dataset

from limbeck.errors import Interrupted, UserError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

T = TypeVar("T")

PIECE = 64  # images that a process makes at a time
MOST_WORKERS = 16
# Seconds that a process lives on after SIGTERM, which batch systems send to all processes of a job: so long the run has
# to come to a place where it saves, which with several ranks is a logged step. It ends its processes itself.
GRACE = 600


class Pieces(Protocol):
    """Makes a piece of a step, in any process."""

    @property
    def parts(self) -> int:
        """Pieces of each step."""

    def make(self, step: int, part: int) -> tuple[Tensor, ...]:
        """Return images, uint8 `(N, H, W, C)`, once or in several views."""


def in_order(pieces: Pieces, steps: Sequence[int], *, workers: int, device: torch.device) -> Iterator[list[Tensor]]:
    """Yield the images of steps, on a device, uint8 `(N, C, H, W)`.

    No random state of this process is read or written. The processes end with the iterator.

    Args:
        pieces: What makes them; it goes to other processes, so it holds nothing that lies on an accelerator.
        steps: Which steps, in order.
        workers: Processes; 0 makes all in this one, as does a run that a comparison trains beside others.
        device: Where the images are moved, without waiting for them.

    Raises:
        UserError: A piece cannot be made.
        Interrupted: See `started`.
    """
    numbers = [step * pieces.parts + part for step in steps for part in range(pieces.parts)]
    made = started(_Numbered(pieces), numbers, workers=workers, device=device)
    for _ in steps:
        parts = [next(made) for _ in range(pieces.parts)]
        yield [put_together(views, device) for views in zip(*parts, strict=True)]
    ended(made)


def started(
    pieces: Dataset[tuple[Tensor, ...] | UserError],
    numbers: Sequence[int] | None = None,
    *,
    workers: int,
    device: torch.device,
) -> Iterator[tuple[Tensor, ...]]:
    """Yield pieces in order, on the CPU.

    Args:
        pieces: Pieces by number, or as an iterable of them.
        numbers: Which pieces; None where they are an iterable.
        workers: See `in_order`.
        device: Where the pieces will be moved.

    Raises:
        UserError: A piece is one, or a process was killed, such as for want of memory.
        Interrupted: A process ended by itself, so long after SIGTERM.
    """
    loader: DataLoader[tuple[Tensor, ...] | UserError] = DataLoader(
        pieces,
        batch_size=None,
        sampler=numbers,
        num_workers=0 if multiprocessing.current_process().daemon else workers,  # a daemon may have no children
        collate_fn=_as_it_is,
        pin_memory=device.type == "cuda",
        worker_init_fn=_begin,
        generator=torch.Generator(),
    )
    others = set(multiprocessing.active_children())
    pieces_made = iter(loader)
    processes = set(multiprocessing.active_children()) - others
    try:
        while True:
            try:
                piece = next(pieces_made, None)
            except RuntimeError as error:
                if (ending := _ending(error)) is None:
                    raise
                raise ending from error
            if piece is None:
                return
            if isinstance(piece, UserError):
                raise piece
            yield piece
    finally:
        del pieces_made  # ends the processes now: with the garbage its queues may go first, and it waits for seconds
        for process in processes:  # one that has not ended in its time was sent SIGTERM, which it outlives
            process.kill()
            process.join()


def _ending(error: RuntimeError) -> UserError | Interrupted | None:
    """Return what the end of a process means, of which torch tells by a RuntimeError; None for any other."""
    words = str(error).partition("\n")[0].strip()
    if "DataLoader worker" not in words or not ("killed" in words or "exited unexpectedly" in words):
        return None
    if hasattr(signal, "SIGALRM") and str(signal.strsignal(signal.SIGALRM)) in f"{error} {error.__cause__}":
        return Interrupted(
            f"the run did not come to save within {GRACE} seconds of SIGTERM, when the processes that decode images "
            "end; what it saved before stands"
        )
    return UserError(
        f"a process that decodes images ended ({words}); lower `data.workers`, or give it more memory, of which "
        "/dev/shm is a part"
    )


def ended(made: Iterator[object]) -> None:
    """Let the processes of an iterator end in order, now that it has nothing left."""
    for _ in made:
        raise AssertionError("a piece more than there are")


def put_together(parts: Sequence[Tensor], device: torch.device) -> Tensor:
    """Return parts of images, uint8 `(N, H, W, C)`, as a tensor `(N, C, H, W)` on a device, without waiting."""
    return torch.cat([part.to(device, non_blocking=True) for part in parts]).permute(0, 3, 1, 2).contiguous()


def share_of_cores() -> int:
    """Return how many processes a rank may keep busy: its share of the CPU cores of this machine, at most 16."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(MOST_WORKERS, max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


class _Numbered(Dataset["tuple[Tensor, ...] | UserError"]):
    """Pieces by number. An error of the user's is handed over, since a raised one loses its one line."""

    def __init__(self, pieces: Pieces) -> None:
        self._pieces = pieces

    def __getitem__(self, number: int) -> tuple[Tensor, ...] | UserError:
        try:
            return self._pieces.make(*divmod(number, self._pieces.parts))
        except UserError as error:
            return error


def _as_it_is(piece: T) -> T:
    return piece


def _begin(worker: int) -> None:
    """Leave signals to the run: it saves, and ends its workers itself."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "alarm"):
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, lambda *_: cast("None", signal.alarm(GRACE)))
