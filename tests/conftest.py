"""What holds for all tests: kernels are interpreted where there is no GPU, and torch.compile starts anew."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
import torch

if not torch.cuda.is_available():  # Triton reads this when it is imported: kernels run on the CPU, slowly
    os.environ.setdefault("TRITON_INTERPRET", "1")

if TYPE_CHECKING:
    from collections.abc import Iterator


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out what needs a GPU where there is none."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no GPU"))


@pytest.fixture(autouse=True)
def compiler_as_new(request: pytest.FixtureRequest) -> None:
    """torch.compile counts what it captures of a function, helpers too, over the whole process, and stops at eight."""
    if request.function is not None and "compile" in request.function.__code__.co_names:
        torch._dynamo.reset()


@pytest.fixture(autouse=True, scope="session")
def caches_of_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What the tests keep for later goes to no folder of the user's; other processes inherit that."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIMBECK_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
