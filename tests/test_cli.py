"""The command line as its user meets it: exit codes, one line per mistake, no torch where nothing is computed."""

import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import limbeck.demo
import limbeck.engine.fit
from limbeck import listings, run_listings
from limbeck.cli import main
from limbeck.config import TERMS
from limbeck.errors import Interrupted

ALLOCATED = ", asked for 4.0 GiB"
FEW = "distill/digits/few-labels"
FILE = ["evaluate", "--model", "resnet20", "--weights", "f.pth"]
TINY = ["--set", "train.epochs=1", "--set", "save.tensorboard=false"]


@pytest.fixture
def limbeck_says(capsys, monkeypatch, tmp_path):
    """Run a command in an empty folder; return its exit code, what it printed, and its one line of error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")

    def run(*words):
        code = main([str(word) for word in words])
        output, error = capsys.readouterr()
        return code, output, error

    return run


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A run of one epoch, for all tests that need one."""
    folder = tmp_path_factory.mktemp("runs") / "teacher"
    assert main(["train", "supervised/digits/teacher", "--run", str(folder), *TINY]) == 0
    return folder


def python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


# --- quick answers ---


def test_help_listings_and_mistakes_answer_without_torch():
    commands = [
        [],
        ["--help"],
        ["--version"],
        *([command, "--help"] for command in ("demo", "train", "evaluate", "compare", "plot", "recipes", "losses")),
        ["recipes"],
        ["recipes", FEW],
        ["losses"],
        ["losses", "--brief"],
        ["losses", "gkl"],
        ["losses", "gk"],
        ["train", "few-label"],
        ["train", FEW, "--set", "train.epoch=3"],
        ["train", FEW, "--set", "teachers.0.recipe=nobody"],
        ["compare", FEW, "--losses", "kl,glk"],
        ["trian"],
    ]
    done = python(
        "import sys\n"
        "from limbeck.cli import main\n"
        f"for words in {commands!r}:\n"
        "    main(words)\n"
        "    heavy = {'torch', 'numpy', 'scipy', 'matplotlib', 'sklearn'} & sys.modules.keys()\n"
        "    assert not heavy, (words, heavy)\n"
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("package", ["typer", "pydantic", "rich", "yaml"])
def test_missing_extra_is_named(package):
    done = python(
        f"import sys\nsys.modules[{package!r}] = None\nfrom limbeck.cli import main\nsys.exit(main(['recipes']))"
    )
    assert done.returncode == 2
    way_out = 'pip install "limbeck[cli]", or in a clone pip install ".[cli]"'
    assert done.stderr == f"limbeck: the command line needs `{package}`: {way_out}\n"


def test_python_m_limbeck_is_the_command():
    done = subprocess.run([sys.executable, "-m", "limbeck", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("limbeck 0.")


def test_output_that_cannot_hold_a_formula_is_no_error():
    done = subprocess.run(
        [sys.executable, "-m", "limbeck", "losses", "kl"],
        capture_output=True,
        check=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )
    assert b"? p_t log(p_t / p_s)" in done.stdout


def test_no_words_show_the_help(limbeck_says):
    code, output, error = limbeck_says()
    assert (code, error) == (0, "")
    assert all(command in output for command in ("demo", "train", "evaluate", "compare", "plot", "recipes", "losses"))


def test_recipe_is_shown_as_a_file_that_trains(limbeck_says, tmp_path):
    _, output, _ = limbeck_says("recipes", FEW)
    assert output.startswith("# ")
    (tmp_path / "mine.yaml").write_text(output)
    code, output, _ = limbeck_says("recipes", "mine.yaml")
    assert code == 0
    assert "# Reproduced: " in output


@pytest.mark.parametrize("columns", ["80", "120"])
def test_losses_are_listed_with_formula_needs_cost_and_paper(limbeck_says, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    _, output, _ = limbeck_says("losses")
    assert max(map(len, output.splitlines())) <= int(columns)
    words = " ".join(output.split())
    for name, term in TERMS.items():
        parts = (f"{name} {term.__doc__.splitlines()[0]}", term.formula, listings.needs(term), term.cost, term.paper)
        assert " ".join(" ".join(parts[:2]).split()) in words
        assert " ".join(f"needs {parts[2]} · costs {parts[3]} · {parts[4]}".split()) in words


def test_losses_are_listed_by_family_in_the_order_of_the_catalogue():
    assert [name for terms in listings.FAMILIES.values() for name in terms] == list(TERMS)


def test_the_brief_list_has_a_line_for_each_loss(limbeck_says, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    _, output, _ = limbeck_says("losses", "--brief")
    lines = [line for line in output.splitlines() if re.match(r"\w+ +[T·][LH·][F·][M·]  \w", line)]
    assert [line.split()[0] for line in lines] == list(TERMS)
    assert max(map(len, lines)) <= 80
    letters = {line.split()[0]: line.split()[1] for line in lines}
    assert [letters[name] for name in ("kl", "gkl", "ofa", "crd", "tf_kd")] == ["T···", "TL·M", "THF·", "T·FM", "·H··"]


def test_loss_is_shown_with_default_range_and_meaning_of_each_option(limbeck_says):
    _, output, _ = limbeck_says("losses", "gkl")
    lines = [line.split() for line in output.splitlines()]
    assert ["weight_power", "1.0", ">=", "0"] in [words[:4] for words in lines]
    assert ["prior", "class", "class,", "sample"] in [words[:4] for words in lines]
    assert any(words[:3] == ["ramp_epochs", "0", "integer"] for words in lines)


# --- mistakes ---


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["trian", "x"], "Did you mean 'train'?"),
        (["train"], "RECIPE"),
        (["train", FEW, "--sett", "a=b"], "--set"),
        (["train", FEW, "--set", "a=1", "b=2"], "b=2"),
        (["train", FEW, "--set", "train.epochs=0"], "--set train.epochs=0: `train.epochs` expected at least 1, got 0"),
        (["train", "few-label"], "did you mean"),
        (["compare", FEW, "--seeds", "x"], "'--seeds': expected an integer ("),
        (["compare", FEW, "--workers", "0"], "'--workers': expected at least 1 ("),
        (["compare", FEW, "--seeds", "0"], "'--seeds': expected at least 1, got 0"),
        (["compare", FEW, "--run", "x"], "Did you mean --folder?"),
        (["demo", "--run", "x"], "Did you mean --folder?"),
        (["train", FEW, "--folder", "x"], "Did you mean --run?"),
        (["compare", FEW, "--losses", "kl,glk"], "did you mean `gkl`? (rows: ce, kl, dkl, ikl, gkl)"),
        (["compare", "digits/teacher"], "no rows to compare"),
        (["evaluate", "nowhere"], "nowhere"),
        ([*FILE, "--data", "digits", "--which", "best"], "--which best chooses among the weights of a RUN"),
        ([*FILE, "--data", "custom"], "`custom`; expected one of `ade20k`, `captioned_shards`, `cifar10`"),
        ([*FILE, "--data", "cifar11"], "--data: unknown data set `cifar11`; did you mean `cifar10"),
        (["evaluate", "x", "--which", "bst"], "'bst' is not one of 'last', 'best', 'ema'"),
        (["plot", "nowhere"], "nowhere"),
        (["losses", "gk"], "unknown loss `gk`; did you mean `gkl`?"),
        (["recipes", "gk"], "did you mean"),
        (["demo", "--seeds", "-1"], "'--seeds': expected at least 1, got -1"),
    ],
)
def test_mistake_is_one_line_and_exit_code_2(limbeck_says, words, expected):
    code, output, error = limbeck_says(*words)
    assert (code, output) == (2, "")
    assert error.startswith("limbeck: ")
    assert error.count("\n") == 1
    assert expected in error


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (Interrupted("saved; go on with --resume"), 75, "limbeck: saved; go on with --resume\n"),
        (KeyboardInterrupt(), 130, "limbeck: interrupted\n"),
        (
            OSError(errno.ENOSPC, "No space left on device", "runs/a"),
            2,
            "limbeck: runs/a: no space left on device; mend that, and run the command again\n",
        ),
        *(
            (error, 2, f"limbeck: out of memory{asked}; lower `model.width` or `train.batch_size`\n")
            for error, asked in (
                (MemoryError(), ""),
                (
                    RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 4294967296 bytes."),
                    ALLOCATED,
                ),
                (
                    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4294967296 bytes"),
                    ALLOCATED,
                ),
                (
                    torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0"),
                    ", asked for 20.00 GiB",
                ),
            )
        ),
        (
            ZeroDivisionError("a\nb"),
            1,
            "limbeck: ZeroDivisionError: a b (a bug, most likely; --debug shows the traceback)\n",
        ),
    ],
)
def test_what_goes_wrong_has_its_exit_code_and_no_traceback(limbeck_says, monkeypatch, error, code, line):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(limbeck.engine.fit, "fit", fail)
    assert limbeck_says("train", "digits/teacher") == (code, "", line)


