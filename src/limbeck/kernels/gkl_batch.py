"""From rows to the batch: states of the parts of a row become one, rows become block sums, block sums become the value.

Of a block of rows: the largest logarithm of S; with r = (S / its largest)^2, sum r * spread and sum r; the sum of the
cross-entropies; how many samples take part; how many labels are out of range. One program each, nothing is atomic, so
that the same input gives the same bits.
"""

from __future__ import annotations

import triton
import triton.language as tl

from limbeck.kernels.gkl_forward import write
from limbeck.kernels.gkl_rows import LOWEST, merge, summary

# What the weighted MSE is divided by.
WEIGHTS, ROW, SAMPLES, GIVEN = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2), tl.constexpr(3)
NONE, MEAN, SUM = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)


@triton.jit
def relative(u_log, unit, NORMALIZER: tl.constexpr):
    """The factor of a row before the batch's: (S / 2^unit)^2, or 1 where each row is divided by its own."""
    if NORMALIZER == ROW:
        return tl.where(u_log > -float("inf"), 1.0, 0.0)
    return tl.exp2(2.0 * (u_log - unit))


@triton.jit
def sum_block(
    rows_ptr, row, samples, labels_ptr, mask_ptr, classes,
    NORMALIZER: tl.constexpr, LABELS: tl.constexpr, MASK: tl.constexpr,
):  # fmt: skip
    """The sums of one block of rows."""
    live = row < samples
    if MASK:
        live = live & (tl.load(mask_ptr + row, mask=live, other=0) != 0)
    u_log = tl.load(rows_ptr + 6 * samples + row, mask=live, other=-float("inf"))
    spread = tl.load(rows_ptr + 7 * samples + row, mask=live, other=0.0)
    nats = tl.load(rows_ptr + 8 * samples + row, mask=live, other=0.0)
    unit = 0.0
    if NORMALIZER == WEIGHTS:
        unit = tl.maximum(tl.max(u_log, 0), LOWEST)
    share = relative(u_log, unit, NORMALIZER)
    wrong = tl.zeros_like(spread)
    if LABELS:
        label = tl.load(labels_ptr + row, mask=live, other=0)
        wrong = tl.where((label < 0) | (label >= classes), 1.0, 0.0)
    spread = tl.sum(tl.where(share == 0, 0.0, share * spread), 0)
    return unit, spread, tl.sum(share, 0), tl.sum(nats, 0), tl.sum(tl.where(live, 1.0, 0.0), 0), tl.sum(wrong, 0)


@triton.jit
def sum_blocks(blocks_ptr, blocks, BLOCK: tl.constexpr):
    """The sums of all blocks."""
    unit = tl.full((), LOWEST, tl.float32)
    spread = tl.zeros((), tl.float32)
    mass, nats, count, wrong = spread, spread, spread, spread
    for start in range(0, blocks, BLOCK):
        block = start + tl.arange(0, BLOCK)
        inside = block < blocks
        units = tl.load(blocks_ptr + block, mask=inside, other=LOWEST)
        top = tl.maximum(unit, tl.max(units, 0))
        share = tl.where(inside, tl.exp2(2.0 * (units - top)), 0.0)
        scale = tl.exp2(2.0 * (unit - top))
        part = tl.load(blocks_ptr + blocks + block, mask=inside, other=0.0)
        spread = spread * scale + tl.sum(tl.where(share == 0, 0.0, share * part), 0)
        mass = mass * scale + tl.sum(share * tl.load(blocks_ptr + 2 * blocks + block, mask=inside, other=0.0), 0)
        nats += tl.sum(tl.load(blocks_ptr + 3 * blocks + block, mask=inside, other=0.0), 0)
        count += tl.sum(tl.load(blocks_ptr + 4 * blocks + block, mask=inside, other=0.0), 0)
        wrong += tl.sum(tl.load(blocks_ptr + 5 * blocks + block, mask=inside, other=0.0), 0)
        unit = top
    return unit, spread, mass, nats, count, wrong


@triton.jit
def finish(
    sums, rows_ptr, mask_ptr, denominator_ptr, value_ptr, factors_ptr, row, samples, mse_weight, ce_weight,
    NORMALIZER: tl.constexpr, REDUCTION: tl.constexpr, MASK: tl.constexpr,
):  # fmt: skip
    """The value; and the factors of the gradient: unit, factor of the spreads, of the cross-entropies, labels."""
    unit, spread, mass, nats, count, wrong = sums
    count = tl.maximum(count, 1.0)
    share = 1.0 / count if REDUCTION == MEAN else 1.0
    factor = mse_weight * share
    if NORMALIZER == WEIGHTS:
        factor = tl.where(mass == 0, 0.0, factor * count / mass)
    if NORMALIZER == GIVEN:
        factor *= count / tl.load(denominator_ptr).to(tl.float32)
    ce_factor = ce_weight * share
    tl.store(factors_ptr, unit)
    tl.store(factors_ptr + 1, factor)
    tl.store(factors_ptr + 2, ce_factor)
    tl.store(factors_ptr + 3, tl.where(wrong == 0, 1.0, 0.0))
    if REDUCTION != NONE:
        tl.store(value_ptr, tl.where(spread == 0, 0.0, factor * spread) + tl.where(nats == 0, 0.0, ce_factor * nats))
    else:
        exists = row < samples
        live = exists
        if MASK:
            live = live & (tl.load(mask_ptr + row, mask=exists, other=0) != 0)
        u_log = tl.load(rows_ptr + 6 * samples + row, mask=live, other=-float("inf"))
        spreads = tl.load(rows_ptr + 7 * samples + row, mask=live, other=0.0)
        part = relative(u_log, unit, NORMALIZER) * factor
        nats = tl.load(rows_ptr + 8 * samples + row, mask=live, other=0.0)
        value = tl.where(part == 0, 0.0, part * spreads) + tl.where(nats == 0, 0.0, ce_factor * nats)
        tl.store(value_ptr + row, value, mask=exists)


