"""The programs of the generalised Jensen-Shannon divergence.

Everything is in bits: x = (logit - largest) log2(e) / T, so that a row's log2 sum 2^x is at least 0. With the mixture
m = beta p_t + (1 - beta) p_s a class adds

    (1 - beta) p_s r_s + beta p_t r_t,   r_s = log2(p_s / m),   r_t = log2(p_t / m)

to the value. Both r depend on g = log2(p_t / p_s) alone, and the sum is m times a function of g that begins with g^2:
near 0 its series keeps the digits that the sum of the two terms loses.
"""

from __future__ import annotations

import triton
import triton.language as tl

from limbeck.kernels.gkl_forward import columns, multiple

LOWEST = tl.constexpr(-3.4028234663852886e38)  # the largest of no classes; finite, so that -inf minus it is -inf
ZERO_BITS = tl.constexpr(-4096.0)  # 2^-4096 is 0, and the difference of two such numbers is finite
SMALL_GAP = tl.constexpr(0.36)  # bits, a quarter of a nat, below which the series is taken
TINY = tl.constexpr(1e-37)
LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _log2_of_1_plus(w):
    """log2(1 + w) for w in [0, 1] within 1e-8 before rounding: least maximal error in degree 9."""
    y = 0.005670455284416676 * w - 0.034416165202856064
    y = y * w + 0.09822547435760498
    y = y * w - 0.18309083580970764
    y = y * w + 0.2679058611392975
    y = y * w - 0.3559516370296478
    y = y * w + 0.4802683889865875
    y = y * w - 0.7213056087493896
    y = y * w + 1.442694067955017
    return y * w


@triton.jit
def _series(g, share, rest):
    """sum_n (n - 1) kappa_n g^n / n! to g^7, in bits, with the cumulants of a coin that falls on `share`."""
    v = share * rest
    u = rest - share
    c2 = v * (LN_2 / 2)
    c3 = v * u * (LN_2 * LN_2 / 3)
    c4 = v * (1 - 6 * v) * (LN_2 * LN_2 * LN_2 / 8)
    c5 = v * u * (1 - 12 * v) * (LN_2 * LN_2 * LN_2 * LN_2 / 30)
    c6 = v * (1 + v * (120 * v - 30)) * (LN_2 * LN_2 * LN_2 * LN_2 * LN_2 / 144)
    c7 = v * u * (1 + v * (360 * v - 60)) * (LN_2 * LN_2 * LN_2 * LN_2 * LN_2 * LN_2 / 840)
    return g * g * (c2 + g * (c3 + g * (c4 + g * (c5 + g * (c6 + g * c7)))))


@triton.jit
def _below(x, largest, scale):
    """x - largest in float32; a class at -inf comes so far below that it has no probability, yet a finite gap."""
    gap = x.to(tl.float32) - largest
    return tl.maximum(gap, ZERO_BITS / scale, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _mixed(s, t, s_log, t_log, scale, log_share, log_rest):
    """(1 - beta) p_s, beta p_t, r_s, r_t and g, of s and t as `_below` gives them."""
    a = s * scale + (log_rest - s_log)
    b = t * scale + (log_share - t_log)
    g = (t - s) * scale + (s_log - t_log)  # not b - a, whose digits are those of the logarithms
    k = g + (log_share - log_rest)
    w = tl.exp2(-tl.abs(k))
    larger = tl.exp2(tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL))
    smaller = larger * w
    log_sum = _log2_of_1_plus(w)
    r_s = tl.minimum(-k, 0.0) - (log_sum + log_rest)
    r_t = tl.minimum(k, 0.0) - (log_sum + log_share)
    return tl.where(k > 0, smaller, larger), tl.where(k > 0, larger, smaller), r_s, r_t, g


@triton.jit
def _class_terms(s, t, s_log, t_log, scale, share, rest, log_share, log_rest):
    """What each class adds to the value, to (1 - beta) E_s[r_s] and to beta E_t[r_t]."""
    p_s, p_t, r_s, r_t, g = _mixed(s, t, s_log, t_log, scale, log_share, log_rest)
    from_s, from_t = p_s * r_s, p_t * r_t
    near = (p_s + p_t) * _series(g, share, rest)
    return tl.where(tl.abs(g) < SMALL_GAP, near, from_s + from_t), from_s, from_t


