"""The map of the papers has no row that points to nothing, and nothing numbered is without a row."""

from __future__ import annotations

import ast
import functools
import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from markdown.extensions.toc import slugify
from pydantic import ValidationError
from test_docs import hook
from typer.main import get_command

from limbeck.cli import main
from limbeck.commands import app
from limbeck.config_files import load_recipe, recipe_names
from limbeck.errors import UserError
from limbeck.papers import KINDS, STATUSES, Entry, Paper, find, load_papers, pointer_kind
from limbeck.papers.recipes import named_in_headers, recipes_of
from limbeck.papers.show import where_in_short

ROOT = Path(__file__).resolve().parent.parent
ENTRIES = {entry.id: entry for paper in load_papers().values() for entry in paper.entries}
ID = re.compile(rf"\b(?:{'|'.join(load_papers())}):(?:{'|'.join(KINDS)})-[a-z0-9-]*[a-z0-9]")


def published_paper(**change: object) -> dict[str, object]:
    entry = {"id": "gkl:eq-1", "title": "KL", "status": "reproduced", "where": ["limbeck.losses.KLLoss"]}
    paper = {"id": "gkl", "name": "N", "title": "T", "source": "S", "link": "L", "note": ""}
    return {**paper, "inventory": {"eq": ["1"]}, "entries": [entry], **change}


# --- pointers ---


@functools.cache
def functions_of(file: Path) -> set[str]:
    return {node.name for node in ast.walk(ast.parse(file.read_text("utf-8"))) if isinstance(node, ast.FunctionDef)}


@functools.cache
def anchors_of(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", page.read_text("utf-8"), flags=re.MULTILINE)
    explicit = {found[1]: title for title in titles if (found := re.search(r"\{ ?#([\w-]+) ?\}$", title))}
    return {*explicit, *(slugify(title.replace("`", ""), "-") for title in titles)}


def what_is_wrong(pointer: str) -> str | None:
    """Return why a pointer leads to nothing; None if it leads somewhere."""
    match pointer_kind(pointer):
        case "name":
            return None if resolves(pointer) else "no such name"
        case "command":
            return wrong_command(pointer)
        case "recipe":
            return None if pointer in recipe_names() else "no such recipe"
        case "test":
            file, _, function = pointer.partition("::")
            path = ROOT / file
            return None if path.is_file() and function in functions_of(path) else "no such test"
        case "page":
            page, _, anchor = pointer.partition("#")
            path = ROOT / page
            return None if path.is_file() and (not anchor or anchor in anchors_of(path)) else "no such place"
    return None if (ROOT / pointer).is_file() else "no such file"


def resolves(name: str) -> bool:
    parts = name.split(".")
    for depth in range(len(parts), 0, -1):
        try:
            value = importlib.import_module(".".join(parts[:depth]))
        except ImportError:
            continue
        try:
            functools.reduce(getattr, parts[depth:], value)
        except AttributeError:
            return False
        return True
    return False


def wrong_command(words: str) -> str | None:
    name, *arguments = shlex.split(words)[1:]
    commands = get_command(app).commands
    if name not in commands:
        return "no such command"
    options = {option for parameter in commands[name].params for option in parameter.opts}
    if unknown := [word for word in arguments if word.startswith("--") and word not in options]:
        return f"no option {unknown[0]}"
    takes_recipe = any(parameter.name == "recipe" for parameter in commands[name].params)
    return None if not takes_recipe or arguments[0] in recipe_names() else "no such recipe"


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=lambda entry: entry.id)
def test_every_pointer_of_an_entry_leads_somewhere(entry):
    assert {pointer: wrong for pointer in entry.where if (wrong := what_is_wrong(pointer))} == {}


