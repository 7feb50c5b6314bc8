"""Tables that are written nowhere else: the options of a recipe, and the commands, from the code that reads them.

`<!-- options: DataOptions -->` stands for a table of that model's fields, `<!-- losses -->` for the options of each
loss, `<!-- command: train -->` for the usage of a command, `<!-- command: data fetch -->` for that of a command's own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Any

from typer.main import get_command

from limbeck import config
from limbeck.commands import app


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace the marks. An unknown name is an error, and so is a failed build."""
    markdown = re.sub(r"<!-- options: (\w+) -->", lambda mark: options_table(getattr(config, mark[1])), markdown)
    markdown = re.sub(r"<!-- losses -->", lambda _: "\n\n".join(loss_tables()), markdown)
    return re.sub(r"<!-- command: (\w+(?: \w+)?) -->", lambda mark: command_usage(mark[1]), markdown)


def options_table(model: type[config.Options], leave_out: tuple[str, ...] = ()) -> str:
    """Return a table of a model's fields; those that are models themselves have tables of their own."""
    schema = model.model_json_schema()
    rows = [
        f"| `{name}` | {_default(field)} | {_range(field)} | {field['description']} |"
        for name, field in schema["properties"].items()
        if "description" in field and name not in leave_out
    ]
    return "\n".join(["| option | default | allowed | meaning |", "| --- | --- | --- | --- |", *rows])


def loss_tables() -> Iterator[str]:
    """Yield a section per loss: its first line, its formula, its options."""
    common = tuple(config.TermOptions.model_fields)
    for name, term in config.TERMS.items():
        summary = (term.__doc__ or "").splitlines()[0]
        own = [field for field in term.model_fields if field not in common]
        table = options_table(term, leave_out=common) if own else "No options of its own."
        yield f"### `{name}` {{ #loss-{name} }}\n\n{summary}\n\n    {term.formula}\n\n{table}"


def _default(field: Mapping[str, Any]) -> str:
    if "default" not in field:
        return "required"
    value = field["default"]
    words = {None: "null", True: "true", False: "false"}
    shown = words[value] if value is None or isinstance(value, bool) else value
    return "empty" if shown in ("", [], {}) else f"`{shown}`" if not isinstance(shown, list | dict) else "see below"


def _range(field: Mapping[str, Any]) -> str:
    """Return what a field's schema allows, in words and intervals."""
    choices = [_range(choice) for choice in field.get("anyOf", ()) if choice.get("type") != "null"]
    if choices:
        return " or ".join(choices)
    if "enum" in field or "const" in field:
        return ", ".join(f"`{word}`" for word in field.get("enum", [field.get("const")]))
    kind = {"boolean": "true, false", "string": "text", "integer": "integer", "number": "number"}.get(
        field.get("type", ""), "list"
    )
    low, high = (field.get(end, field.get(f"exclusive{end.title()}")) for end in ("minimum", "maximum"))
    if low is None:
        return kind
    kind = "" if kind == "number" else f"{kind} "
    if high is None:
        return f"{kind}{'≥' if 'minimum' in field else '>'} {low:g}"
    return f"{kind}in {'[' if 'minimum' in field else '('}{low:g}, {high:g}{']' if 'maximum' in field else ')'}"


def command_usage(name: str) -> str:
    """Return a command's first line, how it is called, and its options."""
    command: Any = get_command(app)
    for word in name.split():
        command = command.commands[word]
    arguments = [parameter for parameter in command.params if parameter.param_type_name == "argument"]
    words = [_spelling(each) if each.required else f"[{_spelling(each)}]" for each in arguments]
    usage = " ".join(["limbeck", name, *words, "[OPTIONS]"])
    rows = [
        f"| `{_spelling(parameter)}` | {_shown_default(parameter)} | {getattr(parameter, 'help', '') or ''} |"
        for parameter in command.params
        if parameter.name != "help"
    ]
    table = "\n".join(["| argument | default | meaning |", "| --- | --- | --- |", *rows]) if rows else ""
    return f"{command.help}\n\n```console\n$ {usage}\n```\n\n{table}"


def _spelling(parameter: Any) -> str:
    choices = [choice.value for choice in type(parameter.default)] if isinstance(parameter.default, Enum) else []
    metavar = parameter.metavar or "|".join(choices) or parameter.name.upper()
    if parameter.param_type_name == "argument":
        return str(metavar)
    word = ", ".join(parameter.opts)
    return word if parameter.is_flag else f"{word} {metavar}"


def _shown_default(parameter: Any) -> str:
    if isinstance(getattr(parameter, "show_default", None), str):
        return str(parameter.show_default)
    if parameter.required:
        return "required"
    value = parameter.default
    return "" if value in (None, False, ()) or callable(value) else f"`{getattr(value, 'value', value)}`"