@triton.jit
def _log2_or_nan(total):
    """A row without any class has no distribution."""
    return tl.where(total > 0, tl.log2(tl.maximum(total, TINY)), float("nan"))


@triton.jit
def _joined(largest, total, scale):
    """The largest and the sum of a row whose pieces know their own."""
    top = tl.max(largest, axis=0)
    return top, tl.sum(total * tl.exp2((largest - top) * scale), axis=0)


@triton.jit
def short_rows(
    s_ptr, t_ptr, stats_ptr, sums_ptr, rows, classes, s_stride, t_stride, scale, share, rest, log_share, log_rest,
    ALIGN: tl.constexpr, ROWS: tl.constexpr, CLASSES: tl.constexpr,
):  # fmt: skip
    """Some whole rows at once: each logit is read once and stays in a register."""
    classes, s_stride, t_stride = multiple(classes, ALIGN), multiple(s_stride, ALIGN), multiple(t_stride, ALIGN)
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, CLASSES)
    there = row < rows
    both = there[:, None] & (column < classes)[None, :]
    s = tl.load(s_ptr + row[:, None] * s_stride + column[None, :], mask=both, other=float("-inf")).to(tl.float32)
    t = tl.load(t_ptr + row[:, None] * t_stride + column[None, :], mask=both, other=float("-inf")).to(tl.float32)
    s_max = tl.maximum(tl.max(s, axis=1), LOWEST)
    t_max = tl.maximum(tl.max(t, axis=1), LOWEST)
    s, t = _below(s, s_max[:, None], scale), _below(t, t_max[:, None], scale)
    s_log = _log2_or_nan(tl.sum(tl.exp2(s * scale), axis=1))
    t_log = _log2_or_nan(tl.sum(tl.exp2(t * scale), axis=1))
    value, from_s, from_t = _class_terms(s, t, s_log[:, None], t_log[:, None], scale, share, rest, log_share, log_rest)
    _keep(stats_ptr, row, rows, s_max, s_log, t_max, t_log, there)
    _keep_sums(sums_ptr, row, rows, tl.sum(value, axis=1), tl.sum(from_s, axis=1), tl.sum(from_t, axis=1), there)


@triton.jit
def _keep(ptr, place, count, s_max, s_log, t_max, t_log, mask):
    ptr += place
    tl.store(ptr, s_max, mask=mask)
    tl.store(ptr + count, s_log, mask=mask)
    tl.store(ptr + count + count, t_max, mask=mask)
    tl.store(ptr + count + count + count, t_log, mask=mask)


@triton.jit
def _keep_sums(ptr, place, count, value, from_s, from_t, mask):
    ptr += place
    tl.store(ptr, value, mask=mask)
    tl.store(ptr + count, from_s, mask=mask)
    tl.store(ptr + count + count, from_t, mask=mask)


