"""Claims about CRD's module: its sampler, its memory, its order of events, against the published algorithm in loops."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from twins import gradients

from limbeck.losses.contrast_sampler import ContrastSampler
from limbeck.losses.contrastive import MOST_WAITING, CRDLoss

LABELS = torch.tensor([7, 0, 7, 3, 0, 7, 3, 3, 7, 0, 7, 7])  # 12 samples, 6, 3 and 3 of a class


def crd(**options: object) -> CRDLoss:
    torch.manual_seed(0)
    return CRDLoss([(6,)], [(2, 2, 2)], LABELS, **{"dim": 4, "negatives": 5, **options})


def batch(step: int = 0, samples: int = 4, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    student, target = (torch.randn(samples, *shape, generator=generator).to(dtype) for shape in ((6,), (2, 2, 2)))
    return student.requires_grad_(), target.requires_grad_(), torch.randperm(12, generator=generator)[:samples]


def state(loss: CRDLoss) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in loss.state_dict().items()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# The sampler


def test_negatives_are_of_other_classes_and_differ() -> None:
    sampler = ContrastSampler(LABELS, 6, "exact", 0)
    for epoch in range(20):
        sampler.set_epoch(epoch)
        places = sampler(torch.arange(12))
        assert torch.equal(places[:, 0], torch.arange(12))
        assert (LABELS[places[:, 1:]] != LABELS[:, None]).all()
        assert all(len(set(row.tolist())) == 6 for row in places[:, 1:])


def test_every_set_of_negatives_is_as_likely() -> None:
    """Sample 0 has six others: over 3000 epochs each of the 15 pairs of them is drawn 200 times, give or take."""
    sampler = ContrastSampler(LABELS, 2, "exact", 1)
    counts = dict.fromkeys(itertools.combinations([i for i in range(12) if LABELS[i] != 7], 2), 0)
    for epoch in range(3000):
        sampler.set_epoch(epoch)
        counts[tuple(sorted(sampler(torch.tensor([0]))[0, 1:].tolist()))] += 1
    chi_square = sum((count - 200) ** 2 / 200 for count in counts.values())
    assert chi_square < 36.1  # of 14 degrees of freedom, exceeded with probability 0.001


def test_negatives_are_functions_of_seed_epoch_and_index() -> None:
    sampler = ContrastSampler(LABELS, 5, "exact", 0)
    sampler.set_epoch(3)
    torch.manual_seed(9)
    before = torch.get_rng_state()
    all_of_them = sampler(torch.arange(12))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(sampler(torch.tensor([8, 2])), all_of_them[[8, 2]])
    again = ContrastSampler(LABELS, 5, "exact", 0)
    again.set_epoch(3)
    assert torch.equal(again(torch.arange(12)), all_of_them)
    for seed, epoch in ((1, 3), (0, 4)):
        other = ContrastSampler(LABELS, 5, "exact", seed)
        other.set_epoch(epoch)
        assert not torch.equal(other(torch.arange(12)), all_of_them)


def test_few_others_are_taken_in_turn() -> None:
    """Six samples are of other classes than sample 0: of 15 negatives each is two or three."""
    places = ContrastSampler(LABELS, 15, "exact", 0)(torch.arange(12))[0, 1:]
    counts = places.bincount(minlength=12)
    assert counts[LABELS == 7].sum() == 0
    assert set(counts[LABELS != 7].tolist()) == {2, 3}


def test_a_relaxed_positive_is_any_of_the_class() -> None:
    sampler = ContrastSampler(LABELS, 1, "relax", 0)
    drawn: set[int] = set()
    for epoch in range(60):
        sampler.set_epoch(epoch)
        positives = sampler(torch.arange(12))[:, 0]
        assert torch.equal(LABELS[positives], LABELS)
        drawn.add(int(positives[1]))
    assert drawn == {1, 4, 9}


def test_a_large_split_is_sampled_within_its_classes() -> None:
    labels = torch.randint(100, (5000,), generator=torch.Generator().manual_seed(0))
    places = ContrastSampler(labels, 1000, "exact", 0)(torch.arange(0, 5000, 500))
    assert (labels[places[:, 1:]] != labels[::500, None]).all()
    assert all(len(row.unique()) == 1001 for row in places)


# The algorithm


class Published:
    """The published algorithm in float64: banks, normalisers, plain gradient descent on the heads."""

    def __init__(self, loss: CRDLoss) -> None:
        self.heads = [
            [parameter.detach().clone().requires_grad_() for parameter in head.parameters()]
            for head in (loss.head, loss.target_head)
        ]
        self.banks = [loss.bank.clone(), loss.target_bank.clone()]
        self.normalizers: list[float] | None = None

    def embed(self, side: int, x: Tensor) -> Tensor:
        weight, bias = self.heads[side]
        rows = [weight @ row.flatten() + bias for row in x.double()]
        return torch.stack([row / row.norm() for row in rows])

    def value(self, student: Tensor, target: Tensor, places: Tensor) -> tuple[Tensor, list[Tensor]]:
        embeddings = [self.embed(0, student), self.embed(1, target.detach())]
        scores = [
            torch.stack(
                [torch.stack([torch.exp(a @ bank[i] / 0.07) for i in row]) for a, row in zip(e, places, strict=True)]
            )
            for e, bank in zip(embeddings, self.banks[::-1], strict=True)
        ]
        if self.normalizers is None:
            self.normalizers = [side.mean().item() * 12 for side in scores]
        noise, total = 5 / 12, torch.zeros((), dtype=torch.float64)
        for side, z in zip(scores, self.normalizers, strict=True):
            p = side / z
            total = total - torch.log(p[:, 0] / (p[:, 0] + noise + 1e-7)).sum() / len(p)
            total = total - torch.log(noise / (p[:, 1:] + noise + 1e-7)).sum() / len(p)
        return total, [e.detach() for e in embeddings]

    def update(self, indices: Tensor, embeddings: list[Tensor]) -> None:
        for bank, rows in zip(self.banks, embeddings, strict=True):
            for i, row in zip(indices, rows, strict=True):
                mixed = 0.5 * bank[i] + 0.5 * row
                bank[i] = mixed / mixed.norm()

    def step(self, rate: float, value: Tensor) -> None:
        parameters = [parameter for head in self.heads for parameter in head]
        for parameter, gradient in zip(parameters, torch.autograd.grad(value, parameters), strict=True):
            parameter.data -= rate * gradient


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_steps_equal_the_published_algorithm(micro_batches: int) -> None:
    """Three steps: gradients of heads and features, banks used before the batch updates them, normalisers frozen."""
    loss = crd().double()
    loss.bank, loss.target_bank = loss.bank.double(), loss.target_bank.double()
    loss.normalizers = loss.normalizers.double()
    published = Published(loss)
    optimizer = torch.optim.SGD(loss.parameters(), lr=0.1)
    for step in range(3):
        loss.set_epoch(step + 1)
        optimizer.zero_grad()
        total, written = torch.zeros((), dtype=torch.float64), []
        for part in range(micro_batches):
            student, target, indices = batch(10 * step + part, dtype=torch.float64)
            value = loss(student, target, indices)
            expected, embeddings = published.value(student, target, loss.sampler(indices))
            assert torch.isclose(value, expected, rtol=1e-10)
            assert (gradients(value, student)[0] - gradients(expected, student)[0]).abs().max() < 1e-10
            assert torch.autograd.grad(value, target, allow_unused=True, retain_graph=True) == (None,)
            value.backward()
            total = total + expected
            written.append((indices, embeddings))
        optimizer.step()
        published.step(0.1, total)
        loss.observe(torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64))
        for indices, embeddings in written:
            published.update(indices, embeddings)
        for bank, expected in zip((loss.bank, loss.target_bank), published.banks, strict=True):
            assert (bank - expected).abs().max() < 1e-12
        assert torch.allclose(loss.normalizers, torch.tensor(published.normalizers, dtype=torch.float64), rtol=1e-10)


def test_options_reach_the_scores() -> None:
    loss = crd(temperature=0.2, reduction="none", positive="relax", seed=3)
    values = loss(*batch())
    assert values.shape == (4,)
    for reduction, expected in (("mean", values.mean()), ("sum", values.sum())):
        other = crd(temperature=0.2, reduction=reduction, positive="relax", seed=3)
        assert torch.isclose(other(*batch()), expected)
    assert not torch.isclose(crd(seed=3)(*batch()), values.mean())
    frozen = crd(momentum=1.0)
    frozen(*batch())
    indices = batch()[2]
    before = frozen.bank[indices]
    frozen.observe()
    assert torch.allclose(frozen.bank[indices], before / before.norm(dim=1, keepdim=True))


# The memory


def test_forward_changes_nothing_that_is_saved() -> None:
    loss = crd()
    before = state(loss)
    loss(*batch())
    assert equal(state(loss), before)
    loss.observe()
    after = state(loss)
    indices = batch()[2]
    assert all((after[name][indices] != before[name][indices]).any(1).all() for name in ("bank", "target_bank"))
    others = torch.ones(12, dtype=torch.bool).index_fill(0, indices, False)
    assert torch.equal(after["bank"][others], before["bank"][others])
    assert (after["normalizers"] > 0).all()


def test_evaluation_leaves_no_trace() -> None:
    loss = crd()
    before = state(loss)
    with torch.no_grad():
        loss(*batch())
    loss.eval()
    loss(*batch())
    loss.observe()
    assert equal(state(loss), before)


def test_normalizers_are_those_of_the_first_batch() -> None:
    loss = crd()
    for step in range(3):
        loss(*batch(step))
        loss.observe()
        if step == 0:
            first = loss.normalizers.clone()
    assert torch.equal(loss.normalizers, first)
    fresh = crd()
    student, _, indices = batch()
    u = torch.nn.functional.normalize(fresh.head(student))
    places = fresh.sampler(indices)
    score = torch.exp((u.unsqueeze(1) * fresh.target_bank[places]).sum(-1) / 0.07).mean() * 12
    assert torch.isclose(first[0], score, rtol=1e-5)


def test_a_resumed_run_equals_an_unbroken_one() -> None:
    def steps(loss: CRDLoss, first: int, last: int) -> list[Tensor]:
        values = []
        for step in range(first, last):
            loss.set_epoch(1 + step // 2)
            value = loss(*batch(step))
            value.backward()
            with torch.no_grad():
                for parameter in loss.parameters():
                    parameter -= 0.1 * parameter.grad
                    parameter.grad = None
            loss.observe()
            values.append(value.detach())
        return values

    unbroken, broken = crd(), crd()
    expected = steps(unbroken, 0, 6)
    steps(broken, 0, 3)
    resumed = CRDLoss([(6,)], [(2, 2, 2)], LABELS, dim=4, negatives=5)
    resumed(*batch(99))  # what waits in another run is forgotten
    resumed.load_state_dict(copy.deepcopy(broken.state_dict()))
    assert torch.equal(torch.stack(steps(resumed, 3, 6)), torch.stack(expected[3:]))
    assert equal(state(resumed), state(unbroken))


def test_banks_begin_from_the_seed_and_heads_from_torchs() -> None:
    first, second = crd(), crd(seed=1)
    assert torch.equal(first.head.weight, second.head.weight)
    assert not torch.equal(first.bank, second.bank)
    assert not torch.equal(first.bank, first.target_bank)
    bound = (3 / 4) ** 0.5
    assert 0.9 * bound < first.bank.abs().max() <= bound
    assert sorted(first.state_dict()) == sorted(
        ["bank", "target_bank", "normalizers"]
        + [f"{h}.{p}" for h in ("head", "target_head") for p in ("weight", "bias")]
    )


def test_a_forgotten_observe_is_said() -> None:
    loss = crd()
    for _ in range(MOST_WAITING):
        loss(*batch())
    with pytest.raises(RuntimeError, match="`observe` expected after each optimizer step, got 64 batches without it"):
        loss(*batch())
    loss.observe()
    loss(*batch())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_features_and_half_heads_are_finite(dtype: torch.dtype) -> None:
    exact = crd()(*batch())
    loss = crd()
    student, target, indices = batch(dtype=dtype)
    assert torch.isclose(loss(student, target, indices), exact, rtol=0.1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.isclose(crd()(*batch()), exact, rtol=0.1)
    loss = loss.to(dtype)
    value = loss(student, target, indices)
    loss.observe()
    assert value.dtype == loss.bank.dtype == loss.normalizers.dtype == torch.float32
    assert all(gradient.isfinite().all() for gradient in gradients(value, student, *loss.parameters()))


def test_a_sample_without_direction_has_finite_gradients() -> None:
    loss = crd()
    with torch.no_grad():
        loss.head.bias.zero_()
    student, target, indices = batch()
    student.data[0] = 0
    value = loss(student, target, indices)
    assert value.isfinite()
    assert all(gradient.abs().max() < 1e3 for gradient in gradients(value, student, *loss.parameters()))
    loss.observe()
    assert loss.bank.isfinite().all()


def _rank(rank: int, folder: str) -> None:
    """One of two ranks, whose batches have other sizes."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/ranks", rank=rank, world_size=2)
    loss = crd()
    student, target, indices = batch(samples=5)
    mine = slice(0, 3) if rank == 0 else slice(3, 5)
    loss(student[mine], target[mine], indices[mine])
    loss.observe()
    torch.save(loss.state_dict(), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_ranks_have_equal_banks_as_of_one_batch(tmp_path: Path) -> None:
    mp.spawn(_rank, args=(str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert equal(first, second)
    whole = crd()
    whole(*batch(samples=5))
    whole.observe()
    assert all(torch.allclose(first[name], whole.state_dict()[name], atol=1e-6) for name in ("bank", "target_bank"))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"dim": 0}, ValueError, "`dim`"),
        ({"negatives": 0}, ValueError, "`negatives`"),
        ({"temperature": 0.0}, ValueError, "`temperature`"),
        ({"momentum": 1.5}, ValueError, "`momentum`"),
        ({"positive": "same"}, ValueError, "`positive` expected 'exact' or 'relax', got 'same'"),
        ({"reduction": "batchmean"}, ValueError, "`reduction`"),
    ],
)
def test_bad_options_are_said(options: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        crd(**options)


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        ([0, 1], TypeError, "`train_labels` expected an integer tensor"),
        (torch.ones(3), TypeError, "`train_labels` expected an integer tensor .* got torch.float32"),
        (torch.ones(3, 2, dtype=torch.int64), ValueError, r"`train_labels` expected the shape \(M,\)"),
        (torch.ones(3, dtype=torch.int64), ValueError, "at least two classes, got 1"),
    ],
)
def test_bad_labels_are_said(labels: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        CRDLoss([(6,)], [(8,)], labels)


@pytest.mark.parametrize(
    ("indices", "error", "message"),
    [
        (None, TypeError, "`indices` expected an int64 tensor"),
        (torch.zeros(4), TypeError, "`indices` expected an int64 tensor .* got torch.float32"),
        (torch.zeros(3, dtype=torch.int64), ValueError, r"`indices` expected the shape \(4,\), got \(3,\)"),
        (torch.tensor([0, 1, 2, 12]), ValueError, r"`indices` expected places in \[0, 11\].* got 0 to 12"),
    ],
)
def test_bad_indices_are_said(indices: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        crd()(*batch()[:2], indices)


def test_several_layers_are_refused() -> None:
    with pytest.raises(ValueError, match="`shapes` expected one layer"):
        CRDLoss([(6,), (3,)], [(6,), (3,)], LABELS)
