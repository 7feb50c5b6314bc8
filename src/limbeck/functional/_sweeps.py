r"""The core of transport: Sinkhorn's sweeps over one kernel for all samples, and their gradients.

    v = b / (K^T u),  u = a / (K v),  again and again;   value = sum_ij u_i K_ij v_j c_ij

A row of u may have any factor, since v has its reciprocal: log mode keeps the largest entry of either at 1.

Two forms of the same function: `composed`, plain differentiable operations; and `_Solved`, which goes back through the
sweeps in the forward pass, one product a half-sweep, and keeps nothing but the gradients. `_Solved` serves eager first
derivatives; where more is asked (transforms, compilation, second derivatives), `composed` does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from limbeck.functional._engine import Impl, check_impl, takes_kernel

Mode = Literal["log", "published"]
Gradient = Literal["unrolled", "implicit"]
FLOOR = 1e-8  # of the published code: on every entry of the cost and in every denominator


class Kernel(NamedTuple):
    """exp(-cost / reg) and its product with the cost: both (C, C), or (2,) if uniform: diagonal entry, all others."""

    kernel: Tensor
    kernel_cost: Tensor


class Sweeps(NamedTuple):
    """What one call computes, besides its tensors."""

    iterations: int
    mode: Mode
    gradient: Gradient
    impl: Impl = "auto"


_Kept = list[tuple[Tensor, Tensor]]  # per sweep K^T u and K v, all (N, C)
_Gradients = tuple[Tensor | None, Tensor | None]


def gibbs_kernel(cost: Tensor, reg: float, mode: Mode) -> Kernel:
    """Make what the sweeps need of a cost; the published mode floors it as the paper's code does."""
    cost = cost.detach()
    if mode == "published":
        cost = cost.relu() + FLOOR
    kernel = torch.exp(-cost / reg)
    return Kernel(kernel, kernel * cost)


def transport_cost(log_a: Tensor, log_b: Tensor, kernel: Kernel, sweeps: Sweeps) -> Tensor:
    """Per sample sum_ij Q_ij c_ij after the sweeps; a class at -inf on both sides takes no part, not even in the start.

    Without any class the cost is 0.
    """
    absent = torch.isneginf(log_a) & torch.isneginf(log_b)
    none = absent.all(-1, keepdim=True)
    present = ~absent | none
    log_a, log_b = log_a.masked_fill(none, 0.0), log_b.masked_fill(none, 0.0)
    return _solve(log_a, log_b, present, kernel, sweeps).masked_fill(none.squeeze(-1), 0.0)


def _solve(log_a: Tensor, log_b: Tensor, present: Tensor, kernel: Kernel, sweeps: Sweeps) -> Tensor:
    if _takes_kernel(log_a, log_b, kernel, sweeps):
        from limbeck.kernels.sinkhorn import sinkhorn

        return sinkhorn(log_a, log_b, kernel, sweeps)
    if _can_fuse(log_a, log_b):
        if torch.is_grad_enabled() and (log_a.requires_grad or log_b.requires_grad):
            value: Tensor = _Solved.apply(log_a, log_b, present, *kernel, sweeps)  # type: ignore[no-untyped-call]
            return value
        return _evaluate(log_a, log_b, present, kernel, sweeps, (False, False))[0]
    if sweeps.gradient == "unrolled":
        return composed(log_a, log_b, present, kernel, sweeps)
    value, gradients = _evaluate(log_a.detach(), log_b.detach(), present, kernel, sweeps, (True, True))
    for side, gradient in zip((log_a, log_b), gradients, strict=True):
        if gradient is not None:
            side = side.masked_fill(torch.isneginf(side), 0.0)
            value = value + (gradient * (side - side.detach())).sum(-1)
    return value


def _takes_kernel(log_a: Tensor, log_b: Tensor, kernel: Kernel, sweeps: Sweeps) -> bool:
    """Only where it is asked for: that it is faster has not been measured on a GPU yet."""
    if sweeps.impl != "triton":
        check_impl(sweeps.impl)
        return False
    if sweeps.gradient == "implicit" or kernel.kernel.dim() != 2:
        what = "an implicit gradient" if sweeps.gradient == "implicit" else "a uniform cost"
        raise ValueError(f"`impl='triton'` cannot serve this call ({what}); use impl='auto' or 'torch'")
    return takes_kernel("sinkhorn", sweeps.impl, log_a, log_b, *kernel)


def _can_fuse(log_a: Tensor, log_b: Tensor) -> bool:
    return not (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
        or type(log_a) is not Tensor
        or type(log_b) is not Tensor
    )


