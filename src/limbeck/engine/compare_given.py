"""A comparison of students that a user's function builds, on a user's loaders and teachers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from limbeck.config import CompareOptions
from limbeck.engine import run_folder
from limbeck.engine.compare import Entry, describe
from limbeck.engine.given import Given, load_weights
from limbeck.engine.lock import locked
from limbeck.engine.plan import Job, run_described, train_job

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from limbeck.config import Recipe
    from limbeck.data import DataBundle
    from limbeck.engine.progress import Reporter
    from limbeck.engine.signals import StopRequest
    from limbeck.engine.students import Students
    from limbeck.engine.teachers import GivenModule, Resources


def compare_given(
    recipe: Recipe,
    folder: Path,
    *,
    seeds: int,
    students: Students,
    data: DataBundle,
    teachers: Sequence[GivenModule],
    reporter: Reporter,
    stop: StopRequest,
) -> None:
    """Train every row of a comparison on every seed, in this process: a user's modules and loaders stay in it.

    Args:
        recipe: Its `compare` holds the rows, with one setting each; seeds count from its own.
        folder: Of the comparison, as that of `compare`.
        seeds: Runs per row.
        students: Builds the students.
        data: The data.
        teachers: On the data's device, frozen.
        reporter: Whom to tell.
        stop: Says when to stop early.

    Raises:
        Interrupted: A signal came; everything is saved, and the same call goes on.
        UserError: What `fit` raises, or the folder holds finished runs of another network.
    """
    run_folder.refuse_run(folder, "`folder`")
    rows = recipe.compare.contenders
    entries = [Entry(row, 0, seed) for seed in range(recipe.seed, recipe.seed + seeds) for row in rows]
    jobs = [_job(recipe, folder, entry, teachers) for entry in entries]

    def train(job: Job, reporter: Reporter, stop: StopRequest, resources: Resources) -> dict[str, Any]:
        return train_job(job, reporter, stop, resources, Given(students.new(job.recipe.seed), data))

    with locked(folder, "`folder`"):
        for job in jobs:  # a row of the call before is not compared with one of another network
            if (job.run / run_folder.RESULTS).is_file():
                load_weights(job.run / run_folder.WEIGHTS["last"], students.new(job.recipe.seed), "student")
        run_described(
            recipe.title,
            folder,
            jobs,
            lambda diverged: describe(recipe, folder, entries, (), diverged),
            workers=1,
            reporter=reporter,
            stop=stop,
            way_on="the same call of limbeck.compare continues",
            train=train,
        )


def _job(recipe: Recipe, folder: Path, entry: Entry, teachers: Sequence[GivenModule]) -> Job:
    losses = recipe.compare.contenders[entry.row].settings[0]
    run = recipe.model_copy(update={"seed": entry.seed, "losses": losses, "compare": CompareOptions()})
    return Job(folder / entry.folder, run, f"{entry.row}, seed {entry.seed}", entry.seed, tuple(teachers))
