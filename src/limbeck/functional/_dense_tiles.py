"""The core of dense losses: class axis 1, as convolutions give it, tile by tile.

A tile is some pixels of some images, small enough that its class-last copy and its temporaries do not count beside the
logits. The backward pass goes over the tiles once more: nothing of the logits' size is kept, and the only tensors of
that size ever made are the gradients that the caller asks for, in the dtype of its logits.

Where more is asked (transforms, compilation, second derivatives), the whole is one tile of plain operations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from limbeck.functional._check import Reduction, check_integer_labels, check_pair, reduce, widest

TILE_ELEMENTS = {"cpu": 2**17}  # of one side
TILE_ELEMENTS_ON_DEVICE = 2**22

# values (P,) from both logits (P, C), labels (P,), mask (P,) and what is the same for all tiles
Measure = Callable[..., Tensor]


class Pixels(NamedTuple):
    """What is known of each pixel, (N, *space), and what a measure needs besides, the same for all tiles."""

    labels: Tensor | None
    mask: Tensor | None
    shared: tuple[Tensor | None, ...] = ()

    def taking_part(self, logits: Tensor) -> Tensor | float:
        """Count the pixels that take part, at least 1."""
        if self.mask is None:
            return float(logits.numel() // logits.shape[1])
        return self.mask.sum().clamp_min(1).to(widest(logits))

    def tile(self, index: tuple[slice, ...]) -> tuple[Tensor | None, Tensor | None]:
        """Labels and mask of a tile, flat."""
        labels, mask = (None if x is None else x[_without_classes(index)].reshape(-1) for x in self[:2])
        return labels, mask


def tiles(logits: Tensor) -> Iterator[tuple[slice, ...]]:
    """Yield the slices of each tile, class axis included: whole inner axes, as many as fit."""
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        yield (slice(None),) * logits.dim()
        return
    limit = TILE_ELEMENTS.get(logits.device.type, TILE_ELEMENTS_ON_DEVICE)
    classes, sizes = logits.shape[1], (logits.shape[0], *logits.shape[2:])
    axis, inner = len(sizes) - 1, classes
    while axis > 0 and inner * sizes[axis] <= limit:
        inner *= sizes[axis]
        axis -= 1
    step = max(1, limit // inner)
    whole = [slice(None)] * (len(sizes) - axis - 1)
    for outer in product(*(range(size) for size in sizes[:axis])):
        for start in range(0, sizes[axis], step):
            index = [*(slice(i, i + 1) for i in outer), slice(start, start + step), *whole]
            yield index[0], slice(None), *index[1:]


def class_last(x: Tensor, mask: Tensor | None) -> Tensor:
    """A tile as (P, C), in the dtype of the arithmetic; what is left out may be NaN and becomes 0."""
    flat = x.movedim(1, -1).reshape(-1, x.shape[1])
    flat = flat.to(widest(x))
    if mask is not None:
        flat = flat.masked_fill(~mask.unsqueeze(-1), 0.0)
    if torch.compiler.is_compiling() or torch.is_inference_mode_enabled() or not flat.is_inference():
        return flat
    return flat.clone()  # autograd refuses to save what inference_mode made


def check_pixels(
    logits: Tensor, target_logits: Tensor, labels: Tensor | None, mask: Tensor | None, ignore_index: int
) -> Pixels:
    """Check the shapes, and join `ignore_index` to the mask. Labels of pixels that are left out become 0."""
    check_pair(logits, target_logits)
    if logits.dim() < 2:
        raise ValueError(f"`logits` expected the shape (N, C, *space), got {tuple(logits.shape)}")
    pixels = logits.shape[:1] + logits.shape[2:]
    if mask is not None:
        if mask.dtype != torch.bool:
            raise TypeError(f"`mask` expected bool, True where the pixel takes part, got {mask.dtype}")
        if mask.shape != pixels:
            raise ValueError(f"`mask` expected the shape {tuple(pixels)}, got {tuple(mask.shape)}")
    if labels is None:
        return Pixels(None, mask)
    if labels.shape == pixels and not labels.is_floating_point():
        kept = labels != ignore_index
        mask = kept if mask is None else mask & kept
        labels = labels.masked_fill(~mask, 0)
    check_integer_labels(labels, pixels, logits.shape[1])
    return Pixels(labels, mask)


def per_pixel(
    logits: Tensor, target_logits: Tensor, measure: Measure, pixels: Pixels, temperature: object, reduction: Reduction
) -> Tensor:
    """Reduce the measure's values over the pixels that take part; "none" gives (N, *space)."""
    if not _can_tile(logits, target_logits, temperature):
        return _plain(logits, target_logits, measure, pixels, reduction)
    if torch.is_grad_enabled() and (logits.requires_grad or target_logits.requires_grad):
        value: Tensor = _Tiled.apply(  # type: ignore[no-untyped-call]
            logits, target_logits, measure, reduction, pixels.labels, pixels.mask, *pixels.shared
        )
        return value
    return _by_tiles(logits, target_logits, measure, pixels, reduction)


