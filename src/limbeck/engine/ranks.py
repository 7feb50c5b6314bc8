"""Processes that train one run together, a part of each batch each: which one this is, and what they tell one another.

Everything is a no-op in a process of its own. What a rank writes, only the first one does.
"""

from __future__ import annotations

import gc
import os
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

import torch
import torch.distributed as dist
from torch.nn.modules.batchnorm import _BatchNorm

from limbeck.errors import Interrupted, UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor, nn

T = TypeVar("T")

# The first rank may attack the test images for long while the others wait; that a rank died is told by its launcher.
PATIENCE = timedelta(hours=24)


@dataclass(frozen=True)
class Ranks:
    """This process among those that train one run.

    Attributes:
        rank: Its number, from 0.
        world: How many there are.
    """

    rank: int = 0
    world: int = 1

    @property
    def lead(self) -> bool:
        """Whether this process is the one that writes and speaks."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """Replace a tensor by its sum over the ranks, and return it."""
        if self.world > 1:
            dist.all_reduce(tensor)
        return tensor

    def any(self, flag: bool, device: torch.device | None = None) -> bool:
        """Whether a flag is set on one of the ranks (waits for the device)."""
        if self.world == 1:
            return flag
        return bool(self.sum(torch.tensor(float(flag), device=device)))

    def wait(self) -> None:
        """Go on when all ranks are here."""
        if self.world > 1:
            dist.barrier()

    def first_tells(self, find: Callable[[], T]) -> T:
        """Return on all ranks what the first one finds; what it cannot do is an error of all.

        Raises:
            UserError: The first rank met it.
            Interrupted: The first rank met it.
        """
        if self.world == 1:
            return find()
        told: list[object] = [None, None]
        if self.lead:
            try:
                told[0] = find()
            except (UserError, Interrupted) as error:
                told[1] = error
        dist.broadcast_object_list(told)
        if isinstance(told[1], Exception):
            raise told[1]
        return told[0]  # type: ignore[return-value]  # what `find` returned

    def in_turns(self, parts: Sequence[T]) -> list[T]:
        """Return what all ranks made of every world-th piece, in the order of the pieces."""
        if self.world == 1:
            return list(parts)
        gathered: list[list[T]] = [[] for _ in range(self.world)]
        dist.all_gather_object(gathered, list(parts))
        longest = max(map(len, gathered))
        return [pieces[turn] for turn in range(longest) for pieces in gathered if turn < len(pieces)]

    def share_buffers(self, module: nn.Module) -> None:
        """Give all ranks the mean of their BatchNorms' statistics, since each has seen other images.

        Other buffers are the first rank's.
        """
        if self.world == 1:
            return
        norms = [part for part in module.modules() if isinstance(part, _BatchNorm)]
        averaged = [value for norm in norms for value in (norm.running_mean, norm.running_var) if value is not None]
        for value in averaged:
            dist.all_reduce(value.div_(self.world))
        known = {id(value) for value in averaged}
        for buffer in module.buffers():
            if id(buffer) not in known:
                dist.broadcast(buffer, 0)


def here() -> Ranks:
    """Return this process's place."""
    if dist.is_available() and dist.is_initialized():
        return Ranks(dist.get_rank(), dist.get_world_size())
    return Ranks()


def launched() -> bool:
    """Whether `torchrun`, or something that sets the same variables, started this process beside others."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextmanager
def joined(device: str) -> Iterator[Ranks]:
    """Join the other ranks if this process was started beside some.

    Args:
        device: Of the recipe; on `cuda` each rank takes the accelerator of its local number.

    Raises:
        UserError: The machine has fewer accelerators than ranks.
    """
    if not launched() or dist.is_initialized():
        yield here()
        return
    if torch.device(device).type == "cuda":
        local = int(os.environ.get("LOCAL_RANK", "0"))
        if local >= torch.cuda.device_count():
            raise UserError(
                f"expected an accelerator for each rank on this machine, got {torch.cuda.device_count()} for rank "
                f"{local}; start fewer ranks"
            )
        torch.cuda.set_device(local)
    backend = "cpu:gloo,cuda:nccl" if torch.device(device).type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=PATIENCE)
    try:
        yield here()
    finally:
        # What holds the group, such as a wrapper of a finished run, goes first: the group's threads end with it alone,
        # and a process that ends before them is aborted.
        gc.collect()
        dist.destroy_process_group()
