"""Claims about transport between Gaussians of feature maps, against a loop over samples, cells and channels."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch import Tensor

from limbeck import functional


def twin(x: Tensor, y: Tensor, mean_weight: float, grid: int, unbiased: bool) -> Tensor:
    samples, channels, height, width = x.shape
    values = []
    for n in range(samples):
        value = torch.zeros((), dtype=x.dtype)
        for a in range(grid):
            for b in range(grid):
                rows = slice(math.floor(a * height / grid), math.ceil((a + 1) * height / grid))
                columns = slice(math.floor(b * width / grid), math.ceil((b + 1) * width / grid))
                for d in range(channels):
                    cells = [z[n, d, rows, columns].flatten() for z in (x, y)]
                    means = [cell.sum() / len(cell) for cell in cells]
                    divisor = len(cells[0]) - int(unbiased)
                    roots = [
                        (((cell - m) ** 2).sum() / divisor + 1e-5).sqrt() for cell, m in zip(cells, means, strict=True)
                    ]
                    value = value + mean_weight * (means[0] - means[1]) ** 2 + (roots[0] - roots[1]) ** 2
        values.append(value / grid**2)
    return torch.stack(values)


def maps(shape: tuple[int, ...] = (3, 2, 7, 8)) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    x, y = (5 + torch.randn(*shape, generator=draw, dtype=torch.float64) for _ in range(2))
    return x.requires_grad_(), y.requires_grad_()


@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.parametrize("grid", [1, 2, 4])
@pytest.mark.parametrize("size", [(7, 7), (8, 8), (5, 9)])
def test_pooled_moments_equal_the_loop(size: tuple[int, int], grid: int, unbiased: bool) -> None:
    x, y = maps((3, 2, *size))
    each = twin(x, y, 4.0, grid, unbiased)
    for reduction, expected in (("none", each), ("mean", each.mean()), ("sum", each.sum())):
        value = functional.gaussian_wasserstein(
            x, y, mean_weight=4.0, grid=grid, unbiased=unbiased, reduction=reduction
        )
        assert value.shape == expected.shape
        assert (value - expected).abs().max() < 1e-12
        got, wanted = (torch.autograd.grad(z.sum(), (x, y), retain_graph=True) for z in (value, expected))
        assert all((a - b).abs().max() < 1e-12 for a, b in zip(got, wanted, strict=True))


def test_a_shift_moves_the_mean_and_a_scale_the_deviation() -> None:
    x, _ = maps()
    assert functional.gaussian_wasserstein(x, x) == 0
    assert torch.isclose(functional.gaussian_wasserstein(x + 3, x, mean_weight=2.0), torch.tensor(36.0).double())
    assert torch.isclose(functional.gaussian_wasserstein(x + 3, x, mean_weight=0.0), torch.zeros(()).double())
    centred = x - x.mean((-2, -1), keepdim=True)
    wanted = x.std((-2, -1)).square().sum(-1).mean()
    assert torch.isclose(functional.gaussian_wasserstein(2 * centred, centred), wanted, rtol=1e-4)


def test_derivatives_agree_with_finite_differences() -> None:
    x, y = maps((2, 2, 3, 4))
    for grid in (1, 2):
        assert torch.autograd.gradcheck(lambda a, b, k=grid: functional.gaussian_wasserstein(a, b, grid=k), (x, y))


@pytest.mark.parametrize("options", [{"grid": 1}, {"grid": 4}, {"covariance": "full"}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_constant_and_large_maps_stay_finite(dtype: torch.dtype, options: dict[str, object]) -> None:
    x = torch.zeros(2, 3, 8, 8, dtype=dtype)
    x[0, 0, :4] = 3e4
    x[1] = 300.3
    x.requires_grad_()
    value = functional.gaussian_wasserstein(x, torch.zeros_like(x), **options)
    assert value.dtype == torch.float32
    assert value.isfinite()
    gradient = torch.autograd.grad(value, x)[0]
    assert gradient.dtype == dtype
    assert gradient.isfinite().all()


def test_a_far_mean_does_not_swallow_the_variance() -> None:
    x, y = maps()
    single = [(z.detach() + 1000).float() for z in (x, y)]
    wanted = twin(*(z.double() for z in single), 1.0, 4, True).mean()
    assert torch.isclose(functional.gaussian_wasserstein(*single, grid=4).double(), wanted, rtol=1e-4)


def full_twin(x: Tensor, y: Tensor, mean_weight: float, grid: int, unbiased: bool) -> Tensor:
    """With scipy's root of a matrix, cell by cell."""
    values = []
    for n in range(len(x)):
        value = 0.0
        for a in range(grid):
            for b in range(grid):
                means, covariances = [], []
                for z in (x, y):
                    height, width = z.shape[2:]
                    rows = slice(math.floor(a * height / grid), math.ceil((a + 1) * height / grid))
                    columns = slice(math.floor(b * width / grid), math.ceil((b + 1) * width / grid))
                    cell = z[n, :, rows, columns].flatten(1).detach().numpy()
                    means.append(cell.mean(1))
                    covariances.append(
                        np.cov(cell, ddof=int(unbiased)).reshape(len(cell), -1) + 1e-5 * np.eye(len(cell))
                    )
                root = sqrtm(covariances[1])
                cross = sqrtm(root @ covariances[0] @ root)
                value += mean_weight * ((means[0] - means[1]) ** 2).sum()
                value += np.trace(covariances[0] + covariances[1] - 2 * cross).real
        values.append(value / grid**2)
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.parametrize(
    ("shape", "target_size", "grid"),
    [
        ((3, 2, 7, 8), (7, 8), 1),
        ((3, 2, 7, 8), (7, 8), 3),
        ((2, 5, 2, 2), (2, 2), 1),  # positions are fewer than channels, both spans together are not
        ((2, 9, 2, 2), (2, 2), 1),  # nor are both spans together
        ((2, 20, 4, 3), (5, 5), 2),
        ((2, 4, 3, 3), (8, 8), 1),
    ],
)
def test_the_full_form_equals_that_with_roots_of_matrices(
    shape: tuple[int, ...], target_size: tuple[int, int], grid: int, unbiased: bool
) -> None:
    x, y = maps(shape)[0], maps((*shape[:2], *target_size))[1]
    value = functional.gaussian_wasserstein(
        x, y, mean_weight=4.0, covariance="full", grid=grid, unbiased=unbiased, reduction="none"
    )
    assert (value - full_twin(x, y, 4.0, grid, unbiased)).abs().max() < 1e-8


