"""The build fails on a public name that no page of the reference shows, or whose docstring leaves something out."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from typing import Any

from mkdocs.exceptions import PluginError

from limbeck.losses import DivergenceLoss, FeatureLoss

ROOMS = ("limbeck.functional", "limbeck.losses", "limbeck.adversary", "limbeck.models.taps", "limbeck.api")
OF_FUNCTIONS = ("Args", "Returns", "Raises", "Gradient", "Example", "Reference")
OF_HELPERS = ("Args", "Returns", "Raises", "Example")
OF_LOSSES = ("Args", "Gradient", "Example", "Reference")
BASES = (DivergenceLoss, FeatureLoss)
PRINTED_BY_TORCH = {"extra_repr"}
ANCHOR = re.compile(r'\bid="(limbeck[\w.]+)"')

_anchors: set[str] = set()


def on_pre_build(**_: Any) -> None:
    """Forget the anchors of a former build (`mkdocs serve` builds many times)."""
    _anchors.clear()


def on_page_content(content: str, **_: Any) -> None:
    """Collect what the pages document."""
    _anchors.update(ANCHOR.findall(content))


def on_post_build(**_: Any) -> None:
    """Fail the build with all complaints at once."""
    found = complaints(_anchors)
    if found:
        raise PluginError("undocumented public names:\n  " + "\n  ".join(found))


def complaints(anchors: set[str]) -> list[str]:
    """Return what is missing, given the names that the reference shows."""
    names = dict(public_names())
    found = [f"{name}: {what}" for name, value in names.items() for what in of_docstring(name, value)]
    found += [
        f"{name}: on no page of the reference" for name, value in names.items() if not shown(name, value, anchors)
    ]
    package = import_module("limbeck")
    documented = {name.rsplit(".", 1)[1] for name in names} | {room.split(".")[1] for room in ROOMS}
    return found + [f"limbeck.{name}: in no room's __all__" for name in package.__all__ if name not in documented]


def shown(name: str, value: Any, anchors: set[str]) -> bool:
    """A function that has its module's name is shown where it is defined: its public name is the module's page."""
    return name in anchors or (inspect.isfunction(value) and f"{value.__module__}.{value.__name__}" in anchors)


def public_names() -> Iterator[tuple[str, Any]]:
    """Yield each public function and class of the rooms, and each public method that Limbeck wrote."""
    for room in ROOMS:
        module = import_module(room)
        for name in module.__all__:
            value = getattr(module, name)
            yield f"{room}.{name}", value
            if inspect.isclass(value):
                for method in public_methods(value):
                    yield f"{room}.{name}.{method}", getattr(value, method)


def public_methods(cls: type) -> list[str]:
    """Return the names of public methods that a class or one of its bases in this package defines."""
    ours = [base for base in cls.__mro__ if base.__module__.startswith("limbeck.")]
    return sorted(
        {
            name
            for base in ours
            for name, value in vars(base).items()
            if (inspect.isfunction(value) or isinstance(value, classmethod | property))
            and not name.startswith("_")
            and name not in PRINTED_BY_TORCH
        }
    )


def of_docstring(name: str, value: Any) -> Iterator[str]:
    """Yield what is wrong with the docstring of a public object."""
    text = inspect.getdoc(value) or ""
    if not text.strip():
        yield "no docstring"
        return
    for section in required_sections(name, value):
        if not re.search(rf"^{section}:$", text, flags=re.MULTILINE):
            yield f"no section `{section}:`"


def required_sections(name: str, value: Any) -> tuple[str, ...]:
    """Functions say all; a loss leaves its values to its function; methods, bases and records need one line."""
    if inspect.isclass(value):
        if not issubclass(value, DivergenceLoss) or value in BASES:
            return ()
        return OF_LOSSES if inspect.signature(value).parameters else OF_LOSSES[1:]
    room = name.rpartition(".")[0]
    if room not in ROOMS:
        return ()
    return OF_FUNCTIONS if room == "limbeck.functional" else OF_HELPERS
