"""The weights of the classes: which row belongs to a sample, and what is checked about rows, masks and normalisers."""

from __future__ import annotations

import math
import warnings
from contextlib import suppress

import torch
from torch import Tensor

from limbeck.functional._check import check_integer_labels, widest
from limbeck.functional._terms import Normalizer, Weights

LOG2_E = 1 / math.log(2)


def without_left_out(labels: Tensor | None, mask: Tensor | None) -> Tensor | None:
    """Labels of samples that are left out may be anything, -100 too."""
    if labels is None or mask is None or labels.shape[: mask.dim()] != mask.shape:
        return labels
    return labels.masked_fill(~(mask.unsqueeze(-1) if labels.is_floating_point() else mask), 0)


def class_rows(prior: Tensor, labels: Tensor | None, logits: Tensor) -> Tensor:
    """One un-powered row per sample."""
    if labels is None:
        check_rows("prior", prior, logits)
        return prior
    classes = logits.shape[-1]
    _check_tensors(prior=prior, labels=labels)
    check_table(prior, classes)
    if labels.is_floating_point():
        _check_soft_labels(labels, logits)
        dtype = widest(prior, labels)
        return labels.detach().to(dtype) @ prior.detach().to(dtype)
    samples = logits.shape[:-1]
    if (
        labels.dtype == torch.int64
        and labels.shape == samples
        and len(samples) == 1
        and not torch.compiler.is_compiling()
    ):
        with suppress(IndexError):  # on a CPU the read checks the range by itself; what is wrong is said below
            return prior.detach().index_select(0, labels)
    check_integer_labels(labels, samples, classes)
    return prior.detach().index_select(0, labels.reshape(-1).long()).view(logits.shape)


def powered(rows: Tensor, power: float, *, fresh: bool) -> Tensor:
    """rows ** power, in place where the rows are a copy of our own."""
    if not power >= 0:
        raise ValueError(f"`weight_power` expected a number of at least 0, got {power}")
    if power == 1:
        return rows
    rows = rows.detach().to(widest(rows))
    if power != 0 and torch.compiler.is_compiling():  # the compiler's pow() is several times slower
        return torch.exp2(power * torch.log2(rows))
    return rows.pow_(power) if fresh else rows.pow(power)


def may_underflow(rows: Tensor, power: float) -> bool:
    """Whether the square of a sum of powers may leave the dtype: a row of probabilities has an entry of 1/C at least.

    It is told from the sizes alone, since a look at the values would wait for the device.
    """
    return power * math.log(rows.shape[-1]) > -0.4 * math.log(torch.finfo(widest(rows)).tiny)


def without_common_factor(rows: Tensor, power: float, normalizer: Normalizer | Tensor, mask: Tensor | None) -> Tensor:
    """The rows over their largest entry, where their powers may underflow and the normaliser cancels the factor.

    "row" cancels a factor of each row, "weights" one of all rows that take part; the others cancel none.
    """
    if isinstance(normalizer, Tensor) or normalizer == "samples" or not may_underflow(rows, power):
        return rows
    rows = rows.detach().to(widest(rows))
    if mask is not None:
        rows = rows.masked_fill(~mask.unsqueeze(-1), 0.0)
    largest = rows.amax(-1, keepdim=True) if normalizer == "row" else rows.amax()
    return rows / largest.clamp_min(torch.finfo(rows.dtype).tiny)


def _check_tensors(**given: object) -> None:
    for name, value in given.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"`{name}` expected a tensor, got {type(value).__name__}")


def _check_soft_labels(labels: Tensor, logits: Tensor) -> None:
    if labels.shape != logits.shape:
        raise ValueError(
            f"soft `labels` (floats) expected the shape {tuple(logits.shape)}, got {tuple(labels.shape)}; class "
            "indices are integers: `labels.long()`"
        )


def check_table(prior: Tensor, classes: int) -> None:
    """A (C, C) tensor."""
    _check_tensors(prior=prior)
    if prior.shape != (classes, classes):
        raise ValueError(
            f"`prior` expected the (C, C) table {(classes, classes)} that `labels` read, got {tuple(prior.shape)}; "
            "without `labels` it is one row per sample"
        )


def check_rows(name: str, rows: Tensor, logits: Tensor) -> None:
    """A tensor of the logits' shape."""
    _check_tensors(**{name: rows})
    if rows.shape != logits.shape:
        raise ValueError(f"`{name}` expected one row per sample, shape {tuple(logits.shape)}, got {tuple(rows.shape)}")


