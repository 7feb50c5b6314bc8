"""A mistake in a recipe in one line: path, what was expected, what was got, the nearest name. Imports no torch."""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING, Any

import yaml

from limbeck.config import TERMS, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from pydantic import ValidationError

Keys = tuple[str, ...]
LISTED = 8  # a longer list of names is not printed where one of them is near


def one_line(error: ValidationError, data: Any, blame: Callable[[Keys], str]) -> str:
    """The first mistake, and how many more there are. A union reports one error per member: they are joined."""
    problems: dict[Keys, list[Any]] = {}
    for item in error.errors(include_url=False):
        problems.setdefault(_keys(item, data), []).append(item)
    keys, items = next(iter(problems.items()))
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return f"{blame(keys)}: {_mistake('.'.join(keys), items)}{more}"


def _keys(item: Mapping[str, Any], data: Any) -> Keys:
    """The place of an error as it stands in the file: without the names of union members that pydantic adds."""
    keys = []
    for key in item["loc"]:
        if key in (data if isinstance(data, dict) else range(len(data)) if isinstance(data, list) else ()):
            data = data[key]
            keys.append(str(key))
    match item["type"]:
        case "missing":
            keys.append(str(item["loc"][-1]))
        case "union_tag_invalid":
            keys.append("name")
        case "unknown_key" | "bool":
            keys.append(item["ctx"]["key"])
    return tuple(keys)


def _mistake(path: str, items: Sequence[Mapping[str, Any]]) -> str:
    item = items[0]
    context = item.get("ctx", {})
    match item["type"]:
        case "unknown_key":
            return f"unknown key `{path}`; {context['hint']}"
        case "bool":
            return f"`{path}` {item['msg']}"
        case "value_error":
            return f"`{path}`: {context['error']}" if path else str(context["error"])
        case "missing":
            return f"`{path}` is missing"
        case "unknown_network":
            return f"`{path}` expected {item['msg']}, got {show(item['input'])}{context['hint']}"
        case "union_tag_invalid":
            return f"`{path}` expected a loss, got {show(context['tag'])}; {did_you_mean(context['tag'], TERMS)}"
        case "union_tag_not_found":
            return f"`{path}` expected a term with a `name`, one of {', '.join(TERMS)}; got {show(item['input'])}"
    expected = " or ".join(_expected(item) for item in items)
    hint = ""
    if item["type"] == "literal_error" and isinstance(item["input"], str):
        known = re.findall(r"'([^']*)'", expected)
        nearest = difflib.get_close_matches(item["input"].lower(), known, n=1, cutoff=0.55)
        hint = f"; did you mean `{nearest[0]}`?" if nearest else ""
        if nearest and len(known) > LISTED:
            expected = f"one of {len(known)} names"
    return f"`{path}` expected {expected}, got {show(item['input'])}{hint}"


def _expected(item: Mapping[str, Any]) -> str:
    """Return pydantic's expectation in a user's words; its own where we have none."""
    words = _EXPECTED.get(item["type"])
    return words.format(**item.get("ctx", {})) if words else item["msg"].removeprefix("Input should be ")


_EXPECTED = {
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "dict_type": "options as `key: value`",
    "model_type": "options as `key: value`",
    "model_attributes_type": "a term as `name: LOSS`",
    "float_parsing": "a number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "int_parsing": "an integer",
    "int_from_float": "an integer",
    "int_type": "an integer",
    "string_type": "a string",
    "string_pattern_mismatch": "letters, digits, `-` and `_`",
    "tuple_type": "a list",
    "too_short": "a list of at least {min_length}",
    "greater_than": "a number above {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "less_than": "a number below {lt:g}",
    "less_than_equal": "at most {le:g}",
}


def show(value: Any) -> str:
    """The value as YAML on one line, cut after 60 characters."""
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10_000)
    text = " ".join(text.removesuffix("\n...\n").split())
    return text if len(text) <= 60 else f"{text[:57]}..."
