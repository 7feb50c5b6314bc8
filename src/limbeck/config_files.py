"""Recipes: found by name, read from YAML, overridden by `path=value`, written back. Imports no torch.

Every mistake becomes one line: where it was made (the file or the override), the path, what was expected, what was
got, and the nearest name.
"""

from __future__ import annotations

import difflib
import itertools
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

import yaml
from pydantic import ValidationError

from limbeck.config import TERMS, DataOptions, Recipe, TermOptions, did_you_mean
from limbeck.config_errors import Keys, one_line, show
from limbeck.config_models import STANDARDISING_MODELS
from limbeck.errors import UserError, reason
from limbeck.network_names import PRETRAINED

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping, Sequence

RECIPES = Path(__file__).parent / "recipes"
METHODS = "methods"  # the recipe that its folder stands for
HEADER_FIELDS = ("Source", "Expected", "Spread", "Seeds", "Hardware", "Reproduced")


# --- YAML -------------------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """SafeLoader with the scalars of YAML 1.2: `1e-3` is a number, `no` and `2026-01-01` are strings."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 (typed so in PyYAML)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Refuse a key given twice: PyYAML keeps the last without a word."""
        lines: dict[str, int] = {}
        for key_node, _ in node.value:
            key, line = str(key_node.value), key_node.start_mark.line + 1
            if key in lines:
                raise yaml.constructor.ConstructorError(
                    problem=f"key `{key}` is given twice, on lines {lines[key]} and {line}"
                )
            lines[key] = line
        return super().construct_mapping(node, deep)


for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(0|[1-9][0-9]*)", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", list("-+.0123456789")),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), _first)


def _parse(text: str, where: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark and "\n" in text else ""
        raise UserError(f"{where}{line}: {error.problem}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{where}: not YAML: {' '.join(str(error).split())}") from error


def dump(recipe: Recipe) -> str:
    """Return the resolved recipe as YAML, every default spelled out; `load_recipe` reads it back to an equal one."""
    data = recipe.model_dump(mode="json")
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=120, default_flow_style=None)


# --- finding recipes --------------------------------------------------------------------------------------


def recipe_names() -> list[str]:
    """Return the names of the recipes in the package: `<task>/<data>/<name>`."""
    return sorted(path.relative_to(RECIPES).with_suffix("").as_posix() for path in RECIPES.glob("*/*/*.yaml"))


def find_recipe(name_or_path: str) -> Path:
    """Return the file of a recipe.

    Args:
        name_or_path: a file, `<task>/<data>/<name>`, or the end of one such name if unique; `methods` if cut.

    Raises:
        UserError: no such recipe, or several.
    """
    path = Path(name_or_path)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise UserError(f"recipe `{name_or_path}`: no such file")
        return path
    wanted = name_or_path.strip("/")
    matches = [name for name in recipe_names() if f"/{name}".endswith((f"/{wanted}", f"/{wanted}/{METHODS}"))]
    if len(matches) == 1:
        return RECIPES / f"{matches[0]}.yaml"
    if matches:
        raise UserError(f"recipe `{name_or_path}` could be " + " or ".join(f"`{name}`" for name in matches))
    if path.is_file():
        return path
    if (path / "config.yaml").is_file():
        raise UserError(f"recipe `{name_or_path}` is a run folder; its recipe is {path / 'config.yaml'}")
    ends: dict[str, list[str]] = {}
    for name in recipe_names():
        for depth in range(3):
            ends.setdefault(name.split("/", depth)[-1], []).append(f"`{name}`")
    nearest = difflib.get_close_matches(wanted, ends, n=1, cutoff=0.55)
    hint = f"did you mean {' or '.join(ends[nearest[0]])}?" if nearest else "`limbeck recipes` lists them"
    raise UserError(f"unknown recipe `{name_or_path}`; {hint}")


def short_name(name_or_path: str) -> str:
    """Return a recipe's name as one part of a path: `distill-digits-few-labels`, or the stem of a file of one's own."""
    path = find_recipe(name_or_path)
    if path.is_relative_to(RECIPES):
        return "-".join(path.relative_to(RECIPES).with_suffix("").parts)
    return path.parent.name if path.name == "config.yaml" else path.stem


def default_folder(name_or_path: str, prefix: str = "") -> Path:
    """Return where a recipe is trained by default: `runs/<prefix><name, its slashes as hyphens>`."""
    return Path("runs") / f"{prefix}{short_name(name_or_path)}"


