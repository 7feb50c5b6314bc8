"""Rows of losses, each with its settings and seeds, on the same students, data and views."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from limbeck.config import CompareOptions
from limbeck.engine import run_folder
from limbeck.engine.lock import locked
from limbeck.engine.plan import Job, run_described, teacher_jobs
from limbeck.engine.progress import Reporter
from limbeck.engine.run_folder import read_results, write_json
from limbeck.engine.signals import StopRequest
from limbeck.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from limbeck.config import Recipe
    from limbeck.engine.teachers import TeacherSource

FORMAT = 1
COMPARISON = run_folder.COMPARISON


class Entry(NamedTuple):
    """A student's run: which one of the comparison.

    Attributes:
        row: Name of the contender.
        setting: Which of its settings.
        seed: Seed of the run.
    """

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
    workers: int = 1,
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
        workers: Runs to train at once, each in a process of its own; see `run_plan`.
        reporter: Whom to tell; nobody by default.

    Returns:
        What `comparison.json` holds.

    Raises:
        Interrupted: A signal came; everything is saved, and the same call goes on.
        UserError: No such row, a folder of another comparison or in use, or what `fit` raises.
    """
    rows = _known_rows(recipe, rows)
    run_folder.refuse_run(folder, "--folder")
    # Seed by seed, so that an early stop leaves whole comparisons of fewer seeds behind.
    entries = [
        Entry(row, setting, seed)
        for seed in range(recipe.seed, recipe.seed + seeds)
        for row in rows
        for setting in range(len(recipe.compare.contenders[row].settings))
    ]
    jobs, teachers = plan_runs(recipe, folder, entries)
    with locked(folder, "--folder"), StopRequest() as stop, reporter or Reporter() as teller:
        return run_described(
            recipe.title or str(folder),
            folder,
            jobs,
            lambda diverged: describe(recipe, folder, entries, teachers, diverged),
            workers=workers,
            reporter=teller,
            stop=stop,
            way_on="the same command continues the comparison",
        )


def _known_rows(recipe: Recipe, rows: Sequence[str] | None) -> tuple[str, ...]:
    known = recipe.compare.contenders
    chosen = tuple(known if rows is None else rows)
    if not chosen or any(row not in known for row in chosen):
        raise UserError(f"expected rows of `compare.contenders` ({', '.join(known) or 'empty'}), got {list(chosen)}")
    return chosen


def plan_runs(recipe: Recipe, folder: Path, entries: Sequence[Entry]) -> tuple[list[Job], list[Path]]:
    """Return the runs, each seed's teachers before its students, and the folders of all teachers that have one."""
    jobs: list[Job] = []
    sources: dict[int, tuple[TeacherSource, ...]] = {}
    for entry in entries:
        seeded = of_seed(recipe, entry.seed)
        if entry.seed not in sources:
            if recipe.compare.vary_split or not sources:
                place = folder / f"split{entry.seed}" if recipe.compare.vary_split else folder
                sources[entry.seed], teachers = teacher_jobs(seeded, place, entry.seed)
                jobs += teachers
            else:
                sources[entry.seed] = next(iter(sources.values()))
        jobs.append(_job(seeded, folder, entry, sources[entry.seed]))
    unique = dict.fromkeys(source for group in sources.values() for source in group)
    return jobs, [source for source in unique if isinstance(source, Path)]


def _job(recipe: Recipe, folder: Path, entry: Entry, sources: tuple[TeacherSource, ...]) -> Job:
    settings = recipe.compare.contenders[entry.row].settings
    which = f", setting {entry.setting}" if len(settings) > 1 else ""
    changes: dict[str, Any] = {"losses": settings[entry.setting], "compare": CompareOptions()}
    if recipe.compare.contenders[entry.row].options:
        recipe = recipe.of_row(entry.row)
    if recipe.task == "adversarial":
        # The attacks are made later, on the setting that validation chooses: see attack_plan.py.
        changes["adversary"] = recipe.adversary_of(entry.row).model_copy(update={"attacks": ()})
    student = recipe.model_copy(update=changes)
    return Job(folder / entry.folder, student, f"{entry.row}{which}, seed {entry.seed}", entry.seed, sources)


def of_seed(recipe: Recipe, seed: int) -> Recipe:
    """Return the recipe of one seed; the first seed has the recipe's own split, whatever `vary_split` says."""
    data = recipe.data
    if recipe.compare.vary_split:
        data = data.model_copy(update={"split_seed": data.split_seed + seed - recipe.seed})
    return recipe.model_copy(update={"seed": seed, "data": data})


def describe(
    recipe: Recipe, folder: Path, entries: Sequence[Entry], teachers: Sequence[Path], diverged: Mapping[str, str]
) -> dict[str, Any]:
    """Write comparison.json, which names the runs, finished or not, and return what it holds.

    Args:
        recipe: Its `compare` holds the rows.
        folder: Of the comparison.
        entries: The runs.
        teachers: Folders of the teachers' runs, where they have one.
        diverged: Folder of a run that was given up, relative to the comparison -> why.
    """
    rows: dict[str, Any] = {}
    published = recipe.compare.published
    for entry in entries:
        settings = recipe.compare.contenders[entry.row].settings
        row = rows.setdefault(
            entry.row,
            {
                "settings": [[term.model_dump(mode="json") for term in setting] for setting in settings],
                "adversary": recipe.compare.contenders[entry.row].adversary,
                "options": recipe.compare.contenders[entry.row].options,
                "runs": [[] for _ in settings],
            },
        )
        row["runs"][entry.setting].append(entry.folder)
    students = [folder / entry.folder for entry in entries]
    content = {
        "format": FORMAT,
        "title": recipe.title,
        "task": recipe.task,
        "protocol": recipe.protocol,
        "rows": rows,
        "contenders": list(recipe.compare.contenders),
        "published": published.model_dump(mode="json") if published else None,
        "seeds": sorted({entry.seed for entry in entries}),
        "baseline": recipe.compare.baseline,
        "diverged": dict(diverged),
        "vary_split": recipe.compare.vary_split,
        "equal_by_theory": [list(pair) for pair in recipe.compare.equal_by_theory if set(pair) <= rows.keys()],
        "teachers": [os.path.relpath(teacher, folder) for teacher in teachers],
        "seconds": {"teachers": _seconds(teachers), "students": _seconds(students)},
    }
    write_json(folder / COMPARISON, content)
    return content


def _seconds(runs: Sequence[Path]) -> float:
    """Return the training time of those that are finished."""
    finished = [run for run in runs if (run / run_folder.RESULTS).is_file()]
    return float(sum(read_results(run)["train_seconds"] for run in finished))
