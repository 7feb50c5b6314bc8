"""How GKL's kernels are started: layouts, sizes, and which of their parts a call needs.

The forward pass reads each logit once and leaves nine numbers per row; one or two small kernels make the value of them.
The backward pass reads each logit once more and writes the gradients that are wanted. Nothing waits for the device.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from limbeck.functional._check import Reduction
from limbeck.kernels import gkl_batch, gkl_rows, sizes
from limbeck.kernels.gkl_backward import gradients
from limbeck.kernels.gkl_batch import batch_blocks, batch_value
from limbeck.kernels.gkl_forward import long_rows, short_rows

KINDS = {"gkl": gkl_rows.GKL, "kl": gkl_rows.KL, "soft_cross_entropy": gkl_rows.CROSS_ENTROPY}
NORMALIZERS = {
    "weights": gkl_batch.WEIGHTS,
    "row": gkl_batch.ROW,
    "samples": gkl_batch.SAMPLES,
    "given": gkl_batch.GIVEN,
}
REDUCTIONS = {"none": gkl_batch.NONE, "mean": gkl_batch.MEAN, "sum": gkl_batch.SUM}
ROW_NUMBERS, PART_NUMBERS, BLOCK_NUMBERS, FACTORS = 9, 12, 6, 4


class Options(NamedTuple):
    """What a call computes, as the op's schema has it."""

    divergence: Literal["gkl", "kl", "soft_cross_entropy"]  # the last two ignore prior, power and mse_weight
    power: float
    temperature: float  # of the cross-entropy
    prior_temperature: float  # of sample-wise weights
    mse_weight: float
    ce_weight: float
    symmetric: bool  # whether the weighted MSE reaches the logits
    normalizer: Literal["weights", "row", "samples", "given"]  # "given" by `denominator`
    reduction: Reduction


class Call(NamedTuple):
    """Tensors as the kernels read them, and what is known when they are compiled."""

    s: Tensor
    t: Tensor
    prior: Tensor
    labels: Tensor
    mask: Tensor
    numbers: tuple[float, float, float]  # k, k of the weights, power
    modes: dict[str, Any]
    strides: tuple[int, int, int]
    aligned: dict[str, int]  # what the starts of rows, and the number of classes, are multiples of


def prepare(
    logits: Tensor, target: Tensor, prior: Tensor | None, labels: Tensor | None, mask: Tensor | None, options: Options
) -> Call:
    """Two axes, classes side by side: other layouts are copied."""
    s, t = _rows(logits), _rows(target)
    classes = s.shape[-1]
    if prior is not None and labels is None:
        prior = _rows(prior)
    elif prior is not None and prior.stride(-1) != 1:
        prior = prior.contiguous()
    strides = (s.stride(0), t.stride(0), 0 if prior is None else prior.stride(0))
    k = 1 / (options.temperature * math.log(2))
    k_weight = options.power / (options.prior_temperature * math.log(2))
    return Call(
        s,
        t,
        s if prior is None else prior,
        s if labels is None else labels.reshape(-1).contiguous(),
        s if mask is None else mask.reshape(-1).contiguous().view(torch.uint8),
        (k, k_weight, options.power),
        {
            "MODE": _mode(prior, options),
            "KIND": KINDS[options.divergence],
            "MSE": options.divergence == "gkl" and options.mse_weight != 0,
            "CE": options.ce_weight != 0,
            "LABELS": labels is not None,
            "MASK": mask is not None,
        },
        strides,
        {"ALIGN": math.gcd(16, *strides), "CLASS_ALIGN": math.gcd(16, classes)},
    )


def _rows(x: Tensor) -> Tensor:
    x = x.reshape(-1, x.shape[-1])
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def _mode(prior: Tensor | None, options: Options) -> Any:
    if options.power == 0:
        return gkl_rows.UNIFORM
    if prior is not None:
        return gkl_rows.GIVEN if options.power == 1 else gkl_rows.POWERED
    if options.power == 1 and options.ce_weight != 0 and options.prior_temperature == options.temperature:
        return gkl_rows.SHARED
    return gkl_rows.SAMPLE if options.power == 1 or options.normalizer == "row" else gkl_rows.SAMPLE_POWERED


