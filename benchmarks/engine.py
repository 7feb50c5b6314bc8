"""Time per step and peak memory of the engine against a bare loop with the same networks, data and loss.

    python -m benchmarks.engine [--teacher resnet20 --student resnet8 --steps 60 --rounds 3]

Each measurement is a process of its own; the two take turns. The engine augments (a crop), keeps metrics, watches for
divergence and writes its folder; the bare loop only trains and looks at the validation split after each epoch, as the
engine does. The median step is reported, so that what happens between two epochs does not count in the time.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import torch

from limbeck.config import Recipe
from limbeck.data import build_data, normalise
from limbeck.engine.fit import train_run
from limbeck.engine.metrics import EVALUATION_BATCH
from limbeck.engine.progress import Reporter
from limbeck.engine.signals import StopRequest
from limbeck.engine.teachers import GivenModule, Resources
from limbeck.losses import KLLoss
from limbeck.models import build_model

BATCH, SKIPPED = 64, 10  # the first steps are slower: memory is allocated, libraries choose their kernels


def recipe(student: str, epochs: int) -> Recipe:
    """Return a distillation on MNIST-5k whose views change, so that the teacher is asked at each step."""
    return Recipe.model_validate(
        {
            "task": "distill",
            "teachers": [{"module": "benchmark"}],
            "losses": [{"name": "cross_entropy"}, {"name": "kl", "temperature": 4.0, "scale_by_t2": True}],
            "data": {"name": "mnist5k", "augment": {"crop_padding": 2}},
            "model": {"name": student},
            "train": {"epochs": epochs, "batch_size": BATCH, "drop_last": True},
            "save": {"tensorboard": False},
        }
    )


class Clock(Reporter):
    """Keeps the time of each step."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def step(self, step: int, samples: int) -> None:
        """Note when the step ended."""
        self.times.append(time.perf_counter())


def seconds_per_step(times: list[float]) -> float:
    """Return the median of the steps, so that what happens between two epochs does not count."""
    return statistics.median(later - earlier for earlier, later in pairwise(times[SKIPPED:]))


def engine(teacher: str, student: str, steps: int) -> float:
    """Return the seconds of a step of `limbeck train`."""
    options = recipe(student, epochs=-(-steps // (2800 // BATCH)))
    clock, module = Clock(), build_model_of(teacher)
    with tempfile.TemporaryDirectory() as folder, StopRequest() as stop:
        train_run(
            options,
            Path(folder) / "run",
            resume=False,
            reporter=clock,
            stop=stop,
            resources=Resources(),
            sources=[GivenModule(module, "benchmark")],
        )
    return seconds_per_step(clock.times[:steps])


def build_model_of(name: str) -> torch.nn.Module:
    """Return a network for MNIST-5k."""
    options = recipe(name, 1).model
    return build_model(options, image_shape=(1, 28, 28), num_classes=10, seed=0)


def bare(teacher_name: str, student_name: str, steps: int) -> float:
    """Return the seconds of a step of the shortest loop that trains."""
    data = build_data(recipe(student_name, 1).data)
    images, labels = normalise(data.train.images, data.train.pixels), data.train.labels
    teacher, student = build_model_of(teacher_name).eval().requires_grad_(False), build_model_of(student_name)
    optimizer = torch.optim.SGD(
        student.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4, fused=True
    )
    loss, times = KLLoss(temperature=4.0, scale_by_t2=True), []
    while len(times) < steps:
        for chosen in torch.randperm(len(images)).split(BATCH)[: len(images) // BATCH]:
            batch, target = images[chosen], labels[chosen]
            with torch.no_grad():
                target_logits = teacher(batch)
            logits = student(batch)
            total = torch.nn.functional.cross_entropy(logits, target) + loss(logits, target_logits)
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
            times.append(time.perf_counter())
        with torch.no_grad():
            for batch in data.validation.batches(EVALUATION_BATCH):
                student(batch)
    return seconds_per_step(times[:steps])


def child(kind: str, teacher: str, student: str, steps: int) -> None:
    """Print one measurement as JSON."""
    seconds = {"engine": engine, "bare": bare}[kind](teacher, student, steps)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"ms": seconds * 1e3, "mib": peak}))


def main() -> None:
    """Let the two take turns, and print medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--teacher", default="resnet20")
    parser.add_argument("--student", default="resnet8")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", choices=("engine", "bare"))
    options = parser.parse_args()
    if options.child:
        child(options.child, options.teacher, options.student, options.steps)
        return
    results: dict[str, list[dict[str, float]]] = {"bare": [], "engine": []}
    for _ in range(options.rounds):
        for kind, found in results.items():
            words = [sys.executable, "-m", "benchmarks.engine", "--child", kind, "--steps", str(options.steps)]
            words += ["--teacher", options.teacher, "--student", options.student]
            found.append(json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout))
    for key, unit in (("ms", "ms per step"), ("mib", "MiB at the peak")):
        medians = {kind: statistics.median(run[key] for run in found) for kind, found in results.items()}
        each = ", ".join(f"{kind} {median:.1f}" for kind, median in medians.items())
        print(f"{options.teacher} > {options.student}, {unit}: {each}; ratio {medians['engine'] / medians['bare']:.3f}")


if __name__ == "__main__":
    main()
