"""WKD-L against the published form, with the cost copied and masked for each sample: time, memory, share of a step.

    python -m benchmarks.wkd [--rounds 7] [--csv FILE]

The published form copies the cost for each sample, takes the label's row and column out by a mask, makes each sample's
kernel and plan, and lets autograd go back through ten sweeps of batched products. Ours is `WKDLogitLoss`, both terms,
in both its modes, and at a uniform cost, which needs no products. In float64 the two forms must agree to 1e-9 in value
and gradient before they are timed. Forward and backward of one batch, the teacher frozen, the labels' cross-entropy
left out. Contenders take turns in one process, each after a call that is not timed, so that a drift of the machine
meets all alike: ratios are given of the fastest rounds and as the median over rounds. Memory is the peak above the
inputs. A step is that of a resnet8x4 which learns from a resnet32x4, 64 images of 32 x 32 and 100 classes: the
teacher's forward pass, the student's, the losses, the backward pass, SGD.
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from limbeck import KLLoss, WKDLogitLoss
from limbeck.config import ModelOptions
from limbeck.models import build_model

SHAPES = ((64, 100), (64, 1000))
TEMPERATURE, REG, ITERATIONS, FLOOR, TRANSPORT_WEIGHT = 4.0, 0.05, 10, 1e-8, 200.0
STEP_SHAPE = (64, 100)
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
Row = dict[str, object]


class Batch:
    """Logits as a trained teacher and a student half-way give them, and a cost between random prototypes of classes."""

    def __init__(self, samples: int, classes: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.labels = torch.randint(classes, (samples,), generator=generator)
        teacher, noise = (2 * torch.randn(samples, classes, generator=generator) for _ in range(2))
        self.teacher = teacher + 8 * F.one_hot(self.labels, classes)
        self.student = (0.8 * self.teacher + 0.6 * noise).requires_grad_()
        self.cost = cost_of_prototypes(classes, generator)


def cost_of_prototypes(classes: int, generator: torch.Generator) -> Tensor:
    """Return 1 - exp(-(1 - cosine)), as the published code makes the cost of a classifier's rows."""
    rows = F.normalize(torch.randn(classes, 64, generator=generator), dim=1)
    cost = 1 - torch.exp(-(1 - rows @ rows.T).clamp(0, 1))
    return ((cost + cost.T) / 2).fill_diagonal_(0)


