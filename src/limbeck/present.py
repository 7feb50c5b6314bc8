"""What `limbeck demo`, `compare`, `sweep` and `plot` do: train with the engine, print the table, draw."""

from __future__ import annotations

import importlib.util
import time
from typing import TYPE_CHECKING, Literal

from limbeck.errors import UserError, install
from limbeck.listings import loading, print_rich, say
from limbeck.run_listings import print_metrics, print_paces, print_robustness

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from limbeck.config import Recipe, ShiftedTests
    from limbeck.config_adversary import AttackRequest
    from limbeck.config_grid import Grid


def compare_and_show(
    recipe: Recipe,
    folder: Path,
    *,
    rows: Sequence[str] | None,
    seeds: int,
    published: bool = False,
    workers: int | None = None,
) -> None:
    """Train a comparison's rows, print its table, draw its pictures and write its report.

    Args:
        recipe: With `compare.contenders`.
        folder: Of the comparison. Runs that are finished there are not trained again.
        rows: Which of the contenders; None is all.
        seeds: Runs per row and setting.
        published: Also print the table of the paper that the recipe names, its figures beside ours.
        workers: Runs to train at once; None is one per core, where the recipe's threads allow it.
    """
    if published and recipe.compare.published is None:
        raise UserError("--table expected a recipe with `compare.published`, as in distill/cifar100, got none")
    from limbeck.analysis.comparison import summarise
    from limbeck.analysis.published import compare_with_paper, rich_published
    from limbeck.analysis.tables import rich_table
    from limbeck.analysis.wording import plural

    with loading():
        from limbeck.engine.compare import compare
        from limbeck.engine.plan import automatic_workers
        from limbeck.engine.progress import open_reporter
        from limbeck.engine.ranks import joined

    start = time.monotonic()
    finished = _finished(folder)
    with joined(recipe.train.device) as place:
        workers = 1 if place.world > 1 else workers or automatic_workers(recipe)
        reporter = open_reporter() if place.lead else None
        compare(recipe, folder, rows=rows, seeds=seeds, workers=workers, reporter=reporter)
        chosen = [run.folder for runs in summarise(folder).selected_runs().values() for run in runs]
        _attack_chosen(recipe, folder, chosen, workers)
    if not place.lead:
        return
    new = len(_finished(folder) - finished)
    say(f"\n{recipe.title}")
    print_rich(rich_table(summarise(folder)))
    if published:
        say("")
        print_rich(rich_published(compare_with_paper(folder)))
    if new:
        seconds = time.monotonic() - start
        say(f"Trained {new} {plural('run', new)} in {seconds:.0f} s; {len(finished)} finished already.")
    else:
        say(f"All {len(finished)} runs were finished already: nothing was trained.")
    if importlib.util.find_spec("matplotlib"):
        plot(folder)
    else:
        say(f"For pictures and a report: {install('viz')}; then limbeck plot {folder}")


def evaluate_and_show(
    run: Path | None,
    recipe: Recipe | None,
    weights: Path | None,
    which: Literal["last", "best", "ema"] | None,
    shifted: ShiftedTests | None = None,
) -> None:
    """Print the metrics of a run's weights, or of a file of weights.

    Args:
        run: Folder of a run, or None.
        recipe: Network and data of a file.
        weights: The file.
        which: Weights of the run; None is what it reports.
        shifted: Further test images; None are those of the run.
    """
    with loading():
        from limbeck.engine.evaluate import evaluate, evaluate_file
        from limbeck.engine.ranks import joined

    with joined(_device(run, recipe)) as place:
        if run is not None:
            metrics = evaluate(run, which=which, shifted=shifted)
            name = metrics["weights"]
        elif recipe is not None and weights is not None:
            metrics, name = evaluate_file(recipe, weights), weights.name
    if place.lead:
        print_metrics(metrics, name)


def _device(run: Path | None, recipe: Recipe | None) -> str:
    """Return the device that a run, or the recipe of a file, is evaluated on."""
    from limbeck.config_files import load_recipe
    from limbeck.engine.run_folder import CONFIG

    if run is not None:
        recipe = load_recipe(str(run / CONFIG)) if (run / CONFIG).is_file() else None
    return recipe.train.device if recipe else "cpu"


def attack_and_show(
    run: Path | None,
    recipe: Recipe | None,
    weights: Path | None,
    request: AttackRequest,
    which: Literal["last", "best", "ema"] | None,
) -> None:
    """Attack a run's weights, or a file of weights, and print what is left.

    Args:
        run: Folder of a run, or None.
        recipe: Network and data of a file.
        weights: The file.
        request: Attacks, radii, norm.
        which: Weights of the run; None is what it reports.
    """
    with loading():
        from limbeck.engine.evaluate import attack_file, attack_folder, attack_run
        from limbeck.engine.progress import Reporter, open_reporter
        from limbeck.engine.ranks import joined

    with joined(_device(run, recipe)) as place, open_reporter() if place.lead else Reporter() as reporter:
        if run is not None:
            folder = run
            content = attack_run(run, request, which=which, reporter=reporter)
        elif recipe is not None and weights is not None:
            folder = attack_folder(weights)
            content = attack_file(recipe, weights, request, reporter=reporter)
    if not place.lead:
        return
    print_robustness(content)
    say(f"Figures and flags per image: {folder}")
    if request.robustbench:
        say(f"RobustBench's entry, to be completed: {request.robustbench}")


