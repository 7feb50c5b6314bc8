"""What holds for all tests: each one of torch.compile starts with a compiler that has captured nothing."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def compiler_as_new(request: pytest.FixtureRequest) -> None:
    """torch.compile counts what it captures of a function, helpers too, over the whole process, and stops at eight."""
    if request.function is not None and "compile" in request.function.__code__.co_names:
        import torch

        torch._dynamo.reset()
