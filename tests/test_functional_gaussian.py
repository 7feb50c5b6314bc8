"""Claims about transport between Gaussians of feature maps, against a loop over samples, cells and channels."""

from __future__ import annotations

import math

import pytest
import torch
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
    x, y = maps((2, 2, 3, 5))
    for grid in (1, 2):
        assert torch.autograd.gradcheck(lambda a, b, k=grid: functional.gaussian_wasserstein(a, b, grid=k), (x, y))


@pytest.mark.parametrize("grid", [1, 4])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_constant_and_large_maps_stay_finite(dtype: torch.dtype, grid: int) -> None:
    x = torch.zeros(2, 3, 8, 8, dtype=dtype)
    x[0, 0, :4] = 3e4
    x[1] = 300.3
    x.requires_grad_()
    value = functional.gaussian_wasserstein(x, torch.zeros_like(x), grid=grid)
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


def test_it_is_captured_whole_and_ignores_autocast() -> None:
    x, y = (z.detach().float() for z in maps())
    expected = functional.gaussian_wasserstein(x, y, grid=4)
    compiled = torch.compile(functional.gaussian_wasserstein, fullgraph=True, backend="aot_eager")
    assert torch.isclose(compiled(x, y, grid=4), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(functional.gaussian_wasserstein(x, y, grid=4), expected)


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((2, 3, 4, 4), {"grid": 4}, "cells of at least 2 positions, got 4 x 4 cells on a map of 4 x 4; take a smaller"),
        ((2, 3, 1, 1), {}, "cells of at least 2 positions"),
        ((2, 3, 1, 1), {"unbiased": False}, "cells of at least 2 positions"),
        ((2, 3, 2, 2), {"grid": 4}, "cells of at least 2 positions"),
        ((2, 3, 4), {}, r"`features` expected the shape \(N, D, H, W\), got \(2, 3, 4\)"),
        ((2, 3, 4, 4), {"grid": 0}, "`grid` expected a whole number"),
        ((2, 3, 4, 4), {"mean_weight": -1.0}, "`mean_weight`"),
        ((2, 3, 4, 4), {"reduction": "batchmean"}, "`reduction`"),
    ],
)
def test_bad_input_is_said_in_one_line(shape: tuple[int, ...], options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        functional.gaussian_wasserstein(torch.zeros(shape), torch.zeros(shape), **options)


def test_maps_of_other_shapes_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="`features` and `target_features` expected one shape"):
        functional.gaussian_wasserstein(torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 8, 8))
