"""Summary of a comparison folder: one row per loss, its setting chosen on validation, paired against the baseline."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from limbeck.analysis.robust import AttackPlan, plan_attacks, robust_rows
from limbeck.analysis.rows import PlannedRow, Row, class_counts, measured, read_row
from limbeck.analysis.run_files import Run, read_versioned
from limbeck.analysis.statistics import Judged, PairedDifference, Spread, judge, paired_difference
from limbeck.analysis.wording import plural
from limbeck.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from limbeck.analysis.tails import Group
    from limbeck.headlines import Headline

WAY_OUT = "run `limbeck compare` again: it goes on where it stopped"
SAME_NLL = 1e-4
"""NLLs that differ by less than this share are those of one network, but for rounding in its training."""


@dataclass(frozen=True)
class Control:
    """Two rows that theory makes equal: `largest` is the greatest |difference| of their headline, points, on a seed."""

    first: str
    second: str
    largest: float
    n: int


@dataclass(frozen=True)
class Comparison:
    """What `summarise` found. `baseline` is None when that row has no finished run; `images` counts the splits.

    `missing` names the runs without results, relative to the folder; `seconds` is wall-clock time as the engine
    took it down; `vary_split` says that each seed has its own split and teachers; `diverged` names
    runs that were given up; `split` is what is reported: "test", or "validation" where there are no test images;
    `attacks` says how robust accuracy was measured, None but after adversarial training.
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
    attacks: AttackPlan | None = None

    @property
    def measure(self) -> str:
        """What rows are compared by, in words, see `Row.headline`."""
        if self.attacks is not None:
            return f"{self.split} accuracy under {self.attacks.headline}"
        return f"{self.split} {self.headline.main.short}"

    @property
    def headline(self) -> Headline:
        """What the task is judged by."""
        return next(iter(self.rows[0].runs.values())).headline

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

    Each row's setting is the one with the best mean of the task's measure on validation, after adversarial training
    with the best mean robust accuracy there; the test split is read for the chosen setting alone. Without a test split
    the figures are of validation. Differences are paired by seed. Runs that are not finished are listed, not hidden.

    Raises:
        UserError: no comparison there, none of its runs finished, a damaged file, several settings to choose from
            without a validation split, or no attack that all runs have.
    """
    plan = _plan(folder / "comparison.json")
    missing: list[str] = []
    rows = [read_row(folder, name, planned, missing) for name, planned in plan.rows.items()]
    finished = tuple(row for row in rows if row is not None)
    if not finished:
        raise UserError(f"{folder}: none of the {len(missing)} {plural('run', len(missing))} is finished; {WAY_OUT}")
    leader = next((row for row in finished if row.name == plan.baseline), finished[0])
    finished, attacks = _attacked(finished, leader)
    compared = _against(finished, plan.baseline)
    by_name = {row.name: row for row in compared}
    any_run = next(iter(finished[0].runs.values()))
    return Comparison(
        folder=folder,
        title=plan.title,
        rows=compared,
        baseline=plan.baseline if plan.baseline in by_name else None,
        controls=tuple(_control(by_name[a], by_name[b]) for a, b in plan.equal if a in by_name and b in by_name),
        seeds=plan.seeds,
        missing=tuple(run for run in missing if run not in plan.diverged),
        teachers=_teachers(folder, plan.teachers, any_run),
        images=_images(any_run),
        class_counts=class_counts(any_run),
        epochs=int(any_run.metric("epochs") or 0),
        seconds=plan.seconds,
        vary_split=plan.vary_split,
        diverged=plan.diverged,
        split=any_run.split,
        attacks=attacks,
    )


@dataclass(frozen=True)
class _Plan:
    """Content of comparison.json."""

    title: str
    seeds: tuple[int, ...]
    rows: dict[str, PlannedRow]
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
            runs = tuple(dict(zip(seeds, paths, strict=True)) for paths in row["runs"])
            settings = tuple(list(terms) for terms in row["settings"])
            rows[str(name)] = PlannedRow(settings, runs, dict(row.get("adversary", {})))
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


def _attacked(rows: tuple[Row, ...], leader: Row) -> tuple[tuple[Row, ...], AttackPlan | None]:
    """Return the rows with what attacks left, after adversarial training, and which attacks, at the leader's radius."""
    runs = [run for row in rows for run in row.runs.values()]
    if not any(run.adversarial for run in runs):
        return rows, None
    attacks = plan_attacks(runs, next(iter(leader.runs.values())))
    found = zip(rows, robust_rows(rows, attacks), strict=True)
    return tuple(replace(row, robust=robust) for row, robust in found), attacks


