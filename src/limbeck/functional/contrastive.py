"""Contrastive distillation (CRD): noise-contrastive estimation, from scores and from the rows of a memory bank."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from limbeck.functional._check import Reduction, check_positive, check_reduction, full_precision, reduce, widest

FLOOR = 1e-7  # the public code's, beside a score and the noise; part of the published numbers
BLOCK_ELEMENTS = 2**22  # numbers of a bank that are held at a time: 16 MB in float32
DENSE_RATIO = 16  # a product with the whole bank costs less than gathering a sixteenth of it, row by row


@full_precision
def contrastive_nce(scores: Tensor, *, population: int, reduction: Reduction = "mean") -> Tensor:
    r"""Noise-contrastive estimation: tell the pair that belongs together from K that do not.

    .. math:: - \log \frac{P_0}{P_0 + c + \varepsilon} - \sum_{k=1}^{K} \log \frac{c}{P_k + c + \varepsilon}, \quad
        c = K / M, \; \varepsilon = 10^{-7}

    M is `population`. The sum over the negatives is not divided by K, as in the public code, so the value grows with K.

    Args:
        scores: (*, 1 + K), any floating dtype, above 0: the pair that belongs together first, then K >= 1 others.
        population: M >= 1, the number of training samples, of which the noise draws each with 1 / M.
        reduction: "none" (*), "mean" over all leading axes (as published), or "sum".

    Returns:
        Nats, at least 0; float32 (float64 for float64 inputs).

    Raises:
        TypeError: not a tensor, or not floating.
        ValueError: empty, or without a negative; `population` below 1; unknown reduction.

    Gradient:
        To `scores`, all orders.

    Example:
        >>> import torch
        >>> contrastive_nce(torch.tensor([0.01, 0.01]), population=100)  # twice log 2
        tensor(1.3863)

    Reference:
        Tian, Krishnan, Isola, "Contrastive Representation Distillation", arXiv 1910.10699, Eq. 18-19;
        HobbitLong/RepDistiller, `crd/criterion.py`.
    """
    if not isinstance(scores, Tensor):
        raise TypeError(f"`scores` expected a tensor, got {type(scores).__name__}")
    if not scores.is_floating_point():
        raise TypeError(f"`scores` expected a floating dtype, got {scores.dtype}; convert it with `.float()`")
    if scores.dim() == 0 or scores.numel() == 0 or scores.shape[-1] < 2:
        raise ValueError(f"`scores` expected a non-empty shape (*, 1 + K) with K >= 1, got {tuple(scores.shape)}")
    if not isinstance(population, int) or population < 1:
        raise ValueError(f"`population` expected a whole number of at least 1, got {population!r}")
    check_reduction(reduction)
    return reduce(_nce(scores.to(widest(scores)), population), reduction)


@full_precision
def bank_nce(
    embeddings: Tensor,
    bank: Tensor,
    indices: Tensor,
    normalizer: Tensor | float,
    *,
    temperature: float = 0.07,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""`contrastive_nce` between embeddings and rows of a memory bank.

    .. math:: P_{nk} = \exp( \langle f_n, B_{i(n, k)} \rangle / \tau ) / Z

    The rows are visited block by block and once: the gradient is made with the value, and neither the (N, 1 + K, D)
    rows nor, beyond a block, the scores are kept. Where the bank is short, at most 16 (1 + K) rows, a product with all
    of it takes the place of gathering.

    Args:
        embeddings: (N, D), any floating dtype; what trains.
        bank: (M, D), constants; M is the population of the noise.
        indices: (N, 1 + K), int64 rows of the bank; the first is the pair that belongs together.
        normalizer: Z above 0, a float or a 0-d tensor; `mean_score(...)` of the first batch times M as published.
        temperature: tau > 0; published 0.07, between vectors of length one.
        reduction: "none" (N), "mean" (as published), or "sum".

    Returns:
        Nats, at least 0; float32 (float64 for float64 inputs).

    Raises:
        TypeError: `embeddings` or `bank` not floating; `indices` not int64.
        ValueError: shapes do not fit; an option out of range; unknown reduction.

    Gradient:
        To `embeddings`, first order only; none to the bank or the normaliser.

    Example:
        >>> import torch
        >>> bank_nce(torch.eye(2), torch.eye(2), torch.tensor([[0, 1], [1, 0]]), 1.0) < 1.2
        tensor(True)

    Reference:
        arXiv 1910.10699, Eq. 18-19; HobbitLong/RepDistiller, `crd/memory.py` and `crd/criterion.py`.
    """
    _check_bank(embeddings, bank, indices)
    check_positive("normalizer", normalizer)
    check_positive("temperature", temperature)
    check_reduction(reduction)
    values: Tensor = _BankNCE.apply(embeddings, bank.detach(), indices, normalizer, temperature)  # type: ignore[no-untyped-call]
    return reduce(values, reduction)


