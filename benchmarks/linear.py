"""Losses from hidden states against the same losses of logits: time and memory over the number of classes, on a CPU.

    python -m benchmarks.linear [--classes 8192,...] [--losses gkl,...] [--csv FILE] [--plot FILE]

512 tokens of width 256 in float32; forward and backward to the student's hidden states and head, the teacher frozen.
`dense` multiplies hidden states with heads and hands the logits to `gkl_divergence` and its like. Value and gradients
of each are compared with a float64 twin before anything is timed, from 65536 classes on both forms with one another;
nothing is timed that is wrong.

`products` counts the multiplications of all hidden states with a whole head, or of as much work: two sides forward
(twice for Jensen-Shannon), two sides once more backward, and the student's gradients to hidden states and head.
`over_product` is the time over that of one such multiplication, taken in the same rounds. Seconds are CPU time of all
threads, which other work on the machine disturbs less than the clock on the wall. Memory is the peak of what is alive
during a step above its inputs, less the gradients that it returns.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks.rows import write
from limbeck import functional
from limbeck.functional._linear_tiles import TILE

TOKENS, WIDTH = 512, 256
TEMPERATURE, POWER = 2.0, 0.3
CLASSES = (8192, 16384, 32768, 65536, 131072)
LINEAR = {
    "gkl": functional.linear_gkl,
    "kl": functional.linear_kl,
    "js": functional.linear_js,
    "soft_cross_entropy": functional.linear_soft_cross_entropy,
}
OF_LOGITS = {
    "gkl": functional.gkl_divergence,
    "kl": functional.kl_divergence,
    "js": functional.js_divergence,
    "soft_cross_entropy": functional.soft_cross_entropy,
}
PRODUCTS = {"dense": dict.fromkeys(LINEAR, 4), "linear": {**dict.fromkeys(LINEAR, 6), "js": 8}}
LARGEST_EXACT = 32768  # classes
Row = dict[str, Any]
Step = Callable[[], Tensor]


def sides(classes: int) -> list[Tensor]:
    """Hidden states and heads, the student's with gradients; logits have a standard deviation of about 3."""
    generator = torch.Generator().manual_seed(0)
    size = (3 / WIDTH**0.5) ** 0.5
    made = [torch.randn(rows, WIDTH, generator=generator) * size for rows in (TOKENS, classes) * 2]
    return [x.requires_grad_(place < 2) for place, x in enumerate(made)]


def loss_of(name: str, form: str, given: Sequence[Tensor]) -> Tensor:
    """Return the value by one of the two forms."""
    options: dict[str, Any] = {"temperature": TEMPERATURE, **({"weight_power": POWER} if name == "gkl" else {})}
    if form == "linear":
        return LINEAR[name](*given, **options)
    hidden, head, target_hidden, target_head = given
    return OF_LOGITS[name](hidden @ head.T, target_hidden @ target_head.T, **options)


def step_of(name: str, form: str, given: Sequence[Tensor]) -> Step:
    """Forward and backward."""

    def step() -> Tensor:
        for leaf in given:
            leaf.grad = None
        value = loss_of(name, form, given)
        value.backward()  # type: ignore[no-untyped-call]
        return value.detach()

    return step


def exact(name: str, given: Sequence[Tensor]) -> list[Tensor]:
    """Value and gradients in float64, some tokens at a time; by the row's own normaliser they would be other values."""
    hidden, head, target_hidden, target_head = (x.detach().double().requires_grad_(x.requires_grad) for x in given)
    divisor = torch.tensor(1.0, dtype=torch.float64)
    if name == "gkl":
        masses = [torch.softmax(part @ target_head.T, -1).pow(POWER).sum(-1) for part in target_hidden.split(64)]
        divisor = torch.cat(masses).square().sum()
    total = torch.zeros((), dtype=torch.float64)
    for part, target in zip(hidden.split(64), target_hidden.split(64), strict=True):
        s, t = part @ head.T, target @ target_head.T
        share = len(part) / TOKENS
        options: dict[str, Any] = {"temperature": TEMPERATURE}
        if name == "gkl":
            options |= {"weight_power": POWER, "normalizer": divisor * share}
        value = OF_LOGITS[name](s, t, **options) * share
        value.backward()  # type: ignore[no-untyped-call]
        total += value.detach()
    return [total, *(x.grad for x in (hidden, head) if x.grad is not None)]


def by_logits(name: str, given: Sequence[Tensor]) -> list[Tensor]:
    """Value and gradients of the dense form."""
    value = loss_of(name, "dense", given)
    return [value.detach(), *torch.autograd.grad(value, given[:2])]


def error_and_extra_bytes(step: Step, given: Sequence[Tensor], expected: Sequence[Tensor]) -> tuple[float, int]:
    """The largest relative error of value and gradients; the peak of what is alive, less these gradients."""
    for leaf in given:
        leaf.grad = None
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as measured:
        value = step()
    gradients = [leaf.grad for leaf in given if leaf.grad is not None]
    pairs = zip([value, *gradients], expected, strict=True)
    error = max(float((x.double() - y).norm() / y.norm()) for x, y in pairs)
    alive = peak = 0
    for event in sorted(measured.profiler.kineto_results.events(), key=lambda event: event.start_ns()):  # type: ignore[union-attr]
        if event.name() == "[memory]":
            alive += event.nbytes()
            peak = max(peak, alive)
    return error, peak - sum(gradient.nbytes for gradient in gradients)


