"""Which code computes a function: torch's operations, or a kernel of ours behind the same function."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

Impl = Literal["auto", "torch", "triton"]


def takes_kernel(name: str, impl: Impl, *tensors: Tensor | None) -> bool:
    """Whether a call goes to the kernel of that name: "auto" asks whether it can, "triton" insists."""
    if impl == "torch" or (impl == "auto" and not (tensors[0] is not None and tensors[0].is_cuda)):
        return False
    if impl not in ("auto", "triton"):
        raise ValueError(f"`impl` expected 'auto', 'torch' or 'triton', got {impl!r}")
    from limbeck import kernels

    reason = kernels.why_not(name, *(tensor for tensor in tensors if tensor is not None))
    if impl == "triton" and reason is not None:
        raise ValueError(f"`impl='triton'` cannot serve this call ({reason}); use impl='auto' or 'torch'")
    return reason is None
