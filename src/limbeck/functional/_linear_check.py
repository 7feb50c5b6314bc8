"""What linear losses check about their arguments, and how these become two sides, a mask, weights and a value."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from limbeck.functional._check import (
    Reduction,
    check_integer_labels,
    check_label_shape,
    check_positive,
    check_range,
    check_reduction,
    widest,
)
from limbeck.functional._linear_terms import Divergence, Weighting
from limbeck.functional._linear_tiles import Plan, Side, default_tile, linear_divergence

TABLE_BYTES = 2**30  # a (C, C) table of 16 384 classes in float32


class Given(NamedTuple):
    """Checked arguments: hidden states flat (N, D), who takes part (N,), and the shape that "none" gives."""

    student: Side
    target: Side
    labels: Tensor | None
    mask: Tensor | None
    shape: torch.Size
    tile: tuple[int, int]
    dtype: torch.dtype

    @property
    def careful(self) -> bool:
        """Whether a class may be excluded: a bias alone makes logits infinite, and a device is not waited for."""
        given = [side.bias for side in (self.student, self.target) if side.bias is not None]
        return any(bias.device.type != "cpu" or bool(torch.isneginf(bias).any()) for bias in given)


def check_given(
    student: tuple[Tensor, Tensor, Tensor | None, float | Tensor, float | None],
    target: tuple[Tensor, Tensor, Tensor | None, float | Tensor, float | None],
    labels: Tensor | None,
    mask: Tensor | None,
    ignore_index: int,
    tile: tuple[int, int] | None,
) -> Given:
    """Check what all linear losses take: hidden, head, bias, scale and cap of each side, and what is left out."""
    sides = [check_side(fields, prefix) for fields, prefix in ((student, ""), (target, "target_"))]
    hidden, target_hidden = student[0], target[0]
    samples = hidden.shape[:-1]
    if samples != target_hidden.shape[:-1]:
        raise ValueError(
            f"`hidden` and `target_hidden` expected the same tokens (*), got {tuple(samples)} and "
            f"{tuple(target_hidden.shape[:-1])}; nothing is broadcast"
        )
    if len(student[1]) != len(target[1]):
        raise ValueError(
            f"`head` and `target_head` expected the same classes, got {len(student[1])} and {len(target[1])}; cut both "
            "to the classes that they share"
        )
    labels, mask = check_tokens(labels, mask, samples, len(student[1]), ignore_index)
    dtype = widest(*(x for side in sides for x in side[:4] if isinstance(x, Tensor)))
    return Given(
        sides[0], sides[1], labels, mask, samples, default_tile(hidden) if tile is None else check_tile(tile), dtype
    )


def check_side(fields: tuple[Tensor, Tensor, Tensor | None, float | Tensor, float | None], prefix: str) -> Side:
    """Check one side; its hidden states become (N, D)."""
    if torch._C._are_functorch_transforms_active():
        raise RuntimeError(
            "linear losses expected no torch.func transform around them; the functions of logits take any"
        )
    hidden, head, bias, scale, softcap = fields
    for name, x in (("hidden", hidden), ("head", head), ("bias", bias)):
        if name == "bias" and x is None:
            continue
        if not isinstance(x, Tensor):
            raise TypeError(f"`{prefix}{name}` expected a tensor, got {type(x).__name__}")
        if not x.is_floating_point():
            raise TypeError(f"`{prefix}{name}` expected a floating dtype, got {x.dtype}; convert it with `.float()`")
    if head.dim() != 2 or head.numel() == 0:
        raise ValueError(f"`{prefix}head` expected a non-empty shape (C, D), got {tuple(head.shape)}")
    if hidden.dim() == 0 or hidden.numel() == 0:
        raise ValueError(f"`{prefix}hidden` expected a non-empty shape (*, D), got {tuple(hidden.shape)}")
    if hidden.shape[-1] != head.shape[1]:
        raise ValueError(
            f"`{prefix}hidden` expected the width {head.shape[1]} of `{prefix}head`, got {hidden.shape[-1]}; a head is "
            "(C, D), as `nn.Linear.weight`"
        )
    if bias is not None and bias.shape != head.shape[:1]:
        raise ValueError(f"`{prefix}bias` expected the shape {tuple(head.shape[:1])}, got {tuple(bias.shape)}")
    check_positive(f"{prefix}logit_scale", scale)
    check_cap(f"{prefix}softcap", softcap)
    return Side(hidden.reshape(-1, hidden.shape[-1]), head, bias, scale, softcap)


def check_tokens(
    labels: Tensor | None, mask: Tensor | None, samples: torch.Size, classes: int, ignore_index: int
) -> tuple[Tensor | None, Tensor | None]:
    """Flat labels, 0 where a token is left out, and the mask with `ignore_index` joined to it."""
    for name, x in (("mask", mask), ("labels", labels)):
        if x is not None and not isinstance(x, Tensor):
            raise TypeError(f"`{name}` expected a tensor, got {type(x).__name__}")
    if mask is not None:
        if mask.dtype != torch.bool:
            raise TypeError(f"`mask` expected bool, True where the token takes part, got {mask.dtype}; use `.bool()`")
        if mask.shape != samples:
            raise ValueError(f"`mask` expected the shape {tuple(samples)}, got {tuple(mask.shape)}")
    if labels is not None:
        if labels.is_floating_point():
            raise TypeError(f"`labels` expected integers of shape (*), got {labels.dtype}; soft labels are not offered")
        if labels.shape != samples:
            raise ValueError(
                f"`labels` expected the shape {tuple(samples)} of the hidden states, got {tuple(labels.shape)}; where "
                "a state predicts the next token, cut off the last state and the first label"
            )
        check_label_shape(labels, samples)
        labels = labels.long()  # in uint8 -100 is 156
        kept = labels != ignore_index
        mask = kept if mask is None else mask & kept
        labels = labels.masked_fill(~mask, 0)
        check_integer_labels(labels, samples, classes, "give their label as `ignore_index`, or use `mask`")
        labels = labels.reshape(-1)
    return labels, None if mask is None else mask.reshape(-1)


def check_cap(name: str, softcap: float | None) -> None:
    """A number above 0, or None."""
    if isinstance(softcap, Tensor):
        raise TypeError(f"`{name}` expected a number or None, got a tensor")
    if softcap is not None:
        check_positive(name, softcap)


def check_tile(tile: tuple[int, int]) -> tuple[int, int]:
    """Tokens and classes of a tile."""
    if not isinstance(tile, tuple) or len(tile) != 2 or not all(isinstance(x, int) and x >= 1 for x in tile):
        raise ValueError(f"`tile` expected a tuple of two whole numbers of at least 1, (tokens, classes), got {tile!r}")
    return tile


def check_weighting(
    prior: Tensor | None, labels: Tensor | None, classes: int, power: float, temperature: float
) -> Weighting:
    """The weights' source; a table only while it is small."""
    check_range("weight_power", power, 0.0, math.inf)
    if isinstance(temperature, Tensor):
        raise TypeError("`prior_temperature` expected a number, got a tensor")
    check_positive("prior_temperature", temperature)
    if prior is None:
        return Weighting(None, None, power, temperature)
    if not isinstance(prior, Tensor) or not prior.is_floating_point():
        got = prior.dtype if isinstance(prior, Tensor) else type(prior).__name__
        raise TypeError(f"`prior` expected a floating tensor of shape (C,) or (C, C), or None, got {got}")
    if prior.shape == (classes,):
        return Weighting(prior.detach(), None, power, temperature)
    if prior.shape != (classes, classes):
        raise ValueError(
            f"`prior` expected the shape ({classes},) or, read by `labels`, ({classes}, {classes}), got "
            f"{tuple(prior.shape)}"
        )
    if prior.numel() * prior.element_size() > TABLE_BYTES:
        raise ValueError(
            f"`prior` expected a table of at most {TABLE_BYTES / 2**30:g} GiB, got "
            f"{prior.numel() * prior.element_size() / 2**30:.1f} GiB; use a (C,) vector of class weights, or None for "
            "weights from each token's own target"
        )
    if labels is None:
        raise ValueError("`prior` of shape (C, C) expected `labels` that read its rows, got None")
    return Weighting(prior.detach(), labels, power, temperature)


def check_temperature(temperature: float) -> None:
    """A number, since no gradient is made to it."""
    if isinstance(temperature, Tensor):
        raise TypeError("`temperature` expected a number, got a tensor; a scale that learns is `logit_scale`")
    check_positive("temperature", temperature)


def evaluate(given: Given, divergence: Divergence, reduction: Reduction) -> Tensor:
    """The value, (*) for "none"."""
    check_reduction(reduction)
    plan = Plan(divergence, reduction, given.mask, given.tile, given.dtype)
    value = linear_divergence(given.student, given.target, plan)
    return value.view(given.shape) if reduction == "none" else value
