"""Tests of networks of other libraries. They need a torchvision that imports beside the torch that is installed."""

from __future__ import annotations

import os

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a name that is not here is told at once, without five attempts


def _why_not() -> str:
    """Say what is missing; nothing if all three libraries import."""
    try:
        import timm  # noqa: F401
        import torchvision  # noqa: F401
        import transformers  # noqa: F401
    except (ImportError, RuntimeError) as error:  # torchvision's operators belong to one build of torch
        return str(error).splitlines()[0]
    return ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = [item for item in items if "zoo" in item.path.parts]
    if here and (reason := _why_not()):
        for item in here:
            item.add_marker(pytest.mark.skip(reason=f"{reason}; `make test-zoo` has an environment for these"))
