"""What `python -m benchmarks` is made of: parts, each run in a process of its own, so that none can harm the next."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from benchmarks import contenders, hidden, measure, peers, tables, traffic
from benchmarks.devices import Device

Row = dict[str, object]
SHAPES = {"cuda": ((4096, 32000), (8192, 32000), (8192, 1000)), "cpu": ((512, 1000), (256, 10000))}
TRANSPORT_SHAPES = ((64, 100), (256, 100), (1024, 100))
TARGETS = ((4096, 32000), (8192, 32000))
DTYPES = {"cuda": ("bf16", "fp32"), "cpu": ("fp32",)}
SWEEP = (10, 30, 100, 300, 1000, 10_000, 100_000, 1_000_000)
SWEEP_CELLS = {"cuda": 2**24, "cpu": 2**16}
FEWEST = 8  # samples
QUICK_CELLS = {"cuda": 2**22, "cpu": 2**13}


class Part(NamedTuple):
    """`seconds` is a guess, for the time that is left; `group` the CSV that its rows go to; `command` the process."""

    name: str
    group: str
    seconds: float
    command: Sequence[str]
    environment: Mapping[str, str] = {}


def plan(kind: str, shapes: Sequence[tuple[int, int]] | None, options: Sequence[str], *, quick: bool) -> list[Part]:
    """List the parts for a device, in the order in which they are worth having."""
    dtypes = DTYPES[kind][:1] if quick else DTYPES[kind]
    listed = shapes or (SHAPES[kind][-1:] if quick else SHAPES[kind])
    pairs = [(shape, dtype) for shape in listed for dtype in dtypes]
    guess = 8.0 if quick else (35.0 if kind == "cuda" else 40.0)
    parts = [_own(f"{n}x{c}-{dtype}", "shapes", guess, options) for (n, c), dtype in pairs]
    parts.append(_own("sweep", "sweep", guess, options))
    compiled = _own("compiled", "compiled", 15.0 if quick else 50.0, options)
    parts.append(_own("transport", "transport", guess / 2, options))
    parts += [_own("hidden", "hidden", 20.0, options), _own("traffic", "traffic", 5.0, options)]
    if kind == "cuda":
        return [*parts, compiled]
    interpreted = _own("interpreted", "interpreted", 15.0, options)
    gkl = Part("gkl", "", 150.0, [sys.executable, "-m", "benchmarks.gkl"])
    return [interpreted, compiled, *parts, *([] if quick else [gkl])]


def _own(name: str, group: str, seconds: float, options: Sequence[str]) -> Part:
    command = [sys.executable, "-m", "benchmarks", *options, "--part", name]
    return Part(name, group, seconds, command, {"TRITON_INTERPRET": str(int(name == "interpreted"))})


def run(name: str, device: Device, *, quick: bool) -> list[Row]:
    """Run one part in this process: print its table, return its rows."""
    if name == "sweep":
        return sweep(device, quick=quick)
    if name == "transport":
        return transport(device, quick=quick)
    if name == "hidden":
        return hidden.run(device)
    if name == "traffic":
        return traffic.run(device.kind)
    if name in ("interpreted", "compiled"):
        from benchmarks import kernels

        return kernels.interpreted() if name == "interpreted" else kernels.compiled(quick=quick)
    shape, dtype = name.split("-")
    samples, classes = (int(number) for number in shape.split("x"))
    rows = measure.measure(
        device, of_shape(device, compiled=not quick), (samples, classes), dtype, seconds=1 if quick else 10
    )
    print(tables.of_shape(rows))
    return rows


def of_shape(device: Device, *, compiled: bool) -> list[contenders.Contender]:
    """All contenders; kernels where there is a GPU. What might break a device's context comes last."""
    usable = usable_kernels() if device.kind == "cuda" else ()
    ours = [each for learning in (False, True) for each in contenders.own(learning=learning, kernels=usable)]
    found = [*contenders.plain(), *(peers.liger() if device.kind == "cuda" else ()), *ours]
    found = [each for each in found if compiled or not each.compiled]
    return sorted(found, key=lambda each: each.kernel is not None)


def usable_kernels() -> tuple[str, ...]:
    """Return the names of the kernels that there are."""
    from limbeck.kernels.availability import KERNELS

    return tuple(KERNELS)


def sweep(device: Device, *, quick: bool) -> list[Row]:
    """GKL from ten classes to a million, about as many logits each time: all pairs, torch, kernel; teacher frozen."""
    cells = (QUICK_CELLS if quick else SWEEP_CELLS)[device.kind]
    kernels = ("gkl",) if device.kind == "cuda" and "gkl" in usable_kernels() else ()
    wanted = ("GKL, brute force", "GKL, torch", "GKL, kernel")
    every = [*contenders.plain(), *contenders.own(learning=False, kernels=kernels)]
    mine = [each for each in every if each.name in wanted]
    rows: list[Row] = []
    for classes in SWEEP[:6:2] if quick else SWEEP:
        found = measure.measure(
            device, mine, (max(FEWEST, cells // classes), classes), "fp32", seconds=1 if quick else 3
        )
        print(tables.of_shape(found), flush=True)
        rows += found
    return rows


def transport(device: Device, *, quick: bool) -> list[Row]:
    """WKD-L at the shapes that its kernel is for: does it pay?"""
    mine = contenders.transports(usable_kernels() if device.kind == "cuda" else ())
    rows: list[Row] = []
    for shape in TRANSPORT_SHAPES[:1] if quick else TRANSPORT_SHAPES:
        found = measure.measure(device, mine, shape, "fp32", seconds=1 if quick else 3)
        print(tables.of_shape(found), flush=True)
        rows += found
    return rows