def check_normalizer(normalizer: Normalizer | Tensor, weight_power: float) -> None:
    """A known word or a 0-d tensor; warn where the choice scales the loss with the number of classes."""
    if isinstance(normalizer, Tensor):
        if normalizer.dim() != 0:
            raise ValueError(f"`normalizer` expected a word or a 0-d tensor, got shape {tuple(normalizer.shape)}")
    elif normalizer not in ("weights", "row", "samples"):
        raise ValueError(f"`normalizer` expected 'weights', 'row', 'samples' or a 0-d tensor, got {normalizer!r}")
    elif normalizer == "samples" and weight_power != 1:
        warnings.warn(
            f"`normalizer='samples'` with `weight_power={weight_power}` scales the weighted MSE by up to C squared; "
            "use 'weights' or 'row'",
            UserWarning,
            stacklevel=4,
        )


def check_mask(mask: Tensor | None, logits: Tensor) -> None:
    """Bool, one entry per sample."""
    if mask is None:
        return
    if mask.dtype != torch.bool:
        raise TypeError(f"`mask` expected bool, True where the sample takes part, got {mask.dtype}")
    if mask.shape != logits.shape[:-1]:
        raise ValueError(f"`mask` expected the shape {tuple(logits.shape[:-1])}, got {tuple(mask.shape)}")


def sample_rows(target_logits: Tensor, power: float, temperature: float | Tensor) -> tuple[Tensor, float]:
    """Return softmaxes of the target, detached, and the power still to be applied to them."""
    scores = target_logits.detach().to(widest(target_logits)) / temperature
    if power in (0, 1) or may_underflow(scores, power):
        return torch.softmax(scores, -1), power
    return torch.log_softmax(scores, -1).mul_(power).exp_(), 1.0  # pow() is three times slower


def weight_rows(
    weights: Weights, logits: Tensor, target_logits: Tensor, mask: Tensor | None, normalizer: Normalizer | Tensor
) -> Tensor:
    """The weights as (*, C), read and powered."""
    prior, labels, power, temperature = weights
    if prior is None:
        rows, power = sample_rows(target_logits, power, temperature)
    else:
        rows = class_rows(prior, labels, logits)
    rows = without_common_factor(rows, power, normalizer, mask)
    return powered(rows, power, fresh=prior is None or labels is not None)


# --- rows of a block, in a buffer -------------------------------------------------------------------------


def checked_weights(weights: Weights, logits: Tensor) -> Weights:
    """The weights of logits (*, C) for the same in (N, C)."""
    prior, labels, power, temperature = weights
    if not power >= 0:
        raise ValueError(f"`weight_power` expected a number of at least 0, got {power}")
    if prior is None:
        return weights
    if labels is None:
        check_rows("prior", prior, logits)
        return Weights(prior.reshape(-1, logits.shape[-1]), None, power, temperature)
    _check_tensors(prior=prior, labels=labels)
    check_table(prior, logits.shape[-1])
    if labels.is_floating_point():
        _check_soft_labels(labels, logits)
        return Weights(prior, labels.reshape(-1, logits.shape[-1]), power, temperature)
    if labels.dtype != torch.int64 or labels.shape != logits.shape[:-1]:
        check_integer_labels(labels, logits.shape[:-1], logits.shape[-1])
        labels = labels.long()
    return Weights(prior, labels.reshape(-1), power, temperature)


def can_fill(weights: Weights, logits: Tensor, dtype: torch.dtype) -> bool:
    """Whether `fill_rows` serves these weights: softmaxes of the target or rows read by label, powers in range."""
    prior, labels, power, _ = weights
    if prior is None:
        return power != 0 and not (power != 1 and may_underflow(logits, power))
    if labels is None or labels.is_floating_point() or prior.dtype != dtype:
        return False
    return power == 1 or not may_underflow(prior, power)


def fill_rows(out: Tensor, weights: Weights, target_logits: Tensor, start: int) -> Tensor:
    """Write the rows from `start` on into `out`; return their sums, (rows, 1)."""
    prior, labels, power, temperature = weights
    if prior is not None and labels is not None:
        part = labels if len(labels) == len(out) else labels[start : start + len(out)]
        try:  # on a CPU the read checks the range by itself
            torch.index_select(prior, 0, part, out=out)
        except IndexError:
            check_integer_labels(labels, labels.shape, len(prior))
            raise
        return (out if power == 1 else out.pow_(power)).sum(-1, True)
    scores, scale = target_logits.to(out.dtype), LOG2_E / float(temperature)
    shift = scores.amax(-1, True).mul_(-scale)
    total = _exponents(scores, shift, scale, out).exp2_().sum(-1, True)
    if power == 1:
        out.mul_(total.reciprocal())
        return torch.ones_like(total)
    # pow() is slower than a second exp2(). The sum joins exponents that begin at 0: beside large logits it would round.
    exponents = _exponents(scores, shift, scale, out)
    return torch.add(total.log2_().mul_(-power), exponents, alpha=power, out=out).exp2_().sum(-1, True)


def _exponents(logits: Tensor, shift: Tensor, scale: float, out: Tensor) -> Tensor:
    """Of base 2: scale * logits + shift, rounded once."""
    return torch.add(shift, logits, alpha=scale, out=out)
