"""Claims about GKL's kernel as an operator of torch: derivatives, compilation, devices, and what it cannot serve."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from kernel_twins import DEVICE, Case, batch, family
from torch import Tensor

from limbeck import functional, kernels

pytest.importorskip("triton")
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

PLAIN = Case("sample", {})


def sides() -> tuple[Tensor, Tensor]:
    logits, target, *_ = batch(PLAIN, 3, 6)
    return logits.requires_grad_(), target.requires_grad_()


def arguments(divergence: str) -> tuple[object, ...]:
    from limbeck.kernels.gkl_launch import Options

    if divergence == "kl":
        return *(None,) * 4, *Options("kl", 1.0, 2.0, 2.0, 0.0, 1.0, False, "samples", "none")
    table = batch(Case("table", {}, masked=True), 3, 6)
    labels = table.labels.clamp_min(0)
    return table.prior, labels, table.mask, None, *Options("gkl", 0.5, 2.0, 1.0, 1.3, 0.7, True, "weights", "mean")


@pytest.mark.parametrize("divergence", ["gkl", "kl"])
def test_operators_keep_the_rules_of_torch(divergence: str) -> None:
    from limbeck.kernels import gkl  # noqa: F401

    logits, target = sides()
    given = arguments(divergence)
    torch.library.opcheck(torch.ops.limbeck.gkl.default, (logits, target, *given))
    value, rows, factors = torch.ops.limbeck.gkl(logits.detach(), target.detach(), *given)
    grad = torch.ones_like(value, requires_grad=True)
    torch.library.opcheck(
        torch.ops.limbeck.gkl_backward.default, (grad, rows, factors, True, True, logits, target, *given)
    )


@pytest.mark.parametrize("name", ["gkl powered", "kl", "soft_cross_entropy", "dkl"])
def test_second_derivatives_are_those_of_plain_operations(name: str) -> None:
    results = []
    for impl in ("triton", "torch"):
        logits, target = sides()
        options = {"prior": torch.linspace(0.1, 1, 6, device=DEVICE).expand(3, 6)} if name == "gkl powered" else {}
        function = getattr(
            functional,
            {"gkl powered": "gkl_divergence", "kl": "kl_divergence"}.get(
                name, f"{name}" if name == "soft_cross_entropy" else "dkl_divergence"
            ),
        )
        value = function(logits, target, impl=impl, **options)
        first, second = torch.autograd.grad(value, (logits, target), create_graph=True, materialize_grads=True)
        results.append(torch.autograd.grad((first**2).sum() + (second**3).sum(), (logits, target)))
    for got, wanted in zip(*results, strict=True):
        assert torch.allclose(got, wanted, rtol=1e-4, atol=1e-7)


def test_compilation_keeps_the_operator_whole() -> None:
    seen = []

    def keep(graph: torch.fx.GraphModule, _: object) -> torch.fx.GraphModule:
        seen.extend(str(node.target) for node in graph.graph.nodes)
        return graph

    from torch._dynamo.backends.common import aot_autograd

    compiled = torch.compile(
        lambda s, t: functional.gkl_divergence(s, t, weight_power=0.5, impl="triton"),
        fullgraph=True,
        backend=aot_autograd(fw_compiler=keep, bw_compiler=keep),
    )
    logits, target = sides()
    value = compiled(logits, target)
    assert torch.allclose(value, functional.gkl_divergence(logits, target, weight_power=0.5, impl="torch"))
    value.backward()
    assert "limbeck.gkl.default" in seen
    assert "limbeck.gkl_backward.default" in seen
    assert not any(target.startswith("aten.exp") for target in seen)


def test_a_reason_for_each_call_that_the_kernel_cannot_serve() -> None:
    logits, target = (x.detach() for x in sides())
    temperature = torch.tensor(2.0, device=DEVICE)
    with pytest.raises(ValueError, match="a temperature that is a tensor"):
        functional.gkl_divergence(logits, target, temperature=temperature, impl="triton")
    with pytest.raises(ValueError, match=r"float64: kernels add up in float32\); use impl='auto' or 'torch'"):
        functional.kl_divergence(logits.double(), target, impl="triton")
    with pytest.raises(ValueError, match=r"inside a torch\.func transform"):
        torch.func.grad(lambda s: functional.kl_divergence(s, target, impl="triton"))(logits)
    with pytest.raises(ValueError, match="`impl` expected 'auto', 'torch' or 'triton', got 'cuda'"):
        functional.kl_divergence(logits, target, impl="cuda")
    with pytest.raises(ValueError, match="`name` expected one of 'gkl', "):
        kernels.why_not("wkd")
    gradient = torch.func.grad(lambda s: functional.gkl_divergence(s, target))(logits)
    assert gradient.isfinite().all()


def test_labels_and_shapes_are_checked_as_by_torch() -> None:
    logits, target = sides()
    table = torch.eye(6, device=DEVICE)
    for prior, labels in (
        (table, torch.tensor([0, 1], device=DEVICE)),
        (table[:3], torch.tensor([0, 1, 2], device=DEVICE)),
        (table, None),
    ):
        errors = []
        for impl in ("torch", "triton"):
            with pytest.raises(ValueError, match="expected") as error:
                functional.gkl_divergence(logits, target, prior, labels=labels, impl=impl)
            errors.append(str(error.value))
        assert errors[0] == errors[1]
    if DEVICE == "cpu":
        labels = torch.tensor([0, 1, 6])
        with pytest.raises(ValueError, match=r"`labels` expected values in \[0, 5\]"):
            functional.gkl_divergence(logits, target, table, labels=labels, impl="triton")


# --- on a GPU ---------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["gkl", "kl", "dkl rows"])
def test_the_kernel_is_captured_in_a_graph_and_replayed(name: str) -> None:
    inputs = batch(PLAIN, 64, 3000)
    family(name, inputs, "triton")  # compiled before the capture
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = family(name, inputs, "triton")
    inputs.logits.copy_(torch.randn_like(inputs.logits))
    graph.replay()
    for got, wanted in zip(captured, family(name, inputs, "torch"), strict=True):
        assert torch.allclose(got, wanted, rtol=1e-3, atol=1e-6)


@pytest.mark.gpu
def test_nothing_waits_for_the_device() -> None:
    case = Case("table", {"weight_power": 0.3}, masked=True)
    inputs = batch(case, 64, 300)
    logits, target = inputs.logits.requires_grad_(), inputs.target.requires_grad_()

    def step() -> None:
        functional.gkl_divergence(logits, target, inputs.prior, labels=inputs.labels, mask=inputs.mask).backward()

    step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
def test_more_than_two_to_the_31_elements() -> None:
    samples, classes = 2200, 1_000_003
    if torch.cuda.mem_get_info()[0] < 4 * 2 * samples * classes:
        pytest.skip("needs four tensors of 4.4 GB")
    logits = torch.empty(samples, classes, dtype=torch.bfloat16, device=DEVICE).normal_()
    target = torch.empty_like(logits).normal_()
    logits.requires_grad_()
    values = functional.gkl_divergence(logits, target, reduction="none", normalizer="row", impl="triton")
    last = functional.gkl_divergence(logits[-2:], target[-2:], reduction="none", normalizer="row", impl="torch")
    assert torch.allclose(values[-2:], last, rtol=1e-4)
    (gradient,) = torch.autograd.grad(values.sum(), logits)
    (wanted,) = torch.autograd.grad(last.sum(), logits)
    assert torch.allclose(gradient[-2:], wanted[-2:], rtol=2e-2, atol=1e-9)


# --- machine code -----------------------------------------------------------------------------------------

COMPILE = r"""
import os, re, subprocess, sys, tempfile
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from limbeck.kernels import sizes
from limbeck.kernels.gkl_backward import gradients
from limbeck.kernels.gkl_forward import long_rows, short_rows

