"""Claims about the machine code of kernels, which are built for GPUs that need not be there."""

from __future__ import annotations

import kernel_builds
import pytest

pytest.importorskip("triton")
from limbeck.kernels import sizes

INTEGERS = "rows", "classes", "s_stride", "t_stride", "pieces", "piece_size", "blocks", "grad_stride"
NUMBERS = "stats_ptr", "sums_ptr", "pieces_ptr", "grad_ptr"
JS: list[tuple[str, dict[str, int | bool], int, int]] = [  # with warps, and instructions a class in a loop
    ("long_rows", {"LANES": sizes.LANES, "WIDTH": 8, "PIECES": 1}, 4, 70),
    ("short_rows", {"ROWS": 1, "CLASSES": sizes.JS_SHORT_CLASSES}, 8, 0),
    ("row_gradients", {"ROWS": 1, "CLASSES": sizes.GRADIENT_PAIRS, "TO_S": True, "TO_T": True}, 4, 0),
]


@pytest.mark.slow
@pytest.mark.parametrize("align", [8, 16])  # 1000 classes are a multiple of 8
@pytest.mark.parametrize("architecture", [80, 90])
def test_js_spills_nothing_and_reads_vectors(architecture: int, align: int) -> None:
    if not (kernel_builds.tools() / "nvdisasm").exists():
        pytest.skip("this Triton has no disassembler")
    types = dict.fromkeys(("s_ptr", "t_ptr", "to_s_ptr", "to_t_ptr"), "*bf16")
    types |= dict.fromkeys(NUMBERS, "*fp32") | dict.fromkeys(INTEGERS, "i32")
    module, divisible = "limbeck.kernels.js_rows", ["piece_size"]
    builds = [
        kernel_builds.Build(module, name, types, {"ALIGN": align, **constants}, warps, divisible, architecture)
        for name, constants, warps, _ in JS
    ]
    for found, (_, _, _, most) in zip(kernel_builds.build_all(builds), JS, strict=True):
        assert found.spilled == 0
        assert found.registers <= 96
        assert "LDG.E.128" in found.instructions
        assert not any(name.startswith(("LDG.E.U16", "LDL", "STL")) for name in found.instructions)
        in_loops = [name for loop in found.loops for name in loop]
        assert not any(name.startswith(("SHFL", "BAR", "LDS")) for name in in_loops)  # lanes meet at the end alone
        assert len(in_loops) <= 8 * most
