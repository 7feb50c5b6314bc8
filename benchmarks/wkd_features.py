"""WKD-F against the loop over cells that its public code runs: time of forward and backward, in one run.

    python -m benchmarks.wkd_features [--csv FILE]

The teacher is frozen. Each case is compared with the loop in float64 before it is timed, value and gradient. Rounds are
paired: in each, both contenders have a turn, in alternating order, after a call of their own that is not timed. Minima
and medians are printed, with the median of the rounds' ratios. The full covariance and the rivals follow, for scale, as
medians of a few rounds: no loop is timed beside them.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from limbeck.functional.gaussian import gaussian_wasserstein
from limbeck.losses.feature_distributions import DISTANCES

Distance = Callable[[Tensor, Tensor], Tensor]
MEAN_WEIGHT = 2.0
SHAPES = ((64, 512, 7, 7), (64, 256, 8, 8), (64, 2048, 7, 7))
GRIDS = (1, 2, 4)


def loop(features: Tensor, target_features: Tensor, grid: int) -> Tensor:
    """Slice each cell, write its mean and deviation into tables, compare the tables."""
    (mean, deviation), (target_mean, target_deviation) = (_tables(x, grid) for x in (features, target_features))
    means = (target_mean - mean).square().sum()
    deviations = (target_deviation - deviation).square().sum()
    return (MEAN_WEIGHT * means + deviations) / len(features) / grid**2


def _tables(maps: Tensor, grid: int) -> tuple[Tensor, Tensor]:
    height, width = maps.shape[-2:]
    mean, deviation = (maps.new_zeros(*maps.shape[:2], grid, grid) for _ in range(2))
    for a in range(grid):
        for b in range(grid):
            rows = slice(a * height // grid, -(-(a + 1) * height // grid))
            columns = slice(b * width // grid, -(-(b + 1) * width // grid))
            cell = maps[:, :, rows, columns]
            mean[:, :, a, b] = cell.mean((-2, -1))
            deviation[:, :, a, b] = (cell.var((-2, -1)) + 1e-5).sqrt()
    return mean, deviation


def pooled(grid: int) -> Distance:
    """Return the library's form."""
    return partial(gaussian_wasserstein, mean_weight=MEAN_WEIGHT, grid=grid)


def value_and_gradient(distance: Distance, features: Tensor, target_features: Tensor) -> tuple[Tensor, Tensor]:
    """One forward and one backward."""
    features.grad = None
    value = distance(features, target_features)
    value.backward()
    return value.detach(), features.grad


def verify(features: Tensor, target_features: Tensor, grid: int) -> None:
    """Exit rather than measure a wrong result; on a few samples, in float64."""
    student, target = (x[:4].detach().double() for x in (features, target_features))
    student.requires_grad_()
    value, gradient = value_and_gradient(pooled(grid), student, target)
    exact, exact_gradient = value_and_gradient(partial(loop, grid=grid), student, target)
    errors = ((value - exact) / exact).abs().item(), (gradient - exact_gradient).abs().max().item()
    if max(errors) > 1e-12:
        sys.exit(f"wrong result at grid {grid}: relative error of the value {errors[0]:.1e}, gradient {errors[1]:.1e}")


def paired_seconds(
    contenders: dict[str, Distance], sides: tuple[Tensor, Tensor], rounds: int
) -> dict[str, list[float]]:
    """Seconds of each round's turns, after a call that is not timed; the order is turned round every time."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(rounds):
        for name in list(contenders)[:: 1 if turn % 2 else -1]:
            value_and_gradient(contenders[name], *sides)
            start = time.perf_counter()
            value_and_gradient(contenders[name], *sides)
            seconds[name].append(time.perf_counter() - start)
    return seconds


def maps(shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Features of a student and a frozen teacher."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(shape, generator=generator).relu() for _ in range(2))
    return student.requires_grad_(), teacher


def time_grids(rounds: int) -> list[dict[str, object]]:
    """One row per shape and grid."""
    rows: list[dict[str, object]] = []
    for shape in SHAPES:
        sides = maps(shape)
        for grid in GRIDS:
            verify(*sides, grid)
            seconds = paired_seconds({"pooled": pooled(grid), "loop": partial(loop, grid=grid)}, sides, rounds)
            ratios = [slow / fast for slow, fast in zip(seconds["loop"], seconds["pooled"], strict=True)]
            row: dict[str, object] = {"shape": "x".join(map(str, shape)), "form": "diagonal", "grid": grid}
            for name, values in seconds.items():
                row |= {f"{name}_min_ms": 1e3 * min(values), f"{name}_median_ms": 1e3 * statistics.median(values)}
            row["loop_over_pooled_min"] = min(seconds["loop"]) / min(seconds["pooled"])
            row["loop_over_pooled_median"] = statistics.median(ratios)
            rows.append(row)
            print(
                f"{row['shape']:14s} grid {grid}  "
                + "  ".join(f"{key} {value:8.2f}" for key, value in row.items() if isinstance(value, float)),
                flush=True,
            )
    return rows


def time_rivals(rounds: int) -> list[dict[str, object]]:
    """The full covariance and the other distributions, on the first shape."""
    sides = maps(SHAPES[0])
    forms: dict[str, Distance] = {"full": partial(gaussian_wasserstein, covariance="full"), **DISTANCES}
    rows: list[dict[str, object]] = []
    for name, values in paired_seconds(forms, sides, rounds).items():
        row: dict[str, object] = {"shape": "x".join(map(str, SHAPES[0])), "form": name, "grid": 1}
        row |= {"pooled_min_ms": 1e3 * min(values), "pooled_median_ms": 1e3 * statistics.median(values)}
        rows.append(row)
        print(f"{row['shape']:14s} {name:22s} min {row['pooled_min_ms']:8.2f}  median {row['pooled_median_ms']:8.2f}")
    return rows


def main() -> None:
    """Verify, time, print; write a CSV when asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", type=Path, help="also write the rows here")
    parser.add_argument("--rounds", type=int, default=40, help="paired rounds per case")
    options = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; forward + backward, paired rounds, ms")
    rows = time_grids(options.rounds) + time_rivals(max(options.rounds // 8, 3))
    if options.csv is not None:
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
        setting = {"torch": torch.__version__, "threads": torch.get_num_threads(), "commit": commit}
        with options.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=[*rows[0], *setting])
            writer.writeheader()
            writer.writerows({**row, **setting} for row in rows)


if __name__ == "__main__":
    main()
