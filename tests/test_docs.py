"""The documentation builds, alone and without complaint; it fails on a name left out; its code runs."""

from __future__ import annotations

import importlib.util
import inspect
import os
import re
import shlex
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from mkdocs.commands.build import build
from mkdocs.config import load_config
from mkdocs.exceptions import Abort

import limbeck
from limbeck import config, functional, losses
from limbeck.commands import app
from limbeck.config_files import load_recipe
from limbeck.config_rows import select_rows

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
RUN_BY_THE_READER = {"rooms.md"}  # a training of minutes


def hook(name: str):
    spec = importlib.util.spec_from_file_location(f"hook_{name}", DOCS / "hooks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def public_names():
    return hook("public_names")


def build_site(folder: Path) -> None:
    os.environ["NO_MKDOCS_2_WARNING"] = "1"
    build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder), strict=True))


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    try:
        build_site(folder)
    except Abort as error:
        pytest.fail(f"`mkdocs build --strict` fails: {error}")
    return folder


def test_the_site_needs_nothing_from_elsewhere(site):
    fetched = re.compile(r'<(?:script|link|img|iframe)[^>]*?(?:src|href)="(https?://[^"]+)"')
    for page in site.rglob("*.html"):
        assert fetched.findall(page.read_text("utf-8")) == [], page
    assert (site / "assets" / "gradients-dark.svg").is_file()
    assert not (site / "hooks").exists()


def test_formulas_are_drawn_by_the_browser_alone(site):
    for page in site.rglob("*.html"):
        text = page.read_text("utf-8")
        assert "arithmatex" not in text, page
        assert ".. math::" not in text, page
    assert (site / "theory" / "index.html").read_text("utf-8").count("</math>") > 30


def test_a_public_name_without_documentation_fails_the_build(monkeypatch, tmp_path, caplog):
    def left_out():
        return None

    monkeypatch.setattr(functional, "left_out", left_out, raising=False)
    monkeypatch.setattr(functional, "__all__", [*functional.__all__, "left_out"])
    with pytest.raises(Abort):
        build_site(tmp_path)
    assert "limbeck.functional.left_out: no docstring" in caplog.text
    assert "limbeck.functional.left_out: on no page of the reference" in caplog.text


def test_every_public_name_says_what_it_has_to(public_names):
    anchors = {name for name, _ in public_names.public_names()}
    assert len(anchors) > 50
    assert public_names.complaints(anchors) == []


def test_a_name_on_no_page_is_seen(public_names):
    anchors = {name for name, _ in public_names.public_names()} - {"limbeck.losses.GKLLoss.preset"}
    assert public_names.complaints(anchors) == ["limbeck.losses.GKLLoss.preset: on no page of the reference"]


def test_a_missing_section_is_seen(public_names, monkeypatch):
    text = functional.weighted_mse.__doc__.replace("Gradient:", "Gradients:")
    monkeypatch.setattr(functional.weighted_mse, "__doc__", text)
    monkeypatch.setattr(losses.KLLoss, "__doc__", "KL.\n\nArgs:\n    temperature: T.\n\nGradient:\n    Both.\n")
    anchors = {name for name, _ in public_names.public_names()}
    assert public_names.complaints(anchors) == [
        "limbeck.functional.weighted_mse: no section `Gradient:`",
        "limbeck.losses.KLLoss: no section `Example:`",
        "limbeck.losses.KLLoss: no section `Reference:`",
    ]


def test_a_name_of_the_package_in_no_room_is_seen(public_names, monkeypatch):
    monkeypatch.setattr(limbeck, "__all__", [*limbeck.__all__, "left_out"])
    anchors = {name for name, _ in public_names.public_names()}
    assert public_names.complaints(anchors) == ["limbeck.left_out: in no room's __all__"]


def code_of(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if code_of(page, "python") and page.name not in RUN_BY_THE_READER],
    ids=lambda page: page.stem,
)
def test_the_code_of_a_page_runs_from_top_to_bottom(page):
    namespace: dict[str, object] = {}
    for block in code_of(page, "python"):
        exec(compile(block, str(page), "exec"), namespace)