def _times(x: Tensor, matrix: Tensor) -> Tensor:
    """x @ matrix; (2,) is the matrix with one entry on its diagonal and another everywhere else."""
    if matrix.dim() == 2:
        return x @ matrix
    diagonal, rest = matrix.unbind()
    return (diagonal - rest) * x + rest * x.sum(-1, keepdim=True)


def _turned(matrix: Tensor) -> Tensor:
    return matrix.mT if matrix.dim() == 2 else matrix


# --- plain operations -------------------------------------------------------------------------------------


def composed(log_a: Tensor, log_b: Tensor, present: Tensor, kernel: Kernel, sweeps: Sweeps) -> Tensor:
    """The value by plain operations, `present` True where a class takes part."""
    if sweeps.mode == "published":
        return _published_sweeps(log_a, log_b, present, kernel, sweeps.iterations)
    k, log_u = kernel.kernel, torch.zeros_like(log_a).masked_fill(~present, -torch.inf)
    for _ in range(sweeps.iterations):
        v = _shifted(log_b - _times(_shifted(log_u), k).log())
        kv = _times(v, _turned(k))
        log_u = log_a - kv.log()
    return (log_a.exp() * (_times(v, _turned(kernel.kernel_cost)) / kv)).sum(-1)  # u = a / (K v)


def _shifted(log_x: Tensor) -> Tensor:
    """exp(log_x), a row's largest entry at 1. The other potential takes up a row's factor, so none has to be kept."""
    return (log_x - log_x.detach().amax(-1, keepdim=True)).exp()


def _published_sweeps(log_a: Tensor, log_b: Tensor, present: Tensor, kernel: Kernel, iterations: int) -> Tensor:
    a, b, k = log_a.exp(), log_b.exp(), kernel.kernel
    u = _published_start(present, a.dtype)
    for _ in range(iterations):
        v = b / (_times(u, k) + FLOOR)
        u = a / (_times(v, _turned(k)) + FLOOR)
    return (u * _times(v, _turned(kernel.kernel_cost))).sum(-1)


def _published_start(present: Tensor, dtype: torch.dtype) -> Tensor:
    """Uniform over the classes that take part. With floors its size matters."""
    start = present.to(dtype)
    return start / start.sum(-1, keepdim=True)


# --- gradients in the forward pass ------------------------------------------------------------------------


class _Solved(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, log_a: Tensor, log_b: Tensor, present: Tensor, kernel: Tensor, kernel_cost: Tensor, sweeps: Sweeps
    ) -> Tensor:
        made = Kernel(kernel, kernel_cost)
        value, ctx.gradients = _evaluate(log_a, log_b, present, made, sweeps, ctx.needs_input_grad[:2])
        ctx.save_for_backward(log_a, log_b, present, *made)
        ctx.sweeps = sweeps
        return value

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            return *_differentiate(ctx, grad_outputs[0]), None, None, None, None
        factor = grad_outputs[0].unsqueeze(-1)
        first, second = (None if gradient is None else gradient * factor for gradient in ctx.gradients)
        return first, second, None, None, None, None


def _differentiate(ctx: Any, grad_output: Tensor) -> list[Tensor | None]:
    """The gradients once more, by operations that can be differentiated again."""
    if ctx.sweeps.gradient == "implicit":
        raise RuntimeError("`gradient='implicit'` has no second derivatives; `gradient='unrolled'` has")
    log_a, log_b, present, kernel, kernel_cost = ctx.saved_tensors
    needs = ctx.needs_input_grad[:2]
    needed = [x for x, need in zip((log_a, log_b), needs, strict=True) if need]
    value = composed(log_a, log_b, present, Kernel(kernel, kernel_cost), ctx.sweeps)
    found = iter(torch.autograd.grad(value, needed, grad_output, create_graph=True))
    return [next(found) if need else None for need in needs]


def _evaluate(
    log_a: Tensor, log_b: Tensor, present: Tensor, kernel: Kernel, sweeps: Sweeps, needs: tuple[bool, ...]
) -> tuple[Tensor, _Gradients]:
    """The value per sample and, for each side that needs it, its gradient."""
    # Roots: a / (K v) would overflow, or a underflow, where root(a) / (K v) root(a) does not.
    root_a, root_b = (log_a / 2).exp_(), (log_b / 2).exp_()
    k, turned = kernel.kernel, _turned(kernel.kernel)
    wanted, kept = any(needs), []
    u = _published_start(present, root_a.dtype) if sweeps.mode == "published" else present.to(root_a.dtype)
    for _ in range(sweeps.iterations):
        ku = _floored(_times(u, k), sweeps.mode)
        v = _potential(root_b, ku, sweeps.mode)
        kv = _floored(_times(v, turned), sweeps.mode)
        u = _potential(root_a, kv, sweeps.mode)
        if wanted and sweeps.gradient == "unrolled":
            kept.append((ku, kv))
    moved = _times(v, _turned(kernel.kernel_cost)).div_(kv)
    row_costs = (moved * root_a).mul_(root_a)
    value = row_costs.sum(-1)
    if not wanted:
        return value, (None, None)
    if sweeps.gradient == "implicit":
        return value, _implicit(root_a, v, kv, moved, kernel, sweeps.iterations)
    return value, _unrolled(root_a, root_b, row_costs, kept, kernel, sweeps.mode, needs)