@pytest.mark.parametrize("place", [0, 1, 3])
def test_debug_shows_the_traceback_wherever_it_stands(limbeck_says, place):
    words = ["train", FEW, "--set", "seed=-1"]
    words.insert(place, "--debug")
    code, _, error = limbeck_says(*words)
    assert code == 2
    assert error.startswith("Traceback")
    assert error.splitlines()[-1].startswith("limbeck.errors.UserError: --set seed=-1")
    assert error.count("expected at least 0") == 1


def test_a_network_beyond_all_memory_is_one_line(limbeck_says):
    code, _, error = limbeck_says("train", "digits/teacher", *TINY, "--set", "model.width=1000000000000")
    assert code == 2
    assert re.search(
        r"limbeck: out of memory, asked for [\d.]+ GiB; lower `model.width` or `train.batch_size`\n$", error
    )


@pytest.mark.parametrize("words", ["losses", f"recipes {FEW}", "--help"])
def test_a_reader_that_goes_away_is_no_error(words):
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "limbeck", *words.split()]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize("words", [("train", FEW, "--run"), ("demo", "--folder"), ("compare", FEW, "--folder")])
def test_a_file_in_the_place_of_the_folder_is_named(limbeck_says, tmp_path, words):
    (tmp_path / "README.md").write_text("")
    code, _, error = limbeck_says(*words, "README.md")
    assert (code, error) == (2, f"limbeck: README.md is a file, not a folder; choose another {words[-1]}\n")