def test_the_recipe_on_its_page_is_a_recipe():
    recipe, teachers, terms = (yaml.safe_load(block) for block in code_of(DOCS / "recipes.md", "yaml"))
    assert len(config.Recipe(task="distill", **teachers).teachers) == 4
    assert len(config.Recipe(task="distill", **teachers, **terms).losses) == 6
    assert set(config.Recipe(**recipe).compare.contenders) == {"kl", "gkl"}


def test_the_commands_of_the_pages_name_recipes_and_options_that_exist():
    blocks = [block for page in PAGES for block in code_of(page, "console")]
    commands = "".join(blocks).replace("\\\n", " ")  # a line may go on
    lines = re.findall(r"^\$ limbeck (?:train|compare|recipes) (\S+)(.*)", commands, flags=re.MULTILINE)
    named = [(name, rest) for name, rest in lines if "/" in name]
    assert len(named) >= 3
    for name, rest in named:
        words = shlex.split(rest, comments=True)
        recipe = load_recipe(name, [after for word, after in pairwise(words) if word == "--set"])
        for rows in re.findall(r"--losses (\S+)", rest):
            select_rows(recipe, rows)


def test_every_option_and_every_command_has_its_table():
    pages = " ".join(page.read_text("utf-8") for page in PAGES)
    shown = {value for _, value in inspect.getmembers(config, inspect.isclass) if issubclass(value, config.Options)}
    shown -= {config.Options, config.Contender, *config.TERMS.values()}
    missing = {model.__name__ for model in shown} - set(re.findall(r"<!-- options: (\w+) -->", pages))
    assert missing == set()
    commands = {command.name or command.callback.__name__ for command in app.registered_commands}
    for group in app.registered_groups:
        commands |= {f"{group.name} {command.name}" for command in group.typer_instance.registered_commands}
    assert commands == set(re.findall(r"<!-- command: ([\w ]+) -->", pages))


def test_the_table_of_letters_is_what_translate_does():
    text = (DOCS / "choosing-the-weights.md").read_text("utf-8")
    title, _, *lines = text.split("| code base |")[1].split("\n\n")[0].splitlines()
    options = [cell.strip(" `") for cell in title.strip("|").split("|")]
    rows = {}
    for line in lines:
        name, *cells = (cell.strip(" `") for cell in line.strip("|").split("|"))
        rows[name] = dict(zip(options, cells, strict=True))
    assert len(rows) == 8
    for code_base, letters in rows.items():
        named = {option: letter for option, letter in letters.items() if letter not in ("", "1", "sample", "GI")}
        given = {letter: float(number) for number, letter in enumerate(named.values(), start=2)}
        translated = losses.translate(code_base, given).options
        assert {option: translated[option] for option in named} == {o: given[letter] for o, letter in named.items()}
        if letters["prior"] == "GI":
            assert losses.translate(code_base, given | {"GI": False}).options["prior"] == "sample"
            assert losses.translate(code_base, given | {"GI": True}).options["prior"] == "class"


def test_the_preset_of_the_page_is_its_published_setting():
    settings = {"ALPHA": 1, "BETA": 16, "GAMMA": 0.05, "T": 4, "T2": 4, "GI": True, "WARMUP": 20}
    translated = losses.GKLLoss(100, **losses.translate("distillation-v2", settings).options)
    assert repr(translated) == repr(losses.GKLLoss.preset("cifar-distillation", 100))


def test_the_citation_file_names_the_papers():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert {"cff-version", "message", "title", "authors", "version"} <= citation.keys()
    assert citation["version"] == limbeck.__version__
    identifiers = {entry["identifiers"][0]["value"] for entry in citation["references"]}
    assert identifiers == {"arXiv:2305.13948", "arXiv:2503.08038", "arXiv:2412.08139"}


def test_the_changelog_has_the_version():
    assert f"## [{limbeck.__version__}]" in (ROOT / "CHANGELOG.md").read_text("utf-8")
