"""One batch shape: every contender verified, then timed in turns beside a copy."""

from __future__ import annotations

import gc
import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks import verify
from benchmarks.contenders import Case, Contender, make_case
from benchmarks.devices import Device, Step

Row = dict[str, object]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
FORWARD, BOTH = "forward", "forward+backward"
WRONG = "WRONG"
MOST_IN_ROTATION = 32
SAMPLE_SECONDS = 2e-3
MOST_ROUNDS, FEWEST_ROUNDS = 25, 3


class Timed(NamedTuple):
    """What is timed in every round: `count` calls of `steps` steps each; `samples`, `walls` are seconds of a step."""

    row: Row
    call: Step
    step: Step
    steps: int
    count: int
    samples: list[float]
    walls: list[float]


def measure(
    device: Device, contenders: Sequence[Contender], shape: tuple[int, int], dtype: str, *, seconds: float = 10.0
) -> list[Row]:
    """Return a row for each contender and direction; what is missing, fails or is wrong has a note and no time."""
    cases = make_cases(device, contenders, shape, DTYPES[dtype])
    copy = _copy(device, cases[0], dtype)
    rows: list[Row] = []
    timed: list[Timed] = []
    for contender in contenders:
        row = _row(contender, cases[0], dtype, BOTH)
        try:
            row["note"] = contender.missing() or contender.does_not_fit(cases[0]) or _wrong(contender, cases[0], row)
            found = [] if row["note"] else _prepared(device, contender, cases, row)
        except Exception as error:  # whatever others' code may raise
            row["note"], found = first_line(error), []
        timed += found
        rows += [each.row for each in found] or [row]
        gc.collect()
    _take_turns(device, [copy, *timed], seconds)
    copied = _finish(copy, None)
    for each in timed:
        if not each.row["note"]:
            _finish(each, copied)
    return [copy.row, *rows]


def make_cases(
    device: Device, contenders: Sequence[Contender], shape: tuple[int, int], dtype: torch.dtype
) -> list[Case]:
    """Draw batches enough that the last cache holds none of the next one's logits; they share labels and table."""
    table = any(contender.class_rows for contender in contenders)
    first = make_case(*shape, dtype, device.kind, 0, table=table)
    count = max(1, min(MOST_IN_ROTATION, math.ceil(4 * device.cache_bytes / (3 * first.logits.nbytes))))
    others = (make_case(*shape, dtype, device.kind, seed, table=False) for seed in range(1, count))
    return [first, *(case._replace(labels=first.labels, table=first.table) for case in others)]


def _wrong(contender: Contender, case: Case, row: Row) -> str:
    error = verify.error_of(contender, case)
    bound = verify.tolerance(contender, case.logits.dtype)
    row["error"] = error
    return "" if error <= bound else f"{WRONG}: relative error {error:.1e}, at most {bound:.0e} expected"


def _prepared(device: Device, contender: Contender, cases: Sequence[Case], row: Row) -> list[Timed]:
    found = []
    for what, make in ((FORWARD, _forward), (BOTH, _both)):
        steps = [make(contender, case) for case in cases]
        call, how = device.prepare(steps, contender.while_captured)
        count = math.ceil(SAMPLE_SECONDS / max(device.seconds(call, 1), 1e-6))
        moved = contender.moved(cases[0], backward=what == BOTH)
        memory = {"extra_bytes": device.extra_bytes(steps[0]), "waits": device.waits(steps[0])}
        mine = row | {"what": what, "how": how, "bytes": moved} | memory
        found.append(Timed(mine, call, steps[0], len(steps), min(count, 200), [], []))
    return found


def _forward(contender: Contender, case: Case) -> Step:
    def step() -> Tensor:
        with torch.no_grad():
            return contender.loss(case.logits, case.target_logits, case)

    return step


def _both(contender: Contender, case: Case) -> Step:
    both = verify.sides(case, learning=contender.learning)
    return lambda: verify.gradients(contender.loss, case, both)[1]


def _copy(device: Device, case: Case, dtype: str) -> Timed:
    """What the memory allows: bytes read and bytes written of one large copy."""
    generator = torch.Generator(device.kind).manual_seed(0)  # the usual one may be left inside of a failed capture
    source = torch.randn(device.copy_bytes // 4, generator=generator, device=device.kind)
    target = torch.empty_like(source)
    call, how = device.prepare([lambda: target.copy_(source)], torch.no_grad)
    row = _row(None, case, dtype, "copy") | {"how": how, "bytes": 2 * source.nbytes}
    return Timed(row, call, call, 1, 1, [], [])


def _take_turns(device: Device, timed: Sequence[Timed], seconds: float) -> None:
    """Every contender in every round, so that a drift of the machine meets all alike.

    A turn begins with calls that are not timed, or each would pay for the caches that the one before it emptied.
    """
    one_round = sum((each.count + 1) * device.seconds(each.call, 1) for each in timed)
    for _ in range(max(FEWEST_ROUNDS, min(MOST_ROUNDS, int(seconds / one_round)))):
        for each in (each for each in timed if not each.row["note"]):
            try:
                each.call()
                each.samples.append(device.seconds(each.call, each.count) / each.steps)
                each.walls.append(device.wall(each.step))
            except Exception as error:  # an eager call needs memory beside what graphs hold
                each.row["note"] = first_line(error)


def _row(contender: Contender | None, case: Case, dtype: str, what: str) -> Row:
    teacher = "" if contender is None else ("learning" if contender.learning else "frozen")
    empty = dict.fromkeys(("how", "bytes", "error", "note"), "")
    shape = {"samples": len(case.logits), "classes": case.logits.shape[1], "dtype": dtype}
    return {**shape, "contender": contender.name if contender else "copy", "teacher": teacher, "what": what, **empty}


def _finish(timed: Timed, copied: float | None) -> float:
    """Write the figures into the row; return the bytes per second."""
    first, middle, third = statistics.quantiles(timed.samples, n=4, method="inclusive")
    speed = timed.row["bytes"] / middle
    times = {"median": middle, "min": min(timed.samples), "q1": first, "q3": third}
    timed.row.update({f"{name}_us": 1e6 * value for name, value in times.items()})
    timed.row.update({"gb_s": speed / 1e9, "wall_us": 1e6 * statistics.median(timed.walls)})
    timed.row["share_of_copy"] = speed / copied if copied else 1.0
    return speed


def first_line(error: BaseException) -> str:
    """Say what went wrong in one line; a compiler's error has its reason in what it comes from."""
    said = (str(error.__cause__ or error).strip() or "no message").splitlines()[0]
    return f"{type(error).__name__}: {said[:90]}"