@triton.jit
def scale_pieces(
    s_ptr, t_ptr, pieces_ptr, pieces, piece_size, classes, s_stride, t_stride, scale,
    ALIGN: tl.constexpr, LANES: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """The largest logit and the sum of a piece of a row, of both sides: (4, rows * pieces)."""
    classes, s_stride, t_stride = multiple(classes, ALIGN), multiple(s_stride, ALIGN), multiple(t_stride, ALIGN)
    row, piece = tl.program_id(0) // pieces, tl.program_id(0) % pieces
    start = piece * piece_size
    end = tl.minimum(start + piece_size, classes)
    s_ptr += row.to(tl.int64) * s_stride
    t_ptr += row.to(tl.int64) * t_stride
    s_max, s_sum, t_max, t_sum = _scales(s_ptr, t_ptr, start, end, scale, ALIGN, LANES, WIDTH)
    _keep(pieces_ptr, tl.program_id(0), tl.num_programs(0), s_max, s_sum, t_max, t_sum, True)


@triton.jit
def _scales(s_ptr, t_ptr, start, end, scale, ALIGN: tl.constexpr, LANES: tl.constexpr, WIDTH: tl.constexpr):
    """The largest logit and the sum of 2^x: each lane has its own, and reads WIDTH neighbouring classes at a time."""
    place = columns(ALIGN, LANES, WIDTH)
    s_max = tl.full((LANES,), LOWEST, tl.float32)
    t_max = s_max
    s_sum = tl.zeros((LANES,), tl.float32)
    t_sum = s_sum
    for at in tl.range(start, end, LANES * WIDTH):
        s = tl.load(s_ptr + at + place, mask=at + place < end, other=float("-inf")).to(tl.float32)
        t = tl.load(t_ptr + at + place, mask=at + place < end, other=float("-inf")).to(tl.float32)
        s_max, s_sum = _with_more(s_max, s_sum, s, scale)
        t_max, t_sum = _with_more(t_max, t_sum, t, scale)
    s_max, s_sum = _joined(s_max, s_sum, scale)
    t_max, t_sum = _joined(t_max, t_sum, scale)
    return s_max, s_sum, t_max, t_sum


@triton.jit
def _with_more(largest, total, x, scale):
    top = tl.maximum(largest, tl.max(x, axis=1))
    more = tl.sum(tl.exp2((x - top[:, None]) * scale), axis=1)
    return top, total * tl.exp2((largest - top) * scale) + more


@triton.jit
def long_rows(
    s_ptr, t_ptr, stats_ptr, sums_ptr, pieces_ptr, pieces, piece_size, classes, s_stride, t_stride,
    scale, share, rest, log_share, log_rest,
    ALIGN: tl.constexpr, LANES: tl.constexpr, WIDTH: tl.constexpr, PIECES: tl.constexpr,
):  # fmt: skip
    """A piece of a row: with one piece, a first pass finds its scale; with more, `scale_pieces` has found them."""
    classes, s_stride, t_stride = multiple(classes, ALIGN), multiple(s_stride, ALIGN), multiple(t_stride, ALIGN)
    programs = tl.num_programs(0)
    row, piece = tl.program_id(0) // pieces, tl.program_id(0) % pieces
    rows = programs // pieces
    start = piece * piece_size
    end = tl.minimum(start + piece_size, classes)
    s_ptr += row.to(tl.int64) * s_stride
    t_ptr += row.to(tl.int64) * t_stride
    if PIECES == 1:
        s_max, s_sum, t_max, t_sum = _scales(s_ptr, t_ptr, start, end, scale, ALIGN, LANES, WIDTH)
    else:
        each = tl.arange(0, PIECES)
        pieces_ptr += row * pieces + each
        there = each < pieces
        s_max, s_sum = _piece(pieces_ptr, programs, there, scale)
        t_max, t_sum = _piece(pieces_ptr + programs + programs, programs, there, scale)
    s_log, t_log = _log2_or_nan(s_sum), _log2_or_nan(t_sum)
    value, from_s, from_t = _sums(
        s_ptr, t_ptr, start, end, s_max, t_max, s_log, t_log, scale, share, rest, log_share, log_rest,
        ALIGN, LANES, WIDTH,
    )  # fmt: skip
    _keep(stats_ptr, row, rows, s_max, s_log, t_max, t_log, piece == 0)
    _keep_sums(sums_ptr, tl.program_id(0), programs, value, from_s, from_t, True)


@triton.jit
def _piece(ptr, count, there, scale):
    return _joined(tl.load(ptr, mask=there, other=LOWEST), tl.load(ptr + count, mask=there, other=0.0), scale)


@triton.jit
def _sums(
    s_ptr, t_ptr, start, end, s_max, t_max, s_log, t_log, scale, share, rest, log_share, log_rest,
    ALIGN: tl.constexpr, LANES: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """The second pass."""
    place = columns(ALIGN, LANES, WIDTH)
    value = tl.zeros((LANES,), tl.float32)
    from_s = value
    from_t = value
    for at in tl.range(start, end, LANES * WIDTH):
        s = _below(tl.load(s_ptr + at + place, mask=at + place < end, other=float("-inf")), s_max, scale)
        t = _below(tl.load(t_ptr + at + place, mask=at + place < end, other=float("-inf")), t_max, scale)
        added, more_s, more_t = _class_terms(s, t, s_log, t_log, scale, share, rest, log_share, log_rest)
        value += tl.sum(added, axis=1)
        from_s += tl.sum(more_s, axis=1)
        from_t += tl.sum(more_t, axis=1)
    return tl.sum(value, axis=0), tl.sum(from_s, axis=0), tl.sum(from_t, axis=0)


@triton.jit
def finish_rows(
    sums_ptr, stats_ptr, values_ptr, totals_ptr, rows, pieces, share, rest, factor,
    ROWS: tl.constexpr, PIECES: tl.constexpr, REDUCED: tl.constexpr,
):  # fmt: skip
    """Add up the pieces of some rows: their E_s[r_s] and E_t[r_t], and their values or the sum of these."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    each = tl.arange(0, PIECES)
    there = row < rows
    both = there[:, None] & (each < pieces)[None, :]
    sums_ptr += row[:, None] * pieces + each[None, :]
    count = rows * pieces
    value = tl.sum(tl.load(sums_ptr, mask=both, other=0.0), axis=1) * factor
    from_s = tl.sum(tl.load(sums_ptr + count, mask=both, other=0.0), axis=1)
    from_t = tl.sum(tl.load(sums_ptr + count + count, mask=both, other=0.0), axis=1)
    stats_ptr += row
    tl.store(stats_ptr + rows + rows + rows + rows, from_s / tl.maximum(rest, TINY), mask=there)
    tl.store(stats_ptr + rows + rows + rows + rows + rows, from_t / tl.maximum(share, TINY), mask=there)
    if REDUCED:
        tl.store(totals_ptr + tl.program_id(0), tl.sum(tl.where(there, value, 0.0), axis=0))
    else:
        tl.store(values_ptr + row, value, mask=there)


@triton.jit
def add_totals(totals_ptr, value_ptr, count, SIZE: tl.constexpr):
    """One sum, in an order that does not depend on the machine."""
    place = tl.arange(0, SIZE)
    total = tl.zeros((SIZE,), tl.float32)
    for at in tl.range(0, count, SIZE):
        total += tl.load(totals_ptr + at + place, mask=at + place < count, other=0.0)
    tl.store(value_ptr, tl.sum(total, axis=0))


@triton.jit
def row_gradients(
    grad_ptr, s_ptr, t_ptr, stats_ptr, to_s_ptr, to_t_ptr,
    rows, classes, blocks, grad_stride, s_stride, t_stride, scale, log_share, log_rest, factor,
    ALIGN: tl.constexpr, ROWS: tl.constexpr, CLASSES: tl.constexpr, TO_S: tl.constexpr, TO_T: tl.constexpr,
):  # fmt: skip
    """(1 - beta) p_s (r_s - E_s[r_s]) and beta p_t (r_t - E_t[r_t]), each logit read once."""
    classes, s_stride, t_stride = multiple(classes, ALIGN), multiple(s_stride, ALIGN), multiple(t_stride, ALIGN)
    row = (tl.program_id(0) // blocks).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = (tl.program_id(0) % blocks) * CLASSES + tl.arange(0, CLASSES)[None, :]
    there = row < rows
    s_max = tl.load(stats_ptr + row, mask=there, other=0.0)[:, None]
    s_log = tl.load(stats_ptr + rows + row, mask=there, other=0.0)[:, None]
    stats_ptr += rows + row
    t_max = tl.load(stats_ptr + rows, mask=there, other=0.0)[:, None]
    t_log = tl.load(stats_ptr + rows + rows, mask=there, other=0.0)[:, None]
    stats_ptr += rows
    grad = tl.load(grad_ptr + row * grad_stride, mask=there, other=0.0).to(tl.float32)[:, None] * factor
    both = there[:, None] & (column < classes)
    row = row[:, None]
    s = _below(tl.load(s_ptr + row * s_stride + column, mask=both, other=float("-inf")), s_max, scale)
    t = _below(tl.load(t_ptr + row * t_stride + column, mask=both, other=float("-inf")), t_max, scale)
    p_s, p_t, r_s, r_t, _ = _mixed(s, t, s_log, t_log, scale, log_share, log_rest)
    if TO_S:
        mean = tl.load(stats_ptr + rows + rows, mask=there, other=0.0)[:, None]
        tl.store(to_s_ptr + row * classes + column, grad * (p_s * (r_s - mean)), mask=both)
    if TO_T:
        mean = tl.load(stats_ptr + rows + rows + rows, mask=there, other=0.0)[:, None]
        tl.store(to_t_ptr + row * classes + column, grad * (p_t * (r_t - mean)), mask=both)
