"""Claims about noise-contrastive estimation, from scores and from a bank, against float64 loops."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import Tensor
from twins import gradients

from limbeck.functional import contrastive
from limbeck.functional.contrastive import bank_nce, contrastive_nce, mean_score


def nce_twin(scores: Tensor, population: int) -> Tensor:
    """The published logarithms, per sample."""
    noise = (scores.shape[1] - 1) / population
    values = []
    for row in scores:
        value = -torch.log(row[0] / (row[0] + noise + 1e-7))
        for score in row[1:]:
            value = value - torch.log(noise / (score + noise + 1e-7))
        values.append(value)
    return torch.stack(values)


def bank_twin(embeddings: Tensor, bank: Tensor, indices: Tensor, z: float, temperature: float) -> Tensor:
    scores = [
        torch.stack([torch.exp(row @ bank[i] / temperature) / z for i in places])
        for row, places in zip(embeddings, indices, strict=True)
    ]
    return nce_twin(torch.stack(scores), len(bank))


def unit(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=dtype)
    return x / x.norm(dim=-1, keepdim=True)


def problem() -> tuple[Tensor, Tensor, Tensor]:
    """Places repeat, within a sample and between samples."""
    indices = torch.randint(20, (5, 8), generator=torch.Generator().manual_seed(0))
    indices[0, 3] = indices[0, 1]
    return unit(5, 4).requires_grad_(), unit(20, 4), indices


def test_nce_equals_the_published_logarithms() -> None:
    n = torch.arange(72, dtype=torch.float64)
    scores = (torch.sigmoid(torch.sin(1 + 0.37 * n)) / 50).view(8, 9).requires_grad_()
    expected = nce_twin(scores, 50)
    for reduction, wanted in (("none", expected), ("mean", expected.mean()), ("sum", expected.sum())):
        value = contrastive_nce(scores, population=50, reduction=reduction)
        assert (value - wanted).abs().max() < 1e-12
        got, want = (gradients(x.sum(), scores)[0] for x in (value, wanted))
        assert (got - want).abs().max() < 1e-10
    assert contrastive_nce(scores.view(2, 4, 9), population=50, reduction="none").shape == (2, 4)


def test_nce_keeps_what_small_scores_add_in_float32() -> None:
    """16384 negatives of 1e-9 beside a noise of 0.3: each quotient rounds to 1, but their sum counts."""
    scores = torch.full((1, 16385), 1e-9, dtype=torch.float64)
    exact = nce_twin(scores, 50000)
    value = contrastive_nce(scores.float(), population=50000)
    assert abs(value.double() - exact[0]) < 1e-6 * exact[0]
    assert contrastive_nce(scores, population=50000) - contrastive_nce(scores[:, :9], population=27) > 1e-3


def test_best_scores_separate_at_the_noise() -> None:
    """A lone negative: the loss falls as the pair that belongs together rises above c and the other falls below."""
    scores = torch.tensor([[1e3, 1e-9], [1e-2, 1e-2], [1e-9, 1e3]], dtype=torch.float64)
    values = contrastive_nce(scores, population=100, reduction="none")
    assert values[0] < 1e-4
    assert values[1].item() == pytest.approx(2 * math.log(2), abs=1e-4)
    assert values[2] > 20


@pytest.mark.parametrize("ratio", [0, 16])
@pytest.mark.parametrize("block", [1, 2**22])
def test_nce_of_a_bank_equals_loops(monkeypatch: pytest.MonkeyPatch, ratio: int, block: int) -> None:
    """By gathering and by the whole product, in blocks of one sample and at once."""
    monkeypatch.setattr(contrastive, "DENSE_RATIO", ratio)
    monkeypatch.setattr(contrastive, "BLOCK_ELEMENTS", block)
    u, bank, indices = problem()
    expected = bank_twin(u, bank, indices, 30.0, 0.1)
    for reduction, wanted in (("none", expected), ("mean", expected.mean()), ("sum", expected.sum())):
        value = bank_nce(u, bank, indices, torch.tensor(30.0), temperature=0.1, reduction=reduction)
        assert (value - wanted).abs().max() < 1e-12
    weights = torch.arange(1.0, 6.0, dtype=torch.float64)
    value = (weights * bank_nce(u, bank, indices, 30.0, temperature=0.1, reduction="none")).sum()
    assert (gradients(value, u)[0] - gradients((weights * expected).sum(), u)[0]).abs().max() < 1e-11
    mean = torch.stack([torch.exp(a @ bank[i] / 0.1) for a, row in zip(u, indices, strict=True) for i in row]).mean()
    assert torch.isclose(mean_score(u, bank, indices, temperature=0.1), mean, rtol=1e-12)


def test_a_bank_is_a_constant_and_derivatives_are_of_first_order() -> None:
    u, bank, indices = problem()
    bank = bank.requires_grad_()
    value = bank_nce(u, bank, indices, 30.0)
    assert torch.autograd.grad(value, bank, allow_unused=True, retain_graph=True) == (None,)
    assert not mean_score(u, bank, indices).requires_grad
    first = torch.autograd.grad(value**2, u, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()
    assert torch.autograd.gradcheck(partial(bank_nce, bank=bank.detach(), indices=indices, normalizer=30.0), (u,))


@pytest.mark.parametrize("ratio", [0, 16])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_embeddings_are_scored_in_float32(monkeypatch: pytest.MonkeyPatch, ratio: int, dtype: torch.dtype) -> None:
    monkeypatch.setattr(contrastive, "DENSE_RATIO", ratio)
    u, bank, indices = problem()
    u, bank = u.detach().to(dtype).requires_grad_(), bank.to(dtype)
    exact = bank_nce(u.double(), bank.double(), indices, 30.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = bank_nce(u, bank, indices, 30.0)
    assert value.dtype == torch.float32
    assert torch.isclose(value.double(), exact, rtol=1e-5)
    gradient = gradients(value, u)[0]
    assert gradient.dtype == dtype
    assert gradient.isfinite().all()


def test_memory_of_a_bank_is_that_of_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the gradient, as large as the embeddings, is kept for the backward pass; no block is larger than told."""
    monkeypatch.setattr(contrastive, "DENSE_RATIO", 0)
    monkeypatch.setattr(contrastive, "BLOCK_ELEMENTS", 2 * 8 * 4)
    largest: list[int] = []
    init = contrastive._Block.__init__

    def watched(self: contrastive._Block, *args: object) -> None:
        init(self, *args)
        largest.append(self.rows.numel())

    monkeypatch.setattr(contrastive._Block, "__init__", watched)
    u, bank, indices = problem()
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        bank_nce(u, bank, indices, 30.0)
    assert kept == [u.numel()]
    assert largest == [64, 64, 32]


