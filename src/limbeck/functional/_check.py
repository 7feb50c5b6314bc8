"""What every function checks and how every function reduces."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import FunctionType
from typing import Literal, ParamSpec, TypeVar, cast

import torch
from torch import Tensor

Reduction = Literal["none", "mean", "sum"]
P = ParamSpec("P")
R = TypeVar("R")


def full_precision(function: Callable[P, R]) -> Callable[P, R]:
    """Switch autocast off inside `function`, on the device of its first tensor: the dtype rules are its own."""

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        device = args[0].device.type if args and isinstance(args[0], Tensor) else "cpu"
        if not torch.is_autocast_enabled(device):
            return function(*args, **kwargs)
        with torch.autocast(device, enabled=False):
            return function(*args, **kwargs)

    # A code object of its own: torch.compile counts what it has captured of each, and gives up after eight.
    own = cast("FunctionType", wrapped)
    own.__code__ = own.__code__.replace(co_name=function.__name__)
    return wrapped


def check_pair(logits: Tensor, target_logits: Tensor, *, names: tuple[str, str] = ("logits", "target_logits")) -> None:
    """Both (*, C), floating, of one shape, not empty."""
    for name, value in zip(names, (logits, target_logits), strict=True):
        if not isinstance(value, Tensor):
            raise TypeError(f"`{name}` expected a tensor, got {type(value).__name__}")
        if not value.is_floating_point():
            raise TypeError(f"`{name}` expected a floating dtype, got {value.dtype}; convert it with `.float()`")
    if logits.shape != target_logits.shape:
        raise ValueError(
            f"`{names[0]}` and `{names[1]}` expected one shape (*, C), got {tuple(logits.shape)} and "
            f"{tuple(target_logits.shape)}; nothing is broadcast"
        )
    if logits.dim() == 0 or logits.numel() == 0:
        raise ValueError(f"`{names[0]}` expected a non-empty shape (*, C), got {tuple(logits.shape)}")


def check_positive(name: str, value: float | Tensor) -> None:
    """A float above 0; of a tensor only the shape and dtype are looked at, since its value lives on the device."""
    if isinstance(value, (int, float)):
        if not 0 < value < float("inf"):
            raise ValueError(f"`{name}` expected a finite number above 0, got {value}")
    elif not isinstance(value, Tensor):
        raise TypeError(f"`{name}` expected a number above 0, got {value!r}")
    elif value.dim() != 0 or not value.is_floating_point():
        got = f"shape {tuple(value.shape)} of {value.dtype}"
        raise ValueError(f"`{name}` expected a float or a 0-d floating tensor, got {got}")


def check_range(name: str, value: float, low: float, high: float) -> None:
    """A float in [low, high], finite."""
    if not isinstance(value, (int, float)):
        raise TypeError(f"`{name}` expected a number, got {value!r}")
    if not low <= value <= high or value == float("inf"):
        bounds = f"of at least {low:g}" if high == float("inf") else f"in [{low:g}, {high:g}]"
        raise ValueError(f"`{name}` expected a finite number {bounds}, got {value}")


def check_reduction(reduction: str) -> None:
    """One of the three words."""
    if reduction not in ("none", "mean", "sum"):
        raise ValueError(f"`reduction` expected 'none', 'mean' or 'sum', got {reduction!r}")


def check_integer_labels(
    labels: Tensor, samples: torch.Size, num_classes: int, leave_out: str = "clamp their labels and say so in `mask`"
) -> None:
    """Integer labels of shape `samples` in [0, num_classes): values raise on the CPU and are asserted on a device."""
    check_label_shape(labels, samples)
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return  # a value cannot be read here; indexing checks it again
    if labels.device.type == "cpu":
        low, high = (int(bound) for bound in torch.aminmax(labels))
        if low < 0 or high >= num_classes:
            raise ValueError(
                f"`labels` expected values in [0, {num_classes - 1}], got {low} to {high}; to leave samples out, "
                f"{leave_out}"
            )
    else:
        torch._assert_async(((labels >= 0) & (labels < num_classes)).all())


def check_label_shape(labels: Tensor, samples: torch.Size) -> None:
    """Integer labels of shape `samples`."""
    if labels.dtype not in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8):
        raise TypeError(f"`labels` expected integers of shape (*) or soft labels (*, C), got {labels.dtype}")
    if labels.shape != samples:
        raise ValueError(
            f"integer `labels` expected class indices of the shape {tuple(samples)}, got {tuple(labels.shape)}; soft "
            "labels are floats: `labels.float()`"
        )


def widest(*tensors: Tensor) -> torch.dtype:
    """The dtype that arithmetic is done in: the widest of all, at least float32."""
    dtype = torch.float32
    for x in tensors:
        if x.dtype != dtype:
            dtype = torch.promote_types(x.dtype, dtype)
    return dtype


def reduce(values: Tensor, reduction: Reduction, count: Tensor | float | None = None) -> Tensor:
    """Reduce per-sample `values`; `count` is the number of samples that take part, all by default."""
    if reduction == "none":
        return values
    total = values.sum()
    if reduction == "sum":
        return total
    return total / (max(values.numel(), 1) if count is None else count)
