"""The whole of what lies in parts on the ranks, with the gradient of each rank's own part."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor


def gather_parts(samples: int) -> Callable[[Tensor], Tensor]:
    """Return what puts the ranks' parts of a tensor together along the first axis, in the order of the ranks.

    The loss of a rank counts by its share of the samples, n / N, and a value that all ranks compute from the whole
    would be counted so on each. So the gradient of a rank's own part comes back times N / n: the ranks' gradients then
    add up to that of the value. Nothing is exchanged in the backward pass.

    Args:
        samples: n, of this rank's part.

    Returns:
        A collective function of a tensor `(n, ...)`; returns `(N, ...)`.
    """
    sizes = torch.zeros(dist.get_world_size(), dtype=torch.int64)  # on the CPU, so that no accelerator is waited for
    sizes[dist.get_rank()] = samples
    dist.all_reduce(sizes)
    return partial(_gather, sizes=sizes.tolist(), rank=dist.get_rank())


def _gather(part: Tensor, sizes: list[int], rank: int) -> Tensor:
    return cast("Tensor", _Whole.apply(part, sizes, rank))  # type: ignore[no-untyped-call]


class _Whole(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: Tensor, sizes: list[int], rank: int) -> Tensor:
        ctx.own = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
        ctx.factor = sum(sizes) / sizes[rank]
        # Of one size for all, as the backends ask for.
        padded = part.new_zeros(max(sizes), *part.shape[1:])
        padded[: len(part)] = part
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        return torch.cat([whole[:size] for whole, size in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return gradients[0][ctx.own] * ctx.factor, None, None
