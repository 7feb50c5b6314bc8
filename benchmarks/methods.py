"""Every loss of the catalogue in a step of training: time, the loss's share of it, memory, parameters that train.

    python -m benchmarks.methods [--losses kl,gkl,wkd_logit] [--rounds 7] [--threads 2] [--batch 64] [--csv FILE]

A resnet8x4 learns from a resnet32x4, images of 3 x 32 x 32, 100 classes, 50,000 training images: the teacher's forward
pass, the student's, the labels' cross-entropy and the loss with its default options, the backward pass, SGD, what the
loss observes, and its share of the refresh at the end of an epoch. It is the objective of `limbeck train`, driven as
the engine drives it. `wkd_l_f` is WKD-L and WKD-F together. The cross-entropy alone asks no teacher, nor do the losses
of group self. `mart` stands here without its attack.

In a round each contender takes a step and KD (KL at temperature 4) one right after it, so that a drift of the machine
meets both: `x KD` is the median of the rounds' ratios. The first round is not counted. `loss` is the loss alone,
forward and backward, on features and logits of such a step; its share is of the fastest step. `MiB` is the peak of a
step above what is alive before it, `over KD` what is more than KD's, `state` what stays: parameters and buffers.
Parameters are those of the loss that train, in units of 2^20, as in WKD's table of latencies. A machine with other work
interrupts a long step and not a short loss, so that shares come out too low: the load stands in each row.
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
from typing import Any, cast

import torch
from torch import Tensor, nn

from benchmarks.rows import write
from limbeck.config import TERMS, ModelOptions, Term, did_you_mean
from limbeck.data import Batch
from limbeck.models import build_model
from limbeck.objectives.build import Facts
from limbeck.objectives.distill import Distillation
from limbeck.objectives.layers import Layers, View

STUDENT, TEACHER, CLASSES, IMAGES = "resnet8x4", "resnet32x4", 100, 50_000
# Steps of no length: without their published weights some losses are large.
SGD: dict[str, Any] = {"lr": 1e-8, "momentum": 0.9, "weight_decay": 5e-4}
CROSS_ENTROPY: dict[str, Any] = {"name": "cross_entropy"}
KD: dict[str, Any] = {"name": "kl", "temperature": 4.0, "scale_by_t2": True}
BOTH: dict[str, Sequence[dict[str, Any]]] = {"wkd_l_f": ({"name": "wkd_logit"}, {"name": "wkd_feature"})}
NAMES = ("cross_entropy", *(name for name in TERMS if name != "cross_entropy"), *BOTH)
GROUPS = ("labels", "logit", "feature", "both", "self")
Row = dict[str, object]


def terms_of(name: str) -> list[Term]:
    """Return the terms of a contender beside the labels' cross-entropy."""
    given = BOTH.get(name, ({"name": name} if name != "kl" else KD,))
    return [TERMS[term["name"]].model_validate(term) for term in given]


def group_of(name: str) -> str:
    """Return what a contender looks at, in the words of the papers' tables."""
    inputs = {what for term in terms_of(name) for what in term.inputs}
    taught = any(what.startswith("target_") for what in inputs)
    features = bool(inputs & {"features", "target_features"})
    if not taught:
        return "self" if name != "cross_entropy" else "labels"
    return ("both" if "target_logits" in inputs else "feature") if features else "logit"


@cache
def network(name: str) -> nn.Module:
    """Return a network whose normalisation has seen a batch."""
    made = build_model(ModelOptions(name=name), image_shape=(3, 32, 32), num_classes=CLASSES, seed=0).train()
    with torch.no_grad():
        made(torch.rand(64, 3, 32, 32, generator=torch.Generator().manual_seed(1)))
    return made


def teacher() -> nn.Module:
    """Return a teacher with hooks of its own, and the weights of all others."""
    whole = network(TEACHER)
    shared = [*whole.parameters(), *whole.buffers()]
    return copy.deepcopy(whole, {id(tensor): tensor for tensor in shared})