def read_header(path: Path) -> list[str]:
    """Return the comment lines that a recipe begins with."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return list(itertools.takewhile(lambda line: line.startswith("#"), lines))


def header_fields(lines: Sequence[str]) -> dict[str, str]:
    """Return the fields of a header: `# Field: text`, going on in lines that are indented further.

    >>> header_fields(["# A small student.", "# Source: no row", "#   of a paper", "# Seeds: 0"])
    {'Source': 'no row of a paper', 'Seeds': '0'}
    """
    fields: dict[str, str] = {}
    for line in lines:
        field = re.match(r"# ([A-Z]\w*): (.*)", line)
        if field:
            fields[field[1]] = field[2].strip()
        elif fields and line.startswith("#  "):
            fields[next(reversed(fields))] += f" {line[1:].strip()}"
    return fields


# --- reading and overriding -------------------------------------------------------------------------------


class Override(NamedTuple):
    """One `path=value` of the command line."""

    text: str
    path: Keys
    value: Any


def load_recipe(name_or_path: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe, then apply overrides.

    The overrides are merged onto the recipe with all defaults spelled out, the shallow paths first, so that the order
    on the command line does not matter but for two values of the same path (the last wins). A new `name` of a loss
    term starts from that loss's defaults and keeps the term's weight, warm-up and decay.

    Args:
        name_or_path: what `find_recipe` takes.
        overrides: `a.b=value`, the value in YAML; a number steps into a list, one past its end appends.

    Raises:
        UserError: one line that names the file or the override, the path, what was expected and what was got.
    """
    path = find_recipe(name_or_path)
    try:
        data = _parse(path.read_text(encoding="utf-8"), str(name_or_path))
    except (OSError, UnicodeDecodeError) as error:
        why = f"recipe `{name_or_path}` cannot be read ({reason(error)})"
        raise UserError(f"{why}; mend that, or name another") from error
    if not isinstance(data, dict):
        raise UserError(f"{name_or_path}: expected options as `key: value`, got {show(data)}")
    return override(_validate(data, lambda _: str(name_or_path)), overrides)


def override(recipe: Recipe, overrides: Sequence[str]) -> Recipe:
    """Return a recipe with overrides applied, as `load_recipe` does.

    Args:
        recipe: Any recipe.
        overrides: `a.b=value`, the value in YAML.

    Raises:
        UserError: one line that names the override.
    """
    if not overrides:
        return recipe
    parsed = sorted(map(parse_override, overrides), key=lambda item: (len(item.path), item.path[-1] != "name"))
    data = _merged(recipe, parsed)
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        culprits = _culprits(recipe, parsed, error)
        raise UserError(one_line(error, data, lambda keys: _blame(keys, culprits))) from error


def _merged(recipe: Recipe, overrides: Sequence[Override]) -> dict[str, Any]:
    data = recipe.model_dump(mode="json")
    for item in overrides:
        _check_root(item, data)
        _assign(data, item)
    return data


def _culprits(recipe: Recipe, overrides: Sequence[Override], error: ValidationError) -> list[Override]:
    """Return the overrides without which there is no such mistake: each that can be left out is."""
    kept = list(overrides)
    for item in overrides:
        rest = [other for other in kept if other is not item]
        try:
            Recipe.model_validate(_merged(recipe, rest))
        except UserError:
            continue  # the others need this one
        except ValidationError as left:
            if _first_mistake(left) == _first_mistake(error):
                kept = rest
    return kept


def _first_mistake(error: ValidationError) -> tuple[Any, ...]:
    item = error.errors(include_url=False)[0]
    return item["loc"], item["type"], item["msg"]


def recipe_of_file(
    run: Path | None,
    model: str | None,
    weights: Path | None,
    data: str | None,
    overrides: Sequence[str],
    *,
    which: str | None = None,
) -> Recipe | None:
    """Return the network and data that a file of weights is evaluated with; None where a run says them.

    Args:
        run: Folder of a run.
        model: Name of a network.
        weights: File of weights.
        data: Name of a data set.
        overrides: As of `load_recipe`; for a file only.
        which: For a run only.

    Raises:
        UserError: neither a run alone nor the three others together, or an unknown name.
    """
    given = {"--model": model, "--weights": weights, "--data": data}
    missing = [name for name, value in given.items() if value is None]
    if run is not None:
        if len(missing) < len(given) or overrides:
            raise UserError(f"evaluate {run}: a run has its own network, weights and data; leave the options out")
        return None
    if missing:
        raise UserError(
            f"evaluate expected a RUN, or --model, --weights and --data together, got no {' and no '.join(missing)}"
        )
    if which is not None:
        raise UserError(f"--which {which} chooses among the weights of a RUN, a file has one set; leave it out")
    known = set(get_args(DataOptions.model_fields["name"].annotation)) - {"custom"}
    if data not in known:
        raise UserError(f"--data: unknown data set `{data}`; {did_you_mean(str(data), sorted(known))}")
    seen = {"name": data, "standardise": model not in STANDARDISING_MODELS}
    options = {"model": {"name": model}, "data": seen}
    return override(_validate(options, lambda keys: f"--{keys[0]}"), overrides)


