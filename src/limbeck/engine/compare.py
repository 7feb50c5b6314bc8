"""Rows of losses, each with its settings and seeds, on the same students, data and views."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from limbeck.config import CompareOptions
from limbeck.engine import run_folder
from limbeck.engine.fit import train_run, train_teachers
from limbeck.engine.lock import locked
from limbeck.engine.progress import Reporter
from limbeck.engine.run_folder import read_results, write_json
from limbeck.engine.signals import StopRequest
from limbeck.engine.teachers import Resources
from limbeck.errors import Diverged, Interrupted, UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from limbeck.config import Recipe
    from limbeck.engine.teachers import TeacherSource

FORMAT = 1
COMPARISON = "comparison.json"


class _Run(NamedTuple):
    """A student's run: which one of the comparison."""

    row: str
    setting: int
    seed: int

    @property
    def folder(self) -> str:
        """Where it is kept, relative to the comparison."""
        return f"{self.row}/setting{self.setting}/seed{self.seed}"


def compare(
    recipe: Recipe,
    folder: Path,
    *,
    rows: Sequence[str] | None = None,
    seeds: int = 5,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Train every setting of every row on every seed, after the teachers. Finished runs are kept, others continued.

    A seed stands for the student's first weights, the order of the data and its views: they are the same in every
    row. With `vary_split` it also stands for the split of the images and for teachers of its own, kept in `split<s>`.

    Args:
        recipe: Its `compare` holds the rows; seeds count from its own `seed`.
        folder: Of the comparison: `<row>/setting<k>/seed<s>`, `teacher0` and on, `comparison.json`.
        rows: Which rows; all by default.
        seeds: Runs per row and setting.
        reporter: Whom to tell; nobody by default.

    Returns:
        What `comparison.json` holds.

    Raises:
        Interrupted: A signal came; everything is saved, and the same call goes on.
        UserError: No such row, a folder of another comparison or in use, or what `fit` raises.
    """
    rows = _known_rows(recipe, rows)
    # Seed by seed, so that an early stop leaves whole comparisons of fewer seeds behind.
    plan = [
        _Run(row, setting, seed)
        for seed in _seeds(recipe, seeds)
        for row in rows
        for setting in range(len(recipe.compare.contenders[row].settings))
    ]
    with locked(folder, "--folder"), StopRequest() as stop, reporter or Reporter() as teller:
        try:
            teachers, diverged = _train(recipe, folder, plan, teller, stop)
        except Interrupted as error:
            raise Interrupted(f"{error}; the same command continues the comparison in {folder}") from error
        return _describe(recipe, folder, plan, teachers, diverged)


def _known_rows(recipe: Recipe, rows: Sequence[str] | None) -> tuple[str, ...]:
    known = recipe.compare.contenders
    chosen = tuple(known if rows is None else rows)
    if not chosen or any(row not in known for row in chosen):
        raise UserError(f"expected rows of `compare.contenders` ({', '.join(known) or 'empty'}), got {list(chosen)}")
    return chosen


def _seeds(recipe: Recipe, seeds: int) -> list[int]:
    return list(range(recipe.seed, recipe.seed + seeds))


def _train(
    recipe: Recipe, folder: Path, plan: Sequence[_Run], reporter: Reporter, stop: StopRequest
) -> tuple[list[Path], dict[str, str]]:
    """Train what is not finished: the teachers, then the plan. Return the teachers' folders, and what diverged."""
    resources = Resources()  # data, teachers and their logits are read once
    recipes = {run.seed: _of_seed(recipe, run.seed) for run in plan}
    by_seed: dict[int, list[TeacherSource]] = {}
    for seed, seeded in recipes.items():
        place = folder / f"split{seed}" if recipe.compare.vary_split else folder
        if recipe.compare.vary_split or not by_seed:
            by_seed[seed] = train_teachers(seeded, place, reporter=reporter, stop=stop, resources=resources)
        else:
            by_seed[seed] = by_seed[plan[0].seed]
    sources = dict.fromkeys(source for sources in by_seed.values() for source in sources)
    teachers = [source for source in sources if isinstance(source, Path)]
    _describe(recipe, folder, plan, teachers, {})  # now, so that an unfinished comparison can be looked at
    done = sum((folder / run.folder / run_folder.RESULTS).is_file() for run in plan)
    reporter.begin_plan(recipe.title or str(folder), runs=len(plan), done=done)
    diverged: dict[str, str] = {}
    for run in plan:
        if stop.signal_name:
            raise Interrupted(f"stopped by {stop.signal_name} between two runs")
        settings = recipe.compare.contenders[run.row].settings
        which = f", setting {run.setting}" if len(settings) > 1 else ""
        title = f"{run.row}{which}, seed {run.seed}"
        try:
            train_run(
                recipes[run.seed].model_copy(update={"losses": settings[run.setting], "compare": CompareOptions()}),
                folder / run.folder,
                resume=True,
                reporter=reporter,
                stop=stop,
                resources=resources,
                sources=by_seed[run.seed],
                title=title,
            )
        except Diverged as error:  # the others tell what they can; the table names this one
            diverged[run.folder] = str(error)
            reporter.diverged(f"{title} is left out: {error}")
            _describe(recipe, folder, plan, teachers, diverged)
    return teachers, diverged


def _of_seed(recipe: Recipe, seed: int) -> Recipe:
    """The recipe of one seed; the first seed has the recipe's own split, whatever `vary_split` says."""
    data = recipe.data
    if recipe.compare.vary_split:
        data = data.model_copy(update={"split_seed": data.split_seed + seed - recipe.seed})
    return recipe.model_copy(update={"seed": seed, "data": data})


def _describe(
    recipe: Recipe, folder: Path, plan: Sequence[_Run], teachers: Sequence[Path], diverged: dict[str, str]
) -> dict[str, Any]:
    """Write comparison.json, which names the runs of the plan, finished or not, and return what it holds."""
    rows: dict[str, Any] = {}
    published = recipe.compare.published
    for run in plan:
        settings = recipe.compare.contenders[run.row].settings
        row = rows.setdefault(
            run.row,
            {
                "settings": [[term.model_dump(mode="json") for term in setting] for setting in settings],
                "runs": [[] for _ in settings],
            },
        )
        row["runs"][run.setting].append(run.folder)
    content = {
        "format": FORMAT,
        "title": recipe.title,
        "protocol": recipe.protocol,
        "rows": rows,
        "contenders": list(recipe.compare.contenders),
        "published": published.model_dump(mode="json") if published else None,
        "seeds": sorted({run.seed for run in plan}),
        "baseline": recipe.compare.baseline,
        "diverged": diverged,
        "vary_split": recipe.compare.vary_split,
        "equal_by_theory": [list(pair) for pair in recipe.compare.equal_by_theory if set(pair) <= rows.keys()],
        "teachers": [os.path.relpath(teacher, folder) for teacher in teachers],
        "seconds": {"teachers": _seconds(teachers), "students": _seconds([folder / run.folder for run in plan])},
    }
    write_json(folder / COMPARISON, content)
    return content


def _seconds(runs: Sequence[Path]) -> float:
    """Return the training time of those that are finished."""
    finished = [run for run in runs if (run / run_folder.RESULTS).is_file()]
    return float(sum(read_results(run)["train_seconds"] for run in finished))