@triton.jit
def join_parts(
    parts_ptr, rows_ptr, row, samples, k, k_weight, power,
    MODE: tl.constexpr, KIND: tl.constexpr, MSE: tl.constexpr, CE: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """Rows whose parts were read by several programs."""
    step = samples * SPLITS
    exists = (row < samples)[:, None]
    at = row[:, None] * SPLITS + tl.arange(0, SPLITS)[None, :]
    state = (
        tl.load(parts_ptr + at, mask=exists, other=0.0),
        tl.load(parts_ptr + step + at, mask=exists, other=1.0),
        tl.load(parts_ptr + 2 * step + at, mask=exists, other=0.0),
        tl.load(parts_ptr + 3 * step + at, mask=exists, other=1.0),
        tl.load(parts_ptr + 4 * step + at, mask=exists, other=0.0),
        tl.load(parts_ptr + 5 * step + at, mask=exists, other=0.0),
        tl.load(parts_ptr + 6 * step + at, mask=exists, other=0.0),
        tl.load(parts_ptr + 7 * step + at, mask=exists, other=0.0),
        tl.load(parts_ptr + 8 * step + at, mask=exists, other=0.0),
        tl.load(parts_ptr + 9 * step + at, mask=exists, other=0.0),
        tl.load(parts_ptr + 10 * step + at, mask=exists, other=0.0),
    )
    ref = tl.load(parts_ptr + 11 * step + row * SPLITS, mask=row < samples, other=0.0)
    one = merge(state, k, k_weight, power, MODE, KIND, MSE, CE)
    write(summary(one, ref, k, power, MODE, KIND, MSE, CE), rows_ptr + row, samples, row < samples)


@triton.jit(do_not_specialize=["samples"])
def batch_blocks(
    parts_ptr, rows_ptr, labels_ptr, mask_ptr, denominator_ptr, blocks_ptr, value_ptr, factors_ptr,
    samples, classes, k, k_weight, power, mse_weight, ce_weight,
    MODE: tl.constexpr, KIND: tl.constexpr, MSE: tl.constexpr, CE: tl.constexpr, NORMALIZER: tl.constexpr,
    REDUCTION: tl.constexpr, LABELS: tl.constexpr, MASK: tl.constexpr, SPLITS: tl.constexpr,
    ROWS: tl.constexpr, ONE: tl.constexpr,
):  # fmt: skip
    """The sums of a block of rows; if there is but one, the value at once."""
    samples = samples.to(tl.int64)
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    if SPLITS > 1:
        join_parts(parts_ptr, rows_ptr, row, samples, k, k_weight, power, MODE, KIND, MSE, CE, SPLITS)
        tl.debug_barrier()  # what was written above is read below by other threads of this program
    sums = sum_block(rows_ptr, row, samples, labels_ptr, mask_ptr, classes, NORMALIZER, LABELS, MASK)
    if ONE:
        finish(
            sums, rows_ptr, mask_ptr, denominator_ptr, value_ptr, factors_ptr, row, samples, mse_weight, ce_weight,
            NORMALIZER, REDUCTION, MASK,
        )  # fmt: skip
    else:
        for i in tl.static_range(6):
            tl.store(blocks_ptr + i * tl.num_programs(0) + tl.program_id(0), sums[i])


@triton.jit(do_not_specialize=["samples", "blocks"])
def batch_value(
    rows_ptr, mask_ptr, denominator_ptr, blocks_ptr, value_ptr, factors_ptr, samples, blocks, mse_weight, ce_weight,
    NORMALIZER: tl.constexpr, REDUCTION: tl.constexpr, MASK: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The value from the sums of all blocks; for "none" each program has its rows, and adds up the blocks once more."""
    samples = samples.to(tl.int64)
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    finish(
        sum_blocks(blocks_ptr, blocks, BLOCK), rows_ptr, mask_ptr, denominator_ptr, value_ptr, factors_ptr,
        row, samples, mse_weight, ce_weight, NORMALIZER, REDUCTION, MASK,
    )  # fmt: skip