TOOLS = os.path.join(os.path.dirname(triton.__file__), "backends", "nvidia", "bin")
HALF = {"s_ptr", "t_ptr", "to_s_ptr", "to_t_ptr"}
NUMBERS = {"k", "k_weight", "power"}


def code(kernel, capability, warps, **constants):
    base = dict(MODE=1, KIND=0, MSE=True, CE=True, LABELS=True, MASK=False, ALIGN=16, CLASS_ALIGN=16,
                REACHES=True, NORMALIZER=0, TO_S=True, TO_T=True) | constants
    constants = {name: value for name, value in base.items() if name in kernel.arg_names}
    signature, attributes = {}, {}
    for place, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
        elif name.endswith("_ptr"):
            signature[name] = "*bf16" if name in HALF else {"labels_ptr": "*i64", "mask_ptr": "*u8"}.get(name, "*fp32")
            attributes[(place,)] = [["tt.divisibility", 16]]
        else:
            signature[name] = "fp32" if name in NUMBERS else "i32"
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps})
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        ask = lambda tool, *given: subprocess.run(
            [os.path.join(TOOLS, tool), *given, file.name], check=True, capture_output=True, text=True).stdout
        return ask("cuobjdump", "-res-usage"), ask("nvdisasm")


for capability in (80, 90):
    for kernel, warps, constants in (
        (long_rows, sizes.LANES // 32, dict(SPLITS=1, LANES=sizes.LANES, V=8)),
        (short_rows, 1, dict(ROWS=1, BLOCK=sizes.SHORT_CLASSES)),
        (gradients, 4, dict(ROWS=1, BLOCK=sizes.GRADIENT_PAIRS)),
    ):
        usage, listing = code(kernel, capability, warps, **constants)
        stack, local = (int(re.search(what + r":(\d+)", usage)[1]) for what in ("STACK", "LOCAL"))
        # Triton 3.6 keeps two registers of a loop of 600 instructions on the stack, for sm_80 alone.
        assert local == 0 and stack <= (8 if capability == 80 else 0), f"registers spill: {usage}"
        assert "LDG.E.128" in listing, "no load of 16 bytes"
        if kernel is gradients:
            assert "STG.E.128" in listing, "no store of 16 bytes"
        if kernel is long_rows:  # between two loads of 16 bytes lies a turn of the loop, in which lanes stay apart
            loads = [match.start() for match in re.finditer(r"LDG\.E\.128", listing)]
            first, last = loads[0], loads[3]
            assert "SHFL" not in listing[first:last] and "BAR.SYNC" not in listing[first:last]
print("ok")
"""


@pytest.mark.slow
def test_machine_code_keeps_all_in_registers_and_loads_16_bytes_at_once() -> None:
    """Compiled for two GPUs, without one."""
    import os

    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    import limbeck

    root = os.path.dirname(os.path.dirname(limbeck.__file__))
    environment["PYTHONPATH"] = root + os.pathsep + environment.get("PYTHONPATH", "")
    with_source = "import tempfile, runpy, sys\n" + COMPILE
    done = subprocess.run([sys.executable, "-c", with_source], env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == "ok", done.stderr[-2000:]