def seconds_of(step: Callable[[], object]) -> float:
    """CPU time of one call."""
    start = time.process_time()
    step()
    return time.process_time() - start


def measured(classes: int, names: Sequence[str], rounds: int) -> list[Row]:
    """Verify, take the peaks, then let all take turns."""
    given, rows, steps = sides(classes), [], []
    for name in names:
        expected = exact(name, given) if classes <= LARGEST_EXACT else by_logits(name, given)
        for form in ("dense", "linear"):
            step = step_of(name, form, given)
            error, extra = error_and_extra_bytes(step, given, expected)
            if error > 1e-5:
                sys.exit(f"wrong result: {name}, {form}, {classes} classes, relative error {error:.1e}")
            rows.append({"loss": name, "form": form, "classes": classes, "error": error, "extra_bytes": extra})
            steps.append(step)

    room = torch.empty(TOKENS, classes)

    def product() -> Tensor:
        with torch.no_grad():
            return torch.mm(given[0], given[1].T, out=room)

    taken: list[list[float]] = [[] for _ in steps]
    products: list[float] = []
    for _ in range(rounds):
        products.append(min(seconds_of(product) for _ in range(2)))
        for step, mine in zip(steps, taken, strict=True):
            mine.append(seconds_of(step))
    one = statistics.median(products)
    for row, mine in zip(rows, taken, strict=True):
        row["seconds"] = statistics.median(mine)
        row["spread"] = (max(mine) - min(mine)) / row["seconds"]
        row["products"] = PRODUCTS[row["form"]][row["loss"]]
        row["over_product"] = row["seconds"] / one
        row["tiles"] = row["extra_bytes"] / (4 * TILE[0] * TILE[1])
    return rows


def line_of(row: Row) -> str:
    """One line of the table."""
    return (
        f"{row['loss']:<19} {row['form']:<7} {row['classes']:>7}  error {row['error']:.1e}  {row['seconds']:7.2f} s "
        f"(+-{50 * row['spread']:3.0f} %)  {row['over_product']:5.2f} products of {row['products']}  "
        f"extra {row['extra_bytes'] / 2**20:7.1f} MiB, {row['tiles']:6.2f} tiles"
    )


def draw(rows: Sequence[Row], path: Path) -> None:
    """Time and memory over the number of classes, both forms of each loss."""
    from limbeck.analysis.style import COLOURS, MARKERS, new_figure, png, styled

    with styled():
        figure, (times, memory) = new_figure(3.6, columns=2)
        for place, name in enumerate(dict.fromkeys(row["loss"] for row in rows)):
            for form, dashes in (("dense", "--"), ("linear", "-")):
                mine = [row for row in rows if (row["loss"], row["form"]) == (name, form)]
                look = {"color": COLOURS[place], "marker": MARKERS[place], "linestyle": dashes, "markersize": 4}
                classes = [row["classes"] for row in mine]
                label = name.replace("_", " ") if form == "linear" else None
                times.plot(classes, [row["seconds"] for row in mine], **look)
                memory.plot(classes, [row["extra_bytes"] / 2**20 for row in mine], label=label, **look)
        for axes, title, unit in ((times, "time", "forward + backward, s"), (memory, "memory", "above gradients, MiB")):
            ticks = sorted({row["classes"] for row in rows})
            axes.set(xscale="log", yscale="log", title=title, ylabel=unit, xlabel="classes")
            axes.set_xticks(ticks, [f"{count // 1024}k" for count in ticks], minor=False)
            axes.set_xticks([], minor=True)
            axes.yaxis.set_minor_formatter(lambda value, place: "")
        limit = 4 * 4 * TILE[0] * TILE[1] / 2**20
        memory.axhline(limit, color="#555555", linewidth=1, linestyle=":")
        memory.annotate("four tiles", (0.99, limit), xycoords=("axes fraction", "data"), ha="right", va="bottom")
        memory.legend(loc="lower right", bbox_to_anchor=(1, 0.19), fontsize=8)
        what = f"from hidden states; dashed: from logits. {TOKENS} tokens, width {WIDTH}, fp32, on a CPU"
        figure.suptitle(what, fontsize=9, x=0.01, ha="left")
        path.write_bytes(png(figure))


def main() -> None:
    """Verify, measure, print; write a CSV and a picture when asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", default=",".join(map(str, CLASSES)))
    parser.add_argument("--losses", default=",".join(LINEAR))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--plot", type=Path)
    given = parser.parse_args()
    rows = []
    for classes in map(int, given.classes.split(",")):
        for row in measured(classes, given.losses.split(","), given.rounds):
            rows.append(row)
            print(line_of(row), flush=True)
    if given.csv:
        write(rows, given.csv, {"tokens": TOKENS, "width": WIDTH, "tile": "x".join(map(str, TILE))})
    if given.plot:
        draw(rows, given.plot)


if __name__ == "__main__":
    main()