def _can_tile(logits: Tensor, target_logits: Tensor, temperature: object) -> bool:
    return not (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
        or isinstance(temperature, Tensor)  # it may take a gradient
        or type(logits) not in (Tensor, torch.nn.Parameter)
        or type(target_logits) not in (Tensor, torch.nn.Parameter)
    )


def _without_classes(index: tuple[slice, ...]) -> tuple[slice, ...]:
    return index[:1] + index[2:]


def _plain(logits: Tensor, target_logits: Tensor, measure: Measure, pixels: Pixels, reduction: Reduction) -> Tensor:
    whole = (slice(None),) * logits.dim()
    values = _measured(logits, target_logits, measure, pixels, whole)[0]
    shape = logits.shape[:1] + logits.shape[2:]
    return reduce(values.view(shape), reduction, pixels.taking_part(logits))


def _measured(
    logits: Tensor,
    target_logits: Tensor,
    measure: Measure,
    pixels: Pixels,
    index: tuple[slice, ...],
    leaves: tuple[bool, ...] = (False, False),
) -> tuple[Tensor, list[Tensor]]:
    """Return a tile's values (P,), 0 where a pixel is left out, and the logits, leaves or not, that they come from."""
    labels, mask = pixels.tile(index)
    sides = [class_last(x[index], mask) for x in (logits, target_logits)]
    sides = [side.detach().requires_grad_() if leaf else side for side, leaf in zip(sides, leaves, strict=True)]
    values = measure(*sides, labels, mask, *pixels.shared)
    return values if mask is None else values.masked_fill(~mask, 0.0), sides


def _by_tiles(logits: Tensor, target_logits: Tensor, measure: Measure, pixels: Pixels, reduction: Reduction) -> Tensor:
    dtype = widest(logits, target_logits)
    values = logits.new_empty(logits.shape[:1] + logits.shape[2:], dtype=dtype)
    for index in tiles(logits):
        part = values[_without_classes(index)]
        part.copy_(_measured(logits, target_logits, measure, pixels, index)[0].view(part.shape))
    return reduce(values, reduction, pixels.taking_part(logits))


class _Tiled(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        target_logits: Tensor,
        measure: Measure,
        reduction: Reduction,
        labels: Tensor | None,
        mask: Tensor | None,
        *shared: Tensor | None,
    ) -> Tensor:
        kept = (logits, target_logits, labels, mask, *shared)
        # A teacher under inference_mode makes tensors that autograd refuses to save, and that nobody can change.
        ctx.inference = [x if x is not None and x.is_inference() else None for x in kept]
        ctx.save_for_backward(*(None if x is not None and x.is_inference() else x for x in kept))
        ctx.measure, ctx.reduction = measure, reduction
        return _by_tiles(logits, target_logits, measure, Pixels(labels, mask, shared), reduction)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        kept = [a if b is None else b for a, b in zip(ctx.saved_tensors, ctx.inference, strict=True)]
        logits, target_logits, labels, mask, *shared = kept
        pixels = Pixels(labels, mask, tuple(shared))
        back = _differentiate if torch.is_grad_enabled() else _gradients
        found = back(ctx, logits, target_logits, pixels, grad_outputs[0])
        return *found, *[None] * (4 + len(shared))


def _differentiate(
    ctx: Any, logits: Tensor, target_logits: Tensor, pixels: Pixels, grad_output: Tensor
) -> list[Tensor | None]:
    """The gradients by operations that can be differentiated again."""
    needs = ctx.needs_input_grad[:2]
    value = _plain(logits, target_logits, ctx.measure, pixels, ctx.reduction)
    needed = [x for x, need in zip((logits, target_logits), needs, strict=True) if need]
    if not value.requires_grad:
        return [torch.zeros_like(x) if need else None for x, need in zip((logits, target_logits), needs, strict=True)]
    found = iter(torch.autograd.grad(value, needed, grad_output, create_graph=True, materialize_grads=True))
    return [next(found) if need else None for need in needs]


def _gradients(
    ctx: Any, logits: Tensor, target_logits: Tensor, pixels: Pixels, grad_output: Tensor
) -> list[Tensor | None]:
    """The gradients, each in its input's dtype; a half gradient is scaled before it is rounded."""
    needs = ctx.needs_input_grad[:2]
    made = [torch.empty_like(x) if need else None for x, need in zip((logits, target_logits), needs, strict=True)]
    if ctx.reduction == "mean":
        grad_output = grad_output / pixels.taking_part(logits)

    for index in tiles(logits):
        with torch.enable_grad():
            sources = logits.detach(), target_logits.detach()
            values, sides = _measured(*sources, ctx.measure, pixels, index, leaves=needs)
        per_value = ctx.reduction == "none"
        factor = grad_output[_without_classes(index)].reshape(-1) if per_value else grad_output.expand(values.shape)
        needed = [side for side, need in zip(sides, needs, strict=True) if need]
        found = iter([torch.zeros_like(side) for side in needed])
        if values.requires_grad:
            found = iter(torch.autograd.grad(values, needed, factor, materialize_grads=True))
        for gradient in made:
            if gradient is not None:
                part = gradient[index].movedim(1, -1)
                part.copy_(next(found).view(part.shape))
    return made
