"""The generalised Jensen-Shannon divergence as an operator of torch, forward and backward one kernel each.

Forward, a row is read twice, or once where it fits into the registers of a program; backward, once. Both orders of
reading, all sizes and all launches are fixed by shapes, dtypes and the device: nothing is timed and nothing waits.
"""

from __future__ import annotations

import functools
import math
import struct
from typing import Any, NamedTuple

import torch
from torch import Tensor

from limbeck.kernels import js_rows, sizes

LOG2_E = math.log2(math.e)

_library = torch.library.Library("limbeck", "FRAGMENT")


class Mixture(NamedTuple):
    """What a call computes, besides its tensors: `factor` multiplies each row's value, in nats."""

    beta: float
    temperature: float
    factor: float
    reduced: bool


def js(logits: Tensor, target_logits: Tensor, mixture: Mixture) -> Tensor:
    """Values (N,), or their sum, of (N, C) logits in any of the kernels' dtypes."""
    sides = (_by_rows(side) for side in (logits, target_logits))
    value: Tensor = torch.ops.limbeck.js(*sides, *mixture)[0]
    return value.view(()) if mixture.reduced else value


def _by_rows(side: Tensor) -> Tensor:
    """Neighbouring classes side by side: other orders are copied, as are tensors that autograd refuses to keep."""
    if side.stride(-1) != 1 and side.shape[-1] > 1:
        return side.contiguous()
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return side
    return side.clone() if side.is_inference() else side


# --- the operators ----------------------------------------------------------------------------------------

_library.define(
    "js(Tensor logits, Tensor target_logits, float beta, float temperature, float factor, bool reduced)"
    " -> (Tensor, Tensor)"
)
_library.define(
    "js_backward(Tensor grad, Tensor logits, Tensor target_logits, Tensor stats, float beta, float temperature,"
    " float factor, bool to_logits, bool to_target) -> (Tensor, Tensor)"
)


def _forward(
    logits: Tensor, target_logits: Tensor, beta: float, temperature: float, factor: float, reduced: bool
) -> tuple[Tensor, Tensor]:
    rows, classes = logits.shape
    shares = shares_of(beta)
    stats = logits.new_empty((6, rows), dtype=torch.float32)
    with sizes.on(logits.device):
        if classes <= sizes.JS_SHORT_CLASSES:
            sums, pieces = _short(logits, target_logits, stats, LOG2_E / temperature, shares), 1
        else:
            sums, pieces = _long(logits, target_logits, stats, LOG2_E / temperature, shares)
        return _finish(sums, stats, pieces, shares[:2], factor / LOG2_E, reduced), stats


@functools.cache
def shares_of(beta: float) -> tuple[float, float, float, float]:
    """beta, 1 - beta and their log2, with the rounding of the smaller share's made good by the other.

    The powers of both add up to 1 better than the roundings of two logarithms would, and with them the probabilities.
    """
    small = _rounded(math.log2(min(beta, 1.0 - beta)))
    large = math.log2(1.0 - 2.0**small)
    logs = (small, large) if beta <= 0.5 else (large, small)
    return beta, 1.0 - beta, *logs


def _rounded(number: float) -> float:
    """To float32."""
    rounded: float = struct.unpack("f", struct.pack("f", number))[0]
    return rounded