@pytest.mark.parametrize(
    ("pointer", "wrong"),
    [
        ("limbeck.functional.gkl_divergences", "no such name"),
        ("limbeck.rooms.gkl_divergence", "no such name"),
        ("limbeck.losses.GKLLoss.presets", "no such name"),
        ("limbeck compares distill/digits/few-labels", "no such command"),
        ("limbeck compare distill/digits/no-labels", "no such recipe"),
        ("limbeck compare distill/digits/few-labels --seed 3", "no option --seed"),
        ("distill/digits/no-labels", "no such recipe"),
        ("tests/test_gkl.py::test_gkl", "no such test"),
        ("tests/test_nothing.py::test_gkl_at_power_one_is_ikl", "no such test"),
        ("docs/theory.md#kl-is-three-losses", "no such place"),
        ("docs/theories.md", "no such place"),
        ("examples/theories.py", "no such file"),
    ],
)
def test_a_pointer_to_nothing_is_seen(pointer, wrong):
    assert what_is_wrong(pointer) == wrong


def test_the_commands_inside_the_texts_run():
    texts = [text for entry in ENTRIES.values() for text in (entry.paper, entry.ours, entry.needs, entry.why)]
    commands = [found for text in texts for found in re.findall(r"\((limbeck [^)]+)\)", text)]
    assert len(commands) >= 3
    assert {command: wrong for command in commands if (wrong := wrong_command(command))} == {}


# --- ids ---


def test_every_id_that_a_header_names_has_an_entry():
    assert named_in_headers()
    assert {name: recipes for name, recipes in named_in_headers().items() if name not in ENTRIES} == {}


def test_every_id_in_texts_code_and_pages_has_an_entry():
    files = [*(ROOT / "src").rglob("*.py"), *(ROOT / "src").rglob("*.yaml"), *ROOT.glob("docs/**/*.md")]
    files += [ROOT / "README.md", ROOT / "CHANGELOG.md"]
    unknown = {name: file.name for file in files for name in ID.findall(file.read_text("utf-8")) if name not in ENTRIES}
    assert unknown == {}


def test_nothing_numbered_is_left_out():
    counts = {source: {kind: len(paper.inventory.get(kind, ())) for kind in KINDS} for source, paper in _papers()}
    assert counts["gkl"] == {"eq": 18, "theorem": 1, "algorithm": 2, "table": 22, "figure": 6, "claim": 0}
    assert counts["ikl"] == {"eq": 20, "theorem": 1, "algorithm": 2, "table": 18, "figure": 5, "claim": 0}
    assert counts["wkd"]["table"] == 16
    for _, paper in _papers():
        assert any(entry.kind == "claim" for entry in paper.entries)


def _papers() -> list[tuple[str, Paper]]:
    return list(load_papers().items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inventory": {"eq": ["1", "2"]}}, "gkl:eq-2 is in the inventory and has no entry"),
        ({"inventory": {}}, "gkl:eq-1 is not in the inventory"),
        ({"id": "ikl"}, "gkl:eq-1 stands in the file of `ikl`"),
        ({"entries": published_paper()["entries"] * 2}, "gkl:eq-1 stands there twice"),
    ],
)
def test_a_gap_in_a_paper_is_seen(change, message):
    Paper.model_validate(published_paper())
    with pytest.raises(ValidationError, match=message):
        Paper.model_validate(published_paper(**change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"where": []}, "is reproduced, so it needs `where`"),
        ({"status": "same code, small data"}, "is same code, small data, so it needs `ours`"),
        ({"status": "not reproduced"}, "is not reproduced, so it needs `needs`"),
        ({"status": "not built"}, "is not built, so it needs `why`"),
        ({"why": "no time"}, "is reproduced, but `why` says why it is not built"),
        ({"status": "nearly"}, "same code, small data"),
        ({"rows": [["a", "b"], ["1"]]}, "rows of different lengths"),
        ({"id": "gkl:equation-1"}, "pattern"),
        ({"titel": "KL"}, "Extra inputs"),
    ],
)
def test_an_entry_says_what_its_status_promises(change, message):
    entry = published_paper()["entries"][0]
    Entry.model_validate(entry)
    with pytest.raises(ValidationError, match=message):
        Entry.model_validate({**entry, **change})


