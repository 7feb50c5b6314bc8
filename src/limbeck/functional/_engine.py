"""Which code computes a function: torch's operations, or a kernel of ours behind the same function."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from limbeck.functional._check import Reduction

Impl = Literal["auto", "torch", "triton"]


def takes_kernel(name: str, impl: Impl, *arguments: Tensor | float | None) -> bool:
    """Whether a call goes to the kernel of that name: "auto" asks whether it can, "triton" insists.

    The first argument is a tensor; of the others those that are not, are no matter.
    """
    first = arguments[0]
    if impl == "torch" or (impl == "auto" and not (isinstance(first, Tensor) and first.is_cuda)):
        return False
    check_impl(impl)
    from limbeck import kernels

    reason = kernels.why_not(name, *(x for x in arguments if isinstance(x, Tensor)))
    if impl == "triton" and reason is not None:
        raise ValueError(f"`impl='triton'` cannot serve this call ({reason}); use impl='auto' or 'torch'")
    return reason is None


def check_impl(impl: str) -> None:
    """One of the three words."""
    if impl not in ("auto", "torch", "triton"):
        raise ValueError(f"`impl` expected 'auto', 'torch' or 'triton', got {impl!r}")


def kl_by_kernel(
    divergence: Literal["kl", "soft_cross_entropy"],
    logits: Tensor,
    target_logits: Tensor,
    temperature: float | Tensor,
    scale_by_t2: bool,
    reduction: Reduction,
) -> Tensor:
    """KL or the soft cross-entropy, by GKL's kernel."""
    from limbeck.kernels.gkl import gkl
    from limbeck.kernels.gkl_launch import Options

    temperature = float(temperature)
    factor = temperature**2 if scale_by_t2 else 1.0
    options = Options(divergence, 1.0, temperature, temperature, 0.0, factor, False, "samples", reduction)
    return gkl(logits, target_logits, None, None, None, None, options)