def test_nce_is_captured_whole() -> None:
    scores = torch.rand(3, 5, dtype=torch.float64)
    compiled = torch.compile(partial(contrastive_nce, population=9), fullgraph=True, backend="aot_eager")
    assert torch.isclose(compiled(scores), contrastive_nce(scores, population=9))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"scores": [1.0]}, TypeError, "`scores` expected a tensor"),
        ({"scores": torch.ones(2, 3, dtype=torch.int64)}, TypeError, "`scores` expected a floating"),
        ({"scores": torch.ones(2, 1)}, ValueError, "`scores` expected a non-empty shape"),
        ({"population": 0}, ValueError, "`population`"),
        ({"reduction": "batchmean"}, ValueError, "`reduction`"),
    ],
)
def test_bad_scores_are_said_in_one_line(change: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        contrastive_nce(**{"scores": torch.ones(2, 3), "population": 5, **change})


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"embeddings": None}, TypeError, "`embeddings` expected a floating tensor, got NoneType"),
        ({"bank": torch.ones(4, 3, dtype=torch.int64)}, TypeError, "`bank` expected a floating tensor"),
        ({"bank": torch.ones(4, 2)}, ValueError, r"\(N, D\) and \(M, D\), got \(2, 3\) and \(4, 2\)"),
        ({"indices": torch.zeros(2, 3)}, TypeError, "`indices` expected int64"),
        ({"indices": torch.zeros(2, 1, dtype=torch.int64)}, ValueError, r"`indices` expected the shape \(2, 1 \+ K\)"),
        ({"normalizer": 0.0}, ValueError, "`normalizer`"),
        ({"temperature": -1.0}, ValueError, "`temperature`"),
        ({"reduction": "batchmean"}, ValueError, "`reduction`"),
    ],
)
def test_a_bad_bank_is_said_in_one_line(change: dict[str, object], error: type[Exception], message: str) -> None:
    good = {"embeddings": torch.ones(2, 3), "bank": torch.ones(4, 3), "indices": torch.zeros(2, 3, dtype=torch.int64)}
    with pytest.raises(error, match=message):
        bank_nce(**{**good, "normalizer": 1.0, **change})