def _against(rows: tuple[Row, ...], baseline: str) -> tuple[Row, ...]:
    """Return the rows with their differences to the baseline, tests and words, those of clean accuracy beside."""
    reference = next((row for row in rows if row.name == baseline), None)
    if reference is None:
        return rows
    headlines = _judged(rows, reference, {row.name: row.headline for row in rows})
    clean = _judged(rows, reference, {row.name: row.main for row in rows})
    return tuple(
        replace(
            row,
            judged=judged,
            robust=row.robust and replace(row.robust, clean=beside),
            groups=_groups_against(row, reference),
        )
        for row, judged, beside in zip(rows, headlines, clean, strict=True)
    )


def _groups_against(row: Row, baseline: Row) -> dict[str, Group]:
    """Return the groups of a row with their differences to the baseline's."""
    found = dict(row.groups)
    for name in row.groups if row is not baseline else ():
        if name in baseline.groups:
            values = {each.name: each.groups[name].accuracy for each in (row, baseline)}
            found[name] = replace(found[name], judged=Judged(_paired(row, baseline, values)))
    return found


def _judged(rows: Sequence[Row], baseline: Row, values: Mapping[str, Spread]) -> list[Judged]:
    differences = [None if row is baseline else _paired(row, baseline, values) for row in rows]
    pairs = zip(rows, differences, strict=True)
    return judge(differences, [each is not None and each.tied and _same_networks(row, baseline) for row, each in pairs])


def _same_networks(row: Row, other: Row) -> bool:
    """Whether NLL, which unlike accuracy is no count of images, agrees on every seed."""
    if row.nll is None or other.nll is None:
        return False
    first, second = _shared(row, row.nll, other, other.nll)
    return all(math.isclose(a, b, rel_tol=SAME_NLL) for a, b in zip(first, second, strict=True))


def _paired(row: Row, other: Row, values: Mapping[str, Spread]) -> PairedDifference | None:
    """Return the difference of values, points, over the seeds that both have finished; None without any."""
    first, second = _shared(row, values[row.name], other, values[other.name])
    return paired_difference(first, second) if first else None


def _shared(row: Row, values: Spread, other: Row, beside: Spread) -> tuple[list[float], list[float]]:
    """Return the values of both rows over the seeds that both have finished."""
    first, second = dict(zip(row.runs, values.values, strict=True)), dict(zip(other.runs, beside.values, strict=True))
    shared = [seed for seed in first if seed in second]
    return [first[seed] for seed in shared], [second[seed] for seed in shared]


def _teachers(folder: Path, names: Sequence[str], student: Run) -> tuple[float, ...]:
    """Return the main measure in percent of teachers that are finished, or of modules as a student measured them."""
    if names:
        runs = [run for name in names if (run := Run(folder / name)).finished]
        return tuple(measured([run], student.split, student.headline.main.key, 100)[0] for run in runs)
    given = [(teacher or {}).get(student.split) for teacher in student.results.get("teachers", ())]
    return tuple(100 * float(metrics[student.headline.main.key]) for metrics in given if metrics)


def _control(first: Row, second: Row) -> Control:
    difference = _paired(first, second, {row.name: row.headline for row in (first, second)})
    values = difference.values if difference is not None else ()
    return Control(first.name, second.name, max(map(abs, values), default=float("nan")), len(values))


def _images(run: Run) -> dict[str, int]:
    """Return the number of images of each split."""
    held_out = {split: int(run.metric("last", split, "samples") or 0) for split in ("validation", "test")}
    # What has masks or boxes has no class of an image to count by; earlier runs have the counts alone.
    train = sum(class_counts(run)) or int(run.results.get("training_images", 0))
    return {"train": train, **held_out}