@pytest.mark.parametrize("entry", [e for e in ENTRIES.values() if e.status == "reproduced"], ids=lambda entry: entry.id)
def test_what_is_reproduced_is_held_by_a_test(entry):
    assert "test" in map(pointer_kind, entry.where)


@pytest.mark.parametrize(
    ("method", "entry"),
    [("DPK", "table-4"), ("FCFD", "table-4"), ("KD-Zero", "table-4"), ("FRSKD", "table-7"), ("ICD", "table-8")],
)
def test_a_rival_without_a_loss_has_a_sentence_that_says_why(method, entry):
    told = ENTRIES[f"wkd:{entry}"]
    assert any(method in row[0] or method in row for row in told.rows)
    assert re.search(rf"\b{method}\b[^.]* not\b[^.]*, because [^.]+\.", told.why or told.needs)


# --- figures ---


def test_cells_keep_the_digits_of_the_paper():
    cells = {cell for row in ENTRIES["gkl:table-vi"].rows for cell in row}
    assert {"66.60", "45.40", "64.6"} <= cells


COLUMNS = [name for name in recipe_names() if load_recipe(name).compare.published]


@pytest.mark.parametrize("recipe", COLUMNS)
def test_the_published_figures_of_a_recipe_stand_in_its_table(recipe):
    published = load_recipe(recipe).compare.published
    named = [ENTRIES[name] for name, recipes in named_in_headers().items() if recipe in recipes]
    shown = " ".join(cell for entry in named for row in entry.rows for cell in row)
    shown += " ".join(entry.paper for entry in named)
    values = [published.teacher, published.student, *published.rows.values(), *published.robust_rows.values()]
    assert [value for value in values if value is not None and f"{value:.2f}" not in shown] == []


def test_a_recipe_is_shown_with_its_figures_and_its_command():
    (row,) = [row for row in recipes_of("gkl:table-xvii") if row.recipe.endswith("resnet56-resnet20")]
    assert row.commands == ("limbeck compare distill/cifar100/resnet56-resnet20 --table",)
    assert "kd 70.66" in row.paper
    assert "gkl 71.67" in row.paper
    robust = {row.recipe: row.paper for row in recipes_of("gkl:table-iii")}
    assert robust["robust/cifar100/gkl-at"] == "trades 62.87 / 30.29, ikl 65.76 / 31.91, gkl 65.76 / 31.91"
    (tail, *_) = recipes_of("gkl:claim-long-tail")
    assert tail.paper == ""
    assert "seeds 6" in tail.ours
    assert recipes_of("wkd:table-1") == []


@pytest.mark.parametrize(
    "entry", ["gkl:claim-distillation", "gkl:claim-long-tail", "ikl:claim-distillation", "ikl:table-5"]
)
def test_no_gain_is_denied_that_a_recipe_saw(entry):
    """Where the entry says that no gain is seen, the recipes' headers must not say the opposite."""
    assert "no gain over KL" in ENTRIES[entry].ours
    measured = [row.ours for row in recipes_of(entry) if not row.paper]  # those of a paper's protocol were not run
    assert len(measured) >= 2
    assert [text for text in measured if re.search(r"\b(?:gkl|ikl) better", text)] == []


@pytest.mark.parametrize("entry", named_in_headers())
def test_the_commands_of_a_recipe_run(entry):
    commands = [command for row in recipes_of(entry) for command in row.commands]
    assert {command: wrong for command in commands if (wrong := wrong_command(command))} == {}


def test_a_header_may_say_how_its_recipe_is_run():
    (row,) = [row for row in recipes_of("gkl:table-xiii") if row.recipe == "ablations/digits/smoothing"]
    assert len(row.commands) == 2
    assert all(command.startswith("limbeck sweep ablations/digits/smoothing --set ") for command in row.commands)


