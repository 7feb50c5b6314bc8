"""Summary of a comparison folder: one row per loss, its setting chosen on validation, paired against the baseline."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from limbeck.analysis.run_files import Run, read_versioned
from limbeck.analysis.statistics import PairedDifference, Spread, holm, paired_difference, spread, verdict
from limbeck.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

WAY_OUT = "run `limbeck compare` again: it goes on where it stopped"
LONG_TAIL = 2.0
"""From this ratio of the largest to the smallest class on, head and tail classes are shown apart."""


@dataclass(frozen=True)
class Row:
    """One loss at its chosen setting. Accuracies, `ece` and `agreement` are percentages, `nll` is in nats.

    All but `best_top1` are of the last epoch's weights on the comparison's `split`; `best_top1` is the test accuracy of
    the epoch that was best on validation, None where validation is what is reported. What the runs do not have is None.

    Attributes:
        name: of the row.
        settings: the settings tried, each the list of its loss terms.
        validation: validation top-1 of each setting tried; None without a validation split or a finished run.
        selected: index of the chosen setting.
        runs: finished runs of the chosen setting, by seed.
        difference: top-1 less the baseline's, in percentage points; None for the baseline itself.
        p_holm: its p-value after Holm's correction over the rows; None where no test was made.
        verdict: the difference in words, see `statistics.verdict`; empty where there is none.
        head: accuracy on the largest third of the classes, mean over classes; None unless the classes are long-tailed.
        tail: the same on the smallest third.
    """

    name: str
    settings: tuple[list[dict[str, Any]], ...]
    validation: tuple[Spread | None, ...]
    selected: int
    runs: Mapping[int, Run]
    top1: Spread
    best_top1: Spread | None
    nll: Spread | None
    ece: Spread | None
    agreement: Spread | None
    head: Spread | None
    tail: Spread | None
    difference: PairedDifference | None = None
    p_holm: float | None = None
    verdict: str = ""


@dataclass(frozen=True)
class Control:
    """Two rows that theory makes equal: `largest` is the greatest |difference| of top-1 over the seeds, points."""

    first: str
    second: str
    largest: float
    n: int


@dataclass(frozen=True)
class Comparison:
    """What `summarise` found. `baseline` is None when that row has no finished run; `images` counts the splits.

    `missing` names the runs without results, relative to the folder; `seconds` is wall-clock time as the engine
    took it down; `vary_split` says that each seed has its own split and teachers; `diverged` names
    runs that were given up; `split` is what is reported: "test", or "validation" where there are no test images.
    """

    folder: Path
    title: str
    rows: tuple[Row, ...]
    baseline: str | None
    controls: tuple[Control, ...]
    seeds: tuple[int, ...]
    missing: tuple[str, ...]
    teachers: tuple[float, ...]
    images: Mapping[str, int]
    class_counts: tuple[int, ...]
    epochs: int
    seconds: Mapping[str, float]
    vary_split: bool
    diverged: tuple[str, ...]
    split: str

    def row(self, name: str) -> Row:
        """Return the row called `name`; KeyError when there is none."""
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(name)

    def selected_runs(self) -> dict[str, list[Run]]:
        """Return the finished runs of every row's chosen setting, for the pictures."""
        return {row.name: list(row.runs.values()) for row in self.rows}

    def table(self) -> str:
        """Return the table and its notes as plain text, 100 columns wide."""
        from limbeck.analysis.tables import plain  # which imports this module

        return plain(self)

    def __str__(self) -> str:
        return self.table()


