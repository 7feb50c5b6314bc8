"""One pass over the logits, and what each row leaves: rows that fit into registers, or lanes along a long one."""

from __future__ import annotations

import triton
import triton.language as tl

from limbeck.kernels.gkl_rows import APART, GIVEN, POWERED, absorb, merge, nothing, summary


@triton.jit
def multiple(x, ALIGN: tl.constexpr):
    """The same number, which the compiler now knows to be a multiple: without that it loads one entry at a time."""
    return x // ALIGN * ALIGN


@triton.jit
def columns(ALIGN: tl.constexpr, LANES: tl.constexpr, V: tl.constexpr):
    """A lane reads neighbours where they can be loaded as one vector; otherwise the lanes of a warp are neighbours."""
    lane, entry = tl.arange(0, LANES)[:, None], tl.arange(0, V)[None, :]
    return lane * V + entry if ALIGN >= V else entry * LANES + lane


@triton.jit
def weight_row(row, labels_ptr, inside, classes, LABELS: tl.constexpr):
    """Which row of the weights a sample has. A label out of range reads the nearest row and is reported later."""
    if LABELS:
        label = tl.load(labels_ptr + row, mask=inside, other=0).to(tl.int64)
        row = tl.minimum(tl.maximum(label, 0), classes - 1)
    return row


@triton.jit
def tile(s_at, t_at, w_at, inside, MODE: tl.constexpr, MSE: tl.constexpr):
    """Both logits, and weights where they are read; what is not inside is a class that neither side has."""
    absent = None if inside is None else -float("inf")
    s = tl.load(s_at, mask=inside, other=absent).to(tl.float32)
    t = tl.load(t_at, mask=inside, other=absent).to(tl.float32)
    raw = s
    if MSE and (MODE == GIVEN or MODE == POWERED):
        raw = tl.load(w_at, mask=inside, other=None if inside is None else 0.0).to(tl.float32)
    return s, t, raw


@triton.jit
def first_gap(s_at, t_at, live):
    """A gap of the row's own to count from, so that logits which differ by a constant have a gap of exactly 0."""
    gap = tl.load(s_at, mask=live, other=0.0).to(tl.float32) - tl.load(t_at, mask=live, other=0.0).to(tl.float32)
    return tl.where(tl.abs(gap) < APART, gap, 0.0)


@triton.jit
def write(entries, ptr, step, inside):
    """Each entry into an array of its own, `step` apart."""
    for i in tl.static_range(len(entries)):
        tl.store(ptr + i * step, entries[i], mask=inside)


