"""A grid of options, each point on several seeds."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from limbeck.config import CompareOptions
from limbeck.engine.compare import of_seed
from limbeck.engine.fit import plan_teachers
from limbeck.engine.lock import locked
from limbeck.engine.plan import Job, run_described
from limbeck.engine.progress import Reporter
from limbeck.engine.run_folder import SWEEP, recipe_fingerprint, refuse_run, write_json
from limbeck.engine.signals import StopRequest

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from limbeck.config import Recipe
    from limbeck.config_grid import Grid
    from limbeck.engine.teachers import TeacherSource

FORMAT = 1
SHOWN = 8  # digits of a fingerprint that tell the teachers of a sweep apart


def sweep(
    grid: Grid, folder: Path, *, seeds: int = 3, workers: int = 1, reporter: Reporter | None = None
) -> dict[str, Any]:
    """Train every point of a grid on every seed, after the teachers. Finished runs are kept, others continued.

    What a seed stands for is as in `compare`. Points with the same teachers share them.

    Args:
        grid: The points; seeds count from their recipes' own.
        folder: Of the sweep: `<point>/seed<s>`, `teachers/<split and fingerprint>`, `sweep.json`.
        seeds: Runs per point.
        workers: Runs to train at once, each in a process of its own; see `run_plan`.
        reporter: Whom to tell; nobody by default.

    Returns:
        What `sweep.json` holds.

    Raises:
        Interrupted: A signal came; everything is saved, and the same call goes on.
        UserError: A folder of other runs or in use, or what `fit` raises.
    """
    refuse_run(folder, "--folder")
    jobs = _plan(grid, folder, seeds)
    with locked(folder, "--folder"), StopRequest() as stop, reporter or Reporter() as teller:
        return run_described(
            grid.points[0].recipe.title or str(folder),
            folder,
            jobs,
            lambda diverged: _describe(grid, folder, jobs, seeds, diverged),
            workers=workers,
            reporter=teller,
            stop=stop,
            way_on="the same command continues the sweep",
        )


def _plan(grid: Grid, folder: Path, seeds: int) -> list[Job]:
    """Return the runs seed by seed, teachers before the first student that needs them."""
    jobs: dict[Path, Job] = {}
    for offset in range(seeds):
        for point in grid.points:
            seed = point.recipe.seed + offset
            recipe = of_seed(point.recipe, seed)
            sources: list[TeacherSource] = []
            for source, teacher in plan_teachers(recipe):
                if teacher is not None:
                    run = _teacher_folder(folder, teacher)
                    title = f"teacher {run.name}"
                    jobs.setdefault(run, Job(run, teacher, title, seed, spare=False))
                    sources.append(run)
                elif source is not None:
                    sources.append(source)
            # The attacks are made later, on the point that validation chooses: see attack_plan.py.
            adversary = recipe.adversary.model_copy(update={"attacks": ()})
            recipe = recipe.model_copy(update={"compare": CompareOptions(), "adversary": adversary})
            run = folder / point.name / f"seed{seed}"
            jobs[run] = Job(run, recipe, f"{point.name}, seed {seed}", seed, tuple(sources))
    return list(jobs.values())


def _teacher_folder(folder: Path, teacher: Recipe) -> Path:
    """Return a folder of its own for each teacher that differs: points may change the data or the teacher's recipe."""
    return folder / "teachers" / f"split{teacher.data.split_seed}-{recipe_fingerprint(teacher)[:SHOWN]}"


def _describe(grid: Grid, folder: Path, jobs: list[Job], seeds: int, diverged: Mapping[str, str]) -> dict[str, Any]:
    """Write sweep.json, which names the runs, finished or not, and return what it holds."""
    first = grid.points[0].recipe
    content = {
        "format": FORMAT,
        "title": first.title,
        "protocol": first.protocol,
        "axes": [{"path": axis.path, "values": list(axis.values)} for axis in grid.axes],
        "points": [
            {
                "name": point.name,
                "values": list(point.values),
                "runs": [f"{point.name}/seed{point.recipe.seed + offset}" for offset in range(seeds)],
            }
            for point in grid.points
        ],
        "seeds": [first.seed + offset for offset in range(seeds)],
        "vary_split": first.compare.vary_split,
        "diverged": dict(diverged),
        "teachers": [os.path.relpath(job.run, folder) for job in jobs if not job.spare],
    }
    write_json(folder / SWEEP, content)
    return content