@pytest.mark.parametrize("shape", [(2, 3, 3, 4), (2, 5, 2, 2), (1, 9, 2, 2)])
def test_the_full_form_has_the_gradient_of_finite_differences_in_any_rank(shape: tuple[int, ...]) -> None:
    x, y = maps(shape)
    assert torch.autograd.gradcheck(lambda a, b: functional.gaussian_wasserstein(a, b, covariance="full"), (x, y))


def test_the_full_form_is_zero_and_stationary_on_equal_features() -> None:
    for shape in ((2, 3, 4, 4), (2, 12, 2, 2)):
        x, _ = maps(shape)
        value = functional.gaussian_wasserstein(x, x.detach(), covariance="full")
        assert 0 <= value < 1e-12
        assert torch.autograd.grad(value, x)[0].abs().max() < 1e-12


def test_both_forms_agree_where_channels_are_uncorrelated() -> None:
    draw = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(16, 16, generator=draw, dtype=torch.float64) + torch.eye(16)).Q
    centred = torch.linalg.qr(basis - basis.mean(0)).Q[:, :3].T.reshape(1, 3, 4, 4)  # orthogonal rows, all of mean 0
    x, y = (centred * torch.rand(1, 3, 1, 1, generator=draw) + torch.rand(1, 3, 1, 1, generator=draw) for _ in range(2))
    full = functional.gaussian_wasserstein(x, y, covariance="full")
    assert torch.isclose(full, functional.gaussian_wasserstein(x, y), rtol=1e-10)


