"""Which kernels there are, and why one cannot serve a call."""

from __future__ import annotations

import functools
import importlib.util
import os

import torch
from torch import Tensor
from torch.autograd import forward_ad

KERNELS = ("gkl", "kl", "js", "sinkhorn")
FEW_CLASSES = 128  # Sinkhorn: a matrix of 128 x 128 is 32 numbers in each of 512 threads; of 256 x 256, all registers
MOST_CLASSES = 2**30  # of one row, along which kernels count in 32 bits
OLDEST = (8, 0)  # compute capability from which bfloat16 is computed
# Looked for once and here, since compilation does not follow such a look.
MISSING = None if importlib.util.find_spec("triton") else "Triton is not installed: pip install 'limbeck[triton]'"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def why_not(name: str, *tensors: Tensor) -> str | None:
    """Say why a kernel cannot serve these tensors, or return None if it can.

    Args:
        name: of a kernel: "gkl" (also DKL, IKL, `weighted_mse`), "kl" (also reverse KL, soft cross-entropy),
            "js" or "sinkhorn".
        tensors: what the function is called with; without any, whether the kernel could run on this machine.

    Returns:
        The first reason, in words, or None.

    Raises:
        ValueError: no kernel of that name.

    Example:
        >>> import torch
        >>> why_not("gkl", torch.zeros(2, 3, dtype=torch.float64))
        'float64: kernels add up in float32'
    """
    if name not in KERNELS:
        raise ValueError(f"`name` expected one of {', '.join(map(repr, KERNELS))}, got {name!r}")
    for tensor in tensors:
        if tensor.is_floating_point() and tensor.dtype not in DTYPES:
            return f"{str(tensor.dtype).removeprefix('torch.')}: kernels add up in float32"
        if type(tensor) not in (Tensor, torch.nn.Parameter):
            return f"{type(tensor).__name__}: kernels take plain tensors"
        if tensor.dim() == 0:
            return "a temperature that is a tensor, of which the kernel would give no gradient"
        if tensor.is_floating_point() and tensor.shape[-1] > MOST_CLASSES:
            return f"more than 2^30 classes, {tensor.shape[-1]}: along a row kernels count in 32 bits"
    if name == "sinkhorn" and any(tensor.shape[-1] > FEW_CLASSES for tensor in tensors):
        return f"more than {FEW_CLASSES} classes: a program holds the matrix of all pairs in its registers"
    if torch._C._are_functorch_transforms_active():
        return "inside a torch.func transform, which cannot see through a kernel"
    if forward_ad._current_level >= 0:
        return "forward-mode differentiation, which cannot see through a kernel"
    return MISSING or (None if _interpreted() else _misplaced(tensors))


def _interpreted() -> bool:
    """Triton's interpreter serves any device, slowly, for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@functools.cache
def _no_gpu() -> str | None:
    if not torch.cuda.is_available():
        return "no GPU that Triton can use is visible to torch"
    oldest = min(torch.cuda.get_device_capability(index) for index in range(torch.cuda.device_count()))
    if oldest < OLDEST and torch.version.hip is None:
        return f"a GPU of compute capability {oldest[0]}.{oldest[1]}: kernels need {OLDEST[0]}.{OLDEST[1]}"
    return None


def _misplaced(tensors: tuple[Tensor, ...]) -> str | None:
    if not torch.compiler.is_compiling() and _no_gpu() is not None:
        return _no_gpu()
    if not all(tensor.is_cuda for tensor in tensors):
        return f"on {_named(tensors)}: kernels run on a GPU"
    if any(tensor.get_device() != tensors[0].get_device() for tensor in tensors):
        return f"tensors on several devices: {_named(tensors)}"
    return None


def _named(tensors: tuple[Tensor, ...]) -> str:
    return ", ".join(sorted({str(tensor.device) for tensor in tensors}))
