"""A run's folder: the names in it, files that are whole or absent, and whether a run may start there."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
from contextlib import contextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, BinaryIO

import torch

from limbeck.config_files import dump, load_recipe
from limbeck.errors import UserError, reason

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from limbeck.config import Recipe

CONFIG = "config.yaml"
ENVIRONMENT = "environment.json"
METRICS = "metrics.jsonl"
TIMING = "timing.jsonl"
CHECKPOINT = "checkpoint.pt"
PREDICTIONS = "predictions.npz"
RESULTS = "results.json"
TENSORBOARD = "tensorboard"
COMPARISON = "comparison.json"  # in a folder of runs
SWEEP = "sweep.json"
WEIGHTS = {"last": "weights.safetensors", "best": "best.safetensors", "ema": "ema.safetensors"}

RESULTS_FORMAT = 1
TEMPORARY = ".tmp"  # ends the name of a file that is being written
LOCK = ".lock"
TEACHER = re.compile(r"teacher\d+")  # folder of a teacher that a run trained for itself
BEFORE_CONFIG = frozenset({LOCK, f".{CONFIG}{TEMPORARY}"})  # what a run leaves that is killed in its first write

# What may differ between the sessions of one run without changing what it computes. Threads and teachers matter, but
# the checkpoint answers for them: it keeps the number of threads and the fingerprints of the teachers' weights.
FREE_KEYS: dict[str, frozenset[str]] = {
    "adversary": frozenset({"attacks"}),  # made on the finished weights
    # The checkpoint keeps the fingerprint of the data themselves; the last two decide nothing that is learned.
    "data": frozenset(
        {"folder", "generated", "train_list", "test_list", "shards", "workers", "shifted_tests", "corrupted_tests"}
    ),
    "save": frozenset({"every_steps", "every_seconds", "every_epochs", "tensorboard"}),
    "train": frozenset({"device", "threads"}),
}
FREE_SECTIONS = frozenset({"title", "compare", "teachers"})


@contextmanager
def disk_errors(path: Path, option: str = "--run") -> Iterator[None]:
    """Turn an error of the operating system while `path` is written into one line; `option` chooses another folder."""
    try:
        yield
    except OSError as error:
        raise UserError(_disk_error(path, error, option)) from error


def _disk_error(path: Path, error: OSError, option: str) -> str:
    there = next(parent for parent in (path, *path.parents) if os.path.exists(parent))  # Path.exists may raise
    if isinstance(error, (FileExistsError, NotADirectoryError)) and os.path.isfile(there):
        return f"{there} is a file, not a folder; choose another {option}"
    saved = os.path.isfile((path if os.path.isdir(path) else path.parent) / CHECKPOINT)
    way_out = "what was saved before is intact, so mend this and continue with --resume"
    return f"{path}: cannot be written ({reason(error)}); {way_out if saved else f'choose another {option}'}"


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file that takes the place of `path` when the context ends well, and otherwise leaves no trace.

    It is on the disk before it is renamed, so after a crash the name stands for the old file or the new, whole.

    Raises:
        UserError: The disk is full or read-only.
    """
    temporary = path.with_name(f".{path.name}{TEMPORARY}")
    with disk_errors(path):
        try:
            with temporary.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            _sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Put the names in a folder on the disk; where folders cannot be opened (Windows), renaming has to do."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file, whole or not at all; floats in full."""
    with atomic_file(path) as file:
        file.write(json.dumps(content, indent=1, allow_nan=False).encode() + b"\n")


def read_results(run: Path) -> dict[str, Any]:
    """Return the results of a finished run.

    Raises:
        UserError: There is no finished run, or its results are damaged or of another version.
    """
    path = run / RESULTS
    if not path.is_file():
        raise UserError(f"{run}: expected the folder of a finished run, got {_what_is_there(run)}")
    way_out = f"delete it and run: limbeck train {run / CONFIG} --run {run} --resume"  # it writes the results again
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON ({reason(error)}); {way_out}") from error
    if not isinstance(content, dict) or content.get("format") != RESULTS_FORMAT:
        raise UserError(f"{path}: expected results of format {RESULTS_FORMAT}, got other JSON; {way_out}")
    return content


def _what_is_there(folder: Path) -> str:
    """Say what a folder without results is; of several runs, with one of them as an example."""
    for name, what in ((COMPARISON, "a comparison"), (SWEEP, "a sweep")):
        if (folder / name).is_file():
            finished = sorted(folder.glob(f"**/seed*/{RESULTS}"))
            example = f", such as {finished[0].parent}" if finished else "; none is finished yet"
            return f"{what}; name one of its runs{example}"
    return "an unfinished run (continue it with --resume)" if (folder / CONFIG).is_file() else "no run"


