"""The gradients, one pass over the logits: everything that a row has in common is read, not computed again."""

from __future__ import annotations

import triton
import triton.language as tl

from limbeck.kernels.gkl_batch import relative
from limbeck.kernels.gkl_forward import multiple, weight_row
from limbeck.kernels.gkl_rows import APART, GIVEN, GKL, KL, LOG_2, POWERED, SHARED, UNIFORM


@triton.jit
def normalised_weights(raw, s, t, p, t_top, w_log, k_weight, power, MODE: tl.constexpr):
    """Weights of a row, of sum 1."""
    if MODE == SHARED:
        w = p
    elif MODE == POWERED:
        w = tl.exp2(power * tl.log2(raw) - w_log[:, None])
    elif MODE == GIVEN:
        w = raw * tl.exp2(-w_log)[:, None]
    elif MODE == UNIFORM:
        w = tl.zeros_like(s) + tl.exp2(-w_log)[:, None]
    else:
        w = tl.exp2((t - t_top[:, None]) * k_weight - w_log[:, None])
    if (MODE == POWERED or MODE == GIVEN) or MODE == UNIFORM:  # the target's own weights are 0 where it has no class
        w = tl.where(tl.maximum(s, t) > -float("inf"), w, 0.0)
    return w


@triton.jit(do_not_specialize=["samples"])
def gradients(
    grad_ptr, s_ptr, t_ptr, w_ptr, labels_ptr, mask_ptr, rows_ptr, factors_ptr, to_s_ptr, to_t_ptr,
    samples, classes, s_stride, t_stride, w_stride, grad_stride, k, k_weight, power,
    MODE: tl.constexpr, KIND: tl.constexpr, MSE: tl.constexpr, CE: tl.constexpr, REACHES: tl.constexpr,
    NORMALIZER: tl.constexpr, LABELS: tl.constexpr, MASK: tl.constexpr, TO_S: tl.constexpr, TO_T: tl.constexpr,
    ALIGN: tl.constexpr, CLASS_ALIGN: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Some classes of some rows."""
    samples = samples.to(tl.int64)
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    exists = row < samples
    live = exists
    if MASK:
        live = exists & (tl.load(mask_ptr + row, mask=exists, other=0) != 0)
    classes = multiple(classes, CLASS_ALIGN)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[None, :]
    inside = live[:, None] & (column < classes)
    s_start, t_start = row * multiple(s_stride, ALIGN), row * multiple(t_stride, ALIGN)
    s = tl.load(s_ptr + s_start[:, None] + column, mask=inside, other=0.0).to(tl.float32)
    t = tl.load(t_ptr + t_start[:, None] + column, mask=inside, other=0.0).to(tl.float32)
    raw = s
    if MSE and (MODE == GIVEN or MODE == POWERED):
        w_start = weight_row(row, labels_ptr, live, classes, LABELS) * multiple(w_stride, ALIGN)
        raw = tl.load(w_ptr + w_start[:, None] + column, mask=inside, other=0.0).to(tl.float32)
    s_top, s_log = row_numbers(rows_ptr, row, samples, exists, 0), row_numbers(rows_ptr, row, samples, exists, 1)
    t_top, t_log = row_numbers(rows_ptr, row, samples, exists, 2), row_numbers(rows_ptr, row, samples, exists, 3)
    mean, w_log = row_numbers(rows_ptr, row, samples, exists, 4), row_numbers(rows_ptr, row, samples, exists, 5)
    w_log = tl.where(w_log > -float("inf"), w_log, 0.0)  # weights that are all 0 remain so
    grad = tl.load(grad_ptr + row * grad_stride, mask=exists, other=0.0).to(tl.float32)
    to_s, to_t = tl.zeros_like(s), tl.zeros_like(s)
    p = t
    x = s - t
    ce_factor = grad * tl.load(factors_ptr + 2) * k * LOG_2
    if CE or MODE == SHARED:
        p_exponent = (t - t_top[:, None]) * k
        p = tl.exp2(p_exponent - t_log[:, None])
    if CE:
        q_exponent = (s - s_top[:, None]) * k
        to_s = ce_factor[:, None] * (tl.exp2(q_exponent - s_log[:, None]) - p)
        if KIND != GKL:
            x = q_exponent - p_exponent if KIND == KL else q_exponent
    x = tl.where(tl.abs(x) < APART, x - mean[:, None], 0.0)
    if MSE:
        u_log = row_numbers(rows_ptr, row, samples, exists, 6)
        factor = grad * relative(u_log, tl.load(factors_ptr), NORMALIZER) * tl.load(factors_ptr + 1)
        w = normalised_weights(raw, s, t, p, t_top, w_log, k_weight, power, MODE)
        moved = factor[:, None] * (w * x)
        to_t = -moved
        if REACHES:
            to_s += moved
    elif KIND != GKL:
        to_t = -(ce_factor * LOG_2)[:, None] * (p * x)
    out = row[:, None] * classes + column
    written = exists[:, None] & (column < classes)
    if TO_S:
        tl.store(to_s_ptr + out, tl.where(live[:, None], to_s, 0.0).to(to_s_ptr.dtype.element_ty), mask=written)
    if TO_T:
        tl.store(to_t_ptr + out, tl.where(live[:, None], to_t, 0.0).to(to_t_ptr.dtype.element_ty), mask=written)


@triton.jit
def row_numbers(rows_ptr, row, samples, exists, which: tl.constexpr):
    """One of the numbers that `summary` left of each row."""
    return tl.load(rows_ptr + which * samples + row, mask=exists, other=0.0)
