"""Ways to run a frozen teacher: its forward pass, and the step of training around it.

    python -m benchmarks.teacher [--ways fp32,bf16] [--rounds 7] [--threads 2] [--batch 32] [--side 96] [--csv FILE]

A resnet18 learns from a resnet34 with KL at temperature 4 beside the labels: the objective of `limbeck train`, driven
as the engine drives it. `fp32` is what recipes do unless they say otherwise: inference mode, float32. `no_grad` is the
same without inference mode. `bf16` is `train.teacher_precision`, `compile` is `train.teacher_compile`, `channels_last`
holds for the student too, as `train.channels_last` does; `student` is `train.compile`, which leaves the teacher as it
is.

Before anything is timed, the logits of each way are compared with those of `no_grad` on the same images: equal for
`fp32`, within 1e-4 of their standard deviation for other orders of summation, within 5 % for bf16. Then in each round
all ways take a turn; the first round is not counted. `x fp32` is the median of the rounds' ratios to `fp32` in the same
round, so that a drift of the machine meets both.
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.rows import write
from limbeck.config import TERMS, ModelOptions, did_you_mean
from limbeck.data import Batch
from limbeck.models import build_model
from limbeck.models.running import Compiled, Precision
from limbeck.objectives.build import Facts
from limbeck.objectives.distill import Distillation
from limbeck.objectives.layers import View

STUDENT, TEACHER, CLASSES = "resnet18", "resnet34", 100
SGD: dict[str, Any] = {"lr": 1e-6, "momentum": 0.9, "weight_decay": 1e-4}
TERMS_HERE = (
    TERMS["cross_entropy"].model_validate({"name": "cross_entropy"}),
    TERMS["kl"].model_validate({"name": "kl", "temperature": 4.0, "scale_by_t2": True}),
)
Row = dict[str, object]


@dataclass(frozen=True)
class Way:
    """How networks are run.

    Attributes:
        precision: The teacher's.
        channels_last: Memory format of images and of both networks.
        compiled: Whether the teacher runs through `torch.compile`.
        student: Whether the student does.
        inference: Whether the teacher runs in inference mode.
        tolerance: Largest difference of a logit to float32's, in standard deviations.
    """

    precision: Precision = "same"
    channels_last: bool = False
    compiled: bool = False
    student: bool = False
    inference: bool = True
    tolerance: float = 1e-4


WAYS = {
    "fp32": Way(tolerance=0.0),
    "no_grad": Way(inference=False, tolerance=0.0),
    "channels_last": Way(channels_last=True),
    "bf16": Way(precision="bf16", tolerance=0.05),
    "bf16+channels_last": Way(precision="bf16", channels_last=True, tolerance=0.05),
    "compile": Way(compiled=True),
    "bf16+channels_last+compile": Way(precision="bf16", channels_last=True, compiled=True, tolerance=0.05),
    "student": Way(student=True),
}


@cache
def network(name: str, side: int) -> nn.Module:
    """Return a network whose normalisation has seen a batch."""
    made = build_model(ModelOptions(name=name), image_shape=(3, side, side), num_classes=CLASSES, seed=0).train()
    with torch.no_grad():
        made(torch.rand(16, 3, side, side, generator=torch.Generator().manual_seed(1)))
    return made


class Step:
    """The objective, its optimizer and a batch of noise."""

    def __init__(self, way: Way, samples: int, side: int) -> None:
        layout = torch.channels_last if way.channels_last else torch.contiguous_format
        student, teacher = (copy.deepcopy(network(name, side)) for name in (STUDENT, TEACHER))
        for each in (student, teacher):
            each.to(memory_format=layout)  # type: ignore[call-overload]  # torch's annotations lack it
        asked = Compiled(teacher, "compile") if way.compiled else teacher
        self.objective = Distillation(
            student.train(),
            [asked],
            TERMS_HERE,
            epochs=1,
            facts=Facts(CLASSES),
            precision=way.precision,
            compiled=way.student,
        ).train()
        self.inference = way.inference
        generator = torch.Generator().manual_seed(0)
        images = torch.rand(samples, 3, side, side, generator=generator).contiguous(memory_format=layout)
        indices = torch.arange(samples)
        self.batch = Batch(images, indices % CLASSES, indices, 0)
        self.optimizer = torch.optim.SGD(self.objective.parameters(), fused=True, **SGD)

    def look(self) -> Tensor:
        """Return what the teacher says."""
        return self.objective._targets(self.batch)[0].logits

    def __call__(self) -> None:
        """Take a step."""
        outcome = self.objective(self.batch)
        self.optimizer.zero_grad()
        outcome.loss.backward()
        self.optimizer.step()


def without_inference_mode(step: Step) -> None:
    """Let a step's teacher run under `no_grad` alone."""
    (layers,) = step.objective.teacher_layers

    @torch.no_grad()
    def look(images: Tensor) -> View:
        return layers(images)

    layers.without_graph = look  # type: ignore[method-assign]


