"""Class-incremental learning: a chain of runs, each with new classes, which together are one run of its own."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from limbeck.config import CompareOptions, PhaseOptions, TeacherOptions
from limbeck.data import class_order
from limbeck.engine import ranks, run_folder
from limbeck.engine.fit import open_device, train_run
from limbeck.engine.lock import locked
from limbeck.engine.progress import Reporter
from limbeck.engine.run_folder import atomic_file, read_results, write_json
from limbeck.errors import UserError
from limbeck.objectives.terms import asks_teacher

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from limbeck.config import Recipe
    from limbeck.data import DataBundle
    from limbeck.engine.signals import StopRequest
    from limbeck.engine.teachers import Resources

Array = np.ndarray[Any, np.dtype[Any]]


class _Phase(Reporter):
    """Tells of a phase as of a run, but for its end: a plan counts the whole."""

    def __init__(self, reporter: Reporter) -> None:
        self.begin_run, self.step, self.epoch = reporter.begin_run, reporter.step, reporter.epoch  # type: ignore[method-assign]
        self.note = reporter.note  # type: ignore[method-assign]


def train_phases(
    recipe: Recipe, run: Path, *, reporter: Reporter, stop: StopRequest, resources: Resources, title: str | None
) -> dict[str, Any]:
    """Train the phases of a recipe that are not finished yet, one after another.

    Args:
        recipe: With `incremental`.
        run: Folder of the whole: `phase0` and on, each a run, and the files of a finished run, of all phases.
        reporter: Whom to tell.
        stop: Says when to stop early.
        resources: Data in memory.
        title: Name of the run for the reporter; the recipe's by default.

    Returns:
        What `results.json` holds: of the network after the last phase, on all classes. Beside its metrics,
        `average_incremental`, `forgetting` and `within_phase`, see `measure_forgetting` and `measure_within`;
        `incremental` has the accuracies after each phase.

    Raises:
        Interrupted: A signal came; the state is saved.
        UserError: There are fewer classes than phases, or what `train_run` raises.
    """
    place = ranks.here()
    data = resources.data(recipe.data, open_device(recipe.train.device), reporter.note)
    ends = phase_ends(recipe, data.num_classes)
    with locked(run):
        place.first_tells(lambda: run_folder.prepare(run, recipe))
        for number in range(len(ends)):
            train_run(
                of_phase(recipe, run, number, ends),
                phase_folder(run, number),
                resume=True,
                reporter=_Phase(reporter),
                stop=stop,
                resources=resources,
                title=f"{title or recipe.title or run}, phase {number + 1} of {len(ends)}",
            )
        results = place.first_tells(lambda: _write(recipe, run, data, ends))
    reporter.end_run(results)
    return results


def phase_folder(run: Path, number: int) -> Path:
    """Return the folder of a phase, counted from 0."""
    return run / f"phase{number}"


def phase_ends(recipe: Recipe, classes: int) -> list[int]:
    """Return how many classes have been seen after each phase; the first phases have one more where they must.

    >>> from limbeck.config import Recipe
    >>> recipe = Recipe.model_validate({"task": "distill", "incremental": {"phases": 3}})
    >>> phase_ends(recipe, 10)
    [4, 7, 10]
    """
    phases = recipe.incremental.phases if recipe.incremental else 1
    if phases > classes:
        raise UserError(f"`incremental.phases` expected at most the {classes} classes of the data, got {phases}")
    return [number * (classes // phases) + min(number, classes % phases) for number in range(1, phases + 1)]


def of_phase(recipe: Recipe, run: Path, number: int, ends: Sequence[int]) -> Recipe:
    """Return the recipe of a phase, counted from 0; the first has nobody to learn from."""
    memory = recipe.incremental.memory_per_class if recipe.incremental else 0
    old = ends[number - 1] if number else 0
    phase = PhaseOptions(old=old, seen=ends[number], memory_per_class=memory)
    changes: dict[str, Any] = {
        "data": recipe.data.model_copy(update={"phase": phase}),
        "compare": CompareOptions(),
    }
    if number == 0:
        alone = tuple(term for term in recipe.losses if not asks_teacher(term))
        changes |= {"task": "supervised", "incremental": None, "losses": alone}
    else:
        changes["teachers"] = (TeacherOptions(run=str(phase_folder(run, number - 1))),)
    return recipe.model_copy(update=changes)


# --- what a finished chain leaves behind ------------------------------------------------------------------------------


def measure_phases(logits: Sequence[Array], labels: Sequence[Array], ends: Sequence[int]) -> Array:
    """Return the accuracy after each phase on the classes of each phase up to it, `(P, P)`; NaN above the diagonal.

    Args:
        logits: After each phase, `(N, classes seen)`.
        labels: Of the same images.
        ends: Classes seen after each phase.

    Example:
        >>> first, both = np.eye(2)[[0, 1]], np.eye(4)[[0, 3, 2, 3]]
        >>> measure_phases([first, both], [np.array([0, 1]), np.array([0, 1, 2, 3])], [2, 4]).tolist()
        [[1.0, nan], [0.5, 1.0]]
    """
    accuracy = np.full((len(ends), len(ends)), np.nan)
    for after, (said, true) in enumerate(zip(logits, labels, strict=True)):
        right = said.argmax(-1) == true
        for number, (first, end) in enumerate(zip([0, *ends[:after]], ends[: after + 1], strict=True)):
            its = (true >= first) & (true < end)
            accuracy[after, number] = right[its].mean() if its.any() else np.nan
    return accuracy


def measure_within(logits: Array, labels: Array, ends: Sequence[int]) -> float:
    """Return the accuracy where the phase of an image's class is told, as LwF has it: among that phase's classes.

    Args:
        logits: After the last phase, `(N, C)`.
        labels: `(N,)`.
        ends: Classes seen after each phase.

    Example:
        >>> measure_within(np.array([[1.0, 0.0, 5.0, 0.0]]), np.array([0]), [2, 4])
        1.0
    """
    phase = np.searchsorted(ends, np.arange(logits.shape[-1]), side="right")
    others = phase[labels][:, None] != phase[None, :]
    return float((np.where(others, -np.inf, logits).argmax(-1) == labels).mean())


def measure_forgetting(accuracy: Array, after: Sequence[float]) -> dict[str, float]:
    """Return `average_incremental` and `forgetting`, shares.

    The first is the mean over the phases of the accuracy on all classes seen so far (Rebuffi et al. 2017,
    arXiv 1611.07725); the second the mean over all phases but the last of the best accuracy that their classes ever
    had before it, less that after it (Chaudhry et al. 2018, arXiv 1801.10112); 0 with one phase.

    Args:
        accuracy: See `measure_phases`.
        after: Accuracy on all classes seen, after each phase.

    Example:
        >>> measure_forgetting(np.array([[1.0, np.nan], [0.25, 1.0]]), [1.0, 0.5])
        {'average_incremental': 0.75, 'forgetting': 0.75}
    """
    lost = np.fmax.reduce(accuracy[:-1, :-1], axis=0) - accuracy[-1, :-1] if len(accuracy) > 1 else np.zeros(1)
    return {"average_incremental": float(np.mean(after)), "forgetting": float(lost.mean())}


def _write(recipe: Recipe, run: Path, data: DataBundle, ends: Sequence[int]) -> dict[str, Any]:
    """Write the files of a finished run, results.json last, and return what that holds."""
    folders = [phase_folder(run, number) for number in range(len(ends))]
    phases = [read_results(folder) for folder in folders]
    arrays, kept = _predictions(folders, ends)
    results = {
        **phases[-1],
        "title": recipe.title,
        "task": recipe.task,
        "losses": [term.model_dump(mode="json") for term in recipe.losses],
        "data": recipe.data.model_dump(mode="json"),
        "data_fingerprint": data.fingerprint,
        "class_counts": data.class_counts.tolist(),
        "teachers": [],
        "teacher_fingerprints": [],
        "best": None,
        "ema": None,
        "optimistic": None,
        **{total: sum(phase[total] for phase in phases) for total in ("epochs", "steps", "train_seconds")},
    }
    results["last"] = {"epoch": results["epochs"]}
    for split, accuracy in kept.items():
        metrics = [phase["last"][split] for phase in phases]
        after = [each["top1"] for each in metrics]
        results["last"][split] = {
            **_without_teacher(metrics[-1]),
            **measure_forgetting(accuracy, after),
            "within_phase": measure_within(arrays[f"{split}_logits"], arrays[f"{split}_labels"], ends),
        }
    results["last"] = {"validation": None, "test": None, **results["last"]}
    results["incremental"] = {
        "classes": list(ends),
        "class_order": class_order(recipe.data, data.num_classes),
        "after_phase": [phase["last"]["test"]["top1"] for phase in phases],
        "accuracy": [row[: number + 1] for number, row in enumerate(kept["test"].tolist())],
    }
    (run / run_folder.METRICS).write_bytes(_log(folders, phases))
    with atomic_file(run / run_folder.WEIGHTS["last"]) as file:
        file.write((folders[-1] / run_folder.WEIGHTS["last"]).read_bytes())
    with atomic_file(run / run_folder.PREDICTIONS) as file:
        np.savez(file, allow_pickle=False, **arrays)
    write_json(run / run_folder.RESULTS, results)
    return results


def _without_teacher(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metrics of the last phase less the agreement with a network that knows fewer classes."""
    return {name: value for name, value in metrics.items() if name != "agreement"}


