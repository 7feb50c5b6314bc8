"""Attacks on the runs that a comparison chose, several at once: the last and dearest part of it.

Settings and epochs are chosen on validation images first, so the test images are attacked for the chosen runs alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from limbeck.config_adversary import AttackRequest
from limbeck.config_files import load_recipe
from limbeck.engine import run_folder
from limbeck.engine.evaluate import attack_run
from limbeck.engine.lock import locked
from limbeck.engine.plan import Job, run_plan
from limbeck.engine.progress import Reporter
from limbeck.engine.robustness import missing_attacks
from limbeck.engine.signals import StopRequest
from limbeck.errors import Interrupted

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from limbeck.engine.teachers import Resources


def attack_job(job: Job, reporter: Reporter, stop: StopRequest, resources: Resources) -> dict[str, Any]:
    """Make the attacks of a job's recipe on its finished run; what an earlier session finished is kept."""
    adversary = job.recipe.adversary
    reporter.begin_run(job.title, steps=1, done=0)
    request = AttackRequest(adversary.attacks, (adversary.epsilon,), None, None)
    content = attack_run(job.run, request, which=None, reporter=reporter, stop=stop)
    reporter.end_run(run_folder.read_results(job.run) | {"robustness": content})
    return content


def attack_runs(
    folder: Path, runs: Sequence[Path], attacks: Sequence[str], *, workers: int, reporter: Reporter | None = None
) -> None:
    """Attack the test images of finished runs of adversarial training, each at its own radius.

    Args:
        folder: Of the comparison or sweep.
        runs: Folders of the runs.
        attacks: What to attack with, see `AdversaryOptions.attacks`. A run that has all of it is passed over.
        workers: Runs to attack at once, each in a process of its own; the results are the same.
        reporter: Whom to tell; nobody by default.

    Raises:
        Interrupted: A signal came; what is finished is kept, and the same call goes on.
        UserError: A file of a run is damaged, or the package of an attack missing.
    """
    jobs = []
    for number, run in enumerate(runs):
        recipe = load_recipe(str(run / run_folder.CONFIG))
        adversary = recipe.adversary.model_copy(update={"attacks": tuple(attacks)})
        if missing_attacks(run, attacks, adversary.epsilon):
            title = run.relative_to(folder).as_posix()
            jobs.append(Job(run, recipe.model_copy(update={"adversary": adversary}), title, number, (), spare=False))
    if not jobs:
        return

    def never(job: Job, why: str) -> None:
        raise AssertionError(f"{job.run}: {why}")  # an attack does not diverge

    with locked(folder, "--folder"), StopRequest() as stop, reporter or Reporter() as teller:
        title = f"Attacks: {', '.join(attacks)}"
        try:
            run_plan(
                title,
                jobs,
                workers=workers,
                reporter=teller,
                stop=stop,
                give_up=never,
                train=attack_job,
                finished=lambda job: False,
            )
        except Interrupted as error:
            raise Interrupted(f"{error}; the same command goes on with the attacks in {folder}") from error