def refuse_run(folder: Path, option: str) -> None:
    """Raise UserError if a folder that is to hold runs is that of a run; `option` chooses another."""
    if (folder / CONFIG).is_file():
        raise UserError(f"{folder}: expected a folder for several runs, got that of a run; choose another {option}")


def is_finished(run: Path, recipe: Recipe, *, resume: bool) -> bool:
    """Say whether a run is finished already, or refuse to touch the folder. Nothing is written.

    An empty or absent folder is a new run, with `resume` too: a job that the scheduler starts again and again needs
    one command line. So is one with nothing but what a killed first write left.

    Raises:
        UserError: The folder holds a run and `resume` is off, or a run of another recipe, or files of no run.
    """
    if (run / CONFIG).is_file():
        finished = (run / RESULTS).is_file()
        if not resume:
            raise UserError(_refusal(run, finished))
        refuse_other_recipe(load_recipe(str(run / CONFIG)), recipe, run)
        return finished
    if run.is_file():
        raise UserError(f"{run} is a file, not a folder; choose another --run")
    if run.exists() and not all(_before_config(path) for path in run.iterdir()):
        raise UserError(f"{run}: expected a new or empty folder, got one with other files; choose another --run")
    return False


def prepare(run: Path, recipe: Recipe) -> None:
    """Make a run's folder ready: the resolved recipe, the environment, and nothing that a killed write left behind.

    Raises:
        UserError: The folder cannot be written.
    """
    with disk_errors(run):
        run.mkdir(parents=True, exist_ok=True)
        for leftover in run.glob(f".*{TEMPORARY}"):
            leftover.unlink()
    with atomic_file(run / CONFIG) as file:
        file.write(dump(recipe).encode())
    write_json(run / ENVIRONMENT, environment())


def take_back(run: Path) -> None:
    """Undo `prepare` where the run itself wrote nothing: one that cannot begin leaves no more than its teachers."""
    ours = {CONFIG, ENVIRONMENT}
    if all(path.name in ours or _before_config(path) for path in run.iterdir()):
        for name in ours:
            (run / name).unlink()


def _before_config(path: Path) -> bool:
    """Whether a file or folder may be there before a run's recipe: what a killed first write left, or a teacher."""
    return path.name in BEFORE_CONFIG or (TEACHER.fullmatch(path.name) is not None and path.is_dir())


def _refusal(run: Path, finished: bool) -> str:
    if finished:
        return f"{run}: holds a finished run; choose another --run, or delete the folder"
    return f"{run}: holds an unfinished run; continue it with --resume, or choose another --run"


def decisive_options(recipe: Recipe) -> dict[str, Any]:
    """Return the options that decide what a run computes and logs, as nested dicts."""
    options = recipe.model_dump(mode="json", exclude=set(FREE_SECTIONS))
    return {
        section: {key: value for key, value in content.items() if key not in FREE_KEYS.get(section, ())}
        if isinstance(content, dict)
        else content
        for section, content in options.items()
    }


def recipe_fingerprint(recipe: Recipe) -> str:
    """Return the SHA-256 of the decisive options."""
    return hashlib.sha256(json.dumps(decisive_options(recipe), sort_keys=True).encode()).hexdigest()


def refuse_other_recipe(before: Recipe, now: Recipe, run: Path) -> None:
    """Raise UserError, naming the first decisive option that differs, unless both recipes mean the same run."""
    difference = _first_difference(decisive_options(before), decisive_options(now))
    if difference:
        path, old, new = difference
        raise UserError(
            f"{run}: `{path}` was {json.dumps(old)} when the run began, got {json.dumps(new)}; "
            "a run continues with its own recipe, so choose another folder"
        )


def _first_difference(before: Any, now: Any, path: str = "") -> tuple[str, Any, Any] | None:
    if isinstance(before, dict) and isinstance(now, dict) and before.keys() == now.keys():
        for key in before:
            difference = _first_difference(before[key], now[key], f"{path}.{key}" if path else key)
            if difference:
                return difference
        return None
    return None if before == now else (path, before, now)


def environment() -> dict[str, Any]:
    """Return what the results may depend on beside the recipe."""
    packages = ("torch", "numpy", "pydantic", "safetensors")
    return {
        "limbeck": version("limbeck"),
        "python": platform.python_version(),
        "packages": {package: version(package) for package in packages},
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cpus": os.cpu_count(),
        "accelerators": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
    }
