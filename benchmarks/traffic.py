"""How much each operation of torch reads and writes in one step, counted as it is dispatched; nothing is timed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks import contenders, tables, verify
from benchmarks.contenders import Case, Contender

Row = dict[str, object]
SHAPE, SMALL_SHAPE = (512, 1000), (32, 100)
OVERWRITES = ("copy_", "fill_", "zero_")


class Traffic(TorchDispatchMode):
    """Within it, operations are counted, and the bytes of inputs and results; views and empty tensors are free."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count one operation."""
        result = func(*args, **(kwargs or {}))
        name = func._schema.name.removeprefix("aten::")
        returned = [each.alias_info for each in func._schema.returns]
        is_view = any(info is not None and not info.is_write for info in returned)
        if is_view or "empty" in name:
            return result
        written = _bytes(result)
        given = list(args[1:] if name in OVERWRITES else args)
        given += [value for key, value in (kwargs or {}).items() if not key.startswith("out")]
        if moved := written + _bytes(given):
            self.operations += 1
            self.bytes += moved
        return result


def _bytes(values: Any) -> int:
    tensors = [each for each in tree_leaves(values) if isinstance(each, Tensor)]
    return sum(min(each.nbytes, each.untyped_storage().nbytes()) for each in tensors)


def count(contender: Contender, case: Case) -> tuple[int, float]:
    """Return the operations of a forward and backward pass, and what they move, in tensors of logits."""
    both = verify.sides(case, learning=contender.learning)
    with Traffic() as traffic:
        verify.gradients(contender.loss, case, both)
    return traffic.operations, traffic.bytes / case.logits.nbytes


def run(device: str) -> list[Row]:
    """Print and return a row for each contender of torch's operations, and the least that the mathematics needs."""
    ours = [each for learning in (False, True) for each in contenders.own(learning=learning, kernels=())]
    rows: list[Row] = []
    for contender in [*contenders.plain(), *ours]:
        if contender.compiled:
            continue
        samples, classes = SMALL_SHAPE if contender.pairs else SHAPE
        case = contenders.make_case(samples, classes, torch.float32, device, 0, table=False)
        operations, tensors = count(contender, case)
        least = contender.moved(case, backward=True) / case.logits.nbytes
        named = {"contender": contender.name, "teacher": "learning" if contender.learning else "frozen"}
        figures = {"operations": operations, "tensors": tensors, "least": least}
        rows.append({"samples": samples, "classes": classes, **named, **figures, "note": ""})
    head = ("one step, forward and backward", "teacher", "logits", "operations", "tensors of logits moved", "least")
    lines = [[str(r["contender"]), str(r["teacher"]), f"{r['samples']} x {r['classes']}"] for r in rows]
    for line, row in zip(lines, rows, strict=True):
        line += [str(row["operations"]), f"{row['tensors']:,.1f}", f"{row['least']:.0f}"]
    print(tables.table(head, lines, 3))
    return rows
