"""The weights of the classes: which row belongs to a sample, and what is checked about rows, masks and normalisers."""

from __future__ import annotations

import math
import warnings
from contextlib import suppress

import torch
from torch import Tensor

from limbeck.functional._check import check_integer_labels, widest
from limbeck.functional._pairs import Normalizer


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
        if labels.shape != logits.shape:
            raise ValueError(
                f"soft `labels` (floats) expected the shape {tuple(logits.shape)}, got {tuple(labels.shape)}; class "
                "indices are integers: `labels.long()`"
            )
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
