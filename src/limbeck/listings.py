"""What `limbeck recipes`, `losses` and `models` print, and how: tables, lines, a word while something is loaded."""

from __future__ import annotations

import re
import textwrap
from contextlib import contextmanager, nullcontext
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from limbeck.config import TERMS, TermOptions, did_you_mean
from limbeck.config_files import dump, find_recipe, load_recipe, read_header, recipe_names
from limbeck.config_terms import DIVERGENCE_TERMS
from limbeck.config_terms_consistency import CONSISTENCY_TERMS
from limbeck.config_terms_detection import DETECTION_TERMS
from limbeck.config_terms_logit import LOGIT_TERMS
from limbeck.config_terms_maps import MAPS_TERMS
from limbeck.config_terms_moments import MOMENTS_TERMS
from limbeck.config_terms_relations import RELATIONS_TERMS
from limbeck.config_terms_segment import SEGMENT_TERMS
from limbeck.config_terms_self import SELF_TERMS
from limbeck.config_terms_transport import TRANSPORT_TERMS
from limbeck.errors import UserError
from limbeck.network_names import EXTRAS, PREFIXES, ZOO

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from rich.console import RenderableType

# The catalogue, by what a loss looks at; in its order.
FAMILIES: dict[str, dict[str, type[TermOptions]]] = {
    "The labels": {"cross_entropy": TERMS["cross_entropy"]},
    "Divergences between logits": {name: term for name, term in DIVERGENCE_TERMS.items() if name != "cross_entropy"},
    "Two views of images, with or without labels": CONSISTENCY_TERMS,
    "Other methods between logits": LOGIT_TERMS,
    "Transport between classes, and between distributions of features": {**TRANSPORT_TERMS, **MOMENTS_TERMS},
    "Feature maps": MAPS_TERMS,
    "Relations between samples": RELATIONS_TERMS,
    "The student itself": SELF_TERMS,
    "Detectors": DETECTION_TERMS,
    "Classes of pixels": SEGMENT_TERMS,
}


def print_table(titles: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: bool = False) -> None:
    """Print a plain table; with `numbers`, all columns but the first are right-aligned, all of them narrow."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=not numbers, padding=(0, 0 if numbers else 1, 0, 0))
    for position, title in enumerate(titles):
        table.add_column(title, justify="right" if numbers and position else "left", no_wrap=not position)
    for row in rows:
        table.add_row(*row)
    Console(markup=False, highlight=False).print(table)


def say(text: str) -> None:
    """Print a line as it is: no markup, no colours for numbers, no wrapping, so that paths can be copied."""
    Console(markup=False, highlight=False, soft_wrap=True).print(text)


@contextmanager
def loading() -> Iterator[None]:
    """Show in a terminal that torch is being imported, which takes seconds."""
    console = Console(stderr=True)
    with console.status("loading torch…") if console.is_terminal else nullcontext():
        yield


def print_rich(content: RenderableType) -> None:
    """Print what rich can draw."""
    Console().print(content)


def print_recipes() -> None:
    """Print the recipes' names and titles."""
    print_table(("recipe", "title"), [(name, load_recipe(name).title) for name in recipe_names()])
    say("`limbeck recipes NAME` shows one; the end of a name is enough where it is the only one.")


def print_recipe(name: str) -> None:
    """Print a recipe's header and its resolved options, as YAML that `limbeck train` reads."""
    recipe = load_recipe(name)
    say("\n".join([*read_header(find_recipe(name)), dump(recipe).rstrip()]))


def print_models() -> None:
    """Print the networks' names, and how those of other libraries are called and whether these are here."""
    say("Here, for `model.name`:")
    _print_block(", ".join(ZOO), indent=2)
    say("Of other libraries, for students and teachers:")
    rows = [
        (
            f"{prefix}:NAME",
            library,
            "here" if find_spec(library) else f'not here; pip install "limbeck[{EXTRAS[prefix]}]"',
        )
        for prefix, library in PREFIXES.items()
    ]
    print_table(("name", "library", ""), rows)
    say("hf:NAME is a repository, a kind such as vit, or a folder with config.json.")


def print_losses() -> None:
    """Print each loss, by family: what it is, its formula, what it needs and costs, where it comes from."""
    for family, terms in FAMILIES.items():
        _print_block(family, underlined=True)
        for name, term in terms.items():
            _print_block(f"{name}  {_summary(term)}", bold=len(name))
            _print_block(term.formula, indent=4)
            _print_block(f"needs {needs(term)} · costs {term.cost} · {term.paper}", indent=4)
        say("")
    _print_block(
        "p_t: the teacher's softmax; p_s: the student's; Δ_ij: differences of two logits; y: the label; w: weights, "
        "rows of the class prior or the sample's own softmax; N samples, C classes, D features, H·W positions. Costs: "
        "beside the forward passes."
    )
    _print_block(f"{len(TERMS)} losses. `limbeck losses NAME` explains one; --brief has a line for each.")


