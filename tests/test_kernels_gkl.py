"""Claims about GKL's kernel: the same function as the float64 form by plain operations, to rounding."""

from __future__ import annotations

import pytest
from kernel_twins import CASES, Case, assert_close, batch, by_kernel, by_torch, by_twin, error

pytest.importorskip("triton")
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, of which the interpreter is made


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("classes", [7, 1500])
def test_kernel_equals_the_float64_form(case: Case, classes: int) -> None:
    inputs = batch(case, 4, classes)
    for got, wanted, plain in zip(by_kernel(case, inputs), by_twin(case, inputs), by_torch(case, inputs), strict=True):
        assert_close(got, wanted, max(1e-6, 3 * error(plain, wanted)))
