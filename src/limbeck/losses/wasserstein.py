"""Logit distillation by transport as a module: the cost and its kernel are made once."""

from __future__ import annotations

from collections.abc import Callable
from os import PathLike
from typing import Any

import torch
from torch import Tensor

from limbeck.functional import WKDTerms, _sweeps
from limbeck.functional import wasserstein as transport
from limbeck.functional._check import Reduction, check_pair, check_positive, check_range, widest
from limbeck.losses.base import DivergenceLoss

LARGEST_EXPONENT = 80.0  # exp(-80) is 1e-35: a sum over a kernel's row and its reciprocal stay inside float32
ROUNDING = 1e-5  # of costs that were computed in float32


class WKDLogitLoss(DivergenceLoss):
    r"""Wasserstein distillation of logits (WKD-L): `target_weight` target + `transport_weight` transport.

    It goes beside the labels' cross-entropy. It needs integer labels. The published weight of the transport is 60 to
    600 at temperatures of 4 to 8, and 10 to 30 at 2: no T squared is multiplied.

    Args:
        cost: (C, C), not negative, symmetric, diagonal 0: how dear it is to take one class for another. With c the
            largest, c / `reg` is at most 80. Or the path of a safetensors file with a tensor of that name. It is kept
            as a buffer, with the kernel and kernel times cost. One number off the diagonal makes sweeps of O(N C).
        temperature: T > 0, divides both logits in the transport.
        reg: entropic regularisation, above 0.
        iterations: number of sweeps; ten, as published, are far from convergence.
        separate_target: set the label's class apart; `False` transports all classes and has no target term.
        mode: "log", or "published" with its floors of 1e-8.
        gradient: "unrolled" through the sweeps, or "implicit", that of their limit: only for hundreds of sweeps, and
            the weight has to be tuned again.
        target_weight: factor of the target term, at least 0; 0 leaves it out.
        transport_weight: factor of the transport, at least 0; lambda in the paper; 0 leaves the sweeps out.
        reduction: "none", "mean" or "sum".

    Gradient:
        To `logits`; to `target_logits` from the transport (run the teacher under `no_grad`). None to the cost.

    Example:
        >>> import torch
        >>> loss = WKDLogitLoss(0.6 * (1 - torch.eye(3)), temperature=4.0, transport_weight=100.0)
        >>> loss(torch.zeros(2, 3), torch.zeros(2, 3), torch.tensor([0, 1])) < 0.4
        tensor(True)

    Reference:
        arXiv 2412.08139, the loss WKD-L; see `limbeck.functional.wkd_logit`.
    """

    cost: Tensor
    kernel: Tensor
    kernel_cost: Tensor

    def __init__(
        self,
        cost: Tensor | str | PathLike[str],
        *,
        temperature: float = 4.0,
        reg: float = 0.05,
        iterations: int = 10,
        separate_target: bool = True,
        mode: _sweeps.Mode = "log",
        gradient: _sweeps.Gradient = "unrolled",
        target_weight: float = 1.0,
        transport_weight: float = 1.0,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(reduction)
        check_positive("temperature", temperature)
        transport.check_transport(reg, iterations, mode, gradient)
        check_range("target_weight", target_weight, 0.0, float("inf"))
        check_range("transport_weight", transport_weight, 0.0, float("inf"))
        self.temperature, self.reg, self.separate_target = temperature, reg, separate_target
        self.sweeps = _sweeps.Sweeps(iterations, mode, gradient)
        self.target_weight, self.transport_weight = target_weight, transport_weight
        self.register_buffer("cost", _checked(_read(cost) if isinstance(cost, str | PathLike) else cost, reg))
        self._make_kernel()
        self.register_load_state_dict_post_hook(_take_loaded)  # type: ignore[no-untyped-call]

    def _make_kernel(self) -> None:
        """In float32, which is what trains; others are made of the cost on call."""
        self._uniform = _is_uniform(self.cost)
        for name, value in self._kernel_of(self.cost.float())._asdict().items():
            self.register_buffer(name, value, persistent=False)

    def _kernel_of(self, cost: Tensor) -> _sweeps.Kernel:
        """A uniform cost needs two numbers, and no product."""
        return _sweeps.gibbs_kernel(cost[0, :2] if self._uniform else cost, self.reg, self.sweeps.mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> WKDLogitLoss:
        """Follow the module to another device, but to no other dtype: a half kernel would underflow."""
        before = dict(self._buffers)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, buffer in before.items():
            moved = self._buffers[name]
            if buffer is not None and moved is not None and moved.dtype != buffer.dtype:
                self._buffers[name] = buffer.to(moved.device)
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """A checkpoint's cost is checked as the constructor's is, before anything is changed."""
        cost = state_dict.get(f"{prefix}cost")
        if isinstance(cost, Tensor) and cost.shape == self.cost.shape:
            _checked(cost, self.reg)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def forward(self, logits: Tensor, target_logits: Tensor, labels: Tensor) -> Tensor:
        """Both logits (*, C); `labels` (*) integers. A term whose weight is 0 is not computed."""
        self._check(logits, target_logits)
        inputs = logits, target_logits, labels
        if not self.transport_weight:
            return self.target_weight * self._target(*inputs)
        moved = self.transport_weight * self._transport(*inputs)
        return self.target_weight * self._target(*inputs) + moved if self.target_weight else moved

    def terms(self, logits: Tensor, target_logits: Tensor, labels: Tensor) -> WKDTerms:
        """Both terms without their weights: a schedule may fade the transport alone."""
        self._check(logits, target_logits)
        inputs = logits, target_logits, labels
        return WKDTerms(self._target(*inputs), self._transport(*inputs))

    def _check(self, logits: Tensor, target_logits: Tensor) -> None:
        check_pair(logits, target_logits)
        if logits.shape[-1] != len(self.cost):
            raise ValueError(
                f"`logits` expected {len(self.cost)} classes, as many as `cost` has, got {tuple(logits.shape)}"
            )

    def _target(self, logits: Tensor, target_logits: Tensor, labels: Tensor) -> Tensor:
        split = self.separate_target
        return transport.wkd_target(logits, target_logits, labels, separate_target=split, reduction=self.reduction)

    def _transport(self, logits: Tensor, target_logits: Tensor, labels: Tensor) -> Tensor:
        dtype = widest(logits, target_logits)
        kernel = _sweeps.Kernel(self.kernel, self.kernel_cost)
        if dtype != self.kernel.dtype:
            kernel = self._kernel_of(self.cost.to(dtype))
        return transport.wkd_transport(
            logits,
            target_logits,
            labels,
            kernel,
            self.sweeps,
            temperature=self.temperature,
            separate_target=self.separate_target,
            reduction=self.reduction,
        )

    def extra_repr(self) -> str:
        """Return the options for `repr`."""
        return (
            f"{len(self.cost)}, temperature={self.temperature}, reg={self.reg}, iterations={self.sweeps.iterations}, "
            f"separate_target={self.separate_target}, mode={self.sweeps.mode!r}, gradient={self.sweeps.gradient!r}, "
            f"target_weight={self.target_weight}, transport_weight={self.transport_weight}"
        )


def _take_loaded(module: WKDLogitLoss, _: object) -> None:
    """After a checkpoint brought another cost."""
    module.cost.clamp_min_(0.0).fill_diagonal_(0.0)
    module._make_kernel()


def _read(path: str | PathLike[str]) -> Tensor:
    """The tensor `cost` of a safetensors file."""
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise ImportError(f'reading {path} needs `safetensors`: pip install "limbeck[cli]"') from error
    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            if "cost" in names:
                cost: Tensor = file.get_tensor("cost")
                return cost
    except (OSError, SafetensorError) as error:
        raise ValueError(f"`cost` expected a safetensors file, got {path}: {error}") from error
    raise ValueError(f"`cost` expected a file with a tensor named `cost`, got {path} with {', '.join(names) or 'none'}")


def _is_uniform(cost: Tensor) -> bool:
    """All entries off the diagonal, if any, are one number."""
    if len(cost) < 2:
        return False
    off = ~torch.eye(len(cost), dtype=torch.bool, device=cost.device)
    low, high = torch.aminmax(cost[off])
    return bool(low == high)


def _checked(cost: Tensor, reg: float) -> Tensor:
    """Return the cost in at least float32, rounding errors below 0 and on the diagonal removed."""
    transport.check_square(cost)
    cost = cost.detach().to(widest(cost), copy=True)
    low, high = (bound.item() for bound in torch.aminmax(cost))
    if not (low >= -ROUNDING and high < float("inf")):
        raise ValueError(f"`cost` expected finite numbers of at least 0, got {low:g} to {high:g}")
    if cost.diagonal().max() > ROUNDING:
        got = cost.diagonal().max().item()
        raise ValueError(f"`cost` expected a diagonal of 0, got {got:g}; of a similarity s in [0, 1] the cost is 1 - s")
    if (cost - cost.mT).abs().max() > ROUNDING * high:
        raise ValueError("`cost` expected a symmetric matrix, got one that is not; (cost + cost.T) / 2 is")
    if high > LARGEST_EXPONENT * reg:
        raise ValueError(
            f"`reg` expected at least {high / LARGEST_EXPONENT:g} (the largest cost / {LARGEST_EXPONENT:g}), got "
            f"{reg:g}; below, exp(-cost / reg) leaves float32: raise `reg` or divide `cost`"
        )
    return cost.clamp_min_(0.0).fill_diagonal_(0.0)
