"""What holds for all tests: each one of torch.compile starts with a compiler that has captured nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def compiler_as_new(request: pytest.FixtureRequest) -> None:
    """torch.compile counts what it captures of a function, helpers too, over the whole process, and stops at eight."""
    if request.function is not None and "compile" in request.function.__code__.co_names:
        import torch

        torch._dynamo.reset()


@pytest.fixture(autouse=True, scope="session")
def caches_of_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What the tests keep for later goes to no folder of the user's; other processes inherit that."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LIMBECK_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
