"""GKLLoss against the brute-force N x C x C form and against F.kl_div distillation: time and memory, in one run.

    python -m benchmarks.gkl [--csv FILE]

Forward and backward of one batch, the teacher frozen. Each batch is compared with a float64 twin before it is timed:
brute force where its tensors fit, else the variance form in plain operations, which is itself compared with brute
force. The contenders take turns, each after a call of its own that is not timed (warm caches), so that a drift of the
machine meets all alike; medians and ratios of medians are printed. Memory is the peak above the inputs less the
gradient that is returned, in units of one (N, C) float32 tensor.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck import GKLLoss

Step = Callable[[], Tensor]
TEMPERATURE = 4.0
SHAPES = ((64, 100), (64, 1000), (512, 1000), (1024, 10000))
BRUTE_FORCE_SHAPES = ((64, 100), (64, 1000))
MEMORY_SHAPES = ((512, 1000), (8, 1_000_003))


class Batch:
    """Logits of a student and a frozen teacher, and a class prior fed with one batch."""

    def __init__(self, samples: int, classes: int, *, table: bool = True) -> None:
        generator = torch.Generator().manual_seed(0)
        self.student = (3 * torch.randn(samples, classes, generator=generator)).requires_grad_()
        self.teacher = 3 * torch.randn(samples, classes, generator=generator)
        self.labels = torch.randint(classes, (samples,), generator=generator)
        self.rows = torch.softmax(torch.randn(classes, classes, generator=generator), -1) if table else None


def gkl(batch: Batch, power: float) -> Step:
    """Class-wise with labels where a table fits, else sample-wise."""
    options = {"mse_weight": 4.0, "weight_power": power, "temperature": TEMPERATURE}
    if batch.rows is None:
        loss = GKLLoss(prior="sample", **options)
        return lambda: loss(batch.student, batch.teacher)
    loss = GKLLoss(len(batch.rows), **options)
    loss.prior.prior.copy_(batch.rows)
    loss.prior.refreshes += 1
    return lambda: loss(batch.student, batch.teacher, batch.labels)


def kl_distillation(batch: Batch) -> Step:
    """Hinton's loss as most code bases write it."""

    def step() -> Tensor:
        log_q = F.log_softmax(batch.student / TEMPERATURE, -1)
        p = F.softmax(batch.teacher / TEMPERATURE, -1)
        return F.kl_div(log_q, p, reduction="batchmean") * TEMPERATURE**2

    return step


def brute_force(batch: Batch, power: float, dtype: torch.dtype = torch.float32) -> Step:
    """The formula as it is printed, with its (N, C, C) tensors."""

    def step() -> Tensor:
        s, t = batch.student.to(dtype), batch.teacher.to(dtype)
        u = batch.rows[batch.labels].to(dtype) ** power
        weights = u.unsqueeze(-1) * u.unsqueeze(-2)
        gaps = (t.unsqueeze(-1) - t.unsqueeze(-2)) - (s.unsqueeze(-1) - s.unsqueeze(-2))
        mse = (weights * gaps**2).sum() / weights.sum() / 4
        cross_entropy = -(F.softmax(t / TEMPERATURE, -1) * F.log_softmax(s / TEMPERATURE, -1)).sum(-1).mean()
        return 4.0 * mse + cross_entropy

    return step


def value_and_gradient(batch: Batch, step: Step) -> tuple[Tensor, Tensor]:
    """One forward and one backward."""
    batch.student.grad = None
    value = step()
    value.backward()
    return value.detach(), batch.student.grad


def variance_form(batch: Batch, power: float) -> Step:
    """The same in float64 with (N, C) tensors: S squared times half a weighted variance. The twin of large batches."""

    def step() -> Tensor:
        s, t = batch.student.double(), batch.teacher.double()
        rows = F.softmax(t, -1) if batch.rows is None else batch.rows[batch.labels].double()
        u = rows**power
        mass = u.sum(-1, keepdim=True)
        gap = s - t
        centred = gap - (u * gap).sum(-1, keepdim=True) / mass
        mse = (mass * u * centred**2).sum() / 2 / (mass**2).sum()
        cross_entropy = -(F.softmax(t / TEMPERATURE, -1) * F.log_softmax(s / TEMPERATURE, -1)).sum(-1).mean()
        return 4.0 * mse + cross_entropy

    return step