@cache
def facts() -> Facts:
    """Return what the losses are built from: noise with the shapes of CIFAR-100."""
    generator = torch.Generator().manual_seed(2)
    labels = torch.randint(CLASSES, (IMAGES,), generator=generator)
    rows = nn.functional.normalize(torch.randn(CLASSES, 64, generator=generator), dim=1)
    cost = 1 - torch.exp(-(1 - rows @ rows.T).clamp(0, 1))
    cost = ((cost + cost.T) / 2).fill_diagonal_(0)
    return Facts(CLASSES, torch.zeros(1, 3, 32, 32), labels, lambda *_: cost)


@dataclass(frozen=True)
class Setting:
    """What all contenders share."""

    samples: int
    rounds: int

    @property
    def batch(self) -> Batch:
        """Noise: the time of a step does not depend on what the images show."""
        generator = torch.Generator().manual_seed(0)
        images = torch.rand(self.samples, 3, 32, 32, generator=generator)
        indices = torch.randperm(IMAGES, generator=generator)[: self.samples]
        labels = facts().train_labels
        assert labels is not None
        return Batch(images, labels[indices], indices, 0)


class Step:
    """The objective and its optimizer, driven as the engine drives them."""

    def __init__(self, terms: Sequence[Term]) -> None:
        student = copy.deepcopy(network(STUDENT)).train()
        self.objective = Distillation(student, [teacher()], terms, epochs=1, facts=facts()).train()
        self.optimizer = torch.optim.SGD(self.objective.parameters(), fused=True, **SGD)

    def __call__(self, batch: Batch) -> None:
        """Take a step."""
        outcome = self.objective(batch)
        self.optimizer.zero_grad()
        outcome.loss.backward()
        self.optimizer.step()
        self.objective.after_step(batch, outcome)

    def end_epoch(self, batch: Batch) -> None:
        """Let the losses use what they observed."""
        self.objective.refresh()

    @property
    def losses(self) -> nn.Module:
        """The loss modules."""
        return self.objective.losses


class LossAlone:
    """The losses of an objective, on what two networks made of a batch."""

    def __init__(self, terms: Sequence[Term], batch: Batch) -> None:
        student = copy.deepcopy(network(STUDENT)).train()
        self.objective = Distillation(student, [teacher()], terms, epochs=1, facts=facts()).train()
        with torch.no_grad():
            view = self.objective.layers(batch.images)
            targets = [layers(batch.images) for layers in self.objective.teacher_layers]
        self.objective.close()
        self.leaves = [view.logits, *(leaf for each in view.features.values() for leaf in each)]
        for leaf in self.leaves:
            leaf.requires_grad_()
        # The two networks are replaced by what they said.
        self.objective.layers = cast("Layers", Replay(view))
        self.objective.teacher_layers = tuple(cast("Layers", Replay(target)) for target in targets)

    def __call__(self, batch: Batch) -> None:
        """Forward, backward, and what is observed."""
        for tensor in (*self.leaves, *self.objective.parameters()):
            tensor.grad = None
        outcome = self.objective(batch)
        outcome.loss.backward()
        self.objective.after_step(batch, outcome)


class Replay:
    """Says of any images what a network said once."""

    def __init__(self, view: View) -> None:
        self.view = view

    def __call__(self, images: Tensor) -> View:
        """Return it."""
        return self.view

    without_graph = __call__


# --- measuring ----------------------------------------------------------------------------------------------------


def seconds(call: Callable[[Batch], None], batch: Batch) -> float:
    """Return what a call takes."""
    start = time.perf_counter()
    call(batch)
    return time.perf_counter() - start


def paired_rounds(steps: dict[str, Step], kd: Step, setting: Setting) -> dict[str, list[tuple[float, float]]]:
    """Return name -> (seconds of its step, of KD's right after it) of each round but the first."""
    batch = setting.batch
    pairs: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    for number in range(setting.rounds + 1):
        for name, step in steps.items():
            pair = seconds(step, batch), seconds(kd, batch)
            if number:
                pairs[name].append(pair)
    return pairs


def peak_mib(step: Step, batch: Batch) -> float:
    """Return the peak of the tensors alive during a step above those alive before it."""
    step.optimizer.zero_grad()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        step(batch)
    alive = peak = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            alive += event.nbytes()
            peak = max(peak, alive)
    return peak / 2**20


def loss_seconds(name: str, setting: Setting) -> float:
    """Return what the loss takes by itself: the fastest of some calls after two that are not counted."""
    batch = setting.batch
    alone = LossAlone(terms_of(name), batch)
    return min([seconds(alone, batch) for _ in range(setting.rounds + 2)][2:])


