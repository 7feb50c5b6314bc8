"""Draws are pure functions of (seed, epoch, index, name), and look random in every direction."""

from __future__ import annotations

import hashlib
import math
import random

import numpy as np
import pytest
import torch

from limbeck.draws import integers, key, permutation, uniform

MASK = 2**64 - 1


def twin_bits(seed: int, epoch: int, index: int, name: str, component: int = 0) -> int:
    """The same hash in Python's big integers: unsigned, with true logical shifts."""
    digest = hashlib.blake2b(f"{seed}\0{epoch}\0{name}".encode(), digest_size=8).digest()
    bits = int.from_bytes(digest, "little")
    bits = (bits + index * 0x9E3779B97F4A7C15 + component * 0xD1342543DE82EF95) & MASK
    bits = ((bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    bits = ((bits ^ (bits >> 27)) * 0x94D049BB133111EB) & MASK
    return bits ^ (bits >> 31)


KEYS = [(0, 0, "order"), (1, 7, "crop"), (2**40, 300, "cutout row"), (3, 1, "größe")]
INDICES = [0, 1, 2, 17, 4_999, 2**31, 2**62, 2**63 - 1]


@pytest.mark.parametrize(("seed", "epoch", "name"), KEYS)
def test_draws_equal_the_hash_in_big_integers(seed, epoch, name):
    indices = torch.tensor(INDICES)
    bits = [twin_bits(seed, epoch, i, name) for i in INDICES]
    assert uniform(seed, epoch, indices, name).tolist() == [(b >> 11) / 2**53 for b in bits]
    assert integers(seed, epoch, indices, name, 10).tolist() == [(b % 2**63) % 10 for b in bits]


@pytest.mark.parametrize(("seed", "epoch", "name"), KEYS)
def test_components_equal_the_hash_in_big_integers(seed, epoch, name):
    drawn = uniform(seed, epoch, torch.tensor(INDICES), name, (2, 3))
    assert drawn.shape == (len(INDICES), 2, 3)
    expected = [[(twin_bits(seed, epoch, i, name, j) >> 11) / 2**53 for j in range(6)] for i in INDICES]
    assert drawn.flatten(1).tolist() == expected


def test_permutation_sorts_by_the_hash():
    def as_signed(bits: int) -> int:
        return bits - 2**64 if bits >= 2**63 else bits

    expected = sorted(range(50), key=lambda i: as_signed(twin_bits(5, 2, i, "order")))
    assert permutation(5, 2, 50).tolist() == expected


def test_draws_stay_what_they_were():
    """Runs of an older version resume, and published splits keep their images."""
    assert key(0, 1, "crop") == 8566636770160896255
    assert integers(0, 1, torch.arange(8), "crop", 100).tolist() == [78, 62, 23, 5, 4, 5, 73, 57]
    assert permutation(0, 1, 8).tolist() == [5, 3, 4, 7, 2, 1, 0, 6]


def test_a_draw_does_not_depend_on_the_batch():
    everyone = torch.arange(100)
    whole = uniform(3, 4, everyone, "crop", (2,))
    some = torch.tensor([93, 5, 5, 41])
    assert torch.equal(uniform(3, 4, some, "crop", (2,)), whole[some])
    assert torch.equal(uniform(3, 4, some[:1], "crop", (2,)), whole[some[:1]])
    assert uniform(3, 4, some[:0], "crop", (2,)).shape == (0, 2)


def test_the_first_component_does_not_depend_on_the_size():
    indices = torch.arange(20)
    assert torch.equal(uniform(3, 4, indices, "crop", (2,))[:, 0], uniform(3, 4, indices, "crop"))


def test_no_random_state_is_read_or_written():
    def state() -> tuple[list[int], object, list[int]]:
        numpy_state = np.random.get_state()[1]  # noqa: NPY002 (the global state is what must not move)
        return torch.get_rng_state().tolist(), random.getstate(), numpy_state.tolist()

    def draw() -> list[torch.Tensor]:
        return [uniform(0, 1, torch.arange(9), "a"), integers(0, 1, torch.arange(9), "a", 5), permutation(0, 1, 9)]

    before = state()
    first = draw()
    assert state() == before
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(12345)
        assert all(torch.equal(a, b) for a, b in zip(first, draw(), strict=True))


N = 65_536


def along(direction: str, n: int) -> torch.Tensor:
    """`n` draws that differ in one thing only."""
    zero = torch.zeros(1, dtype=torch.int64)
    match direction:
        case "index":
            return uniform(0, 1, torch.arange(n), "crop")
        case "stride":
            return uniform(0, 1, torch.arange(n) * 1024, "crop")
        case "component":
            return uniform(0, 1, zero, "crop", (n,)).flatten()
        case "epoch":
            return torch.cat([uniform(0, epoch, zero, "crop") for epoch in range(n)])
        case "seed":
            return torch.cat([uniform(seed, 1, zero, "crop") for seed in range(n)])
        case "name":
            return torch.cat([uniform(0, 1, zero, f"crop {k}") for k in range(n)])
    raise AssertionError(direction)


def within_five_sigma(chi_square: float, degrees: int) -> bool:
    """Both ways: numbers spread too evenly are no more random than numbers that cluster."""
    return abs(chi_square - degrees) < 5 * math.sqrt(2 * degrees)


def chi_square(cells: torch.Tensor, count: int) -> float:
    observed = cells.bincount(minlength=count).double()
    return float((observed - len(cells) / count).square().sum() * count / len(cells))


@pytest.mark.parametrize("direction", ["index", "stride", "component", "epoch", "seed", "name"])
def test_draws_are_uniform_along(direction):
    drawn = along(direction, N if direction in {"index", "stride", "component"} else 4096)
    assert drawn.min() >= 0
    assert drawn.max() < 1
    assert within_five_sigma(chi_square((drawn * 64).long(), 64), 63)
    low_bits = (drawn * 2**53).long() % 64
    assert within_five_sigma(chi_square(low_bits, 64), 63)


@pytest.mark.parametrize("direction", ["index", "stride", "component", "epoch", "seed", "name"])
def test_neighbours_are_independent_along(direction):
    drawn = along(direction, N if direction in {"index", "stride", "component"} else 4096)
    cells = (drawn * 8).long()
    assert within_five_sigma(chi_square(cells[:-1] * 8 + cells[1:], 64), 63)


@pytest.mark.parametrize("other", [(0, 1, "flip"), (0, 2, "crop"), (1, 1, "crop"), (1, 0, "crop")])
def test_streams_are_independent(other):
    """Another name, epoch or seed: also seed and epoch exchanged, which a sum of the two would not tell apart."""
    indices = torch.arange(N)
    first = (uniform(0, 1, indices, "crop") * 16).long()
    second_seed, second_epoch, second_name = other
    second = (uniform(second_seed, second_epoch, indices, second_name) * 16).long()
    assert within_five_sigma(chi_square(first * 16 + second, 256), 255)


def test_components_of_neighbouring_samples_do_not_coincide():
    drawn = uniform(0, 1, torch.arange(4096), "start", (64,))
    assert len(drawn.unique()) == drawn.numel()


@pytest.mark.parametrize("high", [2, 3, 10, 57])
def test_integers_are_uniform(high):
    drawn = integers(0, 1, torch.arange(N), "side", high)
    assert drawn.dtype == torch.int64
    assert 0 <= int(drawn.min()) <= int(drawn.max()) < high
    assert within_five_sigma(chi_square(drawn, high), high - 1)


def test_one_outcome_needs_no_luck():
    assert integers(0, 1, torch.arange(5), "side", 1).tolist() == [0] * 5


def test_flipping_one_bit_of_the_index_flips_half_of_the_bits():
    indices = integers(9, 9, torch.arange(4000), "far apart", 2**45)
    base = uniform(0, 1, indices, "crop")
    for place in range(0, 40, 3):
        other = uniform(0, 1, indices ^ (1 << place), "crop")
        changed = (base * 2**53).long() ^ (other * 2**53).long()
        shares = torch.stack([(changed >> k & 1).double().mean() for k in range(53)])
        assert (shares - 0.5).abs().max() < 5 * 0.5 / math.sqrt(len(indices)), place


def test_permutations_hold_everyone_once_and_start_anywhere():
    orders = torch.stack([permutation(0, epoch, 8) for epoch in range(4000)])
    assert torch.equal(orders.sort(dim=1).values, torch.arange(8).expand(4000, 8))
    for place in (0, 3, 7):
        assert within_five_sigma(chi_square(orders[:, place], 8), 7)
    assert permutation(0, 1, 0).tolist() == []


@pytest.mark.parametrize("indices", [torch.arange(3).int(), torch.arange(3.0), torch.zeros(2, 2, dtype=torch.int64)])
def test_indices_of_another_kind_are_refused(indices):
    with pytest.raises(TypeError, match=r"`indices` expected int64 of shape \(N,\)"):
        uniform(0, 1, indices, "crop")


def test_no_outcome_is_refused():
    with pytest.raises(ValueError, match="`high` expected at least 1, got 0"):
        integers(0, 1, torch.arange(3), "side", 0)
