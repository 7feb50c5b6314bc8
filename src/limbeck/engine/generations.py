"""Born-again networks: each generation learns from the one before it (arXiv 1805.04770), by the losses of a recipe."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from limbeck.config import TeacherOptions
from limbeck.engine import ranks, run_folder
from limbeck.engine.fit import train_run
from limbeck.engine.lock import locked
from limbeck.engine.metrics import measure
from limbeck.engine.progress import Reporter
from limbeck.engine.run_folder import write_json
from limbeck.engine.signals import StopRequest
from limbeck.engine.teachers import Resources
from limbeck.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

    from limbeck.config import Recipe

FORMAT = 1
GENERATIONS = "generations.json"


def train_generations(
    recipe: Recipe, folder: Path, generations: int, *, reporter: Reporter | None = None
) -> dict[str, Any]:
    """Train a student from the recipe's teachers, then its network anew from that student, and so on.

    Generation g starts from weights of a seed of its own, the recipe's plus g - 1. What is finished is kept, what was
    interrupted goes on.

    Args:
        recipe: Of the task `distill`. The first generation learns from its teachers, each other from the one before.
        folder: Holds `generation1` and on, each a run, and `generations.json`.
        generations: At least 1.
        reporter: Whom to tell; nobody by default.

    Returns:
        What `generations.json` holds: per generation the run and the test metrics, alone and of the ensemble of all up
        to it, whose probabilities are averaged.

    Raises:
        Interrupted: A signal came; everything is saved, and the same call goes on.
        UserError: The recipe has another task, or what `fit` raises.
    """
    if recipe.task != "distill":
        raise UserError(f"--generations expected a recipe of task `distill`, got task `{recipe.task}`")
    if recipe.incremental is not None:
        raise UserError("--generations expected a recipe without `incremental`, whose phases learn from one another")
    run_folder.refuse_run(folder, "--run")
    resources, sources = Resources(), None
    place = ranks.here()
    with locked(folder), StopRequest() as stop, reporter or Reporter() as teller:
        for number in range(1, generations + 1):
            run = folder / f"generation{number}"
            train_run(
                of_generation(recipe, folder, number),
                run,
                resume=True,
                reporter=teller,
                stop=stop,
                resources=resources,
                sources=sources,
                title=f"generation {number} of {generations}",
            )
            sources = [run]
    return place.first_tells(lambda: _describe(folder, generations))


def of_generation(recipe: Recipe, folder: Path, number: int) -> Recipe:
    """Return the recipe of a generation, counted from 1."""
    if number == 1:
        return recipe
    teacher = TeacherOptions(run=str(folder / f"generation{number - 1}"))
    return recipe.model_copy(update={"seed": recipe.seed + number - 1, "teachers": (teacher,)})


def _describe(folder: Path, generations: int) -> dict[str, Any]:
    """Write generations.json and return what it holds."""
    rows: list[dict[str, Any]] = []
    total = torch.zeros(())
    for number in range(1, generations + 1):
        run = folder / f"generation{number}"
        with np.load(run / run_folder.PREDICTIONS) as arrays:
            logits, labels = (torch.from_numpy(arrays[name]) for name in ("test_logits", "test_labels"))
        total = total + logits.double().softmax(-1)
        rows.append(
            {
                "run": run.name,
                "test": measure(logits, labels),
                "ensemble": measure((total / number).log().float(), labels),
            }
        )
    content = {"format": FORMAT, "generations": rows}
    write_json(folder / GENERATIONS, content)
    return content
