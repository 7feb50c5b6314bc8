"""GKLLoss beside F.kl_div distillation and brute force on the CPU, and their memory.

    python -m benchmarks.gkl [--csv FILE] [--compile] [--seconds 4]

Times are of one forward and backward of one batch. Each form is compared with a float64 twin before it is timed: brute
force where its tensors fit, else the variance form in plain operations, which is itself compared with brute force. The
contenders of a batch take turns, each after a call of its own that is not timed (warm caches), so that a drift of the
machine meets all alike; medians of turns and their ratios are printed. Memory is the peak above the inputs less the
gradient that is returned, in units of one (N, C) float32 tensor.

What OpenMP's idle threads do (OMP_WAIT_POLICY) changes all times: rows name it, and the number of threads.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import devices, rows
from limbeck import GKLLoss

Row = dict[str, object]
Step = Callable[[], Tensor]
TEMPERATURE, MSE_WEIGHT = 4.0, 4.0
SHAPES = (
    *((64, 100), (64, 1000), (256, 1000), (512, 1000), (1024, 1000)),
    *((4096, 100), (512, 4000), (128, 10000), (1024, 10000)),
)
BRUTE_FORCE_SHAPES = ((64, 100), (64, 1000))
COMPILED_SHAPES = ((64, 100), (512, 1000), (4096, 100))
VARIANT_SHAPE = (512, 1000)
MEMORY_SHAPES = ((512, 1000), (8, 1_000_003))
LARGEST_TABLE = 10_000


class Form(NamedTuple):
    """What GKL's weights are; `class_wise` reads them from a table by label, else they are the target's softmax."""

    class_wise: bool
    power: float
    prior_temperature: float = 1.0
    compiled: bool = False

    def __str__(self) -> str:
        kind = "class-wise" if self.class_wise else f"sample-wise, tau {self.prior_temperature:g}"
        return f"{kind}, power {self.power:g}" + (", compiled" if self.compiled else "")


FORMS = (
    *(Form(True, power) for power in (1.0, 0.3)),
    *(Form(False, power) for power in (1.0, 0.3)),
    Form(False, 1.0, TEMPERATURE),
)


class Batch:
    """Logits of a student and a teacher, labels, and a table of class means where it fits."""

    def __init__(
        self,
        samples: int,
        classes: int,
        *,
        learning: bool = False,
        masked: bool = False,
        dtype: torch.dtype = torch.float,
    ) -> None:
        generator = torch.Generator().manual_seed(0)
        student, teacher = (3 * torch.randn(samples, classes, generator=generator) for _ in range(2))
        self.student = student.to(dtype).requires_grad_()
        self.teacher = teacher.to(dtype).requires_grad_(learning)
        self.labels = torch.randint(classes, (samples,), generator=generator)
        self.mask = torch.rand(samples, generator=generator) < 0.8 if masked else None
        table = torch.randn(classes, classes, generator=generator) if classes <= LARGEST_TABLE else None
        self.rows = None if table is None else torch.softmax(table, -1)

    def kept(self, x: Tensor) -> Tensor:
        """The samples that take part."""
        return x if self.mask is None else x[self.mask]

    @property
    def shape(self) -> tuple[int, int]:
        """N, C."""
        samples, classes = self.student.shape
        return samples, classes


def gkl(batch: Batch, form: Form) -> Step:
    """GKLLoss as a training loop calls it."""
    options = {"mse_weight": MSE_WEIGHT, "weight_power": form.power, "temperature": TEMPERATURE}
    if not form.class_wise or batch.rows is None:
        loss = GKLLoss(prior="sample", prior_temperature=form.prior_temperature, **options)
        labels = None
    else:
        loss = GKLLoss(len(batch.rows), **options)
        loss.prior.prior.copy_(batch.rows)
        loss.prior.refreshes += 1
        labels = batch.labels
    call = torch.compile(loss, fullgraph=True) if form.compiled else loss
    return lambda: call(batch.student, batch.teacher, labels, mask=batch.mask)


def kl_distillation(batch: Batch) -> Step:
    """Hinton's loss as most code bases write it."""

    def step() -> Tensor:
        log_q = F.log_softmax(batch.kept(batch.student) / TEMPERATURE, -1)
        p = F.softmax(batch.kept(batch.teacher) / TEMPERATURE, -1)
        return F.kl_div(log_q, p, reduction="batchmean") * TEMPERATURE**2

    return step


def soft_cross_entropy(s: Tensor, t: Tensor) -> Tensor:
    """The second part, in plain operations, its target detached."""
    return -(F.softmax(t.detach() / TEMPERATURE, -1) * F.log_softmax(s / TEMPERATURE, -1)).sum(-1).mean()


