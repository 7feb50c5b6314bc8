"""Builds kernels for a GPU that need not be there, and reads their machine code.

As a script, in a process without the interpreter: builds in JSON on the command line, findings on standard output.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple


class Build(NamedTuple):
    """A kernel with the types of its arguments ("fp32" if not named) and what it is compiled for."""

    module: str
    kernel: str
    types: dict[str, str]
    constants: dict[str, int | bool]
    warps: int
    divisible: list[str] = []  # by 16; pointers are  # noqa: RUF012
    architecture: int = 90


class Found(NamedTuple):
    """Of one build: registers of a thread, bytes it spills to the stack, instructions in all and in each loop."""

    registers: int
    spilled: int
    instructions: list[str]
    loops: list[list[str]]


def build_all(builds: list[Build]) -> list[Found]:
    """In one new process, since the interpreter was chosen for all of this one."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    run = [sys.executable, __file__, json.dumps(builds)]
    done = subprocess.run(run, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return [Found(*found) for found in json.loads(done.stdout)]


def tools() -> Path:
    """The folder of the disassembler that comes with Triton."""
    import triton

    return Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


def _build(build: Build) -> Found:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    function = getattr(importlib.import_module(build.module), build.kernel)
    names = function.arg_names
    signature = {name: "constexpr" if name in build.constants else build.types.get(name, "fp32") for name in names}
    divisible = [name for name in names if signature[name].startswith("*") or name in build.divisible]
    attributes: Any = {(names.index(name),): [["tt.divisibility", 16]] for name in divisible}
    source = ASTSource(fn=function, signature=signature, constexprs=build.constants, attrs=attributes)
    target = GPUTarget("cuda", build.architecture, 32)
    return _read(triton.compile(source, target=target, options={"num_warps": build.warps}).asm["cubin"])


def _read(code: bytes) -> Found:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(code)
        usage = _run("cuobjdump", "-res-usage", file)
        lines = _run("nvdisasm", "-c", file).splitlines()
    instructions, labels, loops = [], {}, []
    for line in lines:
        if label := re.match(r"(\.L_\w+):", line):
            labels[label[1]] = len(instructions)
        elif instruction := re.match(r"\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\d+ )?(\S+)(.*);", line):
            instructions.append(instruction[1])
            back = re.search(r"`\((\.L_\w+)\)", instruction[2])
            if instruction[1] == "BRA" and back and labels.get(back[1], len(instructions)) < len(instructions) - 1:
                loops.append(instructions[labels[back[1]] :])
    registers, stack, local = (int(re.search(rf"{what}:(\d+)", usage)[1]) for what in ("REG", "STACK", "LOCAL"))  # type: ignore[index]
    return Found(registers, stack + local, instructions, loops)


def _run(tool: str, *arguments: Any) -> str:
    return subprocess.run([tools() / tool, *arguments], capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    json.dump([_build(Build(*build)) for build in json.loads(sys.argv[1])], sys.stdout)
