"""Claims about GKL's kernel: the same function as plain operations, and no less exact."""

from __future__ import annotations

import pytest
import torch
from kernel_twins import CASES, DEVICE, Case, assert_close, batch, by_kernel, by_torch, by_twin, error, family
from torch import Tensor

from limbeck import GKLLoss, functional

pytest.importorskip("triton")
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, of which the interpreter is made

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
PLAIN = Case("sample", {})


def assert_no_worse(case: Case, samples: int, classes: int, dtype: torch.dtype, seeds: int = 2) -> None:
    """Against float64, at most 1.5 times the error of plain operations, and a rounding.

    That is one of the results' dtype, or four of float32: those of log2 and exp2, by which the kernel takes powers of
    weights and squares of their sums.
    """
    worst = torch.zeros(2, 3)
    for seed in range(seeds):
        inputs = batch(case, samples, classes, dtype, seed)
        wanted = by_twin(case, inputs)
        for row, found in enumerate((by_kernel(case, inputs), by_torch(case, inputs))):
            errors = torch.tensor([error(got, exact) for got, exact in zip(found, wanted, strict=True)])
            worst[row] = torch.maximum(worst[row], errors)
    four = 4 * torch.finfo(torch.float32).eps
    rounding = torch.tensor([four, *[max(four, torch.finfo(dtype).eps)] * 2])
    assert (worst[0] <= 1.5 * worst[1] + rounding).all(), worst


# --- the same function ------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("classes", [7, 1500])
def test_kernel_equals_the_float64_form(case: Case, classes: int) -> None:
    inputs = batch(case, 4, classes)
    for got, wanted, plain in zip(by_kernel(case, inputs), by_twin(case, inputs), by_torch(case, inputs), strict=True):
        assert_close(got, wanted, max(1e-6, 3 * error(plain, wanted)))


@pytest.mark.parametrize(
    "name", ["kl", "kl sum", "reverse_kl", "soft_cross_entropy", "dkl", "dkl rows", "weighted_mse"]
)
@pytest.mark.parametrize("classes", [7, 1500])
def test_relatives_equal_their_float64_forms(name: str, classes: int) -> None:
    inputs = batch(PLAIN, 4, classes)
    for got, wanted in zip(family(name, inputs, "triton"), family(name, inputs, "torch", torch.float64), strict=True):
        assert_close(got, wanted, 2e-5)


@pytest.mark.parametrize(("samples", "classes"), [(2, 4200), (1100, 3)])
def test_rows_read_in_parts_and_batches_of_blocks_are_the_same_function(samples: int, classes: int) -> None:
    for case in (
        Case("sample", {"weight_power": 0.4}),
        Case("one row", {"weight_power": 0.4, "reduction": "none"}, masked=True),
    ):
        inputs = batch(case, samples, classes)
        for got, wanted in zip(by_kernel(case, inputs), by_twin(case, inputs), strict=True):
            assert_close(got, wanted, 5e-6)


@pytest.mark.parametrize(("samples", "classes"), [(1, 1), (3, 1), (1, 2), (5, 3)])
def test_small_shapes(samples: int, classes: int) -> None:
    inputs = batch(PLAIN, samples, classes)
    for got, wanted in zip(by_kernel(PLAIN, inputs), by_twin(PLAIN, inputs), strict=True):
        assert_close(got + 1, wanted + 1, 1e-6)


def test_leading_axes_are_samples() -> None:
    logits, target = torch.randn(2, 3, 4, 5, device=DEVICE), torch.randn(2, 3, 4, 5, device=DEVICE)
    values = functional.gkl_divergence(logits, target, reduction="none", impl="triton")
    assert torch.allclose(values, functional.gkl_divergence(logits, target, reduction="none", impl="torch"), rtol=1e-5)