def test_only_the_full_form_is_the_same_in_any_basis_of_the_channels() -> None:
    x, y = maps((2, 4, 5, 5))
    rotation = torch.linalg.qr(torch.arange(16.0, dtype=torch.float64).view(4, 4).cos()).Q
    turned = [torch.einsum("cd,ndhw->nchw", rotation, z) for z in (x, y)]
    full, diagonal = (
        [functional.gaussian_wasserstein(*sides, covariance=form) for sides in ((x, y), turned)]
        for form in ("full", "diagonal")
    )
    assert torch.isclose(*full, rtol=1e-10)
    assert not torch.isclose(*diagonal, rtol=1e-2)


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_positions_are_a_set_and_tokens_are_positions(covariance: str) -> None:
    x, y = maps((2, 4, 3, 4))
    options = {"covariance": covariance, "unbiased": False}
    expected = functional.gaussian_wasserstein(x, y, **options)
    shuffled = y.flatten(2)[..., torch.randperm(12, generator=torch.Generator().manual_seed(0))].view_as(y)
    twice = torch.cat((y, y), -1)
    tokens = y.flatten(2).mT
    for other in (shuffled, twice, tokens):
        assert torch.isclose(functional.gaussian_wasserstein(x, other, **options), expected, rtol=1e-10)
    both = functional.gaussian_wasserstein(x.flatten(2).mT, tokens, **options)
    assert torch.isclose(both, expected, rtol=1e-10)


def test_a_constant_cell_has_no_variance_whatever_lies_beside_it() -> None:
    x = torch.zeros(1, 64, 8, 8)
    x[..., 4:] = 300 * torch.rand(64, 1, 1, generator=torch.Generator().manual_seed(0))
    x.requires_grad_()
    for grid in (2, 4):
        value = functional.gaussian_wasserstein(x, torch.zeros_like(x), mean_weight=0.0, grid=grid)
        assert value / 64 < 1e-2  # rounding: 1e-7 of the squared step
        assert torch.autograd.grad(value, x)[0].isfinite().all()


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_it_is_captured_whole_and_ignores_autocast(covariance: str) -> None:
    x, y = (z.detach().float() for z in maps())
    options = {"grid": 2, "covariance": covariance}
    expected = functional.gaussian_wasserstein(x, y, **options)
    compiled = torch.compile(functional.gaussian_wasserstein, fullgraph=True, backend="aot_eager")
    assert torch.isclose(compiled(x, y, **options), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(functional.gaussian_wasserstein(x, y, **options), expected)


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        (
            (2, 3, 4, 4),
            {"grid": 4},
            "cells of at least 2 positions, got 4 x 4 cells on a map of 4 x 4 .*; take a smaller",
        ),
        ((2, 3, 1, 1), {}, "cells of at least 2 positions"),
        ((2, 3, 1, 1), {"unbiased": False}, "cells of at least 2 positions"),
        ((2, 3, 2, 2), {"grid": 4}, "cells of at least 2 positions"),
        (
            (2, 3),
            {},
            r"`features` expected maps \(D, H, W\) or tokens \(L, D\) of a sample, got the shape \(3,\)",
        ),
        ((0, 3, 4, 4), {}, "not empty"),
        ((2, 3, 4), {"grid": 2}, "`grid` expected 1 for the tokens"),
        ((2, 1, 4), {}, "`features` expected at least 2 tokens, got 1"),
        ((2, 3, 4, 4), {"covariance": "banded"}, "`covariance` expected 'diagonal' or 'full', got 'banded'"),
        ((2, 3, 4, 4), {"grid": 0}, "`grid` expected a whole number"),
        ((2, 3, 4, 4), {"mean_weight": -1.0}, "`mean_weight`"),
        ((2, 3, 4, 4), {"reduction": "batchmean"}, "`reduction`"),
    ],
)
def test_bad_input_is_said_in_one_line(shape: tuple[int, ...], options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        functional.gaussian_wasserstein(torch.zeros(shape), torch.zeros(shape), **options)


@pytest.mark.parametrize("shape", [(2, 5, 4, 4), (1, 3, 4, 4), (2, 4, 5)])
def test_sides_of_other_samples_or_channels_are_refused_by_name(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="`features` and `target_features` expected the same N and D"):
        functional.gaussian_wasserstein(torch.zeros(2, 3, 4, 4), torch.zeros(shape))


def test_a_side_that_is_no_floating_tensor_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match="`features` expected a floating dtype"):
        functional.gaussian_wasserstein(torch.zeros(2, 3, 4, 4).long(), torch.zeros(2, 3, 4, 4))
    with pytest.raises(TypeError, match="`target_features` expected a tensor, got NoneType"):
        functional.gaussian_wasserstein(torch.zeros(2, 3, 4, 4), None)