def _predictions(folders: Sequence[Path], ends: Sequence[int]) -> tuple[dict[str, Array], dict[str, Array]]:
    """Return the arrays of the whole run, and the accuracy after and on each phase of each split that has images."""
    said: list[dict[str, Array]] = []
    for folder in folders:
        with np.load(folder / run_folder.PREDICTIONS) as file:
            said.append({name: file[name] for name in file.files})
    arrays = {name: value for name, value in said[-1].items() if not name.startswith("teacher_")}
    accuracy = {}
    for split in ("validation", "test"):
        if len(arrays[f"{split}_labels"]):
            logits, labels = ([each[f"{split}_{what}"] for each in said] for what in ("logits", "labels"))
            accuracy[split] = measure_phases(logits, labels, ends)
            arrays[f"{split}_phase_accuracy"] = accuracy[split]
    counts = np.zeros_like(arrays["train_class_counts"])
    for each in said:  # of an old class with a memory, what it had when it was new
        own = each["train_class_counts"]
        counts[: len(own)] = np.maximum(counts[: len(own)], own)
    arrays["train_class_counts"] = counts
    return arrays, accuracy


def _log(folders: Sequence[Path], phases: Sequence[Mapping[str, Any]]) -> bytes:
    """Return the lines of metrics of all phases, with epochs and steps counted through, and the phase named."""
    lines, epochs, steps = [], 0, 0
    for number, (folder, phase) in enumerate(zip(folders, phases, strict=True)):
        for text in (folder / run_folder.METRICS).read_text(encoding="utf-8").splitlines():
            line = json.loads(text)
            line |= {"phase": number, "epoch": line["epoch"] + epochs, "step": line["step"] + steps}
            lines.append(json.dumps(line))
        epochs, steps = epochs + phase["epochs"], steps + phase["steps"]
    return ("\n".join(lines) + "\n").encode()
