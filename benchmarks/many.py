"""A comparison one run after another, with shared views, and two runs at once: seconds, in turns of one session.

    python -m benchmarks.many [--seeds 2] [--rounds 2] [--workers 2] [--recipe NAME ...]

`before` trains each run by itself in one process: every run makes its views and asks the teacher anew. `in turn` is
`limbeck compare --workers 1`, where the runs of a seed share both; `at once` is `--workers 2`, the start of the
processes included. torch is imported before, as every command does. The contenders take turns, so that a drift of the
machine meets all alike, and the weights of all runs are compared to the bit before a figure is printed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from limbeck.config import Recipe
from limbeck.config_files import load_recipe
from limbeck.engine.compare import Entry, compare, plan_runs
from limbeck.engine.plan import train_job
from limbeck.engine.progress import Reporter
from limbeck.engine.run_folder import WEIGHTS
from limbeck.engine.signals import StopRequest
from limbeck.engine.teachers import Resources

RECIPES = ("distill/digits/few-labels", "distill/mnist5k/few-labels")


def one_by_one(recipe: Recipe, folder: Path, seeds: int) -> None:
    """Every run by itself; data and teachers are read once, nothing else is shared."""
    rows = recipe.compare.contenders
    entries = [Entry(row, k, s) for s in range(seeds) for row in rows for k in range(len(rows[row].settings))]
    resources, stop = Resources(), StopRequest()
    for job in plan_runs(recipe, folder, entries)[0]:
        train_job(job, Reporter(), stop, resources)


def check_equal(folders: dict[str, Path]) -> int:
    """Exit unless the weights of every run are those of every contender; return the number of runs."""
    first, *others = folders.values()
    runs = sorted(path.parent.relative_to(first) for path in first.rglob(WEIGHTS["last"]))
    for run in runs:
        for other in others:
            if (first / run / WEIGHTS["last"]).read_bytes() != (other / run / WEIGHTS["last"]).read_bytes():
                sys.exit(f"{run}: other weights in {other}")
    return len(runs)


def measure(name: str, seeds: int, rounds: int, workers: int) -> None:
    """Print the seconds and ratios of one recipe."""
    recipe = load_recipe(name)
    contenders: dict[str, Callable[[Path], object]] = {
        "before": lambda folder: one_by_one(recipe, folder, seeds),
        "in turn": lambda folder: compare(recipe, folder, seeds=seeds, workers=1),
        "at once": lambda folder: compare(recipe, folder, seeds=seeds, workers=workers),
    }
    seconds: dict[str, list[float]] = {contender: [] for contender in contenders}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as place:
            for contender, train in contenders.items():
                start = time.perf_counter()
                train(Path(place) / contender)
                seconds[contender].append(time.perf_counter() - start)
            runs = check_equal({contender: Path(place) / contender for contender in contenders})
    medians = {contender: statistics.median(values) for contender, values in seconds.items()}
    print(
        f"{name}: {runs} runs, equal to the bit; "
        + ", ".join(f"{contender} {value:.1f} s" for contender, value in medians.items())
        + f"; before/in turn {medians['before'] / medians['in turn']:.2f}"
        + f", before/at once {medians['before'] / medians['at once']:.2f}",
        flush=True,
    )


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--recipe", action="append", help="comparison to train; both small ones by default")
    arguments = parser.parse_args()
    for name in arguments.recipe or RECIPES:
        measure(name, arguments.seeds, arguments.rounds, arguments.workers)


if __name__ == "__main__":
    main()