@full_precision
@torch.no_grad()
def mean_score(embeddings: Tensor, bank: Tensor, indices: Tensor, *, temperature: float = 0.07) -> Tensor:
    r"""Mean of exp(<f_n, B_i> / tau) over all pairs, 0-d; times M it is the published normaliser of `bank_nce`.

    Args:
        embeddings: (N, D), any floating dtype.
        bank: (M, D).
        indices: (N, 1 + K), int64 rows of the bank.
        temperature: tau > 0.

    Returns:
        0-d, float32 (float64 for float64 inputs).

    Raises:
        TypeError: `embeddings` or `bank` not floating; `indices` not int64.
        ValueError: shapes do not fit; `temperature` out of range.

    Gradient:
        None.

    Example:
        >>> import torch
        >>> mean_score(torch.zeros(1, 2), torch.eye(2), torch.tensor([[0, 1]]))
        tensor(1.)

    Reference:
        HobbitLong/RepDistiller, `crd/memory.py`.
    """
    _check_bank(embeddings, bank, indices)
    check_positive("temperature", temperature)
    embeddings = embeddings.to(widest(embeddings, bank))
    sums = [block.products.div(temperature).exp_().sum() for block in _blocks(embeddings, bank, indices)]
    return torch.stack(sums).sum() / indices.numel()


def _nce(scores: Tensor, population: int) -> Tensor:
    """Per sample: log1p keeps what a negative adds, c being far above its score."""
    noise = (scores.shape[-1] - 1) / population
    own, others = scores[..., 0], scores[..., 1:]
    return torch.log1p((noise + FLOOR) / own) + torch.log1p((others + FLOOR) / noise).sum(-1)


class _Block:
    """Some embeddings' products with their rows of the bank, (n, 1 + K), and the way back."""

    def __init__(self, samples: slice, embeddings: Tensor, bank: Tensor, indices: Tensor, dense: bool) -> None:
        self.samples, self.indices = samples, indices[samples]
        rows = bank if dense else bank[self.indices]
        self.rows = rows.to(embeddings.dtype)
        if dense:
            self.products = (embeddings[samples] @ self.rows.mT).gather(1, self.indices)
        else:
            self.products = (self.rows @ embeddings[samples].unsqueeze(-1)).squeeze(-1)

    def pull_back(self, gradients: Tensor) -> Tensor:
        """From gradients of the products to those of the embeddings."""
        if self.rows.dim() == 3:
            return (gradients.unsqueeze(1) @ self.rows).squeeze(1)
        of_all = gradients.new_zeros(len(gradients), len(self.rows))
        return of_all.scatter_add_(1, self.indices, gradients) @ self.rows


def _blocks(embeddings: Tensor, bank: Tensor, indices: Tensor) -> Iterator[_Block]:
    dense = len(bank) <= DENSE_RATIO * indices.shape[1]
    each = len(bank) if dense else indices.shape[1] * bank.shape[1]
    step = max(1, BLOCK_ELEMENTS // each)
    for start in range(0, len(embeddings), step):
        yield _Block(slice(start, start + step), embeddings, bank, indices, dense)


class _BankNCE(torch.autograd.Function):
    """Values (N,); the gradient of each to its own embedding is made beside it."""

    @staticmethod
    def forward(
        ctx: Any, embeddings: Tensor, bank: Tensor, indices: Tensor, normalizer: Tensor | float, temperature: float
    ) -> Tensor:
        ctx.dtype = embeddings.dtype
        embeddings = embeddings.to(widest(embeddings, bank))
        noise = (indices.shape[1] - 1) / len(bank)
        values, gradients = torch.empty_like(embeddings[:, 0]), torch.empty_like(embeddings)
        for block in _blocks(embeddings, bank, indices):
            scores = block.products.div(temperature).exp_().div_(normalizer)
            values[block.samples] = _nce(scores, len(bank))
            slopes = scores / (scores + (noise + FLOOR))  # of the negatives; the positive's is this less 1
            slopes[:, 0] -= 1
            gradients[block.samples] = block.pull_back(slopes.div_(temperature))
        ctx.save_for_backward(gradients)
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (gradients,) = ctx.saved_tensors
        return (gradients * gradient.unsqueeze(-1)).to(ctx.dtype), None, None, None, None


def _check_bank(embeddings: Tensor, bank: Tensor, indices: Tensor) -> None:
    for name, value in (("embeddings", embeddings), ("bank", bank)):
        if not isinstance(value, Tensor) or not value.is_floating_point():
            got = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"`{name}` expected a floating tensor, got {got}")
    if embeddings.dim() != 2 or embeddings.numel() == 0 or bank.dim() != 2 or embeddings.shape[1] != bank.shape[1]:
        raise ValueError(
            "`embeddings` and `bank` expected the shapes (N, D) and (M, D), got "
            f"{tuple(embeddings.shape)} and {tuple(bank.shape)}"
        )
    if indices.dtype != torch.int64:
        raise TypeError(f"`indices` expected int64, got {indices.dtype}")
    if indices.dim() != 2 or len(indices) != len(embeddings) or indices.shape[1] < 2:
        raise ValueError(
            f"`indices` expected the shape ({len(embeddings)}, 1 + K) with K >= 1, got {tuple(indices.shape)}"
        )