def _short(logits: Tensor, target_logits: Tensor, stats: Tensor, scale: float, shares: tuple[float, ...]) -> Tensor:
    rows, classes = logits.shape
    block, each = _tile(rows, classes, sizes.JS_SHORT_CLASSES)
    sums = stats.new_empty((3, rows))
    js_rows.short_rows[(_ceil(rows, each),)](
        logits, target_logits, stats, sums, rows, classes, logits.stride(0), target_logits.stride(0), scale, *shares,
        ALIGN=_alignment(logits, target_logits), ROWS=each, CLASSES=block, num_warps=max(4, block // 512),
    )  # fmt: skip
    return sums


def _long(
    logits: Tensor, target_logits: Tensor, stats: Tensor, scale: float, shares: tuple[float, ...]
) -> tuple[Tensor, int]:
    rows, classes = logits.shape
    width = sizes.VECTOR_BYTES // max(logits.element_size(), target_logits.element_size())
    size = piece_size(rows, classes, sizes.LANES * width, logits.device)
    pieces = _ceil(classes, size)
    found = stats.new_empty((4, rows * pieces) if pieces > 1 else (0,))
    sums = stats.new_empty((3, rows * pieces))
    strides = logits.stride(0), target_logits.stride(0)
    tile: dict[str, int] = {"LANES": sizes.LANES, "WIDTH": width, "num_warps": sizes.LANES // 32}
    align = _alignment(logits, target_logits)
    tile["ALIGN"] = align if align >= width else 1  # less than a whole vector would mix up which lane reads what
    grid = (rows * pieces,)
    if pieces > 1:
        js_rows.scale_pieces[grid](logits, target_logits, found, pieces, size, classes, *strides, scale, **tile)
    js_rows.long_rows[grid](
        logits, target_logits, stats, sums, found, pieces, size, classes, *strides, scale, *shares,
        PIECES=sizes.power_of_two(pieces), **tile,
    )  # fmt: skip
    return sums, pieces


def piece_size(rows: int, classes: int, tile: int, device: torch.device) -> int:
    """How many classes of a long row a program takes: a row is cut where there are too few to fill the device."""
    tiles = _ceil(classes, tile)
    return _ceil(tiles, sizes.parts_of_row(rows, tiles, device)) * tile


def _finish(
    sums: Tensor, stats: Tensor, pieces: int, shares: tuple[float, ...], factor: float, reduced: bool
) -> Tensor:
    rows, block = stats.shape[1], sizes.power_of_two(pieces)
    each = max(1, min(sizes.BATCH_ROWS // block, sizes.power_of_two(rows)))
    programs = _ceil(rows, each)
    values = stats.new_empty((1,) if reduced else (rows,))
    totals = stats.new_empty((programs,)) if reduced and programs > 1 else values
    js_rows.finish_rows[(programs,)](
        sums, stats, values, totals, rows, pieces, *shares, factor, ROWS=each, PIECES=block, REDUCED=reduced
    )
    if reduced and programs > 1:
        js_rows.add_totals[(1,)](totals, values, programs, SIZE=min(sizes.BATCH_ROWS, sizes.power_of_two(programs)))
    return values


def _backward(
    grad: Tensor,
    logits: Tensor,
    target_logits: Tensor,
    stats: Tensor,
    beta: float,
    temperature: float,
    factor: float,
    to_logits: bool,
    to_target: bool,
) -> tuple[Tensor, Tensor]:
    rows, classes = logits.shape
    block, each = _tile(rows, classes, sizes.GRADIENT_PAIRS)
    blocks = _ceil(classes, block)
    gradients = _like(logits, to_logits), _like(target_logits, to_target)
    with sizes.on(logits.device):
        js_rows.row_gradients[(_ceil(rows, each) * blocks,)](
            grad, logits, target_logits, stats, *gradients, rows, classes, blocks,
            grad.stride(0) if grad.numel() > 1 else 0, logits.stride(0), target_logits.stride(0),
            LOG2_E / temperature, *shares_of(beta)[2:], factor / (LOG2_E * temperature),
            ALIGN=_alignment(logits, target_logits), ROWS=each, CLASSES=block, TO_S=to_logits, TO_T=to_target,
        )  # fmt: skip
    return gradients


def _like(side: Tensor, wanted: bool) -> Tensor:
    return torch.empty(side.shape if wanted else (0,), dtype=side.dtype, device=side.device)


def _alignment(logits: Tensor, target_logits: Tensor) -> int:
    """What the starts of rows are multiples of: 1000 classes, no multiple of 16, still are whole vectors."""
    return math.gcd(16, logits.shape[1], logits.stride(0), target_logits.stride(0))


def _ceil(number: int, of: int) -> int:
    return -(-number // of)


def _tile(rows: int, classes: int, widest: int) -> tuple[int, int]:
    """Classes and rows of a program, both powers of two."""
    block = min(widest, sizes.power_of_two(classes))
    return block, max(1, min(sizes.GRADIENT_PAIRS // block, sizes.power_of_two(rows)))


# --- what torch has to know of them -----------------------------------------------------------------------


def _shapes(logits: Tensor, target_logits: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    rows = logits.shape[0]
    return logits.new_empty((1,) if options[-1] else (rows,), dtype=torch.float32), logits.new_empty(
        (6, rows), dtype=torch.float32
    )


def _gradient_shapes(
    grad: Tensor, logits: Tensor, target_logits: Tensor, stats: Tensor, *options: Any
) -> tuple[Tensor, Tensor]:
    return _like(logits, options[-2]), _like(target_logits, options[-1])


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(inputs[0], inputs[1], output[1])
    ctx.options = inputs[2:5]
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(output[1])


def _differentiate(ctx: Any, grad: Tensor | None, _: object) -> tuple[Tensor | None, ...]:
    needs = ctx.needs_input_grad[:2]
    if grad is None or not any(needs):
        return (None,) * 6
    found = torch.ops.limbeck.js_backward(grad, *ctx.saved_tensors, *ctx.options, *needs)
    first, second = (each if need else None for each, need in zip(found, needs, strict=True))
    return first, second, None, None, None, None


def _keep_again(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.options = inputs[4:]
    ctx.set_materialize_grads(False)


def _differentiate_again(ctx: Any, *seeds: Tensor | None) -> tuple[Tensor | None, ...]:
    """The gradients once more, by operations that can be differentiated any number of times."""
    from limbeck.functional.kl import js_values

    beta, temperature, factor, *wanted = ctx.options
    with torch.enable_grad():
        inputs = [x if x.requires_grad else x.detach().requires_grad_() for x in ctx.saved_tensors]
        grad, *sides = inputs
        total = (js_values(*sides, beta=beta, temperature=temperature) * grad * factor).sum()
        found = torch.autograd.grad(total, sides, create_graph=True)
        pairs = [(g, seed) for g, seed, want in zip(found, seeds, wanted, strict=True) if want and seed is not None]
    if not pairs:
        return (None,) * 9
    outputs, given = zip(*pairs, strict=True)
    again = torch.autograd.grad(outputs, inputs, given, create_graph=torch.is_grad_enabled())
    return *again, *(None,) * 6


for _key in ("CPU", "CUDA"):  # Triton's interpreter serves tensors of the CPU
    _library.impl("js", _forward, _key)
    _library.impl("js_backward", _backward, _key)
torch.library.register_fake("limbeck::js", _shapes, lib=_library)
torch.library.register_fake("limbeck::js_backward", _gradient_shapes, lib=_library)
torch.library.register_autograd("limbeck::js", _differentiate, setup_context=_keep, lib=_library)
torch.library.register_autograd("limbeck::js_backward", _differentiate_again, setup_context=_keep_again, lib=_library)