def exact_rows(batch: Batch, form: Form, dtype: torch.dtype) -> Tensor:
    """The weights in `dtype`, one row per sample that takes part."""
    if form.class_wise and batch.rows is not None:
        return batch.rows[batch.kept(batch.labels)].to(dtype) ** form.power
    return F.softmax(batch.kept(batch.teacher.detach()).to(dtype) / form.prior_temperature, -1) ** form.power


def brute_force(batch: Batch, form: Form, dtype: torch.dtype = torch.float32) -> Step:
    """The formula as it is printed, with its (N, C, C) tensors."""

    def step() -> Tensor:
        s, t = batch.kept(batch.student).to(dtype), batch.kept(batch.teacher).to(dtype)
        u = exact_rows(batch, form, dtype)
        weights = u.unsqueeze(-1) * u.unsqueeze(-2)
        gaps = (t.unsqueeze(-1) - t.unsqueeze(-2)) - (s.unsqueeze(-1) - s.unsqueeze(-2))
        mse = (weights * gaps**2).sum() / weights.sum() / 4
        return MSE_WEIGHT * mse + soft_cross_entropy(s, t)

    return step


def variance_form(batch: Batch, form: Form) -> Step:
    """The same in float64 with (N, C) tensors: S squared times half a weighted variance. The twin of large batches."""

    def step() -> Tensor:
        s, t = batch.kept(batch.student).double(), batch.kept(batch.teacher).double()
        u = exact_rows(batch, form, torch.float64)
        mass = u.sum(-1, keepdim=True)
        gap = s - t
        centred = gap - (u * gap).sum(-1, keepdim=True) / mass
        mse = (mass * u * centred**2).sum() / 2 / (mass**2).sum()
        return MSE_WEIGHT * mse + soft_cross_entropy(s, t)

    return step


def value_and_gradients(batch: Batch, step: Step) -> tuple[Tensor, list[Tensor]]:
    """One forward and one backward."""
    sides = [x for x in (batch.student, batch.teacher) if x.requires_grad]
    for side in sides:
        side.grad = None
    value = step()
    value.backward()
    return value.detach(), [side.grad for side in sides if side.grad is not None]


def verify(batch: Batch, form: Form, step: Step) -> None:
    """Exit rather than measure a wrong result."""
    samples, classes = batch.shape
    exact = [variance_form(batch, form)]
    if samples * classes * classes <= 1_000_000:
        exact.append(brute_force(batch, form, torch.float64))
    value, gradients = value_and_gradients(batch, step)
    most = 1e-5 if batch.student.dtype == torch.float32 else 1e-2  # what a half gradient is rounded to
    for twin in exact:
        exact_value, exact_gradients = value_and_gradients(batch, twin)
        pairs = zip(gradients, exact_gradients, strict=True)
        error = max(((a.double() - b.double()).abs().max() / b.abs().max()).item() for a, b in pairs)
        if not torch.allclose(value.double(), exact_value.double(), rtol=1e-5) or error > most:
            sys.exit(f"wrong result, {form}: value {value} and {exact_value}, gradient error {error:.1e}")


def take_turns(batch: Batch, steps: Mapping[str, Step], seconds: float) -> dict[str, list[float]]:
    """Seconds of one forward and backward of each, sorted, from rounds in which every contender has its turn.

    A turn begins with a call that is not timed: otherwise each pays for the caches that the one before it emptied.
    """
    found: dict[str, list[float]] = {name: [] for name in steps}
    order = list(steps.items())
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(found[order[0][0]]) < 5:
        order = order[1:] + order[:1]  # nobody always comes after the same one
        for name, step in order:
            value_and_gradients(batch, step)
            start = time.perf_counter()
            value_and_gradients(batch, step)
            found[name].append(time.perf_counter() - start)
    return {name: sorted(values) for name, values in found.items()}


