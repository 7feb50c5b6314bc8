"""A list of runs: what is not finished is trained, one after another or several at once."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from limbeck.engine import ranks, run_folder
from limbeck.engine.fit import plan_teachers, teacher_folder, teacher_title, train_run
from limbeck.engine.progress import Reporter
from limbeck.engine.signals import StopRequest
from limbeck.engine.teachers import Resources
from limbeck.engine.views import ViewStore
from limbeck.errors import Diverged, Interrupted

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from limbeck.config import Recipe
    from limbeck.engine.given import Given
    from limbeck.engine.teachers import TeacherSource


T = TypeVar("T")


@dataclass(frozen=True)
class Job:
    """A run of a plan.

    Attributes:
        run: Its folder.
        recipe: What to do.
        title: Its name for the reporter.
        group: Runs of one group see the same views, so that they are quicker in one process.
        sources: Its teachers; a folder among them that is another job's has to be finished first. None: the recipe's.
        spare: Whether the plan goes on without the run when it diverges.
    """

    run: Path
    recipe: Recipe
    title: str
    group: int
    sources: tuple[TeacherSource, ...] | None = None
    spare: bool = True


TrainJob: TypeAlias = Callable[[Job, Reporter, StopRequest, Resources], Any]
GiveUp: TypeAlias = Callable[[Job, str], None]
Finished: TypeAlias = Callable[[Job], bool]


def train_job(
    job: Job, reporter: Reporter, stop: StopRequest, resources: Resources, given: Given | None = None
) -> dict[str, Any]:
    """Train one job to its end, or go on with it; return its results. What a plan does unless it is told otherwise."""
    return train_run(
        job.recipe,
        job.run,
        resume=True,
        reporter=reporter,
        stop=stop,
        resources=resources,
        sources=job.sources,
        title=job.title,
        given=given,
    )


def is_trained(job: Job) -> bool:
    """Say whether the training of a job is finished already; see `run_folder.is_finished`."""
    return run_folder.is_finished(job.run, job.recipe, resume=True)


def teacher_jobs(recipe: Recipe, folder: Path, group: int) -> tuple[tuple[TeacherSource, ...], list[Job]]:
    """Return a recipe's teachers and the jobs that train those that are not there yet.

    Args:
        recipe: The student's.
        folder: Where `teacher0` and on are kept.
        group: Of the students.
    """
    sources: list[TeacherSource] = []
    jobs = []
    for number, (source, teacher) in enumerate(plan_teachers(recipe)):
        run = teacher_folder(folder, number)
        if teacher is not None:
            jobs.append(Job(run, teacher, teacher_title(number, recipe), group, spare=False))
        sources.append(source or run)
    return tuple(sources), jobs


def cores() -> int:
    """Return how many CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def automatic_workers(recipe: Recipe) -> int:
    """Return how many runs to train at once: as many as have cores of their own.

    One, unless the recipe says `train.threads`, which makes results independent of the number of cores, and trains on
    the CPU: an accelerator is not shared without being asked.
    """
    train = recipe.train
    return max(1, cores() // train.threads) if train.threads and train.device == "cpu" else 1


def run_plan(
    title: str,
    jobs: Sequence[Job],
    *,
    workers: int,
    reporter: Reporter,
    stop: StopRequest,
    give_up: GiveUp,
    train: TrainJob = train_job,
    finished: Finished = is_trained,
) -> None:
    """Train what is not finished of a list of jobs.

    Args:
        title: For the reporter.
        jobs: The runs; teachers come before their students.
        workers: How many to train at once, each in a process of its own; 1 trains them in this one. The results are
            the same, given the same `train.threads`; without it, a worker uses one thread.
        reporter: Whom to tell.
        stop: Says when to stop early.
        give_up: Is told of a run that diverged, and why.
        train: Trains one job; with several workers a function that can be imported.
        finished: Says whether there is nothing left to do for a job.

    Raises:
        Interrupted: A signal came; what was training is saved.
        UserError: What the training of a run raises, or a process ended before its run did.
    """
    place = ranks.here()
    todo = place.first_tells(lambda: [job for job in jobs if not finished(job)])
    reporter.begin_plan(title, runs=len(jobs), done=len(jobs) - len(todo))
    if min(workers, len(todo)) > 1:
        from limbeck.engine.workers import Pool  # it imports this file

        Pool(todo, min(workers, len(todo)), train=train, reporter=reporter, stop=stop, give_up=give_up).run()
        return
    resources = Resources(ViewStore())
    for job in todo:
        if place.any(stop.signal_name is not None):
            raise Interrupted(f"stopped by {stop.signal_name or 'a signal to another rank'} between two runs")
        try:
            train(job, reporter, stop, resources)
        except Diverged as error:
            leave_out(job, error, reporter, give_up)


def run_described(
    title: str,
    folder: Path,
    jobs: Sequence[Job],
    describe: Callable[[Mapping[str, str]], T],
    *,
    workers: int,
    reporter: Reporter,
    stop: StopRequest,
    way_on: str,
    train: TrainJob = train_job,
) -> T:
    """Run a plan whose folder holds a file that names its runs, finished or not; see `run_plan` for the others.

    Args:
        title: For the reporter.
        folder: Of the comparison or sweep.
        jobs: The runs.
        describe: Writes the file. It is given folder, relative to the plan's, -> why, of the runs that diverged.
        workers: See `run_plan`.
        reporter: Whom to tell.
        stop: Says when to stop early.
        way_on: Ends the message of an interruption.
        train: See `run_plan`.

    Returns:
        What `describe` returned of the finished plan.
    """
    diverged: dict[str, str] = {}
    place = ranks.here()

    def give_up(job: Job, why: str) -> None:
        diverged[job.run.relative_to(folder).as_posix()] = why
        place.first_tells(lambda: describe(diverged))

    place.first_tells(lambda: describe(diverged))  # now, so that an unfinished plan can be looked at
    try:
        run_plan(title, jobs, workers=workers, reporter=reporter, stop=stop, give_up=give_up, train=train)
    except Interrupted as error:
        raise Interrupted(f"{error}; {way_on} in {folder}") from error
    return place.first_tells(lambda: describe(diverged))


def leave_out(job: Job, error: Diverged, reporter: Reporter, give_up: GiveUp) -> None:
    """Go on without a run that diverged: the others tell what they can. Raise the error if they cannot do without."""
    if not job.spare:
        raise error
    reporter.diverged(f"{job.title} is left out: {error}")
    give_up(job, str(error))
