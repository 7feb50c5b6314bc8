"""Claims about the kernel of the Jensen-Shannon divergence: interpreted without a GPU, compiled with one."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from limbeck.functional import js_divergence, kl_divergence, reverse_kl_divergence
from limbeck.functional.kl import js_values

pytest.importorskip("triton")
from limbeck.kernels import js as kernel
from limbeck.kernels import sizes

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HALVES = torch.bfloat16, torch.float16
LARGE = pytest.param(32_000, marks=pytest.mark.gpu), pytest.param(128_257, marks=pytest.mark.gpu)
SHORT, LONG = 10, sizes.JS_SHORT_CLASSES + 5  # classes: whole rows in registers, and rows that are read twice


@pytest.fixture(autouse=True)
def poisoned() -> Iterator[None]:
    """What is not written stays NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def draw(samples: int, classes: int, dtype: torch.dtype = torch.float32, gap: float = 3.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(classes)
    student = 3 * torch.randn(samples, classes, generator=generator)
    target = student + gap * torch.randn(samples, classes, generator=generator)
    return student.to(DEVICE, dtype), target.to(DEVICE, dtype)


def solve(student: Tensor, target: Tensor, dtype: torch.dtype | None = None, **options: Any) -> list[Tensor]:
    """The value and both gradients, in float64."""
    sides = [x.detach().to(dtype or x.dtype).requires_grad_() for x in (student, target)]
    value = js_divergence(*sides, **options)
    seed = torch.linspace(0.5, 1.5, value.numel(), device=value.device, dtype=value.dtype).view(value.shape)
    return [x.double() for x in (value.detach(), *torch.autograd.grad(value, sides, seed))]


def errors(found: list[Tensor], exact: list[Tensor]) -> list[float]:
    return [float((x - y).abs().max() / y.abs().max()) for x, y in zip(found, exact, strict=True)]


def assert_no_worse_than_torch(student: Tensor, target: Tensor, **options: Any) -> None:
    """At most 1.5 times torch's error, and a rounding of the value, or of the gradient in its dtype.

    Triton's interpreter cuts bfloat16 off instead of rounding it: there it may be two roundings.
    """
    exact = solve(student, target, torch.float64, impl="torch", **options)
    plain = errors(solve(student, target, impl="torch", **options), exact)
    got = errors(solve(student, target, impl="triton", **options), exact)
    for error, other, side in zip(got, plain, (None, student, target), strict=True):
        dtype = torch.float32 if side is None else side.dtype
        cut = 2 if dtype == torch.bfloat16 and DEVICE == "cpu" else 1
        assert error <= 1.5 * other + cut * torch.finfo(dtype).eps, (got, plain)


def assert_same(student: Tensor, target: Tensor, **options: Any) -> None:
    """As plain operations in the same dtype, which have their own tests; NaN where they have it."""
    rounding = 1e-5 if student.dtype == torch.float32 else 1e-2
    found, expected = (solve(student, target, impl=impl, **options) for impl in ("triton", "torch"))
    pairs = zip(found, expected, strict=True)
    assert all(torch.allclose(got, wanted, rtol=rounding, atol=1e-6, equal_nan=True) for got, wanted in pairs)


# --- numbers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 10, 100, 1000, *LARGE])
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
@pytest.mark.parametrize("beta", [0.5, 0.1])
def test_error_is_no_worse_than_that_of_torch(classes: int, dtype: torch.dtype, beta: float) -> None:
    sides = draw(4 if DEVICE == "cpu" else 64, classes, dtype)
    assert_no_worse_than_torch(*sides, beta=beta, reduction="none")
    assert_no_worse_than_torch(*sides, beta=beta, temperature=3.0, scale_by_t2=True)


def test_a_million_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    if DEVICE == "cpu":  # the interpreter's time is that of the number of operations
        monkeypatch.setattr(sizes, "LANES", 2**15)
        monkeypatch.setattr(sizes, "GRADIENT_PAIRS", 2**18)
    assert_no_worse_than_torch(*draw(2, 1_000_003), reduction="none")


@pytest.mark.parametrize("dtypes", [(torch.float32, torch.bfloat16), (torch.float16, torch.float32), HALVES])
@pytest.mark.parametrize("classes", [SHORT, LONG])
def test_sides_may_differ_in_dtype(dtypes: tuple[torch.dtype, torch.dtype], classes: int) -> None:
    student, target = draw(3, classes)
    assert_no_worse_than_torch(student.to(dtypes[0]), target.to(dtypes[1]), reduction="none")
    sides = [x.to(dtype).requires_grad_() for x, dtype in zip((student, target), dtypes, strict=True)]
    value = js_divergence(*sides, impl="triton")
    assert value.dtype == torch.float32
    assert tuple(x.dtype for x in torch.autograd.grad(value, sides)) == dtypes


@pytest.mark.parametrize("gap", [0.1, 0.01, 0.001])
@pytest.mark.parametrize("beta", [0.5, 0.1, 0.9])
def test_sides_that_nearly_agree_keep_their_digits(gap: float, beta: float) -> None:
    """Plain operations lose them: the value is a difference of the second order in the gap."""
    student, target = draw(8, 100, gap=gap)
    exact, *gradients = solve(student, target, torch.float64, beta=beta, impl="torch", reduction="none")
    got, *others = solve(student, target, beta=beta, impl="triton", reduction="none")
    plain, *_ = solve(student, target, beta=beta, impl="torch", reduction="none")
    error, lost = ((x / exact - 1).abs().max() for x in (got, plain))
    assert error < 5e-5
    assert error < 0.1 * lost
    assert max(errors(others, gradients)) < 1e-6 / gap


def test_equal_sides_have_no_divergence_however_large_their_logits() -> None:
    student, _ = draw(4, LONG)
    student = (student * 64).round() / 64  # so that a shift rounds nothing
    for shift in (0.0, 16384.0, -16384.0):
        value, *gradients = solve(student, student + shift, impl="triton", reduction="none")
        assert value.abs().max() < 1e-6
        assert max(float(x.abs().max()) for x in gradients) < 1e-6
    assert_no_worse_than_torch(student + 16384, student.flip(0) - 16384, reduction="none")


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
def test_probabilities_that_underflow_stay_finite(dtype: torch.dtype) -> None:
    student = torch.tensor([[1e4, -1e4, 0.0], [0.0, 0.0, 0.0]], dtype=dtype, device=DEVICE)
    target = torch.tensor([[-1e4, 1e4, 0.0], [1e4, -1e4, 5.0]], dtype=dtype, device=DEVICE)
    assert_same(student, target, reduction="none")
    assert solve(student, target, impl="triton", reduction="none")[0][0].isclose(torch.tensor(math.log(2)).double())


@pytest.mark.parametrize("beta", [1e-7, 1e-300, 1 - 1e-7])
def test_shares_may_come_near_the_ends(beta: float) -> None:
    student, target = draw(3, SHORT)
    exact = solve(student, target, torch.float64, beta=beta, impl="torch")
    assert all(
        (x - y).abs().max() < 1e-7 for x, y in zip(solve(student, target, beta=beta, impl="triton"), exact, strict=True)
    )


def test_ends_are_kl_and_reverse_kl() -> None:
    student, target = draw(3, SHORT)
    for impl in ("torch", "triton"):
        options: Any = {"temperature": 2.0, "scale_by_t2": True, "reduction": "none", "impl": impl}
        forward, reverse = kl_divergence(student, target, **options), reverse_kl_divergence(student, target, **options)
        assert torch.equal(js_divergence(student, target, beta=0.0, **options), forward)
        assert torch.equal(js_divergence(student, target, beta=1.0, **options), reverse)


# --- shapes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("shape", [(1, 1), (5, 1), (1, SHORT), (2, 3, SHORT), (SHORT,), (2500, 2), (3, LONG)])
def test_all_shapes_and_reductions(shape: tuple[int, ...], reduction: str) -> None:
    student, target = draw(math.prod(shape[:-1]), shape[-1])
    assert_same(student.view(shape), target.view(shape), reduction=reduction)
    value = js_divergence(student.view(shape), target.view(shape), reduction=reduction, impl="triton")
    assert value.shape == (shape[:-1] if reduction == "none" else ())


@pytest.mark.parametrize("pieces", [1, 2, 7])
def test_pieces_of_a_row_make_the_whole(pieces: int, monkeypatch: pytest.MonkeyPatch) -> None:
    tile = sizes.LANES * sizes.VECTOR_BYTES // 4
    classes = 8 * tile + 5
    student, target = draw(2, classes)
    size = -(-classes // (pieces * tile)) * tile
    monkeypatch.setattr(kernel, "piece_size", lambda *_: size)
    if pieces > 1:
        student[0, :size] = target[0, :size] = -torch.inf  # a piece without any class
    assert_same(student, target, reduction="none")


def test_a_row_is_cut_where_there_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizes, "multiprocessors", lambda _: 132)
    tile = sizes.LANES * 8
    for rows, classes in ((1, 1_000_003), (8, 1_000_003), (8, 128_257), (8192, 32_000), (500, 32_000), (1, 5000)):
        size = kernel.piece_size(rows, classes, tile, torch.device(DEVICE))
        pieces = -(-classes // size)
        assert size % tile == 0
        assert (pieces - 1) * size < classes <= pieces * size
        assert pieces == 1 or rows * pieces <= 132 * sizes.PROGRAMS_EACH
        assert pieces == 1 or size >= sizes.SPLIT_TILES * tile


@pytest.mark.parametrize("classes", [SHORT, 33, LONG])
def test_any_strides(classes: int) -> None:
    wide = draw(4, classes + 7)
    for first, last in ((0, classes), (1, classes + 1), (7, classes + 7)):
        assert_same(*(x[:, first:last] for x in wide), reduction="none")  # rows apart, and off the vectors' bounds
    student, target = draw(4, classes)
    assert_same(student.T.contiguous().T, target, reduction="none")  # classes apart
    assert_same(student[:1].expand(4, -1), target.flip(0), reduction="none")  # one row for all
    assert_same(student[::2], target[1::2], reduction="none")


def test_dense_predictions_have_their_classes_in_the_second_axis() -> None:
    student, target = draw(2 * 5, 3 * 4)
    maps = [x.view(2, 5, 3, 4).movedim(1, -1) for x in (student, target)]
    assert_same(*maps, reduction="none")


# --- classes that are not there ---------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [SHORT, LONG])
def test_a_class_absent_on_both_sides_counts_for_nothing(classes: int) -> None:
    student, target = draw(4, classes)
    absent = torch.zeros(classes, dtype=torch.bool, device=DEVICE)
    absent[1::3] = True
    sides = [x.masked_fill(absent, -torch.inf) for x in (student, target)]
    value, *gradients = solve(*sides, impl="triton", reduction="none")
    expected, *others = solve(*(x[:, ~absent] for x in sides), impl="triton", reduction="none")
    assert (value - expected).abs().max() < 1e-6
    for got, wanted in zip(gradients, others, strict=True):
        assert not got[:, absent].any()
        assert (got[:, ~absent] - wanted).abs().max() < 1e-6


@pytest.mark.parametrize("lowest", [-torch.inf, torch.finfo(torch.float32).min])
def test_a_class_that_one_side_excludes_leaves_a_finite_value(lowest: float) -> None:
    student, target = draw(4, SHORT)
    student[0, 2] = target[1, 3] = target[2, 0] = student[2, 5] = lowest
    student[3, 1:] = lowest
    for beta in (0.5, 0.1):
        assert_same(student, target, beta=beta, reduction="none")
        assert all(x.isfinite().all() for x in solve(student, target, beta=beta, impl="triton", reduction="none"))


@pytest.mark.parametrize("classes", [SHORT, LONG])
def test_what_is_no_number_stays_none(classes: int) -> None:
    student, target = draw(5, classes)
    student[0, 1] = target[1, 1] = torch.nan
    student[2] = target[3] = -torch.inf
    value, *gradients = solve(student, target, impl="triton", reduction="none")
    assert value.isnan().tolist() == [True, True, True, True, False]
    assert all(x[4].isfinite().all() for x in gradients)


# --- what torch asks of an operator -----------------------------------------------------------------------


def test_a_side_that_needs_no_gradient_gets_none() -> None:
    student, target = draw(3, SHORT)
    both = solve(student, target, impl="triton")
    for side in (0, 1):
        sides = [student.clone(), target.clone()]
        sides[side].requires_grad_()
        js_divergence(*sides, impl="triton").mul(0.5).backward()
        assert (sides[side].grad - both[1 + side]).abs().max() < 1e-7
        assert sides[1 - side].grad is None
    with torch.inference_mode():
        teacher = target + 0
    learner = student.clone().requires_grad_()
    js_divergence(learner, teacher, impl="triton").backward()
    assert (learner.grad - 2 * both[1]).abs().max() < 1e-7


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_second_derivatives_are_those_of_plain_operations(reduction: str) -> None:
    found = []
    for impl, dtype in (("torch", torch.float64), ("triton", torch.float32)):
        sides = [x.to(dtype).requires_grad_() for x in draw(3, SHORT)]
        value = js_divergence(*sides, beta=0.3, temperature=2.0, scale_by_t2=True, reduction=reduction, impl=impl)
        seed = torch.ones_like(value, requires_grad=True)
        first = torch.autograd.grad(value, sides, seed, create_graph=True)
        size = sum(((x - 0.1) ** 2).sum() for x in first)
        second = torch.autograd.grad(size, (seed, *sides), create_graph=True)
        third = torch.autograd.grad(sum((x**2).sum() for x in second), sides)
        found.append([x.double() for x in (*first, *second, *third)])
    assert all((x - y).abs().max() < 2e-5 * max(1, y.abs().max()) for x, y in zip(found[1], found[0], strict=True))


def test_operators_keep_the_rules_of_torch() -> None:
    student, target = (x.requires_grad_() for x in draw(3, SHORT))
    for reduced in (True, False):
        torch.library.opcheck(torch.ops.limbeck.js, (student, target, 0.3, 2.0, 0.5, reduced))
        value, stats = torch.ops.limbeck.js(student, target, 0.3, 2.0, 0.5, reduced)
        grad = torch.ones_like(value).requires_grad_()
        inputs = grad, student, target, stats.detach(), 0.3, 2.0, 0.5
        for wanted in ((True, True), (True, False), (False, True)):
            torch.library.opcheck(torch.ops.limbeck.js_backward, (*inputs, *wanted))


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_compilation_keeps_the_operator(reduction: str) -> None:
    seen: list[str] = []

    def look(graph: torch.fx.GraphModule, _: Any) -> Any:
        seen.extend(str(node.target) for node in graph.graph.nodes)
        return graph

    student, target = (x.requires_grad_() for x in draw(3, SHORT))
    options: Any = {"beta": 0.3, "temperature": 2.0, "reduction": reduction, "impl": "triton"}
    plain = torch.autograd.grad(js_divergence(student, target, **options).sum(), (student, target))
    torch.compile(js_divergence, fullgraph=True, backend=look)(student, target, **options)
    assert "limbeck.js" in seen
    whole = torch.compile(js_divergence, fullgraph=True, backend="aot_eager")(student, target, **options)
    compiled = torch.autograd.grad(whole.sum(), (student, target))
    assert all(torch.equal(x, y) for x, y in zip(plain, compiled, strict=True))


def test_plain_operations_are_taken_where_the_kernel_cannot_see_through() -> None:
    student, target = draw(3, SHORT)
    mapped = torch.vmap(lambda a, b: js_divergence(a, b, reduction="none"))(student, target)
    assert (mapped - js_divergence(student, target, reduction="none", impl="torch")).abs().max() < 1e-6
    with pytest.raises(ValueError, match=r"^`impl='triton'` cannot serve this call \(float64: kernels add up in f"):
        js_divergence(student.double(), target, impl="triton")
    with pytest.raises(ValueError, match=r"^`impl='triton'` cannot serve this call \(a temperature that is a tensor"):
        js_divergence(student, target, temperature=torch.tensor(2.0, device=DEVICE), impl="triton")
    with pytest.raises(ValueError, match=r"^`impl` expected 'auto', 'torch' or 'triton', got 'cuda'"):
        js_divergence(student, target, impl="cuda")  # type: ignore[arg-type]


def test_values_by_plain_operations_are_what_second_derivatives_start_from() -> None:
    student, target = draw(3, SHORT)
    values = js_values(student, target, beta=0.3, temperature=2.0)
    assert torch.equal(
        values, js_divergence(student, target, beta=0.3, temperature=2.0, reduction="none", impl="torch")
    )


# --- on a GPU ---------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("classes", [SHORT, LONG, 1_000_003])
def test_a_call_is_captured_in_a_graph_and_waits_for_nothing(classes: int) -> None:
    torch.use_deterministic_algorithms(False)  # which would add its own operations
    student, target = (x.requires_grad_() for x in draw(4, classes, torch.bfloat16))

    def step() -> tuple[Tensor, ...]:
        value = js_divergence(student, target, temperature=2.0)
        return value, *torch.autograd.grad(value, (student, target))

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        expected = step()  # compiles
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    graph.replay()
    assert all(torch.equal(x, y) for x, y in zip(captured, expected, strict=True))


@pytest.mark.gpu
def test_more_than_two_to_the_31_elements() -> None:
    rows, classes = 2**15 + 3, 2**16
    if torch.cuda.mem_get_info()[0] < 6 * rows * classes * 2:
        pytest.skip("needs 26 GB of the GPU's memory")
    torch.use_deterministic_algorithms(False)
    student = torch.randn(rows, classes, dtype=torch.bfloat16, device="cuda").requires_grad_()
    target = torch.randn(rows, classes, dtype=torch.bfloat16, device="cuda")
    values = js_divergence(student, target, reduction="none", impl="triton")
    (gradient,) = torch.autograd.grad(values.sum(), student)
    last = student[-2:].detach().requires_grad_()
    expected = js_divergence(last, target[-2:], reduction="none", impl="torch")
    assert (values[-2:] - expected).abs().max() < 1e-5
    (other,) = torch.autograd.grad(expected.sum(), last)
    assert (gradient[-2:].float() - other.float()).abs().max() < 1e-5