def time_batch(batch: Batch, forms: Sequence[Form], seconds: float, what: str = "") -> list[Row]:
    """A row for each form, all measured in the same rounds."""
    steps = {str(form): gkl(batch, form) for form in forms}
    for form in forms:
        verify(batch, form, steps[str(form)])
    found = take_turns(batch, {**steps, "F.kl_div": kl_distillation(batch)}, seconds)
    slower: dict[str, float] = {}
    if batch.shape in BRUTE_FORCE_SHAPES and not what:
        form = next(form for form in forms if form.class_wise)
        pair = {"gkl": steps[str(form)], "brute": brute_force(batch, form)}
        slow = take_turns(batch, pair, seconds)
        slower[str(form)] = statistics.median(slow["brute"]) / statistics.median(slow["gkl"])
    kl = 1e3 * statistics.median(found["F.kl_div"])
    table: list[Row] = []
    for form in forms:
        times = [1e3 * value for value in found[str(form)]]
        row: Row = {"samples": batch.shape[0], "classes": batch.shape[1], "form": str(form), "variant": what}
        row |= {"gkl_ms": statistics.median(times), "gkl_ms_10th": times[len(times) // 10]}
        row |= {"gkl_ms_90th": times[len(times) * 9 // 10], "kl_ms": kl, "gkl_over_kl": statistics.median(times) / kl}
        row |= {"brute_over_gkl": slower.get(str(form), ""), "extra_logits": "", "turns": len(times)}
        table.append(row)
        print_row(row)
    return table


def print_row(row: Row) -> None:
    """One line of the table on the screen."""
    line = (
        f"({row['samples']:4d}, {row['classes']:7d})  {row['form']}{', ' * bool(row['variant'])}{row['variant']}".ljust(
            60
        )
    )
    if row["gkl_ms"] != "":
        line += f"  {row['gkl_ms']:8.3f} ms [{row['gkl_ms_10th']:.3f}, {row['gkl_ms_90th']:.3f}]"
        line += f"  F.kl_div {row['kl_ms']:8.3f} ms  ratio {row['gkl_over_kl']:5.2f}"
    if row["brute_over_gkl"] != "":
        line += f"  brute force {row['brute_over_gkl']:7.1f} times ours"
    if row["extra_logits"] != "":
        line += f"  extra memory {row['extra_logits']:5.2f} x logits"
    print(line, flush=True)


def extra_memory(batch: Batch, form: Form) -> float:
    """Peak of the tensors alive, above the inputs and less the gradient, over one (N, C) float32 tensor."""
    step = gkl(batch, form)
    verify(batch, form, step)  # and the powered table is made once an epoch, not once a batch
    batch.student.grad = None
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        value_and_gradients(batch, step)
    alive = peak = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            alive += event.nbytes()
            peak = max(peak, alive)
    one = 4 * batch.student.numel()
    return (peak - one) / one


def memory_rows() -> list[Row]:
    """What the forms need besides their inputs and the gradient."""
    table: list[Row] = []
    for shape in MEMORY_SHAPES:
        batch = Batch(*shape)
        for form in FORMS:
            if form.class_wise and batch.rows is None:
                continue
            row: Row = {"samples": shape[0], "classes": shape[1], "form": str(form), "variant": "memory"}
            row |= dict.fromkeys(("gkl_ms", "gkl_ms_10th", "gkl_ms_90th", "kl_ms", "gkl_over_kl", "brute_over_gkl"), "")
            row |= {"extra_logits": extra_memory(batch, form), "turns": ""}
            table.append(row)
            print_row(row)
    return table


def variants(seconds: float) -> list[Row]:
    """A teacher that learns too, a mask, half logits."""
    forms = (Form(True, 1.0), Form(False, 1.0))
    table = time_batch(Batch(*VARIANT_SHAPE, learning=True), forms, seconds, "teacher learns")
    table += time_batch(Batch(*VARIANT_SHAPE, masked=True), forms, seconds, "masked")
    return table + time_batch(Batch(*VARIANT_SHAPE, dtype=torch.bfloat16), forms, seconds, "bfloat16")


def main() -> None:
    """Verify, time, measure memory, print; write a CSV when asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", type=Path, help="also write the rows here")
    parser.add_argument("--compile", action="store_true", help="also time GKLLoss under torch.compile")
    parser.add_argument("--seconds", type=float, default=4.0, help="for the turns of each batch")
    arguments = parser.parse_args()
    wait = os.environ.get("OMP_WAIT_POLICY", "").lower() or "default"
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, wait policy {wait}; medians [10th, 90th]")
    compiled = tuple(form._replace(compiled=True) for form in FORMS[:3]) if arguments.compile else ()
    table: list[Row] = []
    for shape in SHAPES:
        torch.compiler.reset()  # each size by itself, as a loop with one size of batch has it
        table += time_batch(Batch(*shape), (*FORMS, *(compiled if shape in COMPILED_SHAPES else ())), arguments.seconds)
    table += variants(arguments.seconds) + memory_rows()
    if arguments.csv is not None:
        rows.write(table, arguments.csv, {"device": devices.cpu().name, "wait": wait})


if __name__ == "__main__":
    main()