def forward(
    logits: Tensor,
    target_logits: Tensor,
    prior: Tensor | None,
    labels: Tensor | None,
    mask: Tensor | None,
    denominator: Tensor | None,
    *given: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """The value, nine numbers per row, and the factors of the batch."""
    options = Options(*given)
    call = prepare(logits, target_logits, prior, labels, mask, options)
    value = value_like(logits, options)
    rows, factors = rows_like(logits)
    with sizes.on(logits.device):
        parts, splits = _read_rows(call, rows)
        _sum_rows(call, options, denominator, parts, splits, rows, value, factors)
    if labels is not None and labels.is_cuda:
        torch._assert_async(factors[3])
    return value, rows, factors


def _read_rows(call: Call, rows: Tensor) -> tuple[Tensor, int]:
    s, t, prior, labels, mask, numbers, modes, strides, aligned = call
    samples, classes = s.shape
    if classes <= sizes.SHORT_CLASSES:
        block = sizes.power_of_two(classes)
        each = max(1, sizes.SHORT_PAIRS // block)
        short_rows[(-(-samples // each),)](
            s, t, prior, labels, mask, rows, samples, classes, *strides, *numbers,
            **modes, **aligned, ROWS=each, BLOCK=block, num_warps=1,
        )  # fmt: skip
        return rows, 1
    vector = sizes.VECTOR_BYTES // min(s.element_size(), t.element_size())
    if aligned["ALIGN"] < vector:  # less than a whole vector would mix up which lane reads what
        aligned["ALIGN"] = 1
    tiles = -(-classes // (sizes.LANES * vector))
    splits = sizes.parts_of_row(samples, tiles, s.device)
    parts = rows if splits == 1 else rows.new_empty((PART_NUMBERS, samples, splits))
    long_rows[(samples, splits)](
        s, t, prior, labels, mask, parts, samples, classes, *strides, *numbers, -(-tiles // splits),
        **modes, **aligned, SPLITS=splits, LANES=sizes.LANES, V=vector, num_warps=sizes.LANES // 32,
    )  # fmt: skip
    return parts, splits


def _sum_rows(
    call: Call,
    options: Options,
    denominator: Tensor | None,
    parts: Tensor,
    splits: int,
    rows: Tensor,
    value: Tensor,
    factors: Tensor,
) -> None:
    samples, classes = call.s.shape
    each = sizes.BATCH_ROWS if splits == 1 else sizes.power_of_two(samples)
    blocks = -(-samples // each)
    sums = rows.new_empty((BLOCK_NUMBERS, blocks)) if blocks > 1 else factors
    denominator = factors if denominator is None else denominator
    words = {"NORMALIZER": NORMALIZERS[options.normalizer], "REDUCTION": REDUCTIONS[options.reduction]}
    weights = (options.mse_weight, options.ce_weight)
    batch_blocks[(blocks,)](
        parts, rows, call.labels, call.mask, denominator, sums, value, factors, samples, classes, *call.numbers,
        *weights, **call.modes, **words, SPLITS=splits, ROWS=each, ONE=blocks == 1,
    )  # fmt: skip
    if blocks > 1:
        batch_value[(blocks if options.reduction == "none" else 1,)](
            rows, call.mask, denominator, sums, value, factors, samples, blocks, *weights, **words,
            MASK=call.modes["MASK"], ROWS=each, BLOCK=sizes.BATCH_ROWS,
        )  # fmt: skip


def backward(
    grad: Tensor,
    rows: Tensor,
    factors: Tensor,
    to_logits: bool,
    to_target: bool,
    logits: Tensor,
    target_logits: Tensor,
    prior: Tensor | None,
    labels: Tensor | None,
    mask: Tensor | None,
    denominator: Tensor | None,
    *given: Any,
) -> tuple[Tensor, Tensor]:
    """Gradients of the logits and of the target, each empty where it is not wanted."""
    options = Options(*given)
    call = prepare(logits, target_logits, prior, labels, mask, options)
    first, second = gradients_like(logits, target_logits, to_logits, to_target)
    samples, classes = call.s.shape
    block = sizes.gradient_block(classes)
    each = max(1, sizes.GRADIENT_PAIRS // block)
    grad = grad.reshape(-1)
    modes = call.modes
    modes["MSE"] = modes["MSE"] and (to_target or (to_logits and options.symmetric))
    with sizes.on(logits.device):
        gradients[(-(-samples // each), -(-classes // block))](
            grad, call.s, call.t, call.prior, call.labels, call.mask, rows, factors, first, second,
            samples, classes, *call.strides, grad.stride(0) if options.reduction == "none" else 0, *call.numbers,
            **modes, REACHES=options.symmetric, NORMALIZER=NORMALIZERS[options.normalizer],
            TO_S=to_logits, TO_T=to_target, **call.aligned, ROWS=each, BLOCK=block, num_warps=4,
        )  # fmt: skip
    return first, second


def rows_like(logits: Tensor) -> tuple[Tensor, Tensor]:
    """What the forward pass leaves for the backward pass."""
    samples = logits.numel() // logits.shape[-1]
    return (
        logits.new_empty((ROW_NUMBERS, samples), dtype=torch.float32),
        logits.new_empty(FACTORS, dtype=torch.float32),
    )


def value_like(logits: Tensor, options: Options) -> Tensor:
    """The value, not yet written."""
    shape = logits.shape[:-1] if options.reduction == "none" else ()
    return logits.new_empty(shape, dtype=torch.float32)


def gradients_like(logits: Tensor, target: Tensor, to_logits: bool, to_target: bool) -> tuple[Tensor, Tensor]:
    """Gradients, not yet written; one that nobody wants is empty."""
    return logits.new_empty(logits.shape if to_logits else 0), target.new_empty(target.shape if to_target else 0)