def _floored(product: Tensor, mode: Mode) -> Tensor:
    return product.add_(FLOOR) if mode == "published" else product


def _potential(root: Tensor, product: Tensor, mode: Mode) -> Tensor:
    x = (root / product).mul_(root)
    return x.div_(x.amax(-1, keepdim=True)) if mode == "log" else x


def _unrolled(
    root_a: Tensor,
    root_b: Tensor,
    row_costs: Tensor,
    kept: _Kept,
    kernel: Kernel,
    mode: Mode,
    needs: tuple[bool, ...],
) -> _Gradients:
    """Back through all sweeps: `to_log_u` and `to_log_v` are the value's derivatives by one sweep's log u and log v."""
    k, turned = kernel.kernel, _turned(kernel.kernel)
    kv = kept[-1][1]
    to_log_u, to_a = row_costs, row_costs.clone() if needs[0] else None
    to_b = torch.zeros_like(root_b) if needs[1] else None
    to_v = _times((root_a / kv).mul_(root_a), kernel.kernel_cost).sub_(_times(to_log_u / kv, k))
    for sweep in range(len(kept) - 1, -1, -1):
        ku = kept[sweep][0]
        to_log_v = to_v.mul_(_potential(root_b, ku, mode))
        if to_b is not None:
            to_b.add_(to_log_v)
        if sweep == 0:
            break
        kv = kept[sweep - 1][1]
        to_log_u = _times(to_log_v / ku, turned).neg_().mul_(_potential(root_a, kv, mode))
        if to_a is not None:
            to_a.add_(to_log_u)
        to_v = _times(to_log_u / kv, k).neg_()
    return to_a, to_b


# --- the implicit gradient --------------------------------------------------------------------------------


def _implicit(root_a: Tensor, v: Tensor, kv: Tensor, moved: Tensor, kernel: Kernel, steps: int) -> _Gradients:
    r"""Differentiate u K v = a, v K^T u = b at their solution, by conjugate gradients.

    With Q the plan, r_i and s_j what its rows and columns cost, the derivatives x by log a and y by log b solve
    x = r - Q (y / b), y = s - Q^T (x / a). In x = root(a) z that is (1 - M M^T) z = (r - Q (s / b)) / root(a) with
    M = Q / root(a b), positive but for the direction root(a), along which the masses of both sides grow alike: no
    softmax does that.
    """
    k, turned = kernel.kernel, _turned(kernel.kernel)
    scale = root_a / kv  # u / root(a)
    u = scale * root_a
    column = v / _times(u, k)  # v / (K^T u), which is v^2 / b
    to_v = _times(u, kernel.kernel_cost)

    def apply(z: Tensor) -> Tensor:
        return z - _times(_times(z * scale, k).mul_(column), turned).mul_(scale)

    right = moved * root_a
    largest = torch.linalg.vector_norm(right, dim=-1, keepdim=True)
    right = right - _times(column * to_v, turned).mul_(scale)
    right = right - root_a * (root_a * right).sum(-1, keepdim=True)
    to_a = _conjugate_gradients(apply, right, largest, min(steps, root_a.shape[-1])).mul_(root_a)
    return to_a, (to_v - _times(to_a / kv, k)).mul_(v)


def _conjugate_gradients(apply: Callable[[Tensor], Tensor], right: Tensor, scale: Tensor, steps: int) -> Tensor:
    """Per row, from 0; a row stops where its residual is rounding, beside `scale` (..., 1), the norm of what `right` is
    a difference of, or where no curvature is left: the direction is the one that the equation does not bind. Nothing
    waits for the device.
    """
    solution, residual = torch.zeros_like(right), right
    direction, square = right, (right * right).sum(-1, keepdim=True)
    enough = (scale * torch.finfo(right.dtype).eps) ** 2
    for _ in range(steps):
        ahead = apply(direction)
        curvature = (direction * ahead).sum(-1, keepdim=True)
        going = (square > enough) & (curvature > 0)
        length = torch.where(going, square / curvature, 0.0)
        solution = solution + length * direction
        residual = residual - length * ahead
        before, square = square, (residual * residual).sum(-1, keepdim=True)
        direction = residual + torch.where(going, square / before, 0.0) * direction
    return solution
