"""Inner products between the matrices of all pairs of classes, without a loop over the pairs; and their checks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

Negative = Literal["shift", "clip"]
CHUNK = 2**23  # numbers of the kernels' rows that are held at once: 64 MiB
NOTHING = 1e-12  # of a length: what rounding leaves of a difference between equal numbers


def gram_products(x: Tensor) -> Tensor:
    """(C, C), <G_i, G_j> of the centred features (C, N, D), from rows of all Gram matrices at a time."""
    return row_products(x, lambda rows: x[:, rows] @ x.mT)


def block_products(x: Tensor) -> Tensor:
    """(C, C), the same as |X_i^T X_j|^2: no Gram matrix is made."""
    classes, samples, size = x.shape
    flat = x.permute(1, 0, 2).reshape(samples, classes * size)
    products = x.new_zeros(classes, classes)
    for i in range(classes):
        blocks = x[i].mT @ flat[:, i * size :]
        products[i, i:] = blocks.view(size, classes - i, size).square().sum((0, 2))
    return products + products.triu(1).mT


def kernel_alignment(x: Tensor, kernel: Callable[[slice, slice], Tensor]) -> Tensor:
    """CKA of `kernel(rows, classes)` (c, |rows|, N), centred on both sides."""
    classes, everything = slice(None), slice(None)
    means = torch.cat([kernel(everything, slice(c, c + 1)).mean(-1) for c in range(len(x))])
    total = means.mean(-1).view(-1, 1, 1)

    def centred(rows: slice) -> Tensor:
        return kernel(rows, classes) - means[:, rows].unsqueeze(-1) - means.unsqueeze(1) + total

    return normalised(row_products(x, centred))


def row_products(x: Tensor, rows_of: Callable[[slice], Tensor]) -> Tensor:
    """Sum over pieces of one product (C, N^2) @ (N^2, C): `rows_of` returns rows of the matrices, (C, |rows|, N)."""
    classes, samples, _ = x.shape
    step = max(1, CHUNK // (classes * samples))
    products = x.new_zeros(classes, classes)
    for start in range(0, samples, step):
        piece = rows_of(slice(start, start + step)).flatten(1)
        products += piece @ piece.mT
    return products


def normalised(products: Tensor) -> Tensor:
    """Divide by the norms, the roots of the diagonal."""
    if not bool(products.isfinite().all()):
        raise ValueError("`features` expected products within float64, got larger ones; divide the features")
    refuse_classes(products.diagonal() <= 0, "a matrix other than 0", "leave the class out")
    norms = products.diagonal().sqrt()
    return symmetric(products / (norms * norms.unsqueeze(-1)))


def cosines(x: Tensor, negative: Negative, expected: str, scale: Tensor) -> Tensor:
    """Return what is made of the cosines of the rows (C, D); one that is nothing beside `scale` is refused."""
    if negative not in get_args(Negative):
        raise ValueError(f"`negative` expected 'shift' or 'clip', got {negative!r}")
    norms = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    refuse_classes(norms.flatten() <= NOTHING * scale, expected, "it has no direction")
    cosines = (x / norms) @ (x / norms).mT
    return symmetric((1 + cosines) / 2 if negative == "shift" else cosines)


def symmetric(similarities: Tensor) -> Tensor:
    """Take off what rounding did: symmetric, in [0, 1], the diagonal exactly 1."""
    return ((similarities + similarities.mT) / 2).clamp(0.0, 1.0).fill_diagonal_(1.0)


# --- checks ---


def checked_features(features: Tensor) -> Tensor:
    """A copy of features (C, N, D) in float64, whose samples differ."""
    x = checked_floats("features", features, "(C, N, D)", 3).to(torch.float64, copy=True)
    if x.shape[1] < 2:
        raise ValueError(f"`features` expected at least 2 samples of each class, got {x.shape[1]}")
    deviation = x.var(1, correction=0).sum(-1).mul(x.shape[1]).sqrt()
    alike = 8 * torch.finfo(features.dtype).eps * torch.linalg.vector_norm(x, dim=(1, 2))  # but for rounding
    refuse_classes(deviation <= alike, "samples that differ", "leave the class out")
    return x


def checked(name: str, value: Tensor, shape: str, axes: int) -> Tensor:
    """A finite tensor in float64, detached."""
    return checked_floats(name, value, shape, axes).double()


def checked_floats(name: str, value: Tensor, shape: str, axes: int) -> Tensor:
    """A finite tensor, detached."""
    if not isinstance(value, Tensor):
        raise TypeError(f"`{name}` expected a tensor, got {type(value).__name__}")
    if not value.is_floating_point():
        raise TypeError(f"`{name}` expected a floating dtype, got {value.dtype}; convert it with `.float()`")
    if value.dim() != axes or value.numel() == 0:
        raise ValueError(f"`{name}` expected a non-empty shape {shape}, got {tuple(value.shape)}")
    value = value.detach()
    if not bool(value.isfinite().all()):
        raise ValueError(f"`{name}` expected finite numbers, got NaN or infinity")
    return value


def refuse_classes(wrong: Tensor, expected: str, way_out: str) -> None:
    """Raise ValueError if one of the classes is as it must not be."""
    if bool(wrong.any()):
        raise ValueError(f"class {int(wrong.nonzero()[0])} expected {expected}, got none; {way_out}")