@triton.jit(do_not_specialize=["samples"])
def short_rows(
    s_ptr, t_ptr, w_ptr, labels_ptr, mask_ptr, rows_ptr, samples, classes, s_stride, t_stride, w_stride,
    k, k_weight, power,
    MODE: tl.constexpr, KIND: tl.constexpr, MSE: tl.constexpr, CE: tl.constexpr,
    LABELS: tl.constexpr, MASK: tl.constexpr, ALIGN: tl.constexpr, CLASS_ALIGN: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Several whole rows at once."""
    samples = samples.to(tl.int64)  # times the numbers of a row it may pass 2^31
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    exists = row < samples
    live = exists
    if MASK:
        live = exists & (tl.load(mask_ptr + row, mask=exists, other=0) != 0)
    column = tl.arange(0, BLOCK)[None, :]
    inside = live[:, None] & (column < multiple(classes, CLASS_ALIGN))
    s_start, t_start = row * multiple(s_stride, ALIGN), row * multiple(t_stride, ALIGN)
    w_start = weight_row(row, labels_ptr, live, classes, LABELS) * multiple(w_stride, ALIGN)
    s_at, t_at, w_at = (
        s_ptr + s_start[:, None] + column,
        t_ptr + t_start[:, None] + column,
        w_ptr + w_start[:, None] + column,
    )
    s, t, raw = tile(s_at, t_at, w_at, inside, MODE, MSE)
    ref = first_gap(s_ptr + s_start, t_ptr + t_start, live)
    state = absorb(nothing(ROWS, MODE), s, t, raw, ref, k, k_weight, power, MODE, KIND, MSE, CE)
    write(summary(state, ref, k, power, MODE, KIND, MSE, CE), rows_ptr + row, samples, exists)


@triton.jit(do_not_specialize=["samples"])
def long_rows(
    s_ptr, t_ptr, w_ptr, labels_ptr, mask_ptr, rows_ptr, samples, classes, s_stride, t_stride, w_stride,
    k, k_weight, power, tiles_each,
    MODE: tl.constexpr, KIND: tl.constexpr, MSE: tl.constexpr, CE: tl.constexpr,
    LABELS: tl.constexpr, MASK: tl.constexpr, ALIGN: tl.constexpr, CLASS_ALIGN: tl.constexpr,
    SPLITS: tl.constexpr, LANES: tl.constexpr, V: tl.constexpr,
):  # fmt: skip
    """A part of one row: whole tiles first, then what is left over."""
    TILE: tl.constexpr = LANES * V
    row, split = tl.program_id(0).to(tl.int64), tl.program_id(1)
    samples = samples.to(tl.int64)
    classes = multiple(classes, CLASS_ALIGN)
    s_row = s_ptr + row * multiple(s_stride, ALIGN)
    t_row = t_ptr + row * multiple(t_stride, ALIGN)
    w_row = w_ptr
    if MSE and (MODE == GIVEN or MODE == POWERED):
        w_row += weight_row(row, labels_ptr, True, classes, LABELS) * multiple(w_stride, ALIGN)
    begin = split * tiles_each * TILE
    end = tl.minimum(begin + tiles_each * TILE, classes)
    live = True
    if MASK:
        live = tl.load(mask_ptr + row) != 0
        end = tl.where(live, end, begin)
    whole = begin + tl.maximum(end - begin, 0) // (2 * TILE) * (2 * TILE)
    ref = first_gap(s_row, t_row, live)
    refs = tl.zeros((LANES,), tl.float32) + ref
    column = columns(ALIGN, LANES, V)
    state = nothing(LANES, MODE)
    for start in tl.range(begin, whole, 2 * TILE):
        at = start + column
        s, t, raw = tile(s_row + at, t_row + at, w_row + at, None, MODE, MSE)
        at += TILE
        s_next, t_next, raw_next = tile(s_row + at, t_row + at, w_row + at, None, MODE, MSE)
        s, t, raw = side_by_side(s, s_next), side_by_side(t, t_next), side_by_side(raw, raw_next)
        state = absorb(state, s, t, raw, refs, k, k_weight, power, MODE, KIND, MSE, CE)
    for start in tl.range(whole, end, TILE):
        at = start + column
        s, t, raw = tile(s_row + at, t_row + at, w_row + at, at < end, MODE, MSE)
        state = absorb(state, s, t, raw, refs, k, k_weight, power, MODE, KIND, MSE, CE)
    pieces = lanes_side_by_side(state)
    one = merge(pieces, k, k_weight, power, MODE, KIND, MSE, CE)
    ref = tl.zeros((1,), tl.float32) + ref
    here = tl.arange(0, 1)
    if SPLITS == 1:
        write(summary(one, ref, k, power, MODE, KIND, MSE, CE), rows_ptr + row + here, samples, here == 0)
    else:
        write(one, rows_ptr + row * SPLITS + split + here, samples * SPLITS, here == 0)
        tl.store(rows_ptr + 11 * samples * SPLITS + row * SPLITS + split + here, ref)


@triton.jit
def side_by_side(first, second):
    """Two tiles as one, each lane's entries still in the lane: what is done once per step is done half as often."""
    return tl.reshape(tl.join(first, second), (first.shape[0], 2 * first.shape[1]))


@triton.jit
def lanes_side_by_side(state):
    """(LANES,) as (1, LANES)."""
    a, b, c, d, e, f, g, h, i, j, m = state
    return (
        a[None, :], b[None, :], c[None, :], d[None, :], e[None, :], f[None, :],
        g[None, :], h[None, :], i[None, :], j[None, :], m[None, :],
    )  # fmt: skip