def test_each_recipe_that_names_an_entry_is_counted():
    assert where_in_short(ENTRIES["gkl:table-xvii"]).startswith(f"{len(recipes_of('gkl:table-xvii'))} recipes")
    assert where_in_short(ENTRIES["gkl:claim-special-case"]) == "tests/test_gkl.py +1"


# --- the command ---


@pytest.mark.parametrize(
    "word", ["gkl:table-xvii", "table-xvii", "XVII", " GKL:Table-XVII ", "Table XVII", "gkl Tab. XVII"]
)
def test_an_entry_is_found_by_the_end_of_its_id(word):
    assert find(word) is ENTRIES["gkl:table-xvii"]


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("tabel-xvii", "nothing in the papers is called `tabel-xvii`; did you mean `gkl:table-xvii`?"),
        ("gkll", "nothing in the papers is called `gkll`; did you mean `gkl`?"),
        ("??", "nothing in the papers is called `??`; `limbeck papers` lists all"),
        ("table-1", "`table-1` could be `ikl:table-1` or `wkd:table-1`"),
        ("Eq. (13)", "`Eq. (13)` could be `gkl:eq-13` or `ikl:eq-13`"),
    ],
)
def test_an_unknown_id_is_one_line_with_the_nearest(word, message):
    with pytest.raises(UserError) as error:
        find(word)
    assert str(error.value) == message


def test_many_of_one_number_are_not_all_listed():
    with pytest.raises(UserError, match=r"`1` could be `gkl:eq-1` or .* or \d+ others$"):
        find("1")


@pytest.mark.parametrize("width", [80, 120])
def test_the_map_fits_its_width_and_shows_every_id(width, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(width))
    assert main(["papers"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if len(line) > width and "http" not in line] == []
    for entry in ENTRIES.values():
        assert any(entry.name in line.split() for line in lines), entry.id


def test_a_source_is_shown_alone_with_its_counts(capsys):
    assert main(["papers", "gkl"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for status, number in load_papers()["gkl"].counts().items():
        assert f"{number} {status}" in shown
    assert sum(load_papers()["gkl"].counts().values()) == len(load_papers()["gkl"].entries)
    assert "Wasserstein" not in shown


@pytest.mark.parametrize("entry", ["gkl:table-xvii", "gkl:claim-long-tail", "gkl:eq-16", "wkd:table-2b"])
def test_an_entry_is_shown_whole(entry, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "100")
    assert main(["papers", entry]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    told = ENTRIES[entry]
    for text in (told.id, told.title, told.status, told.paper, told.ours, told.needs, told.why, *told.where):
        assert " ".join(text.split()) in shown
    for row in told.rows[1:]:
        assert " ".join(row) in shown
    for recipe in recipes_of(entry):
        assert all(command in shown for command in recipe.commands)


def test_the_map_answers_without_torch():
    calls = "main(['papers']); main(['papers', 'XVII'])"
    code = f"import sys; from limbeck.cli import main; {calls}; print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, encoding="utf-8")
    assert run.stdout.splitlines()[-1] == "False"


# --- the page ---


def test_the_page_has_every_entry_and_links_to_what_it_names():
    page = (ROOT / "docs" / "papers.md").read_text("utf-8")
    assert re.findall(r"<!-- papers: (\w+) -->", page) == list(load_papers())
    shown = hook("papers").on_page_markdown(page)
    anchors = set(re.findall(r' id="([\w-]+)"', shown)) | set(re.findall(r"\{ #([\w-]+) \}", shown))
    assert {name.replace(":", "-") for name in ENTRIES} <= anchors
    assert set(re.findall(r"\]\(#([\w-]+)\)", shown)) <= anchors
    assert "[`gkl_divergence`][limbeck.functional.gkl_divergence]" in shown
    assert "(theory.md#kl-is-two-losses)" in shown
    assert "| GKL-KD | 71.67 | 74.26 |" in shown
    for status in STATUSES:
        assert f"| {status} |" in page
