"""All sweeps of one sample in one program: the kernel matrix stays in registers, and what the way back needs in memory.

The names and the equations are those of `limbeck.functional._sweeps`.
"""

from __future__ import annotations

import triton
import triton.language as tl

HALF_LOG2_E = tl.constexpr(0.7213475204444817)
FLOOR = tl.constexpr(1e-8)  # of the published code, in every denominator


@triton.jit
def _potential(root, product, PUBLISHED: tl.constexpr):
    """u = a / (K v) or v = b / (K^T u), by way of roots; up to a factor, unless published."""
    x = root / product * root
    if not PUBLISHED:
        x = x / tl.max(x, axis=0)
    return x


@triton.jit
def _denominator(product, there, PUBLISHED: tl.constexpr):
    if PUBLISHED:
        product += FLOOR
    return tl.where(there, product, 1.0)


@triton.jit
def sweep_rows(
    log_a_ptr, log_b_ptr, kernel_ptr, kernel_cost_ptr, value_ptr, to_a_ptr, to_b_ptr, kept_ptr, classes, iterations,
    CLASSES: tl.constexpr, PUBLISHED: tl.constexpr, WANTED: tl.constexpr,
):  # fmt: skip
    """The value of one sample and, if wanted, its gradients to log a and log b."""
    row = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, CLASSES)
    there = place < classes
    log_a = tl.load(log_a_ptr + row * classes + place, mask=there, other=float("-inf"))
    log_b = tl.load(log_b_ptr + row * classes + place, mask=there, other=float("-inf"))
    root_a, root_b = tl.exp2(log_a * HALF_LOG2_E), tl.exp2(log_b * HALF_LOG2_E)
    # Both matrices are padded to CLASSES, so that a thread has four neighbours in each of a few rows.
    pairs = place[:, None] * CLASSES + place[None, :]
    kernel = tl.load(kernel_ptr + pairs)
    kept_ptr += row * iterations * 2 * CLASSES + place
    u = tl.where(tl.maximum(log_a, log_b) > float("-inf"), 1.0, 0.0)
    if PUBLISHED:
        u = u / tl.sum(u, axis=0)
    v = u
    kv = u
    for sweep in tl.range(0, iterations):
        ku = _denominator(tl.sum(kernel * u[:, None], axis=0), there, PUBLISHED)
        v = _potential(root_b, ku, PUBLISHED)
        kv = _denominator(tl.sum(kernel * v[None, :], axis=1), there, PUBLISHED)
        u = _potential(root_a, kv, PUBLISHED)
        if WANTED:
            tl.store(kept_ptr + 2 * sweep * CLASSES, ku)
            tl.store(kept_ptr + (2 * sweep + 1) * CLASSES, kv)
    kernel_cost = tl.load(kernel_cost_ptr + pairs)
    row_costs = tl.sum(kernel_cost * v[None, :], axis=1) / kv * root_a * root_a
    tl.store(value_ptr + row, tl.sum(row_costs, axis=0))
    if WANTED:
        to_v = tl.sum(kernel_cost * (root_a / kv * root_a)[:, None], axis=0)
        to_v -= tl.sum(kernel * (row_costs / kv)[:, None], axis=0)
        tl.debug_barrier()  # another thread may have written what one reads
        to_a, to_b = _back(kernel, root_a, root_b, row_costs, to_v, kept_ptr, iterations, CLASSES, PUBLISHED)
        tl.store(to_a_ptr + row * classes + place, to_a, mask=there)
        tl.store(to_b_ptr + row * classes + place, to_b, mask=there)


@triton.jit
def _back(kernel, root_a, root_b, to_a, to_v, kept_ptr, iterations, CLASSES: tl.constexpr, PUBLISHED: tl.constexpr):
    to_b = tl.zeros_like(to_v)
    for step in tl.range(1, iterations):
        ku = tl.load(kept_ptr + 2 * (iterations - step) * CLASSES)
        kv = tl.load(kept_ptr + (2 * (iterations - step) - 1) * CLASSES)
        to_log_v = to_v * _potential(root_b, ku, PUBLISHED)
        to_b += to_log_v
        to_log_u = -tl.sum(kernel * (to_log_v / ku)[None, :], axis=1) * _potential(root_a, kv, PUBLISHED)
        to_a += to_log_u
        to_v = -tl.sum(kernel * (to_log_u / kv)[:, None], axis=0)
    ku = tl.load(kept_ptr)
    return to_a, to_b + to_v * _potential(root_b, ku, PUBLISHED)