# --- exactness --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", [2, 10, 100, 1000])
@pytest.mark.parametrize("case", [CASES[0], CASES[1], CASES[7], CASES[10]], ids=str)
def test_error_is_no_worse_than_that_of_plain_operations(case: Case, classes: int, dtype: torch.dtype) -> None:
    assert_no_worse(case, 6, classes, dtype)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", [32_000, 128_257, 1_000_003])
@pytest.mark.parametrize("case", [Case("one row", {"temperature": 2.0}), CASES[7], CASES[10]], ids=str)
def test_error_is_no_worse_for_many_classes(case: Case, classes: int, dtype: torch.dtype) -> None:
    assert_no_worse(case, 8, classes, dtype, seeds=1)


@pytest.mark.parametrize("classes", [5, 1500])
@pytest.mark.parametrize("distance", [17.0, 1e4])
def test_logits_that_differ_by_a_constant_are_equal(classes: int, distance: float) -> None:
    logits = torch.randint(-8, 8, (3, classes), device=DEVICE).float()  # whole numbers stay exact far from zero
    for weights in (None, torch.rand(3, classes, device=DEVICE)):
        value = functional.gkl_divergence(logits, logits + distance, weights, ce_weight=0.0, impl="triton")
        assert value == 0
    assert functional.kl_divergence(logits, logits + distance, impl="triton").abs() < 1e-6


@pytest.mark.parametrize("power", [0.05, 1.0, 30.0, 300.0])
def test_powers_of_weights_do_not_underflow(power: float) -> None:
    """The quotient of the batch is that of logarithms: 0.001 ** 300 is no float."""
    case = Case("rows", {"weight_power": power, "ce_weight": 0.0})
    inputs = batch(case, 4, 50)
    got, wanted = by_kernel(case, inputs), by_twin(case, inputs._replace(prior=inputs.prior.double()))
    assert_close(got[0], wanted[0], 1e-4 * max(1.0, power / 30))


# --- classes that are absent ------------------------------------------------------------------------------


def absent(logits: Tensor) -> Tensor:
    return logits.index_fill(-1, torch.tensor([2, 3], device=logits.device), -torch.inf)


@pytest.mark.parametrize("name", ["kl", "reverse_kl", "soft_cross_entropy", "dkl", "dkl rows", "gkl", "gkl powered"])
@pytest.mark.parametrize("classes", [5, 1500])
def test_class_absent_on_both_sides_does_not_count(name: str, classes: int) -> None:
    inputs = batch(PLAIN, 3, classes)
    inputs = inputs._replace(logits=absent(inputs.logits), target=absent(inputs.target))
    found = family(name, inputs, "triton")
    for got, wanted in zip(found, family(name, inputs, "torch", torch.float64), strict=True):
        assert_close(got, wanted, 1e-5)
    assert not any(gradient[:, 2:4].any() for gradient in found[1:])


@pytest.mark.parametrize("name", ["kl", "soft_cross_entropy", "dkl", "gkl", "gkl powered"])
@pytest.mark.parametrize("classes", [5, 1500])
def test_class_that_the_student_alone_excludes_is_infinite(name: str, classes: int) -> None:
    inputs = batch(PLAIN, 3, classes)
    assert family(name, inputs._replace(logits=absent(inputs.logits)), "triton")[0].isposinf()


@pytest.mark.parametrize("name", ["kl", "soft_cross_entropy", "dkl", "gkl"])
@pytest.mark.parametrize("low", [-1e4, -1e9, torch.finfo(torch.float32).min])
def test_mask_by_a_low_number_costs_nothing(name: str, low: float) -> None:
    """Padded vocabularies: whole lanes see nothing but classes without mass before, or after, the others."""
    for begin, end in ((0, 1000), (2000, 3000)):
        inputs = batch(PLAIN, 2, 3000)
        inputs.target[:, begin:end] = low
        inputs.logits[:, begin:end:2] = -torch.inf
        for got, wanted in zip(family(name, inputs, "triton"), family(name, inputs, "torch"), strict=True):
            assert_close(got, wanted.double(), 1e-4)


