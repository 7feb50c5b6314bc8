"""Claims about the factors of losses over the epochs of a run."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest

from limbeck.losses.schedules import cosine_decay


@pytest.mark.parametrize(("epochs", "after"), [(240, 150), (100, 0), (100, 30), (7, 6), (2, 1)])
def test_the_weight_is_full_until_the_decay_starts_and_then_half_a_cosine(epochs: int, after: int) -> None:
    factors = [cosine_decay(epoch, epochs, after=after) for epoch in range(1, epochs + 1)]
    assert factors[:after] == [1.0] * after
    for epoch in range(after + 1, epochs + 1):
        expected = 0.5 * (1 + math.cos(math.pi * (epoch - after) / (epochs - after)))
        assert factors[epoch - 1] == pytest.approx(expected, abs=1e-15)
    assert factors == sorted(factors, reverse=True)


@pytest.mark.parametrize("epochs", [1, 2, 3, 30, 100, 240])
def test_the_last_epoch_has_no_weight_at_all(epochs: int) -> None:
    for after in range(epochs):
        assert cosine_decay(epochs, epochs, after=after) == 0.0


def test_a_decay_that_starts_after_the_run_never_starts() -> None:
    assert [cosine_decay(epoch, 5, after=5) for epoch in range(1, 6)] == [1.0] * 5


def test_the_first_step_of_a_decay_from_the_start_is_already_below_full_weight() -> None:
    assert cosine_decay(1, 100) == pytest.approx(0.999753, abs=1e-6)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"epoch": 0}, ValueError, r"`epoch` expected a number in \[1, 10\], got 0; epochs count from 1"),
        ({"epoch": 11}, ValueError, "`epoch` expected .* got 11"),
        ({"epochs": 0}, ValueError, "`epochs` expected at least 1, got 0"),
        ({"after": -1}, ValueError, r"`after` expected a number in \[0, 10\], got -1"),
        ({"after": 11}, ValueError, "`after` expected .* got 11"),
        ({"epoch": 1.0}, TypeError, "`epoch` expected a whole number of epochs, got 1.0"),
        ({"epochs": True}, TypeError, "`epochs` expected a whole number of epochs, got True"),
        ({"after": None}, TypeError, "`after` expected a whole number of epochs, got None"),
    ],
)
def test_what_is_no_epoch_is_refused(arguments: dict[str, object], error: type[Exception], message: str) -> None:
    given = {"epoch": 1, "epochs": 10, "after": 0, **arguments}
    with pytest.raises(error, match=message):
        cosine_decay(given["epoch"], given["epochs"], after=given["after"])


def test_the_file_s_own_imports_are_free_of_torch() -> None:
    """The room's `__init__` imports torch, so the file is read by itself."""
    path = sys.modules["limbeck.losses.schedules"].__file__
    code = f"import runpy, sys; runpy.run_path({path!r}); assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60).returncode == 0
