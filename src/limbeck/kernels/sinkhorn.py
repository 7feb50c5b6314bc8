"""Sinkhorn's sweeps as an operator of torch, the way back included: one launch for what plain operations need hundreds.

Each sample is a program that holds the kernel matrix in its registers, so that it serves few classes. For more,
products over the whole batch are the faster way.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.functional._sweeps import Kernel, Sweeps, composed
from limbeck.kernels import sinkhorn_rows, sizes

library = torch.library.Library("limbeck", "FRAGMENT")
library.define(
    "sinkhorn(Tensor log_a, Tensor log_b, Tensor kernel, Tensor kernel_cost, int iterations, bool published,"
    " bool wanted) -> (Tensor, Tensor, Tensor)"
)


def sinkhorn(log_a: Tensor, log_b: Tensor, kernel: Kernel, sweeps: Sweeps) -> Tensor:
    """Per sample sum_ij Q_ij c_ij; the classes that are absent on both sides are at -inf."""
    wanted = torch.is_grad_enabled() and (log_a.requires_grad or log_b.requires_grad)
    rows = (x.reshape(-1, x.shape[-1]).contiguous() for x in (log_a, log_b))
    options = sweeps.iterations, sweeps.mode == "published", wanted
    value: Tensor = torch.ops.limbeck.sinkhorn(*rows, *kernel, *options)[0]
    return value.view(log_a.shape[:-1])


def _forward(
    log_a: Tensor, log_b: Tensor, kernel: Tensor, kernel_cost: Tensor, iterations: int, published: bool, wanted: bool
) -> tuple[Tensor, Tensor, Tensor]:
    rows, classes = log_a.shape
    value, to_a, to_b = _like(log_a, log_b, kernel, kernel_cost, iterations, published, wanted)
    block = max(16, sizes.power_of_two(classes))
    padding = (0, block - classes) * 2
    matrices = (F.pad(matrix, padding) for matrix in (kernel, kernel_cost))
    kept = log_a.new_empty((rows, iterations, 2, block) if wanted else (0,))
    with sizes.on(log_a.device):
        sinkhorn_rows.sweep_rows[(rows,)](
            log_a, log_b, *matrices, value, to_a, to_b, kept, classes, iterations,
            CLASSES=block, PUBLISHED=published, WANTED=wanted, num_warps=min(16, max(1, block * block // 1024)),
        )  # fmt: skip
    return value, to_a, to_b


def _like(log_a: Tensor, log_b: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
    wanted = others[-1]
    shapes = (log_a.shape, log_b.shape) if wanted else ((0,), (0,))
    return log_a.new_empty(log_a.shape[:1]), log_a.new_empty(shapes[0]), log_b.new_empty(shapes[1])


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*inputs[:4], *output[1:])
    ctx.sweeps = Sweeps(inputs[4], "published" if inputs[5] else "log", "unrolled")


def _differentiate(ctx: Any, grad: Tensor | None, *_: object) -> tuple[Tensor | None, ...]:
    log_a, log_b, kernel, kernel_cost, *gradients = ctx.saved_tensors
    needs = ctx.needs_input_grad[:2]
    if grad is None:
        return (None,) * 7
    if not torch.is_grad_enabled():
        factor = grad.unsqueeze(-1)
        return *(x * factor if need else None for x, need in zip(gradients, needs, strict=True)), *(None,) * 5
    present = ~(torch.isneginf(log_a) & torch.isneginf(log_b))
    value = composed(log_a, log_b, present, Kernel(kernel, kernel_cost), ctx.sweeps)
    sides = [x for x, need in zip((log_a, log_b), needs, strict=True) if need]
    found = iter(torch.autograd.grad(value, sides, grad, create_graph=True))
    return *(next(found) if need else None for need in needs), *(None,) * 5


for _key in ("CPU", "CUDA"):  # Triton's interpreter serves tensors of the CPU
    library.impl("sinkhorn", _forward, _key)
torch.library.register_fake("limbeck::sinkhorn", _like, lib=library)
torch.library.register_autograd("limbeck::sinkhorn", _differentiate, setup_context=_save, lib=library)