def built(names: Sequence[str], samples: int, side: int) -> dict[str, Step]:
    """Return the steps of some ways, whose logits were found to agree."""
    steps = {name: Step(WAYS[name], samples, side) for name in names}
    for name, step in steps.items():
        if not WAYS[name].inference:
            without_inference_mode(step)
    expected = steps["no_grad"].look()
    for name, step in steps.items():
        gap = float((step.look() - expected).abs().max() / expected.std())
        if gap > WAYS[name].tolerance:
            raise SystemExit(f"{name}: logits differ by {gap:.2g} standard deviations from float32's")
        print(f"{name}: logits agree, to {gap:.1g} of their standard deviation", flush=True)
    return steps


# --- measuring ----------------------------------------------------------------------------------------------------


def seconds(call: Callable[[], object]) -> float:
    """Return what a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def measure(names: Sequence[str], rounds: int, samples: int, side: int) -> Iterator[Row]:
    """Yield a row per way, in the order given."""
    steps = built(names, samples, side)
    looks: dict[str, list[float]] = {name: [] for name in names}
    whole: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds + 1):
        for name, step in steps.items():
            both = seconds(step.look), seconds(step)
            if number:
                looks[name].append(both[0])
                whole[name].append(both[1])
    for name in names:
        yield {
            "way": name,
            "teacher_ms": 1e3 * statistics.median(looks[name]),
            "teacher_over_fp32": _over(looks[name], looks["fp32"]),
            "step_ms": 1e3 * statistics.median(whole[name]),
            "step_over_fp32": _over(whole[name], whole["fp32"]),
            "steps_per_second": 1 / statistics.median(whole[name]),
        }


def _over(own: list[float], base: list[float]) -> float:
    return statistics.median(mine / theirs for mine, theirs in zip(own, base, strict=True))


def chosen(text: str) -> list[str]:
    """Return the ways of a list with commas; an unknown one ends the program."""
    names = text.split(",") if text else list(WAYS)
    for name in names:
        if name not in WAYS:
            raise SystemExit(f"--ways: unknown `{name}`; {did_you_mean(name, WAYS)}")
    return list(dict.fromkeys(("fp32", "no_grad", *names)))


def main() -> None:
    """Measure, print; write a CSV when asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ways", default="", help="names with commas; by default all")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, help="of torch; by default its own choice")
    parser.add_argument("--batch", type=int, default=32, help="images of a step")
    parser.add_argument("--side", type=int, default=96, help="of the images, in pixels")
    parser.add_argument("--csv", type=Path, help="also write the rows here")
    given = parser.parse_args()
    if given.threads is not None:
        torch.set_num_threads(given.threads)
    names = chosen(given.ways)
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, load {load}")
    print(
        f"{TEACHER} > {STUDENT}, {given.batch} images of {given.side} pixels a step, {given.rounds} rounds", flush=True
    )
    rows = list(measure(names, given.rounds, given.batch, given.side))
    print(f"{'way':<27} {'teacher, ms':>11} {'x fp32':>6} {'step, ms':>9} {'x fp32':>6}")
    for row in rows:
        line = "{way:<27} {teacher_ms:11.1f} {teacher_over_fp32:6.2f} {step_ms:9.1f} {step_over_fp32:6.2f}"
        print(line.format_map(row))
    if given.csv is not None:
        what = {"student": STUDENT, "teacher": TEACHER, "classes": CLASSES}
        write(rows, given.csv, {**what, "samples": given.batch, "side": given.side, "rounds": given.rounds})


if __name__ == "__main__":
    main()