def test_rows_left_out_may_be_anything() -> None:
    case = Case("sample", {"reduction": "none"}, masked=True)
    value, to_logits, to_target = by_kernel(case, batch(case, 4, 6))
    assert value[1] == 0
    assert not to_logits[1].any()
    assert not to_target[1].any()
    nobody = torch.zeros(4, dtype=torch.bool, device=DEVICE)
    for reduction in ("mean", "sum", "none"):
        inputs = batch(case, 4, 6)
        value = functional.gkl_divergence(inputs.logits, inputs.target, mask=nobody, reduction=reduction, impl="triton")
        assert not value.any()


# --- memory -----------------------------------------------------------------------------------------------


@pytest.fixture
def poisoned() -> None:
    """Memory comes full of NaN."""
    torch.use_deterministic_algorithms(True)
    assert torch.zeros(1).new_empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("classes", [7, 1500])
def test_every_entry_is_written(classes: int) -> None:
    for case in (Case("sample", {"reduction": "none"}, masked=True), Case("one row", {"ce_weight": 0.0})):
        assert all(result.isfinite().all() for result in by_kernel(case, batch(case, 3, classes)))


def layouts(x: Tensor) -> dict[str, Tensor]:
    """The same numbers, elsewhere in memory."""
    samples, classes = x.shape
    wide = x.new_full((samples, classes + 5), torch.nan)
    wide[:, 3 : 3 + classes] = x
    return {
        "wide": wide[:, 3 : 3 + classes],
        "transposed": x.T.contiguous().T,
        "every other": x.repeat_interleave(2, 1)[:, ::2],
    }


@pytest.mark.parametrize("classes", [7, 1504])
@pytest.mark.parametrize("layout", ["wide", "transposed", "every other"])
def test_any_strides(classes: int, layout: str) -> None:
    case = Case("rows", {})
    inputs = batch(case, 4, classes, torch.bfloat16)
    moved = inputs._replace(logits=layouts(inputs.logits)[layout], prior=layouts(inputs.prior)[layout])
    for got, wanted in zip(by_kernel(case, moved), by_kernel(case, inputs), strict=True):
        assert_close(got, wanted.double(), 1e-6 if got.dtype == torch.float32 else 1e-2)


def test_a_frozen_side_costs_no_gradient() -> None:
    inputs = batch(PLAIN, 3, 6)
    for index in (0, 1):
        sides = [inputs.logits, inputs.target]
        sides[index] = sides[index].clone().requires_grad_()
        (gradient,) = torch.autograd.grad(functional.gkl_divergence(*sides, impl="triton"), sides[index])
        assert torch.equal(gradient / 2, by_kernel(PLAIN, inputs)[1 + index])  # asked for with 1/2 there


def test_a_target_under_inference_mode() -> None:
    with torch.inference_mode():
        target = torch.randn(2, 5, device=DEVICE)
    logits = torch.randn(2, 5, device=DEVICE, requires_grad=True)
    functional.gkl_divergence(logits, target, impl="triton").backward()
    assert logits.grad.isfinite().all()


def test_the_loss_hands_over_its_table_and_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither rows of it, N x C, nor their powers are made for a call."""
    from limbeck.kernels import gkl

    loss = GKLLoss(6, weight_power=0.5, impl="triton").to(DEVICE)
    labels = torch.tensor([4, 0, 4], device=DEVICE)
    loss.observe(torch.randn(3, 6, device=DEVICE), labels)
    loss.refresh()
    loss(torch.randn(3, 6, device=DEVICE), torch.randn(3, 6, device=DEVICE), labels)
    seen = []
    monkeypatch.setattr(gkl, "gkl", lambda *given: seen.append(given) or torch.zeros(()))
    loss(torch.randn(3, 6, device=DEVICE), torch.randn(3, 6, device=DEVICE), labels)
    _, _, prior, given_labels, *_, options = seen[0]
    assert prior.data_ptr() == loss._cached[1].data_ptr()
    assert given_labels is labels
    assert options.power == 1
