"""How time and memory are taken on a device: five functions for each, and nothing else of a benchmark knows the device.

`prepare` makes one call of several steps (on a GPU a CUDA graph of them, so that no launch waits for Python), `seconds`
times calls of it, `wall` the step itself as a user calls it, until its result is there; `extra_bytes` is the peak above
what was allocated before; `waits` says whether a step makes the host wait for the device.
"""

from __future__ import annotations

import platform
import re
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

Step = Callable[[], object]
Around = Callable[[], AbstractContextManager[None]]


class Device(NamedTuple):
    """`cache_bytes` is that of the last cache: inputs in rotation are to be larger."""

    kind: str
    name: str
    driver: str
    cache_bytes: int
    copy_bytes: int
    prepare: Callable[[Sequence[Step], Around], tuple[Step, str]]
    seconds: Callable[[Step, int], float]
    wall: Callable[[Step], float]
    extra_bytes: Callable[[Step], int]
    waits: Callable[[Step], bool]

    @property
    def word(self) -> str:
        """For names of files: "cpu", or the model of the GPU ("h100")."""
        model = re.search(r"\b(?:rtx )?[a-z]{0,2}\d{2,4}[a-z]{0,2}\b", self.name.lower())
        return "cpu" if self.kind == "cpu" else (model.group().replace(" ", "") if model else "gpu")


# --- CPU ----------------------------------------------------------------------------------------------------------


def cpu() -> Device:
    """This processor, by the clock."""
    return Device(
        "cpu", _processor(), "", 32 * 2**20, 64 * 2**20, _loop, _clocked, _wall, _profiled_bytes, lambda step: False
    )


def _processor() -> str:
    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text("utf-8"))
    except OSError:
        found = None
    return found.group(1) if found else platform.processor() or platform.machine()


def _loop(steps: Sequence[Step], around: Around) -> tuple[Step, str]:
    def call() -> None:
        for step in steps:
            step()

    return call, "eager"


def _clocked(call: Step, count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - start) / count


def _wall(step: Step) -> float:
    return _clocked(step, 1)


def _profiled_bytes(step: Step) -> int:
    step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        kept = step()
    alive = peak = 0
    for event in sorted(profiler.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            alive += event.nbytes()
            peak = max(peak, alive)
    return peak - _returned(kept)


def _returned(result: object) -> int:
    """Bytes of what a step returns to its caller, which are no extra memory."""
    tensors = result if isinstance(result, tuple) else ()
    return sum(tensor.nbytes for tensor in tensors if isinstance(tensor, Tensor))


# --- CUDA ---------------------------------------------------------------------------------------------------------


def cuda() -> Device:
    """The current GPU, by its own events."""
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        driver = subprocess.run(asked, capture_output=True, text=True, timeout=20).stdout.split("\n")[0].strip()
    except (OSError, subprocess.SubprocessError):
        driver = ""
    pools = [torch.cuda.graph_pool_handle()]  # graphs share the last: a replay needs nothing that another left behind
    return Device(
        "cuda",
        properties.name,
        f"CUDA {torch.version.cuda}, driver {driver or 'unknown'}",
        properties.L2_cache_size,
        512 * 2**20,
        lambda steps, around: _graph(steps, around, pools),
        _between_events,
        _until_done,
        _allocated,
        _waits,
    )


def _graph(steps: Sequence[Step], around: Around, pools: list[tuple[int, int]]) -> tuple[Step, str]:
    """Capture the steps, after three calls on a stream of their own, as capturing asks for."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side), around():
        for _ in range(3):
            for step in steps:
                step()
    torch.cuda.current_stream().wait_stream(side)
    reason, before = "", torch.cuda.current_stream()
    for _ in range(2):  # once more with a pool of its own: one whose graphs are all gone may take no other
        graph = torch.cuda.CUDAGraph()
        try:
            with around(), torch.cuda.graph(graph, pool=pools[-1]):
                for step in steps:
                    step()
        except Exception as error:  # whatever others' code may raise
            torch.cuda.set_stream(before)  # a capture that fails leaves its own behind, and its pool in use
            torch.cuda.synchronize()
            pools.append(torch.cuda.graph_pool_handle())
            reason = (str(error).splitlines() or [type(error).__name__])[0][:80]
        else:
            return graph.replay, "graph"
    print(f"    no CUDA graph ({reason}): eager calls between events")
    return _loop(steps, around)


def _between_events(call: Step, count: int) -> float:
    """Seconds of one call of `count`; one that is not timed keeps the device busy while these are sent to it."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    call()
    start.record()
    for _ in range(count):
        call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3 / count


def _until_done(step: Step) -> float:
    torch.cuda.synchronize()
    start = time.perf_counter()
    step()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def _allocated(step: Step) -> int:
    step()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    kept = step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before - _returned(kept)


def _waits(step: Step) -> bool:
    step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    except RuntimeError as error:
        if "synchroniz" not in str(error):
            raise
        return True
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return False