def check_teachers(recipe: Recipe) -> None:
    """Find the teachers' recipes and files, so that a misspelt one is told before anything is loaded or trained.

    Raises:
        UserError: a teacher's recipe is not there, or the file of its weights.
    """
    for number, teacher in enumerate(recipe.teachers):
        if teacher.recipe is not None:
            try:
                find_recipe(teacher.recipe)
            except UserError as error:
                raise UserError(f"`teachers.{number}.recipe`: {error}") from error
        if teacher.weights not in (None, PRETRAINED) and not Path(str(teacher.weights)).is_file():
            raise UserError(
                f"`teachers.{number}.weights` expected a file, got {teacher.weights}, which is not there; name it by "
                f"--set teachers.{number}.weights=FILE"
            )


def parse_override(text: str) -> Override:
    """Return the path and the value of `a.b=value`, the value in YAML.

    Raises:
        UserError: It has no path or no value, or the value is no YAML.
    """
    path, equals, value = text.partition("=")
    keys = tuple(path.strip().split("."))
    if not equals or not all(keys):
        raise UserError(f"--set {text}: expected path=value, such as --set train.epochs=10")
    return Override(text, keys, _parse(value, f"--set {text}"))


def _check_root(override: Override, data: Mapping[str, Any]) -> None:
    """`epochs=3` is no path, but its end is known: name `train.epochs`."""
    if override.path[0] in Recipe.model_fields:
        return
    leaves = [path for path in _leaves(data) if not path.startswith("compare.")]
    ends = {path.rsplit(".", 1)[-1] for path in leaves}
    nearest = difflib.get_close_matches(override.path[-1], ends, n=1, cutoff=0.75)
    if nearest:
        paths = [f"`{path}`" for path in leaves if path.rsplit(".", 1)[-1] == nearest[0]]
        raise UserError(f"--set {override.text}: unknown key; did you mean {' or '.join(paths[:3])}?")


def _leaves(data: Any, path: str = "") -> list[str]:
    if not isinstance(data, (dict, list)):
        return [path]
    items = data.items() if isinstance(data, dict) else enumerate(data)
    return [leaf for key, value in items for leaf in _leaves(value, f"{path}.{key}" if path else str(key))]


def _assign(data: dict[str, Any], override: Override) -> None:
    """Write the override's value into `data`, in place. Unknown keys are left to the validation."""
    node: Any = data
    for depth, key in enumerate(override.path[:-1]):
        node = _child(node, key, override, depth)
    last = override.path[-1]
    if isinstance(node, list):
        index = _index(node, last, override, len(override.path) - 1)
        node[index : index + 1] = [override.value]
    elif isinstance(node, dict):
        if last == "name" and node.get("name") in TERMS and node["name"] != override.value:
            for option in node.keys() - TermOptions.model_fields.keys():
                del node[option]
        node[last] = override.value
    else:
        raise UserError(f"--set {override.text}: `{'.'.join(override.path[:-1])}` is a value and has no keys")


def _child(node: Any, key: str, override: Override, depth: int) -> Any:
    if isinstance(node, list):
        index = _index(node, key, override, depth)
        if index == len(node):
            node.append({})
        return node[index]
    if isinstance(node, dict):
        return node.setdefault(key, {})
    raise UserError(f"--set {override.text}: `{'.'.join(override.path[:depth])}` is a value and has no keys")


def _index(node: list[Any], key: str, override: Override, depth: int) -> int:
    if key.isdecimal() and int(key) <= len(node):
        return int(key)
    where = ".".join(override.path[:depth])
    names = [item.get("name") if isinstance(item, dict) else None for item in node]
    hint = f"; did you mean `{where}.{names.index(key)}`?" if key in names else ""
    raise UserError(
        f"--set {override.text}: `{where}` expected an index from 0 to {len(node)} ({len(node)} appends), "
        f"got `{key}`{hint}"
    )


def _validate(data: Any, blame: Callable[[Keys], str]) -> Recipe:
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        raise UserError(one_line(error, data, blame)) from error


def _blame(keys: Keys, overrides: Sequence[Override]) -> str:
    """Name the override that set `keys`; where several together made the mistake, all of those."""
    setters = [item for item in overrides if keys[: len(item.path)] == item.path]
    inside = [item for item in overrides if item.path[: len(keys)] == keys]
    return " ".join(f"--set {item.text}" for item in setters[-1:] or inside or overrides)