def summarise(folder: Path) -> Comparison:
    """Return the summary of the comparison in `folder`.

    Each row's setting is the one with the best mean validation top-1 of the last epoch; the test split is read
    for the chosen setting alone. Without a test split the figures are of validation. Differences are paired by seed.
    Runs that are not finished are listed, not hidden.

    Raises:
        UserError: no comparison there, none of its runs finished, a damaged file, or several settings to choose from
            without a validation split.
    """
    plan = _plan(folder / "comparison.json")
    missing: list[str] = []
    rows = [_row(folder, name, settings, runs, missing) for name, (settings, runs) in plan.rows.items()]
    finished = tuple(row for row in rows if row is not None)
    if not finished:
        raise UserError(f"{folder}: none of the {len(missing)} runs is finished; {WAY_OUT}")
    by_name = {row.name: row for row in finished}
    any_run = next(iter(finished[0].runs.values()))
    return Comparison(
        folder=folder,
        title=plan.title,
        rows=_against(finished, by_name.get(plan.baseline)),
        baseline=plan.baseline if plan.baseline in by_name else None,
        controls=tuple(_control(by_name[a], by_name[b]) for a, b in plan.equal if a in by_name and b in by_name),
        seeds=plan.seeds,
        missing=tuple(run for run in missing if run not in plan.diverged),
        teachers=_teachers(folder, plan.teachers, any_run),
        images=_images(any_run),
        class_counts=_class_counts(any_run),
        epochs=int(any_run.metric("epochs") or 0),
        seconds=plan.seconds,
        vary_split=plan.vary_split,
        diverged=plan.diverged,
        split=any_run.split,
    )


def select(validation: Sequence[Spread | None], seeds: int) -> int:
    """Return the index of the setting with the best mean validation top-1; the first of equals.

    Settings finished on fewer than the `seeds` wanted stand back behind complete ones, since a mean over other seeds
    cannot be compared.
    """

    def order(index: int) -> tuple[int, float]:
        values = validation[index]
        return (0, 0.0) if values is None else (min(values.n, seeds), values.mean)

    return max(range(len(validation)), key=order)


@dataclass(frozen=True)
class _Plan:
    """Content of comparison.json; `rows[name]` is its settings and, for each, the run folder of each seed."""

    title: str
    seeds: tuple[int, ...]
    rows: dict[str, tuple[tuple[list[dict[str, Any]], ...], list[dict[int, str]]]]
    baseline: str
    equal: list[tuple[str, str]]
    teachers: list[str]
    seconds: dict[str, float]
    vary_split: bool
    diverged: tuple[str, ...]