def print_losses_briefly() -> None:
    """Print a line per loss, by family: its name, what it needs, in letters, and as much of its summary as fits."""
    width = max(map(len, TERMS))
    for family, terms in FAMILIES.items():
        _print_block(family, underlined=True)
        for name, term in terms.items():
            line = f"{name:<{width}}  {_letters(term)}  {_title(term, max(Console().width - width - 8, 20))}"
            _print_block(line, bold=len(name), fill=False)
        say("")
    _print_block("T a teacher, L labels, H hard labels, F features, M memory of former batches.")
    _print_block(f"{len(TERMS)} losses. Without --brief: formulas, sources, costs; `limbeck losses NAME`: one.")


def _print_block(text: str, *, indent: int = 0, bold: int = 0, underlined: bool = False, fill: bool = True) -> None:
    """Print text that fills the screen's width, further lines indented; so many of its first letters are bold."""
    console = Console(markup=False, highlight=False, soft_wrap=not fill)
    begin, further = " " * indent, " " * (4 if bold else indent)
    if fill:
        text = textwrap.fill(
            text, console.width, initial_indent=begin, subsequent_indent=further, break_on_hyphens=False
        )
    shown = Text(text)
    shown.stylize("bold", 0, len(text) if underlined else bold)
    console.print(shown)
    if underlined:
        console.print("─" * len(text))


def _title(term: type[TermOptions], width: int) -> str:
    """Return as many words of a loss's summary as fit, its year and source left out.

    >>> _title(TERMS["rkd"], 40)
    'Relational distillation, RKD: distances…'
    """
    summary = re.sub(r" \([^()]*\d{4}[^()]*\)", "", _summary(term))
    return textwrap.shorten(summary, width, placeholder="…")


def _letters(term: type[TermOptions]) -> str:
    """Return what a loss needs: a letter each, or a point.

    >>> _letters(TERMS["dkd"]), _letters(TERMS["crd"])
    ('TH··', 'T·FM')
    """
    found = needs(term)
    words = {"T": "a teacher", "L": " labels", "F": "features", "M": "memory"}
    letters = "".join(letter if word in f" {found}" else "·" for letter, word in words.items())
    return letters.replace("L", "H") if term.hard_labels else letters


def needs(term: type[TermOptions]) -> str:
    """Return what a loss needs beside the student's logits.

    >>> needs(TERMS["dkd"]), needs(TERMS["ikl"])
    ('a teacher, hard labels', 'a teacher, labels, memory (class means)')
    """
    inputs = set(term.inputs)
    found = {
        "a teacher": any(what.startswith("target_") for what in inputs),
        "hard labels" if term.hard_labels else "labels": "labels" in inputs,
        "features": bool(inputs & {"features", "target_features"}),
        "the classifier": bool(inputs & {"head", "target_head"}),
        "several views": "view_logits" in inputs,
        f"memory ({term.memory})": bool(term.memory),
    }
    return ", ".join(what for what, needed in found.items() if needed) or "nothing"


def print_loss(name: str) -> None:
    """Print one loss: formula, and each option's default, range and meaning."""
    name = name.replace("-", "_")
    if name not in TERMS:
        raise UserError(f"unknown loss `{name}`; {did_you_mean(name, TERMS)}")
    term = TERMS[name]
    say(f"{name}: {_summary(term)}\n{term.formula}")
    say(f"{term.paper} · needs {needs(term)} · cost beside the forward passes {term.cost}")
    if _options(term):
        print_table(("option", "default", "range", "meaning"), _options(term))
    say("Of every term in a recipe's `losses`:")
    print_table(("option", "default", "range", "meaning"), _options(TermOptions))


def _summary(term: type[TermOptions]) -> str:
    return (term.__doc__ or "").splitlines()[0]


def _options(term: type[TermOptions]) -> list[tuple[str, str, str, str]]:
    """Name, default, range and description of the options of a term, less its name and what every term has."""
    common = () if term is TermOptions else TermOptions.model_fields
    return [
        (option, _word(schema["default"]), _range(schema), schema["description"])
        for option, schema in term.model_json_schema()["properties"].items()
        if option != "name" and option not in common
    ]


def _word(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(_word, value)) or "empty"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _range(schema: Mapping[str, Any]) -> str:
    """Return what a JSON schema allows, such as `> 0`, `[0, 1)`, `class, sample`.

    >>> _range({"type": "number", "minimum": 0, "exclusiveMaximum": 1})
    '[0, 1)'
    """
    choices = [choice for choice in schema.get("anyOf", ()) if choice["type"] != "null"]
    if choices:
        return " or ".join([*map(_range, choices), "null"])
    if "enum" in schema:
        return ", ".join(schema["enum"])
    if schema["type"] == "boolean":
        return "true, false"
    if schema["type"] in ("string", "array"):
        return "text" if schema["type"] == "string" else f"list of {_range(schema['items'])}"
    low = schema.get("minimum", schema.get("exclusiveMinimum"))
    high = schema.get("maximum", schema.get("exclusiveMaximum"))
    kind = "integer " if schema["type"] == "integer" else ""
    if high is None:
        return f"{kind}{'>=' if 'minimum' in schema else '>'} {low:g}"
    return f"{kind}{'[' if 'minimum' in schema else '('}{low:g}, {high:g}{']' if 'maximum' in schema else ')'}"
