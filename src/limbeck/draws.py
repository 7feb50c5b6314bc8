"""Random numbers as pure functions of (seed, epoch, index, name): an integer hash, no generator.

A draw that belongs to a sample does not depend on the batch that the sample is in, on earlier draws, on workers or
ranks. So a run resumes by arithmetic, and any view of any image can be made again. No random state of torch or
Python is read or written, and a draw is the same on every device.

(seed, epoch, name) is hashed to a 64-bit key by BLAKE2. Sample `i` and component `j` then step away from the key by
two odd constants, and the finaliser of SplitMix64 (Steele, Lea & Flood 2014; Stafford's variant 13) mixes the bits.
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor


def _signed(value: int) -> int:
    """Read the low 64 bits of `value` as two's complement: torch multiplies int64 modulo 2**64."""
    return (value + 2**63) % 2**64 - 2**63


_STEP_OF_INDEX = _signed(0x9E3779B97F4A7C15)  # 2**64 over the golden ratio, SplitMix64's own step
_STEP_OF_COMPONENT = _signed(0xD1342543DE82EF95)  # odd, and no small multiple of the other
_FINALISER = ((30, _signed(0xBF58476D1CE4E5B9)), (27, _signed(0x94D049BB133111EB)))
_LAST_SHIFT = 31
_POSITIVE = 2**63 - 1


def key(seed: int, epoch: int, name: str) -> int:
    """Return the 64-bit key of a draw: a stable hash, the same in every process and version of Python.

    Args:
        seed: Seed of the run.
        epoch: Epoch, or any other counter that the draw depends on.
        name: Name of the draw; other names give independent numbers.

    Returns:
        An integer in [-2**63, 2**63).

    Example:
        >>> key(0, 1, "flip") == key(0, 1, "flip"), key(0, 1, "flip") == key(0, 2, "flip")
        (True, False)
    """
    digest = hashlib.blake2b(f"{seed}\0{epoch}\0{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def _shift_right(bits: Tensor, places: int) -> Tensor:
    """Shift with zeros coming in: int64's own `>>` copies the sign bit."""
    return (bits >> places).bitwise_and_(2 ** (64 - places) - 1)


def _bits(seed: int, epoch: int, indices: Tensor, name: str, size: tuple[int, ...]) -> Tensor:
    """Return 64 random bits as int64 `(N, *size)`."""
    if indices.dtype != torch.int64 or indices.dim() != 1:
        raise TypeError(f"`indices` expected int64 of shape (N,), got {indices.dtype} {tuple(indices.shape)}")
    bits = indices * _STEP_OF_INDEX + key(seed, epoch, name)
    if size:
        components = torch.arange(math.prod(size), device=indices.device) * _STEP_OF_COMPONENT
        bits = bits.unsqueeze(1) + components
    for places, factor in _FINALISER:
        bits = bits.bitwise_xor_(_shift_right(bits, places)).mul_(factor)
    bits = bits.bitwise_xor_(_shift_right(bits, _LAST_SHIFT))
    return bits.view(len(indices), *size)


def uniform(seed: int, epoch: int, indices: Tensor, name: str, size: tuple[int, ...] = ()) -> Tensor:
    """Draw from the uniform distribution on [0, 1), in steps of 2**-53.

    Args:
        seed: Seed of the run.
        epoch: Epoch.
        indices: Samples, int64 `(N,)`. The numbers of a sample do not depend on the others.
        name: Name of the draw, such as "crop".
        size: Shape of the draw of one sample.

    Returns:
        float64 `(N, *size)` on the device of `indices`.

    Raises:
        TypeError: `indices` is not int64 of one dimension.

    Example:
        >>> both = uniform(0, 1, torch.tensor([7, 9]), "crop")
        >>> torch.equal(uniform(0, 1, torch.tensor([9]), "crop"), both[1:])
        True
    """
    return _shift_right(_bits(seed, epoch, indices, name, size), 11).double().mul_(2.0**-53)


def integers(seed: int, epoch: int, indices: Tensor, name: str, high: int, size: tuple[int, ...] = ()) -> Tensor:
    """Draw uniform integers from 0 to `high - 1`; the bias is below `high` / 2**63.

    Args:
        seed: Seed of the run.
        epoch: Epoch.
        indices: Samples, int64 `(N,)`.
        name: Name of the draw.
        high: Number of outcomes, at least 1.
        size: Shape of the draw of one sample.

    Returns:
        int64 `(N, *size)` on the device of `indices`.

    Raises:
        TypeError: `indices` is not int64 of one dimension.
        ValueError: `high` is below 1.

    Example:
        >>> integers(0, 1, torch.arange(1000), "side", 3).bincount().tolist()
        [312, 364, 324]
    """
    if high < 1:
        raise ValueError(f"`high` expected at least 1, got {high}")
    return _bits(seed, epoch, indices, name, size).bitwise_and_(_POSITIVE).remainder_(high)


def permutation(seed: int, epoch: int, n: int, name: str = "order") -> Tensor:
    """Draw an order of `n` things: the order of their hashes.

    Args:
        seed: Seed of the run.
        epoch: Epoch.
        n: How many.
        name: Name of the draw.

    Returns:
        int64 `(n,)` on the CPU, each of 0 to `n - 1` once.

    Example:
        >>> sorted(permutation(0, 1, 5).tolist())
        [0, 1, 2, 3, 4]
    """
    return _bits(seed, epoch, torch.arange(n), name, ()).argsort(stable=True)
