"""GKL and its family as custom ops: `torch.ops.limbeck.gkl`, and its backward, an op with a derivative of its own.

torch.compile keeps them as they are. A second derivative is that of plain operations, computed anew.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from limbeck.functional._pairs import Terms
from limbeck.functional._weights import Weights, weighted_pairs
from limbeck.functional.kl import kl_divergence, soft_cross_entropy
from limbeck.kernels import gkl_launch
from limbeck.kernels.gkl_launch import Options

_TENSORS = "Tensor logits, Tensor target_logits, Tensor? prior, Tensor? labels, Tensor? mask, Tensor? denominator"
_OPTIONS = (
    "str divergence, float power, float temperature, float prior_temperature, float mse_weight, float ce_weight, "
    "bool symmetric, str normalizer, str reduction"
)
_SAVED = "Tensor grad, Tensor rows, Tensor factors, bool to_logits, bool to_target"
_TENSOR_COUNT = 6  # of the op; `Options` follow
_SAVED_COUNT = 5  # before the op's own arguments

library = torch.library.Library("limbeck", "FRAGMENT")
library.define(f"gkl({_TENSORS}, {_OPTIONS}) -> (Tensor value, Tensor rows, Tensor factors)")
library.define(f"gkl_backward({_SAVED}, {_TENSORS}, {_OPTIONS}) -> (Tensor, Tensor)")
library.impl("gkl", gkl_launch.forward, "CompositeExplicitAutograd")
library.impl("gkl_backward", gkl_launch.backward, "CompositeExplicitAutograd")


def gkl(
    logits: Tensor,
    target_logits: Tensor,
    prior: Tensor | None,
    labels: Tensor | None,
    mask: Tensor | None,
    denominator: Tensor | None,
    options: Options,
) -> Tensor:
    """The value of GKL, KL or soft cross-entropy, by the kernel."""
    tensors = [logits, target_logits, prior, labels, mask, denominator]
    if not torch.compiler.is_compiling() and torch.is_grad_enabled():
        # A teacher under inference_mode makes tensors that autograd refuses to save.
        tensors = [x.clone() if x is not None and x.is_inference() else x for x in tensors]
    value: Tensor = torch.ops.limbeck.gkl(*tensors, *options)[0]
    return value


@torch.library.register_fake("limbeck::gkl")
def _fake(logits: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
    return gkl_launch.value_like(logits, Options(*others[_TENSOR_COUNT - 1 :])), *gkl_launch.rows_like(logits)


@torch.library.register_fake("limbeck::gkl_backward")
def _fake_backward(
    grad: Tensor, rows: Tensor, factors: Tensor, to_logits: bool, to_target: bool, logits: Tensor, target: Tensor,
    *others: Any,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return gkl_launch.gradients_like(logits, target, to_logits, to_target)


class _Gkl(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        with torch._C._AutoDispatchBelowAutograd():
            value, rows, factors = torch.ops.limbeck.gkl(*inputs)
        ctx.set_materialize_grads(False)  # rows and factors get none, and zeros would be written for them
        ctx.mark_non_differentiable(rows, factors)
        ctx.save_for_backward(rows, factors, *inputs[:_TENSOR_COUNT])
        ctx.options = inputs[_TENSOR_COUNT:]
        return value, rows, factors

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        to_logits, to_target = ctx.needs_input_grad[:2]
        nothing = (None,) * (_TENSOR_COUNT - 2 + len(ctx.options))
        if grads[0] is None:
            return None, None, *nothing
        rows, factors, *tensors = ctx.saved_tensors
        first, second = torch.ops.limbeck.gkl_backward(
            grads[0], rows, factors, to_logits, to_target, *tensors, *ctx.options
        )
        return first if to_logits else None, second if to_target else None, *nothing


class _GklBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        with torch._C._AutoDispatchBelowAutograd():
            first, second = torch.ops.limbeck.gkl_backward(*inputs)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(inputs[0], *inputs[_SAVED_COUNT : _SAVED_COUNT + _TENSOR_COUNT])
        ctx.options = Options(*inputs[_SAVED_COUNT + _TENSOR_COUNT :])
        return first, second

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        grad, logits, target, *others = ctx.saved_tensors
        deeper = torch.is_grad_enabled()
        found: tuple[Tensor | None, ...] = (None, None, None)
        with torch.enable_grad():
            # What was constant is made to ask for a gradient of its own, so that all three can be had at once.
            outer, *sides = (x if x.requires_grad else x.detach().requires_grad_() for x in (grad, logits, target))
            value = _composite(*sides, *others, options=ctx.options)
            firsts = torch.autograd.grad(value, sides, outer, create_graph=True, materialize_grads=True)
            wanted = [(first, g) for first, g in zip(firsts, grads, strict=True) if g is not None and g.numel()]
            if wanted:
                total = sum((first * g.to(first.dtype)).sum() for first, g in wanted)
                found = torch.autograd.grad(total, (outer, *sides), create_graph=deeper, materialize_grads=True)
        between, after = (None,) * (_SAVED_COUNT - 1), (None,) * (_TENSOR_COUNT - 2 + len(ctx.options))
        return found[0], *between, *found[1:], *after


def _composite(
    logits: Tensor,
    target: Tensor,
    prior: Tensor | None,
    labels: Tensor | None,
    mask: Tensor | None,
    denominator: Tensor | None,
    *,
    options: Options,
) -> Tensor:
    """The same value by plain operations."""
    if options.divergence != "gkl":
        function = kl_divergence if options.divergence == "kl" else soft_cross_entropy
        return options.ce_weight * function(
            logits, target, temperature=options.temperature, reduction=options.reduction, impl="torch"
        )
    normalizer = options.normalizer if options.normalizer != "given" else denominator
    assert normalizer is not None
    terms = Terms(
        options.mse_weight,
        options.ce_weight,
        1.0,
        options.temperature,
        options.symmetric,
        normalizer,
        options.reduction,
    )
    weights = Weights(prior, labels, options.power, options.prior_temperature)
    return weighted_pairs(logits, target, weights, mask, terms, "torch")


library.impl("gkl", _Gkl.apply, "Autograd")
library.impl("gkl_backward", _GklBackward.apply, "Autograd")