@pytest.mark.parametrize("words", [("train", FEW, "--run"), ("compare", FEW, "--folder")])
def test_a_new_folder_on_a_read_only_disk_asks_for_another(limbeck_says, monkeypatch, words):
    def refuse(path, **_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)
    code, _, error = limbeck_says(*words, "new")
    reason = f"cannot be written (read-only file system); choose another {words[-1]}"
    assert (code, error) == (2, f"limbeck: new: {reason}\n")


# --- work ---


def test_train_goes_into_a_folder_named_after_the_recipe_and_is_not_overwritten(limbeck_says):
    code, output, _ = limbeck_says("train", "digits/teacher", *TINY)
    assert code == 0
    assert "runs/supervised-digits-teacher" in output
    code, _, error = limbeck_says("train", "digits/teacher", *TINY)
    assert code == 2
    assert "runs/supervised-digits-teacher" in error
    code, again, _ = limbeck_says("train", "digits/teacher", *TINY, "--resume")
    assert code == 0
    assert again == output


def test_evaluate_prints_what_the_run_found(limbeck_says, teacher):
    top1 = json.loads((teacher / "results.json").read_text())["last"]["test"]["top1"]
    code, output, _ = limbeck_says("evaluate", teacher)
    assert code == 0
    (line,) = (line for line in output.splitlines() if "test" in line)
    assert f"{100 * top1:.2f}" in line


def test_the_widest_table_of_metrics_fits_into_80_columns(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    values = {"top1": 1.0, "top5": 1.0, "nll": 12.345, "ece": 1.0, "agreement": 1.0, "samples": 1000}
    weights = {"epoch": 100, "validation": values, "test": values}
    teachers = [{"validation": values, "test": values}]
    results = {"last": weights, "best": weights, "ema": weights, "teachers": teachers, "epochs": 1, "train_seconds": 1}
    run_listings.print_results(results, Path("runs/a"))
    header, _, *lines, _ = capsys.readouterr().out.strip().splitlines()
    titles = ["weights", "split", "top-1, %", "top-5, %", "NLL, nats", "ECE, %", "agreement, %", "n"]
    assert header.split() == " ".join(titles).split()
    assert len(lines) == 8


def test_compare_trains_what_is_missing_and_prints_the_table(limbeck_says, teacher, tmp_path):
    given = ["--set", f"teachers=[{{run: {teacher}}}]", "--folder", "cmp", *TINY]
    code, output, _ = limbeck_says("compare", FEW, "--losses", "ce,kl", "--seeds", 1, *given)
    assert code == 0
    assert "Trained 4 runs" in output
    assert (tmp_path / "cmp" / "report.html").is_file()
    code, output, _ = limbeck_says("compare", FEW, "--losses", "ce,kl", "--seeds", 1, *given)
    assert code == 0
    assert "All 4 runs were finished already: nothing was trained." in output


def test_the_demo_ends_with_the_command_that_goes_on(limbeck_says, monkeypatch, tmp_path):
    monkeypatch.setattr(limbeck.demo, "compare_and_show", lambda *_, **__: None)
    monkeypatch.setenv("COLUMNS", "40")
    folder = tmp_path / "a-folder-whose-path-is-longer-than-a-line"
    code, output, _ = limbeck_says("demo", "--seeds", 3, "--folder", folder)
    assert code == 0
    assert output.splitlines()[-1].strip() == f"limbeck demo --seeds 6 --folder {folder}"


def test_plot_draws_a_run_and_two_runs(limbeck_says, teacher, tmp_path):
    code, output, _ = limbeck_says("plot", teacher)
    assert code == 0
    assert str(teacher / "plots" / "margins.png") in output.replace("\n", "")
    code, _, _ = limbeck_says("train", "digits/teacher", "--run", "other/teacher", "--set", "seed=1", *TINY)
    assert code == 0
    code, output, _ = limbeck_says("plot", "other/teacher", "--against", teacher)
    assert code == 0
    assert (tmp_path / "other/teacher/plots-against-teacher/margins.png").is_file()