def sweep_and_show(grid: Grid, folder: Path, *, seeds: int, workers: int | None = None) -> None:
    """Train a sweep's points, print its table and draw its picture.

    Args:
        grid: The points.
        folder: Of the sweep. Runs that are finished there are not trained again.
        seeds: Runs per point.
        workers: Runs to train at once; None is one per core, where the recipe's threads allow it.
    """
    from limbeck.analysis.sweep import rich_table, summarise

    with loading():
        from limbeck.engine.plan import automatic_workers
        from limbeck.engine.progress import open_reporter
        from limbeck.engine.ranks import joined
        from limbeck.engine.sweep import sweep

    recipe = grid.points[0].recipe
    with joined(recipe.train.device) as place:
        workers = 1 if place.world > 1 else workers or automatic_workers(recipe)
        sweep(grid, folder, seeds=seeds, workers=workers, reporter=open_reporter() if place.lead else None)
        found = summarise(folder)
        chosen = [folder / found.chosen.name / f"seed{seed}" for seed in found.seeds] if found.chosen else []
        _attack_chosen(recipe, folder, chosen, workers)
    if not place.lead:
        return
    say(f"\n{recipe.title}")
    print_rich(rich_table(summarise(folder)))
    if importlib.util.find_spec("matplotlib"):
        _plot_sweep(folder)
    else:
        say(f"For the picture: {install('viz')}; then limbeck plot {folder}")


def _attack_chosen(recipe: Recipe, folder: Path, runs: Sequence[Path], workers: int) -> None:
    """Attack the test images of the runs that were chosen, if the recipe is one of adversarial training."""
    if recipe.task == "adversarial":
        from limbeck.engine.attack_plan import attack_runs
        from limbeck.engine.progress import open_reporter
        from limbeck.engine.ranks import here

        reporter = open_reporter() if here().lead else None
        attack_runs(folder, runs, recipe.adversary.attacks, workers=workers, reporter=reporter)


def _plot_sweep(folder: Path) -> None:
    """Draw the picture of a sweep into its folder, if it has one or two axes."""
    from limbeck.analysis.pictures import save
    from limbeck.analysis.sweep import summarise
    from limbeck.analysis.sweep_picture import picture

    drawn = picture(summarise(folder))
    if drawn is None:
        say("No picture: it would need more than two dimensions.")
        return
    for path in save([drawn], folder):
        say(f"Picture: {path}")


def plot(folder: Path, against: Path | None = None, rows: Sequence[str] | None = None) -> None:
    """Draw the pictures of a run, of two runs, of a sweep, or of a comparison with its report, and print their paths.

    Args:
        folder: Of a run, of a comparison or of a sweep.
        against: A second run, which the differences are taken to.
        rows: Those of a comparison to draw alone; None draws all, with the report.
    """
    if rows is not None:
        if against is not None:
            raise UserError("expected one of --rows and --against, got both")
        if not (folder / "comparison.json").is_file():
            raise UserError(f"--rows expected the folder of a comparison, got {folder}")
        _plot_rows(folder, rows)
        return
    from limbeck.analysis.pictures import draw_run
    from limbeck.analysis.report import write_report

    if (folder / "sweep.json").is_file():
        if against is not None:
            raise UserError(f"--against expected two runs, got the sweep {folder}")
        _plot_sweep(folder)
        return
    if not importlib.util.find_spec("sklearn") and any(folder.rglob("robust_predictions.npz")):
        say(f"Without the map of features, which needs scikit-learn: {install('data')}")
    if (folder / "comparison.json").is_file():
        if against is not None:
            raise UserError(f"--against expected two runs, got the comparison {folder}; its pictures hold every row")
        report = write_report(folder)
        say(f"Pictures: {folder}/*.png\nReport: {report}")
        return
    name = "plots" if against is None else f"plots-against-{against.name}"
    for path in draw_run(folder, folder / name, against=against):
        say(str(path))


def _finished(folder: Path) -> set[Path]:
    return set(folder.rglob("results.json"))


def _plot_rows(folder: Path, rows: Sequence[str]) -> None:
    """Draw some rows of a comparison alone; of two, print how soon each learns what its teacher is sure of."""
    from limbeck.analysis.comparison import summarise
    from limbeck.analysis.convergence import compute
    from limbeck.analysis.pictures import draw_rows, pick_rows

    paths = draw_rows(folder, rows)
    by_score = compute(pick_rows(summarise(folder), rows))
    if len(by_score.rows) == 2 and all(values is not None for values in by_score.rows.values()):
        print_paces(by_score)
    for path in paths:
        say(str(path))