def row_of(name: str, step: Step, pairs: list[tuple[float, float]], kd_peak: float, setting: Setting) -> Row:
    """Return a contender's row."""
    refresh = seconds(step.end_epoch, setting.batch)
    own = [pair[0] + refresh * setting.samples / IMAGES for pair in pairs]
    alone, peak = loss_seconds(name, setting), peak_mib(step, setting.batch)
    state = [*step.losses.parameters(), *step.losses.buffers()]
    return {
        "method": name,
        "group": group_of(name),
        "min_ms": 1e3 * min(own),
        "median_ms": 1e3 * statistics.median(own),
        "over_kd": statistics.median(mine / pair[1] for mine, pair in zip(own, pairs, strict=True)),
        "loss_ms": 1e3 * alone,
        "loss_share": alone / min(own),
        "refresh_ms": 1e3 * refresh,
        "peak_mib": peak,
        "peak_over_kd_mib": round(peak - kd_peak, 1) + 0.0,
        "state_mib": sum(tensor.nbytes for tensor in state) / 2**20,
        "parameters_m": sum(each.numel() for each in step.losses.parameters()) / 2**20,
    }


def measure(names: Sequence[str], setting: Setting) -> Iterator[Row]:
    """Yield a row per contender, by group, within a group in the order given."""
    cross_entropy = TERMS["cross_entropy"].model_validate(CROSS_ENTROPY)
    steps = {
        name: Step([cross_entropy, *(term for term in terms_of(name) if term.name != "cross_entropy")])
        for name in sorted(names, key=lambda name: GROUPS.index(group_of(name)))
    }
    kd = Step([cross_entropy, *terms_of("kl")])
    pairs = paired_rounds(steps, kd, setting)
    kd_peak = peak_mib(kd, setting.batch)
    for name, step in steps.items():
        yield row_of(name, step, pairs[name], kd_peak, setting)


# --- showing ------------------------------------------------------------------------------------------------------


def show(row: Row) -> Row:
    """Print a row, under titles if it is the first, and return it."""
    if row["method"] == "cross_entropy":
        print(f"{'group':<8} {'method':<21} {'ms, min':>8} {'median':>8} {'x KD':>6} {'loss, ms':>9} ", end="")
        print(f"{'share':>7} {'MiB':>7} {'over KD':>8} {'state':>7} {'parameters':>11}")
    print(
        "{group:<8} {method:<21} {min_ms:8.1f} {median_ms:8.1f} {over_kd:6.2f} {loss_ms:9.2f} {loss_share:7.1%} "
        "{peak_mib:7.1f} {peak_over_kd_mib:+8.1f} {state_mib:7.1f} {parameters_m:11.3f}".format_map(row),
        flush=True,
    )
    return row


def chosen(text: str) -> list[str]:
    """Return the contenders of a list with commas; an unknown one ends the program."""
    names = text.split(",") if text else list(NAMES)
    for name in names:
        if name not in NAMES:
            raise SystemExit(f"--losses: unknown `{name}`; {did_you_mean(name, NAMES)}")
    return list(dict.fromkeys(("cross_entropy", "kl", *names)))


def main() -> None:
    """Measure, print; write a CSV when asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--losses", default="", help="names with commas; by default all")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, help="of torch; by default its own choice")
    parser.add_argument("--batch", type=int, default=64, help="images of a step")
    parser.add_argument("--csv", type=Path, help="also write the rows here")
    given = parser.parse_args()
    if given.threads is not None:
        torch.set_num_threads(given.threads)
    setting, names = Setting(given.batch, given.rounds), chosen(given.losses)
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, load {load}")
    print(
        f"{TEACHER} > {STUDENT}, {CLASSES} classes, {given.batch} images a step; {given.rounds} paired rounds",
        flush=True,
    )
    rows = [show(row) for row in measure(names, setting)]
    if given.csv is not None:
        what = {"student": STUDENT, "teacher": TEACHER, "classes": CLASSES}
        write(rows, given.csv, {**what, "samples": setting.samples, "rounds": setting.rounds})


if __name__ == "__main__":
    main()