def published_form(cost: Tensor) -> Loss:
    """Return WKD-L with one masked cost, one kernel and one plan per sample, written from a description of it."""

    def others(logits: Tensor, mask: Tensor) -> Tensor:
        samples, classes = logits.shape
        return F.softmax(logits[mask].view(samples, classes - 1) / TEMPERATURE, 1)

    def loss(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        samples, classes = student.shape
        mask = ~F.one_hot(labels, classes).bool()
        a, b = others(student, mask), others(teacher, mask)
        each = (cost.to(student.dtype).relu() + FLOOR).expand(samples, classes, classes)
        each = each[mask.unsqueeze(2) & mask.unsqueeze(1)].view(samples, classes - 1, classes - 1)
        kernel = torch.exp(-each / REG)
        u = torch.full_like(a, 1 / (classes - 1))
        for _ in range(ITERATIONS):
            v = b / (torch.bmm(kernel.mT, u.unsqueeze(2)).squeeze(2) + FLOOR)
            u = a / (torch.bmm(kernel, v.unsqueeze(2)).squeeze(2) + FLOOR)
        plan = u.unsqueeze(2) * kernel * v.unsqueeze(1)
        transport = (plan * each).sum((1, 2)).mean()
        p = F.softmax(teacher, 1).detach().gather(1, labels.unsqueeze(1))
        target = -(p * F.log_softmax(student, 1).gather(1, labels.unsqueeze(1))).mean()
        return target + TRANSPORT_WEIGHT * transport

    return loss


def ours(cost: Tensor, mode: str = "log") -> Loss:
    """Return the module with the options of the published form."""
    options = {"temperature": TEMPERATURE, "reg": REG, "iterations": ITERATIONS, "transport_weight": TRANSPORT_WEIGHT}
    return WKDLogitLoss(cost, mode=mode, **options)


def contenders(batch: Batch) -> dict[str, Loss]:
    """Return name -> loss."""
    uniform = 0.6 * (1 - torch.eye(len(batch.cost)))
    kl = KLLoss(temperature=TEMPERATURE, scale_by_t2=True)
    return {
        "published form": published_form(batch.cost),
        "ours": ours(batch.cost),
        "ours, mode published": ours(batch.cost, "published"),
        "ours, uniform cost": ours(uniform),
        "KL": lambda student, teacher, _: kl(student, teacher),
    }


def value_and_gradient(batch: Batch, loss: Loss, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """One forward and one backward."""
    value = loss(batch.student.to(dtype), batch.teacher.to(dtype), batch.labels)
    return value.detach(), torch.autograd.grad(value, batch.student)[0]


def verify(samples: int, classes: int) -> None:
    """Exit rather than measure a wrong result."""
    batch = Batch(samples, classes)
    batch.student = batch.student.detach().double().requires_grad_()
    value, gradient = value_and_gradient(batch, ours(batch.cost, "published"), torch.float64)
    wanted, wanted_gradient = value_and_gradient(batch, published_form(batch.cost), torch.float64)
    error = ((gradient - wanted_gradient).abs().max() / wanted_gradient.abs().max()).item()
    if abs(value - wanted) > 1e-9 * wanted or error > 1e-9:
        sys.exit(f"({samples}, {classes}): {value} and {wanted}, gradients {error:.1e} apart in float64")


def seconds_per_round(steps: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Return name -> seconds of each round, in which every contender has its turn after a call that is not timed."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            step()
            start = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def peak_mib(batch: Batch, loss: Loss) -> float:
    """Return the peak of the tensors alive above the inputs, over one forward and one backward."""
    value_and_gradient(batch, loss)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        value_and_gradient(batch, loss)
    alive = peak = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            alive += event.nbytes()
            peak = max(peak, alive)
    return peak / 2**20


def rows_of(what: str, shape: tuple[int, int], seconds: dict[str, list[float]], base: str, ratio: str) -> list[Row]:
    """Return a row per contender; `ratio` is named for what stands above: the base's seconds, or the contender's."""
    rows: list[Row] = []
    for name, own in seconds.items():
        pairs = list(zip(seconds[base], own, strict=True))
        of_minima, of_rounds = min(seconds[base]) / min(own), statistics.median(a / b for a, b in pairs)
        if ratio == "over_base":
            of_minima, of_rounds = 1 / of_minima, 1 / of_rounds
        rows.append(
            {
                "what": what,
                "samples": shape[0],
                "classes": shape[1],
                "form": name,
                "min_ms": 1e3 * min(own),
                "median_ms": 1e3 * statistics.median(own),
                "ratio": ratio,
                "ratio_of_minima": of_minima,
                "ratio_median": of_rounds,
            }
        )
    return rows


def compare_losses(samples: int, classes: int, rounds: int) -> list[Row]:
    """Return the rows of one shape. The short contenders have rounds of their own too: they are too quick for a few."""
    verify(min(samples, 8) if classes > 500 else samples, classes)
    batch = Batch(samples, classes)
    losses = contenders(batch)
    steps = {name: lambda loss=loss: value_and_gradient(batch, loss) for name, loss in losses.items()}
    rows = rows_of("loss", (samples, classes), seconds_per_round(steps, rounds), "published form", "published_over_own")
    memory = {name: peak_mib(batch, loss) for name, loss in losses.items()}
    for row in rows:
        name = str(row["form"])
        row |= {"peak_mib": memory[name], "memory_ratio": memory["published form"] / max(memory[name], 1e-9)}
    return rows


class Step:
    """A step of distillation: cross-entropy with the labels, and a loss between student and teacher."""

    def __init__(self, loss: Loss) -> None:
        networks = [
            build_model(ModelOptions(name=name), image_shape=(3, 32, 32), num_classes=STEP_SHAPE[1], seed=0)
            for name in ("resnet8x4", "resnet32x4")
        ]
        self.student: nn.Module = networks[0].train()
        self.teacher: nn.Module = networks[1].eval()
        self.loss = loss
        self.optimizer = torch.optim.SGD(self.student.parameters(), lr=1e-4, momentum=0.9, weight_decay=5e-4)
        generator = torch.Generator().manual_seed(0)
        self.images = torch.rand(STEP_SHAPE[0], 3, 32, 32, generator=generator)
        self.labels = torch.randint(STEP_SHAPE[1], STEP_SHAPE[:1], generator=generator)

    def __call__(self) -> None:
        """Take a step."""
        with torch.no_grad():
            target_logits = self.teacher(self.images)
        logits = self.student(self.images)
        loss = F.cross_entropy(logits, self.labels) + self.loss(logits, target_logits, self.labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


def compare_steps(rounds: int) -> list[Row]:
    """Return the rows of a training step, over that with KL."""
    losses = contenders(Batch(*STEP_SHAPE))
    steps: dict[str, Callable[[], object]] = {name: Step(losses[name]) for name in ("KL", "ours", "published form")}
    return rows_of("step", STEP_SHAPE, seconds_per_round(steps, rounds), "KL", "over_base")


def show(rows: list[Row]) -> None:
    """Print rows."""
    for row in rows:
        memory = f"{row['peak_mib']:9.2f} MiB ({row['memory_ratio']:6.1f}x less)" if "peak_mib" in row else ""
        print(
            f"{row['what']} ({row['samples']}, {row['classes']:4d})  {row['form']:<22} min {row['min_ms']:9.3f} ms  "
            f"median {row['median_ms']:9.3f} ms  {row['ratio']} {row['ratio_of_minima']:8.3f} of minima, "
            f"{row['ratio_median']:8.3f} median  {memory}",
            flush=True,
        )


def write(rows: list[Row], path: Path) -> None:
    """Write the rows and what they were measured with."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    setting = {"torch": torch.__version__, "threads": torch.get_num_threads(), "commit": commit}
    names = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=[*names, *setting])
        writer.writeheader()
        writer.writerows({**row, **setting} for row in rows)


def main() -> None:
    """Verify, time, measure memory, print; write a CSV when asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="of the large shape and of the step; 100 classes: 30x")
    parser.add_argument("--csv", type=Path, help="also write the rows here")
    arguments = parser.parse_args()
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, load {load}; forward + backward, interleaved")
    rows: list[Row] = []
    for samples, classes in SHAPES:
        rows += compare_losses(samples, classes, arguments.rounds * (30 if classes < 1000 else 1))
        show(rows[-5:])
    rows += compare_steps(arguments.rounds)
    show(rows[-3:])
    fastest = {(row["what"], row["samples"], row["classes"], row["form"]): float(str(row["min_ms"])) for row in rows}
    share = fastest[("loss", *STEP_SHAPE, "ours")] / fastest[("step", *STEP_SHAPE, "KL")]
    print(f"the loss by itself is {share:.2%} of a step with KL, of minima")
    if arguments.csv is not None:
        write(rows, arguments.csv)


if __name__ == "__main__":
    main()
