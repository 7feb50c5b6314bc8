"""One row of a comparison: its settings, the one that validation chooses, what the runs of that one reached."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from limbeck.analysis.run_files import Run
from limbeck.analysis.statistics import Judged, PairedDifference, Spread, spread
from limbeck.analysis.tails import Group, groups, head_and_tail
from limbeck.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from limbeck.analysis.robust import RobustRow


TOP5_CLASSES = 100  # from so many on it says something


@dataclass(frozen=True)
class PlannedRow:
    """What comparison.json says of a row: its settings, for each the run folder of each seed, its own adversary."""

    settings: tuple[list[dict[str, Any]], ...]
    runs: tuple[dict[int, str], ...]
    adversary: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """One loss at its chosen setting. Accuracies, `ece` and `agreement` are percentages, `nll` is in nats.

    `main` is the measure of the task, see `limbeck.headlines`: top-1 of classification. All but `best_main` are of the
    weights that the runs report (the last epoch's; after adversarial training those that early stopping or averaging
    made) on the comparison's `split`; `best_main` is the same on test of the epoch that was best on validation, None
    where validation is what is reported. What the runs do not have is None.

    Attributes:
        name: of the row.
        settings: the settings tried, each the list of its loss terms.
        validation: what chose among the settings, for each its main measure there, after adversarial training its
            robust accuracy there; None without a validation split or a finished run.
        clean_validation: the main measure on validation of each setting tried.
        selected: index of the chosen setting.
        runs: finished runs of the chosen setting, by seed.
        robust: what attacks left; None but in comparisons of adversarial training.
        adversary: options of the training's adversary that this row has otherwise.
        judged: headline less the baseline's, in percentage points.
        groups: accuracy on classes with many, medium and few training images; empty without `data.groups`.
        head: accuracy on the largest third of the classes, mean over classes; None unless the classes are long-tailed
            without groups.
        tail: the same on the smallest third.
        beside: title -> further measures of the task, in percent.
    """

    name: str
    settings: tuple[list[dict[str, Any]], ...]
    validation: tuple[Spread | None, ...]
    clean_validation: tuple[Spread | None, ...]
    selected: int
    runs: Mapping[int, Run]
    main: Spread
    best_main: Spread | None
    nll: Spread | None
    ece: Spread | None
    agreement: Spread | None
    head: Spread | None
    tail: Spread | None
    groups: Mapping[str, Group] = field(default_factory=dict)
    top5: Spread | None = None
    beside: Mapping[str, Spread] = field(default_factory=dict)
    adversary: Mapping[str, Any] = field(default_factory=dict)
    robust: RobustRow | None = None
    judged: Judged = field(default_factory=Judged)

    @property
    def difference(self) -> PairedDifference | None:
        """Headline less the baseline's, in percentage points; None for the baseline itself."""
        return self.judged.difference

    @property
    def p_holm(self) -> float | None:
        """The difference's p-value after Holm's correction over the rows; None where no test was made."""
        return self.judged.p_holm

    @property
    def verdict(self) -> str:
        """The difference in words, see `statistics.verdict`; empty where there is none."""
        return self.judged.verdict

    @property
    def headline(self) -> Spread:
        """What rows are compared by: the task's measure, after adversarial training that under the hardest attack."""
        return self.main if self.robust is None else self.robust.accuracy


def read_row(folder: Path, name: str, planned: PlannedRow, missing: list[str]) -> Row | None:
    """Return the row without its differences, None when no run is finished; unfinished runs go to `missing`."""
    finished: list[dict[int, Run]] = [{} for _ in planned.settings]
    for paths, runs in zip(planned.runs, finished, strict=True):
        for seed, path in paths.items():
            run = Run(folder / path)
            if run.finished:
                runs[seed] = run
            else:
                missing.append(path)
    if not any(finished):
        return None
    every = [run for runs in finished for run in runs.values()]
    main = every[0].headline.main.key
    validation, clean = (
        tuple(optional(list(runs.values()), "validation", measure, 100) for runs in finished)
        for measure in ("robust" if any(run.adversarial for run in every) else main, main)
    )
    if len(planned.settings) > 1 and all(values is None for values in validation):
        raise UserError(
            f"row `{name}` of {folder} has {len(planned.settings)} settings but no validation split to choose on; "
            "set `data.validation` above 0, or leave one setting"
        )
    selected = select(validation, len(planned.runs[0])) if len(planned.settings) > 1 else 0
    return _measured(name, planned, validation, clean, selected, finished[selected])


def select(validation: Sequence[Spread | None], seeds: int) -> int:
    """Return the index of the setting with the best mean on validation; the first of equals.

    Settings finished on fewer than the `seeds` wanted stand back behind complete ones, since a mean over other seeds
    cannot be compared.
    """

    def order(index: int) -> tuple[int, float]:
        values = validation[index]
        return (0, 0.0) if values is None else (min(values.n, seeds), values.mean)

    return max(range(len(validation)), key=order)


def _measured(
    name: str,
    planned: PlannedRow,
    validation: tuple[Spread | None, ...],
    clean_validation: tuple[Spread | None, ...],
    selected: int,
    runs: dict[int, Run],
) -> Row:
    """Return the row of a chosen setting, measured on the split that its runs report."""
    by_seed = list(runs.values())
    split, headline = by_seed[0].split, by_seed[0].headline
    beside = {measure.title: optional(by_seed, split, measure.key, 100) for measure in headline.beside}
    by_group = groups(by_seed, split)
    thirds = headline.main.key == "top1" and not by_group
    head, tail = head_and_tail(by_seed, class_counts(by_seed[0])) if thirds else (None, None)
    return Row(
        name=name,
        settings=planned.settings,
        validation=validation,
        clean_validation=clean_validation,
        selected=selected,
        runs=runs,
        main=spread(measured(by_seed, split, headline.main.key, 100)),
        best_main=optional(by_seed, "test", headline.main.key, 100, weights="best"),
        nll=optional(by_seed, split, "nll"),
        ece=optional(by_seed, split, "ece", 100),
        agreement=optional(by_seed, split, "agreement", 100),
        head=head,
        tail=tail,
        groups=by_group,
        top5=optional(by_seed, split, "top5", 100) if len(class_counts(by_seed[0])) >= TOP5_CLASSES else None,
        beside={title: values for title, values in beside.items() if values is not None},
        adversary=planned.adversary,
    )


def optional(
    runs: Sequence[Run], split: str, measure: str, factor: float = 1.0, *, weights: str | None = None
) -> Spread | None:
    """Return a measure over the runs, times `factor`; None when there is no run or one that lacks it.

    `weights` are those that each run reports, unless they are named.
    """
    found = (run.metric(weights or run.reported, split, measure) for run in runs)
    values = [value * factor for value in found if value is not None]
    return spread(values) if values and len(values) == len(runs) else None


def measured(runs: Sequence[Run], split: str, measure: str, factor: float) -> list[float]:
    """Return a measure of the reported weights that every run must have, times `factor`."""
    values = optional(runs, split, measure, factor)
    if values is None:
        what = f"{runs[0].reported}.{split}.{measure}"
        raise UserError(f"{runs[0].folder / 'results.json'}: expected `{what}`; train the run again")
    return list(values.values)


def class_counts(run: Run) -> tuple[int, ...]:
    """Return the training images of each class, as results.json has them."""
    try:
        return tuple(int(count) for count in run.results["class_counts"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{run.folder / 'results.json'}: expected `class_counts`; train the run again") from error
