"""Claims about distances between distributions over positions, against loops and numpy in float64."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from scipy.optimize import linear_sum_assignment
from torch import Tensor, distributions

from limbeck.functional.feature_distributions import (
    exponential_kl,
    gaussian_embedding_distance,
    gaussian_kl,
    laplace_kl,
    moment_distance,
    pmf_transport,
)

FLOOR = 1e-5
Distance = Callable[..., Tensor]


def positions(maps: Tensor) -> Tensor:
    """(N, M, D)."""
    return maps.flatten(2).mT


def gaussian_of(x: Tensor) -> distributions.Normal:
    return distributions.Normal(x.mean(1), (x.var(1) + FLOOR).sqrt())


def laplace_of(x: Tensor) -> distributions.Laplace:
    return distributions.Laplace(x.mean(1), (x - x.mean(1, keepdim=True)).abs().mean(1) + FLOOR**0.5)


def exponential_of(x: Tensor) -> distributions.Exponential:
    return distributions.Exponential(1 / (x.mean(1).relu() + FLOOR**0.5))


def kl_between(fit: Callable[[Tensor], distributions.Distribution], x: Tensor, y: Tensor) -> Tensor:
    return distributions.kl_divergence(fit(positions(y)), fit(positions(x))).sum(-1)


def symmetric_kl(x: Tensor, y: Tensor) -> Tensor:
    return kl_between(gaussian_of, x, y) + kl_between(gaussian_of, y, x)


def moments(axis: str, order: int, x: Tensor) -> Tensor:
    draws = positions(x) if axis == "channel" else positions(x).mT
    if order == 1:
        return draws.mean(1)
    return torch.stack([sum(torch.outer(row, row) for row in sample) / len(sample) for sample in draws])


def moment_twin(axis: str, order: int, x: Tensor, y: Tensor) -> Tensor:
    return (moments(axis, order, x) - moments(axis, order, y)).square().flatten(1).sum(-1)


def embedding(x: np.ndarray) -> np.ndarray:
    mean, covariance = x.mean(0)[:, None], np.cov(x.T, ddof=0).reshape(x.shape[1], -1)
    inside = np.block([[covariance + mean @ mean.T, mean], [mean.T, np.ones((1, 1))]])
    return sqrtm(inside + FLOOR * np.eye(len(inside))).real


def embedding_twin(x: Tensor, y: Tensor) -> Tensor:
    pairs = zip(positions(x).detach().numpy(), positions(y).detach().numpy(), strict=True)
    return torch.tensor([((embedding(a) - embedding(b)) ** 2).sum() for a, b in pairs], dtype=torch.float64)


def assignment_twin(x: Tensor, y: Tensor) -> Tensor:
    """The exact optimum; with as many atoms on either side the plan is a permutation."""
    values = []
    for a, b in zip(positions(x), positions(y), strict=True):
        cost = 1 - torch.nn.functional.cosine_similarity(a[:, None], b[None], dim=-1)
        values.append(cost[linear_sum_assignment(cost.detach().numpy())].mean())
    return torch.stack(values)


MOMENTS = {f"{axis}-{order}": (axis, order) for axis in ("channel", "spatial") for order in (1, 2)}
TWINS: dict[str, tuple[Distance, Distance]] = {
    "gaussian_kl": (gaussian_kl, partial(kl_between, gaussian_of)),
    "gaussian_symmetric_kl": (partial(gaussian_kl, symmetric=True), symmetric_kl),
    "laplace_kl": (laplace_kl, partial(kl_between, laplace_of)),
    "exponential_kl": (exponential_kl, partial(kl_between, exponential_of)),
    "gaussian_embedding": (gaussian_embedding_distance, embedding_twin),
    "pmf_transport": (partial(pmf_transport, reg=1e-3, iterations=5000), assignment_twin),
    **{
        name: (partial(moment_distance, axis=axis, order=order), partial(moment_twin, axis, order))
        for name, (axis, order) in MOMENTS.items()
    },
}
DISTANCES = {name: distance for name, (distance, _) in TWINS.items()} | {"pmf_transport": pmf_transport}
every_distance = pytest.mark.parametrize("distance", DISTANCES.values(), ids=DISTANCES.keys())


def maps(shape: tuple[int, ...] = (3, 4, 2, 3), target_size: tuple[int, ...] | None = None) -> tuple[Tensor, Tensor]:
    """Mostly positive, as after an activation."""
    draw = torch.Generator().manual_seed(0)
    shapes = (shape, shape if target_size is None else (*shape[:2], *target_size))
    x, y = (1 + torch.randn(*sizes, generator=draw, dtype=torch.float64) for sizes in shapes)
    return x.requires_grad_(), y.requires_grad_()


@pytest.mark.parametrize("shape", [(3, 4, 2, 3), (3, 6, 2, 2), (2, 3, 4, 4)])
@pytest.mark.parametrize("name", TWINS)
def test_distances_equal_their_definitions(name: str, shape: tuple[int, ...]) -> None:
    distance, twin = TWINS[name]
    x, y = maps(shape)
    each = twin(x, y)
    for reduction, expected in (("none", each), ("mean", each.mean()), ("sum", each.sum())):
        value = distance(x, y, reduction=reduction)
        assert value.shape == expected.shape
        assert (value - expected).abs().max() < (1e-3 if name == "pmf_transport" else 1e-8)
        if each.requires_grad and name != "pmf_transport":
            got, wanted = (torch.autograd.grad(z.sum(), (x, y), retain_graph=True) for z in (value, expected))
            assert all((a - b).abs().max() < 1e-10 for a, b in zip(got, wanted, strict=True))


def test_transport_of_atoms_has_the_gradient_of_the_best_assignment() -> None:
    x, y = maps((3, 6, 2, 2))
    value, expected = pmf_transport(x, y, reg=1e-3, iterations=5000), assignment_twin(x, y).mean()
    got, wanted = (torch.autograd.grad(z, (x, y), retain_graph=True) for z in (value, expected))
    assert all((a - b).abs().max() < 1e-4 for a, b in zip(got, wanted, strict=True))


def test_transport_of_atoms_comes_near_the_optimum_by_default_and_from_above() -> None:
    x, y = maps((4, 16, 7, 7))
    value, best = pmf_transport(x, y, reduction="none"), assignment_twin(x, y)
    assert (value > best).all()
    assert (value < best + 0.01).all()


def test_transport_of_atoms_is_entropic_transport_at_its_last_reg() -> None:
    x, y = maps((1, 4, 3, 3), (2, 4))
    a, b = (torch.nn.functional.normalize(positions(z)[0].detach(), dim=-1) for z in (x, y))
    cost = 1 - a @ b.T
    kernel, u = (-cost / 0.05).exp(), torch.ones(9, dtype=torch.float64)
    for _ in range(500):
        v = 1 / 8 / (u @ kernel)
        u = 1 / 9 / (kernel @ v)
    expected = (u[:, None] * kernel * v * cost).sum()
    assert torch.isclose(pmf_transport(x, y, reg=0.05, iterations=500), expected, rtol=1e-10)


def test_transport_of_atoms_keeps_the_masses_of_sides_of_other_sizes() -> None:
    """All vectors equal on one side: no choice of a plan, so the cost is the mean over the other side."""
    x, _ = maps((2, 4, 3, 3))
    y = torch.ones(2, 4, 5, dtype=torch.float64).mT
    cosines = torch.nn.functional.cosine_similarity(x.flatten(2), torch.ones(1, 4, 1, dtype=torch.float64), dim=1)
    assert torch.isclose(pmf_transport(x, y), (1 - cosines).mean(), rtol=1e-10)


@pytest.mark.parametrize("shape", [(2, 2, 2, 2), (1, 6, 2, 2)])
@pytest.mark.parametrize("name", [name for name in DISTANCES if name != "pmf_transport"])
def test_derivatives_agree_with_finite_differences_in_any_rank(name: str, shape: tuple[int, ...]) -> None:
    assert torch.autograd.gradcheck(DISTANCES[name], maps(shape))


@pytest.mark.parametrize("name", DISTANCES)
def test_equal_features_are_at_distance_zero_and_stationary(name: str) -> None:
    x, _ = maps((2, 6, 2, 2))
    value = DISTANCES[name](x, x.detach())
    assert 0 <= value < (0.02 if name == "pmf_transport" else 1e-12)
    if name != "pmf_transport":
        assert torch.autograd.grad(value, x)[0].abs().max() < 1e-10
    else:
        assert pmf_transport(x, x, reg=1e-4, iterations=1000) < 1e-12


@pytest.mark.parametrize("name", [name for name in DISTANCES if not name.startswith("spatial")])
def test_positions_are_a_set(name: str) -> None:
    x, y = maps((2, 4, 3, 3))
    options = {"unbiased": False} if "kl" in name and "gaussian" in name else {}
    expected = DISTANCES[name](x, y, **options)
    twice, tokens = torch.cat((y, y.flip(-1)), -1), positions(y).flip(1)
    assert torch.isclose(DISTANCES[name](x, twice, **options), expected, rtol=1e-6)
    assert torch.isclose(DISTANCES[name](x, tokens, **options), expected, rtol=1e-6)


@every_distance
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_dead_and_large_maps_stay_finite(distance: Distance, dtype: torch.dtype) -> None:
    """A dead map, a constant one, and a large one; against a dead target, and the other way round."""
    x = torch.zeros(3, 5, 2, 2, dtype=dtype)
    x[1] = 300.3
    x[2, 0, 0] = 3e3
    for sides in ((x, torch.zeros_like(x)), (torch.zeros_like(x), x), (x, x.clone())):
        student = sides[0].requires_grad_()
        value = distance(student, sides[1])
        assert value.dtype == torch.float32
        assert value.isfinite()
        gradient = torch.autograd.grad(value, student)[0]
        assert gradient.dtype == dtype
        assert gradient.float().isfinite().all() or dtype == torch.float16  # 1e5 is no half


@every_distance
def test_distance_in_float32_is_that_in_float64(distance: Distance) -> None:
    x, y = maps((2, 40, 5, 5))
    exact = distance(x, y)
    assert torch.isclose(distance(x.float(), y.float()).double(), exact, rtol=1e-4)


@every_distance
def test_distance_is_captured_whole_and_ignores_autocast(distance: Distance) -> None:
    x, y = (z.detach().float() for z in maps())
    expected = distance(x, y)
    compiled = torch.compile(distance, fullgraph=True, backend="aot_eager")
    assert torch.isclose(compiled(x, y), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(distance(x, y), expected)


def test_exponential_rates_are_of_means_that_are_not_negative() -> None:
    x, y = torch.full((1, 2, 2, 2), -1.0, requires_grad=True), torch.ones(1, 2, 2, 2)
    value = exponential_kl(x, y)
    assert torch.isclose(value, exponential_kl(torch.zeros(1, 2, 2, 2), y))
    assert not torch.autograd.grad(value, x)[0].any()


def test_second_channel_moments_make_no_square_of_the_channels() -> None:
    """2,000 channels at 4 positions: a D x D tensor would be 16 MB, which the saved tensors show."""
    x, y = (torch.randn(1, 2000, 2, 2, requires_grad=True) for _ in range(2))
    for distance in (partial(moment_distance, order=2), gaussian_embedding_distance):
        largest = 0

        def watch(saved: Tensor) -> Tensor:
            nonlocal largest
            largest = max(largest, saved.numel())
            return saved

        with torch.autograd.graph.saved_tensors_hooks(watch, lambda saved: saved):
            distance(x, y)
        assert 0 < largest <= 2001 * 4


@every_distance
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"features": torch.zeros(2, 3, 4, 4).long()}, TypeError, "`features` expected a floating dtype"),
        ({"target_features": torch.zeros(2, 5, 4, 4)}, ValueError, "expected the same N and D"),
        ({"target_features": torch.zeros(2, 3)}, ValueError, "`target_features` expected maps"),
        ({"features": torch.zeros(2, 3, 1, 1)}, ValueError, "at least 2 positions"),
        ({"reduction": "batchmean"}, ValueError, "`reduction`"),
    ],
)
def test_bad_input_is_said_in_one_line(
    distance: Distance, change: dict[str, object], error: type[Exception], message: str
) -> None:
    sides = {"features": torch.zeros(2, 3, 4, 4), "target_features": torch.zeros(2, 3, 4, 4)}
    with pytest.raises(error, match=message):
        distance(**{**sides, **change})


@pytest.mark.parametrize(
    ("distance", "options", "message"),
    [
        (pmf_transport, {"reg": 0.0}, "`reg`"),
        (pmf_transport, {"iterations": 0}, "`iterations` expected a whole number"),
        (moment_distance, {"axis": "time"}, "`axis` expected 'channel' or 'spatial', got 'time'"),
        (moment_distance, {"order": 3}, "`order` expected 1 or 2, got 3"),
    ],
)
def test_bad_options_are_said_in_one_line(distance: Distance, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        distance(torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4), **options)


def test_spatial_moments_need_the_positions_of_the_target() -> None:
    with pytest.raises(ValueError, match="as many positions as `features` for spatial moments, got 9 and 16"):
        moment_distance(torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 3, 3), axis="spatial")
