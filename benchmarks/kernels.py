"""Each kernel without a GPU: its numbers in Triton's interpreter, and its registers as compiled for GPUs.

The interpreter is chosen when a kernel is defined and cannot be left again, so that both are parts of their own.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import torch

from benchmarks import contenders, parts, tables, verify
from benchmarks.contenders import Contender
from benchmarks.measure import DTYPES, WRONG, first_line

Row = dict[str, object]
SMALL = ((5, 3), (3, 100), (3, 1000), (2, 4200))
SHAPES = ((256, 100), (8192, 1000), (4096, 32000))
KEYS = (
    "contender",
    "function",
    "architecture",
    "dtype",
    "warps",
    "registers",
    "spilled",
    "shared",
    "wide_loads",
    "other_loads",
)
ARCHITECTURES = {90: "sm_90", 80: "sm_80"}


def kernel_contenders() -> list[Contender]:
    """Return what a kernel serves, the teacher frozen and learning."""
    names = parts.usable_kernels()
    both = [each for learning in (False, True) for each in contenders.own(learning=learning, kernels=names)]
    return [each for each in [*both, *contenders.transports(names)] if each.kernel]


# --- numbers --------------------------------------------------------------------------------------------------------


def interpreted() -> list[Row]:
    """Run each kernel on small batches in the interpreter; print and return the largest error of each."""
    rows: list[Row] = []
    for contender in kernel_contenders():
        for dtype in [name for name in ("fp32", "bf16") if name in DTYPES]:
            row: Row = {"contender": contender.name, "teacher": "learning" if contender.learning else "frozen"}
            shapes = ", ".join(f"{n} x {c}" for n, c in SMALL)
            rows.append(row | {"dtype": dtype, "samples": "", "classes": shapes, **_worst(contender, dtype)})
    lines = [
        [str(r["contender"]), str(r["teacher"]), str(r["dtype"]), _error(r), str(r["note"]) or "right"] for r in rows
    ]
    print(tables.table(("in Triton's interpreter", "teacher", "logits", "error", ""), lines, 3))
    return rows


def _worst(contender: Contender, dtype: str) -> Row:
    """Return the largest error over the small batches, and what is wrong with it."""
    largest = 0.0
    for samples, classes in SMALL:
        case = contenders.make_case(samples, classes, DTYPES[dtype], "cpu", 0, table=contender.class_rows)
        if contender.does_not_fit(case):
            continue
        try:
            largest = max(largest, verify.error_of(contender, case))
        except Exception as error:
            return {"error": "", "note": first_line(error)}
    bound = verify.tolerance(contender, DTYPES[dtype])
    right = largest <= bound
    return {"error": largest, "note": "" if right else f"{WRONG}: relative error {largest:.1e}, at most {bound:.0e}"}


def _error(row: Row) -> str:
    return f"{row['error']:.0e}" if isinstance(row["error"], float) else ""


# --- machine code ---------------------------------------------------------------------------------------------------


def compiled(*, quick: bool = False) -> list[Row]:
    """Compile what calls of usual shapes would launch; print and return registers, spills, shared memory and loads."""
    rows: list[Row] = []
    for dtype in ("bf16",) if quick else ("bf16", "fp32"):
        for number, name in list(ARCHITECTURES.items())[: 1 if quick else None]:
            binaries, notes = _binaries(number, DTYPES[dtype])
            for_what = {"architecture": name, "dtype": dtype}
            found = [{"contender": who, **for_what, **read_binary(each), "note": ""} for each, who in binaries]
            rows += [row for place, row in enumerate(found) if row not in found[:place]]
            rows += [dict.fromkeys(KEYS, "") | {"architecture": name, "dtype": dtype, "note": note} for note in notes]
    head = ("compiled, not run", "kernel", "for", "logits", "warps", "registers", "spilled", "shared", "wide", "others")
    print(tables.table(head, [[str(row[key]) for key in KEYS] for row in rows if not row["note"]], 4))
    print("wide = loads of 16 bytes; a kernel is named once, by the first that launches it")
    for row in (row for row in rows if row["note"]):
        print(f"  {row['architecture']} {row['dtype']} {row['note']}")
    return rows


def _binaries(architecture: int, dtype: torch.dtype) -> tuple[list[tuple[object, str]], list[str]]:
    """Call every contender on tensors that are never touched; return what each would have launched, and what failed."""
    found: list[object] = []
    named: dict[int, tuple[object, str]] = {}
    notes: list[str] = []
    with _collecting(found, architecture):
        for contender in kernel_contenders():
            for samples, classes in SHAPES:
                table = torch.empty(classes, classes) if contender.class_rows else None
                logits = (torch.empty(samples, classes, dtype=dtype) for _ in range(2))
                case = contenders.Case(*logits, torch.zeros(samples, dtype=torch.int64), table)
                if contender.does_not_fit(case):
                    continue
                try:
                    verify.gradients(contender.loss, case, verify.sides(case, learning=contender.learning))
                except Exception as error:
                    notes.append(f"{contender.name}: {first_line(error)}")
                for each in found:
                    named.setdefault(id(each), (each, contender.name))
    return list(named.values()), list(dict.fromkeys(notes))


@contextmanager
def _collecting(found: list[object], architecture: int) -> Iterator[None]:
    """Within it, a launch compiles and runs nothing, for a GPU that need not be there."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime.driver import driver
    from triton.runtime.jit import JITFunction

    from limbeck.kernels import availability

    class Target:
        """As much of a driver as compiling asks for; kernels are kept by device, so each target is one."""

        get_current_device = staticmethod(lambda: architecture)
        get_current_stream = staticmethod(lambda device: 0)
        get_current_target = staticmethod(lambda: GPUTarget("cuda", architecture, 32))

    run = JITFunction.run

    def compile_only(self: object, *arguments: object, grid: object, warmup: bool, **options: object) -> None:
        found.append(run(self, *arguments, grid=grid, warmup=True, **options))

    before = driver._active
    driver.set_active(Target())
    try:
        with patch.object(JITFunction, "run", compile_only), patch.object(availability, "_misplaced", lambda _: None):
            yield
    finally:
        driver._active = before


def read_binary(kernel: object) -> Row:
    """Ask the disassembler of the Triton package."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(kernel.asm["cubin"])
        usage = subprocess.run([tool, "-res-usage", path], capture_output=True, text=True, check=True)
        code = subprocess.run([tool, "-sass", path], capture_output=True, text=True, check=True).stdout
    said = {
        name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL|SHARED):(\d+)", usage.stdout + usage.stderr)
    }
    loads = re.findall(r"\bLDG\.[\w.]+", code)
    wide = sum(".128" in load for load in loads)
    spilled = said["STACK"] + said["LOCAL"] + len(re.findall(r"\b(?:LDL|STL)\b", code))
    figures = {"registers": said["REG"], "spilled": spilled, "shared": kernel.metadata.shared}
    loaded = {"wide_loads": wide, "other_loads": len(loads) - wide}
    return {"function": kernel.metadata.name, "warps": kernel.metadata.num_warps, **figures, **loaded}
