"""A run on several ranks that looks at the weights of each while they are perturbed, and after each step."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist

from limbeck.config import Recipe
from limbeck.engine.fit import fit
from limbeck.objectives import adversarial


def largest_difference(model: torch.nn.Module) -> float:
    """Of the parameters of this rank and the first."""
    ours = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
    first = ours.clone()
    dist.broadcast(first, 0)
    gap = (ours - first).abs().max()
    dist.all_reduce(gap, dist.ReduceOp.MAX)
    return float(gap)


def train(rank: int, world: int, folder: Path, recipe: Recipe) -> None:
    """Train in a process group of so many, and write the differences that were seen."""
    store = dist.FileStore(str(folder / "store"), world)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
    seen: list[float] = []
    awp = adversarial.awp

    @contextmanager
    def watched(model, accumulate_gradient, *, size):
        before = torch.nn.utils.parameters_to_vector(model.parameters()).detach().clone()
        with awp(model, accumulate_gradient, size=size):
            seen.append(largest_difference(model))
            moved = torch.nn.utils.parameters_to_vector(model.parameters()).detach() - before
            assert moved.abs().max() > 0
            yield
        seen.append(largest_difference(model))

    adversarial.awp = watched
    fit(recipe, folder / "run")
    if rank == 0:
        torch.save(seen, folder / "seen.pt")
    dist.destroy_process_group()