def verify(batch: Batch, power: float) -> None:
    """Exit rather than measure a wrong result."""
    small = batch.rows is not None and batch.student.numel() * batch.student.shape[1] <= 1_000_000
    exact = [variance_form(batch, power), *([brute_force(batch, power, torch.float64)] if small else [])]
    value, gradient = value_and_gradient(batch, gkl(batch, power))
    for step in exact:
        exact_value, exact_gradient = value_and_gradient(batch, step)
        error = ((gradient - exact_gradient).abs().max() / exact_gradient.abs().max()).item()
        if not torch.allclose(value.double(), exact_value.double(), rtol=1e-5) or error > 1e-5:
            sys.exit(f"wrong result at power {power}: value {value} and {exact_value}, gradient error {error:.1e}")


def interleaved_medians(batch: Batch, steps: dict[str, Step], rounds: int) -> dict[str, float]:
    """Seconds of one forward and backward, medians over rounds in which every contender has its turn.

    A turn begins with a call that is not timed: otherwise each pays for the caches that the one before it emptied.
    """
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            value_and_gradient(batch, step)
            start = time.perf_counter()
            value_and_gradient(batch, step)
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def time_shapes(powers: tuple[float, ...]) -> list[dict[str, object]]:
    """One row per shape and power."""
    rows: list[dict[str, object]] = []
    for samples, classes in SHAPES:
        batch = Batch(samples, classes)
        for power in powers:
            verify(batch, power)
            steps = {"gkl": gkl(batch, power), "kl": kl_distillation(batch)}
            seconds = interleaved_medians(batch, steps, max(15, min(400, 40_000_000 // (samples * classes))))
            if (samples, classes) in BRUTE_FORCE_SHAPES:
                steps = {"gkl": steps["gkl"], "brute": brute_force(batch, power)}
                slow = interleaved_medians(batch, steps, 40 if classes < 1000 else 3)
                seconds["brute"] = slow["brute"] / slow["gkl"] * seconds["gkl"]
            rows.append(
                {
                    "samples": samples,
                    "classes": classes,
                    "power": power,
                    "gkl_ms": 1e3 * seconds["gkl"],
                    "kl_ms": 1e3 * seconds["kl"],
                    "gkl_over_kl": seconds["gkl"] / seconds["kl"],
                    "brute_over_gkl": seconds.get("brute", float("nan")) / seconds["gkl"],
                }
            )
            print(
                f"({samples:4d}, {classes:5d})  power {power:<4g}  GKLLoss {rows[-1]['gkl_ms']:9.3f} ms   "
                f"F.kl_div {rows[-1]['kl_ms']:9.3f} ms   GKLLoss/F.kl_div {rows[-1]['gkl_over_kl']:5.2f}   "
                + (f"brute force/GKLLoss {rows[-1]['brute_over_gkl']:8.1f}" if "brute" in seconds else ""),
                flush=True,
            )
    return rows


def extra_memory(samples: int, classes: int, power: float) -> float:
    """Peak of the tensors alive, above the inputs and less the gradient, over one (N, C) float32 tensor."""
    batch = Batch(samples, classes, table=classes <= 10_000)
    verify(batch, power)
    step = gkl(batch, power)
    value_and_gradient(batch, step)  # the powered table is made once an epoch, not once a batch
    batch.student.grad = None
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        value_and_gradient(batch, step)
    alive = peak = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            alive += event.nbytes()
            peak = max(peak, alive)
    one = 4 * samples * classes
    return (peak - one) / one


def main() -> None:
    """Verify, time, measure memory, print; write a CSV when asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", type=Path, help="also write the rows here")
    path = parser.parse_args().csv
    powers = (1.0, 0.3)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; forward + backward, medians, interleaved")
    rows = time_shapes(powers)
    for samples, classes in MEMORY_SHAPES:
        for power in powers:
            extra = extra_memory(samples, classes, power)
            print(
                f"({samples:4d}, {classes:7d})  power {power:<4g}  extra memory {extra:5.2f} x logits "
                "(peak above the inputs, less the gradient)"
            )
    if path is not None:
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=[*rows[0], "torch", "threads", "commit"])
            writer.writeheader()
            for row in rows:
                writer.writerow(
                    {**row, "torch": torch.__version__, "threads": torch.get_num_threads(), "commit": commit}
                )


if __name__ == "__main__":
    main()