def _plan(path: Path) -> _Plan:
    content = read_versioned(path, way_out=WAY_OUT)
    try:
        seeds, rows = tuple(int(seed) for seed in content["seeds"]), {}
        for name, row in content["rows"].items():
            runs = [dict(zip(seeds, paths, strict=True)) for paths in row["runs"]]
            rows[str(name)] = tuple(list(terms) for terms in row["settings"]), runs
            if len(row["settings"]) != len(runs):
                raise ValueError(f"row {name!r} has {len(row['settings'])} settings, but runs of {len(runs)}")
        return _Plan(
            title=str(content["title"]),
            seeds=seeds,
            rows=rows,
            baseline=str(content["baseline"]),
            equal=[(str(a), str(b)) for a, b in content["equal_by_theory"]],
            teachers=[str(teacher) for teacher in content["teachers"]],
            seconds={str(name): float(seconds) for name, seconds in content["seconds"].items()},
            vary_split=bool(content["vary_split"]),
            diverged=tuple(str(run) for run in content["diverged"]),
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(f"{path}: damaged or of another version ({error!r}); {WAY_OUT}") from error


def _row(
    folder: Path,
    name: str,
    settings: tuple[list[dict[str, Any]], ...],
    planned: list[dict[int, str]],
    missing: list[str],
) -> Row | None:
    """Return the row without its difference, None when no run is finished; unfinished runs go to `missing`."""
    finished: list[dict[int, Run]] = [{} for _ in settings]
    for paths, runs in zip(planned, finished, strict=True):
        for seed, path in paths.items():
            run = Run(folder / path)
            if run.finished:
                runs[seed] = run
            else:
                missing.append(path)
    if not any(finished):
        return None
    validation = tuple(_optional(list(runs.values()), "validation", "top1", 100) for runs in finished)
    if len(settings) > 1 and all(values is None for values in validation):
        raise UserError(
            f"row `{name}` of {folder} has {len(settings)} settings but no validation split to choose on; "
            "set `data.validation` above 0, or leave one setting"
        )
    selected = select(validation, len(planned[0])) if len(settings) > 1 else 0
    return _measured(name, settings, validation, selected, finished[selected])


def _measured(
    name: str,
    settings: tuple[list[dict[str, Any]], ...],
    validation: tuple[Spread | None, ...],
    selected: int,
    runs: dict[int, Run],
) -> Row:
    """Return the row of a chosen setting, measured on the split that its runs report."""
    by_seed = list(runs.values())
    split = by_seed[0].split
    head, tail = _head_and_tail(by_seed)
    return Row(
        name=name,
        settings=settings,
        validation=validation,
        selected=selected,
        runs=runs,
        top1=spread(_measure(by_seed, split, "top1", 100)),
        best_top1=_optional(by_seed, "test", "top1", 100, weights="best"),
        nll=_optional(by_seed, split, "nll"),
        ece=_optional(by_seed, split, "ece", 100),
        agreement=_optional(by_seed, split, "agreement", 100),
        head=head,
        tail=tail,
    )


def _optional(
    runs: Sequence[Run], split: str, measure: str, factor: float = 1.0, *, weights: str = "last"
) -> Spread | None:
    """Return a measure over the runs, times `factor`; None when there is no run or one that lacks it."""
    values = [value * factor for run in runs if (value := run.metric(weights, split, measure)) is not None]
    return spread(values) if values and len(values) == len(runs) else None


def _measure(runs: Sequence[Run], split: str, measure: str, factor: float) -> list[float]:
    """Return a measure of the last weights that every run must have, times `factor`."""
    values = _optional(runs, split, measure, factor)
    if values is None:
        raise UserError(f"{runs[0].folder / 'results.json'}: expected `last.{split}.{measure}`; train the run again")
    return list(values.values)


def _against(rows: tuple[Row, ...], baseline: Row | None) -> tuple[Row, ...]:
    """Return the rows with their differences to the baseline, tests and words."""
    if baseline is None:
        return rows
    differences = [None if row is baseline else _difference(row, baseline) for row in rows]
    adjusted = holm([None if difference is None else difference.p for difference in differences])
    return tuple(
        row if difference is None else replace(row, difference=difference, p_holm=p, verdict=verdict(difference, p))
        for row, difference, p in zip(rows, differences, adjusted, strict=True)
    )


def _difference(row: Row, other: Row) -> PairedDifference | None:
    """Return the difference of top-1, points, over the seeds that both have finished; None without any."""
    shared = [seed for seed in row.runs if seed in other.runs]
    if not shared:
        return None
    split = row.runs[shared[0]].split
    sides = [_measure([side.runs[seed] for seed in shared], split, "top1", 100) for side in (row, other)]
    return paired_difference(*sides)


def _teachers(folder: Path, names: Sequence[str], student: Run) -> tuple[float, ...]:
    """Return the teachers' top-1 in percent: of their runs, or as a student that was given modules measured them."""
    if names:
        return tuple(_measure([Run(folder / name)], student.split, "top1", 100)[0] for name in names)
    measured = [(teacher or {}).get(student.split) for teacher in student.results.get("teachers", ())]
    return tuple(100 * float(metrics["top1"]) for metrics in measured if metrics)


def _control(first: Row, second: Row) -> Control:
    difference = _difference(first, second)
    values = difference.values if difference is not None else ()
    return Control(first.name, second.name, max(map(abs, values), default=float("nan")), len(values))


def _head_and_tail(runs: Sequence[Run]) -> tuple[Spread | None, Spread | None]:
    """Return the mean accuracy on the largest and the smallest third of the classes, in percent."""
    counts = np.array(_class_counts(runs[0]))
    third = len(counts) // 3
    if third == 0 or counts.max() < LONG_TAIL * max(counts.min(), 1):
        return None, None
    order = np.argsort(-counts, kind="stable")
    accuracies = [run.scores.accuracy * 100 for run in runs]
    head = spread([float(np.nanmean(accuracy[order[:third]])) for accuracy in accuracies])
    return head, spread([float(np.nanmean(accuracy[order[-third:]])) for accuracy in accuracies])


def _class_counts(run: Run) -> tuple[int, ...]:
    try:
        return tuple(int(count) for count in run.results["class_counts"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{run.folder / 'results.json'}: expected `class_counts`; train the run again") from error


def _images(run: Run) -> dict[str, int]:
    """Return the number of images of each split."""
    held_out = {split: int(run.metric("last", split, "samples") or 0) for split in ("validation", "test")}
    return {"train": sum(_class_counts(run)), **held_out}
