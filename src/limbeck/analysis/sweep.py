"""A sweep from its files: what each point of the grid reached, which one validation chooses, a table."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from limbeck.analysis import robust_notes
from limbeck.analysis.robust import AttackPlan, attacks_at, plan_attacks
from limbeck.analysis.rows import optional
from limbeck.analysis.run_files import Run, read_versioned
from limbeck.analysis.statistics import spread
from limbeck.analysis.wording import mean_and_std
from limbeck.errors import UserError, missing_extra
from limbeck.headlines import HEADLINES

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from rich.console import Group
    from rich.table import Table

    from limbeck.analysis.statistics import Spread
    from limbeck.headlines import Headline


@dataclass(frozen=True)
class Axis:
    """An option that was swept: its path and values."""

    path: str
    values: tuple[Any, ...]

    @property
    def numeric(self) -> bool:
        """Whether all values are numbers."""
        return all(isinstance(value, int | float) and not isinstance(value, bool) for value in self.values)


@dataclass(frozen=True)
class Point:
    """One combination of values. Accuracies are percentages of the reported weights; None without a run or a split.

    Attributes:
        name: Its folder.
        values: One of each axis.
        validation: On validation, what points are compared by: the task's measure, or robust accuracy after
            adversarial training.
        test: The same on test.
        clean_validation: Top-1 on validation, after adversarial training.
        clean_test: Top-1 on test, after adversarial training.
        runs: Those that are finished.
        diverged: Number of runs that diverged.
    """

    name: str
    values: tuple[Any, ...]
    validation: Spread | None
    test: Spread | None
    clean_validation: Spread | None
    clean_test: Spread | None
    runs: tuple[Run, ...]
    diverged: int

    @property
    def finished(self) -> int:
        """Number of finished runs."""
        return len(self.runs)


@dataclass(frozen=True)
class Sweep:
    """A sweep, finished or not.

    Attributes:
        title: Of the recipe.
        protocol: "holdout" or "paper".
        axes: What was swept.
        points: In the order of the grid.
        seeds: Seeds of each point.
        vary_split: Whether each seed had its own split and teacher.
        adversarial: Whether the runs were trained against attacks.
        comparable: Whether the accuracies of the points measure one thing; not so, after adversarial training, where
            they have adversaries of different radius, norm or validation attack.
        attacks: How robust accuracy on test was measured, of the chosen point, or of all where none can be chosen;
            None without adversarial training, and where it would not be comparable.
        headline: What the task is judged by.
    """

    title: str
    protocol: str
    axes: tuple[Axis, ...]
    points: tuple[Point, ...]
    seeds: tuple[int, ...]
    vary_split: bool
    adversarial: bool
    comparable: bool
    attacks: AttackPlan | None = None
    headline: Headline = HEADLINES["supervised"]

    @property
    def split(self) -> str:
        """The split that table and picture show: validation, or test where nothing was held out."""
        return "validation" if any(point.validation for point in self.points) else "test"

    def measure(self, split: str) -> str:
        """Return in words what points are compared by on a split."""
        if not self.adversarial:
            return f"{split} {self.headline.main.short}"
        if self.attacks is None:
            return f"{split} robust accuracy"
        return f"{split} {self.attacks.validation if split == 'validation' else self.attacks.headline}"

    @property
    def chosen(self) -> Point | None:
        """The point with the best mean on validation, of those that no seed is missing of.

        None without validation, and where the figures of the points cannot be compared.
        """
        if not self.comparable:
            return None
        whole = [point for point in self.points if point.validation and point.finished == len(self.seeds)]
        return max(whole, key=lambda point: point.validation.mean if point.validation else 0.0, default=None)

    def shown(self, point: Point) -> Spread | None:
        """Return what table and picture show of a point."""
        return point.validation if self.split == "validation" else point.test

    def clean(self, point: Point) -> Spread | None:
        """Return the clean accuracy beside it, after adversarial training."""
        return point.clean_validation if self.split == "validation" else point.clean_test


def summarise(folder: Path) -> Sweep:
    """Return the sweep in `folder`.

    Raises:
        UserError: There is none, none of its runs is finished, or a file is damaged.
    """
    path = folder / "sweep.json"
    content = read_versioned(path, way_out="start the sweep again with `limbeck sweep`")
    try:
        runs = [[Run(folder / name) for name in point["runs"]] for point in content["points"]]
        diverged = {folder / name for name in content["diverged"]}
        points = tuple(
            _point(point, [run for run in planned if run.folder not in diverged and run.finished], planned, diverged)
            for point, planned in zip(content["points"], runs, strict=True)
        )
        finished = [run for point in points for run in point.runs]
        sweep = Sweep(
            title=content["title"],
            protocol=content["protocol"],
            axes=tuple(Axis(axis["path"], tuple(axis["values"])) for axis in content["axes"]),
            points=points,
            seeds=tuple(content["seeds"]),
            vary_split=content["vary_split"],
            adversarial=any(run.adversarial for run in finished),
            comparable=_comparable(finished),
        )
    except (KeyError, TypeError) as error:
        raise UserError(f"{path}: lacks {error}; start the sweep again with `limbeck sweep`") from error
    if not finished:
        raise UserError(f"{folder}: none of the runs of this sweep is finished; the same `limbeck sweep` goes on")
    sweep = replace(sweep, headline=finished[0].headline)
    return _attacked(sweep) if sweep.adversarial and sweep.comparable else sweep


def _point(content: dict[str, Any], finished: Sequence[Run], planned: Sequence[Run], diverged: set[Path]) -> Point:
    """Return what validation saw of a point, and without adversarial training what test saw."""
    adversarial = any(run.adversarial for run in finished)
    key = finished[0].headline.main.key if finished else "top1"
    main = {split: optional(finished, split, key, 100) for split in ("validation", "test")}
    return Point(
        name=content["name"],
        values=tuple(content["values"]),
        validation=optional(finished, "validation", "robust", 100) if adversarial else main["validation"],
        test=None if adversarial else main["test"],
        clean_validation=main["validation"] if adversarial else None,
        clean_test=main["test"] if adversarial else None,
        runs=tuple(finished),
        diverged=sum(run.folder in diverged for run in planned),
    )


def _comparable(runs: Sequence[Run]) -> bool:
    adversaries = [run.results.get("adversary") or {} for run in runs]
    keys = ("epsilon", "norm", "validation_attack")
    return len({tuple(adversary.get(key) for key in keys) for adversary in adversaries}) <= 1


def _attacked(sweep: Sweep) -> Sweep:
    """Return the sweep with what the attacks on test images left: of the chosen point alone, if there is one."""
    runs = sweep.chosen.runs if sweep.chosen else tuple(run for point in sweep.points for run in point.runs)
    attacks = plan_attacks(runs, runs[0])
    points = tuple(replace(point, test=_left(point, attacks)) for point in sweep.points)
    return replace(sweep, points=points, attacks=attacks)


def _left(point: Point, attacks: AttackPlan) -> Spread | None:
    found = [attacks_at(run, attacks.epsilon).get(attacks.headline) for run in point.runs]
    values = [attack.accuracy for attack in found if attack is not None]
    return spread(values) if values and len(values) == len(found) else None


def text_of(value: Any) -> str:
    """Return a value as it is written in YAML.

    >>> [text_of(value) for value in (None, True, 0.5, 1e-05, [10, 20], "kl")]
    ['null', 'true', '0.5', '1e-05', '[10, 20]', 'kl']
    """
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case float():
            return f"{value:g}"
        case _:
            return str(value)


# --- table ------------------------------------------------------------------------------------------------


def notes(sweep: Sweep) -> list[str]:
    """Return the sentences that belong under the table."""
    seeds, runs = len(sweep.seeds), sum(point.finished for point in sweep.points)
    reach = "one split for all seeds"
    if sweep.vary_split:
        reach = "each seed with its own split" + ("" if sweep.adversarial else " and teacher")
    weights = "Last epoch"
    if sweep.attacks is not None:
        weights = f"Weights {robust_notes.weights(sweep.attacks)}"
    sentences = [f"{weights}; ± is the standard deviation over n seeds, {reach}."]
    if missing := len(sweep.points) * seeds - runs - sum(point.diverged for point in sweep.points):
        verb = "is" if missing == 1 else "are"
        sentences.insert(0, f"Unfinished: {missing} of {len(sweep.points) * seeds} runs {verb} missing.")
    if gone := [f"{point.name} ({point.diverged} of {seeds})" for point in sweep.points if point.diverged]:
        sentences.append(f"Diverged and left out: {', '.join(gone)}.")
    if sweep.attacks is not None:
        sentences += robust_notes.protocol(sweep.attacks)
    return [*sentences, *_choice(sweep)]


def _choice(sweep: Sweep) -> list[str]:
    """Return what is said of the point that was chosen, or of why none was."""
    chosen, sentences = sweep.chosen, []
    if not sweep.comparable:
        sentences.append(
            "The points were attacked at different radii, in different norms or by different attacks on validation: "
            "their robust accuracies cannot be compared, so none is chosen."
        )
    elif sweep.split == "test":
        sentences.append(
            "Nothing was held out: all figures are of the test split, so no setting may be chosen by them. "
            "To choose one, sweep with `protocol: holdout` and `data.validation` above 0."
        )
    elif chosen is None:
        sentences.append("No point has all of its seeds yet, so none is chosen.")
    elif chosen.test is not None:
        main = sweep.headline.main
        word = "accuracy" if main.key == "top1" else main.short
        sentences.append(
            f"* chosen on validation among {len(sweep.points)} points, the first of equals; only its test {word} is "
            f"shown. Its {word} on validation is the largest of many, and so too high; that on test is not."
        )
    return sentences


def columns(sweep: Sweep) -> tuple[list[str], list[list[str]]]:
    """Return the column titles and, for each point, the texts under them."""
    points, chosen = sweep.points, sweep.chosen
    table = {
        ".\n".join(axis.path.rsplit(".", 1)): [text_of(point.values[number]) for point in points]
        for number, axis in enumerate(sweep.axes)
    }
    table[_title(sweep, sweep.measure(sweep.split))] = [_accuracy(sweep.shown(point)) for point in points]
    if sweep.adversarial:
        table[_title(sweep, f"{sweep.split} clean")] = [_accuracy(sweep.clean(point)) for point in points]
    table["n"] = [f"{point.finished}/{len(sweep.seeds)}" for point in points]
    if chosen is not None and chosen.test is not None:
        shown = {sweep.measure("test"): _accuracy(chosen.test) + " *"}
        if sweep.adversarial:
            shown["test clean"] = _accuracy(chosen.clean_test)
        for title, text in shown.items():
            table[_title(sweep, title)] = [text if point is chosen else "" for point in points]
    return list(table), [list(texts) for texts in zip(*table.values(), strict=True)]


def _title(sweep: Sweep, words: str) -> str:
    """Return a title with its unit, on two lines where there are many columns."""
    return f"{words}, %".replace(" ", "\n", 1) if sweep.adversarial else f"{words}, %"


def _accuracy(values: Spread | None) -> str:
    return "-" if values is None else mean_and_std(values)


def marginals(sweep: Sweep, axis: int) -> list[tuple[Any, Spread | None]]:
    """Return for each value of an axis the spread of the points' means, over the values of all other axes."""
    found = []
    for value in sweep.axes[axis].values:
        means = [shown.mean for p in sweep.points if p.values[axis] == value and (shown := sweep.shown(p))]
        found.append((value, spread(means) if means else None))
    return found


def rich_table(sweep: Sweep) -> Group:
    """Return the sweep for `rich.console.Console.print`: the points, with three axes and more the marginals, notes."""
    try:
        from rich.console import Group
        from rich.text import Text
    except ImportError as error:
        raise missing_extra("rich", "cli", "the table") from error
    titles, rows = columns(sweep)
    best = None if sweep.chosen is None else sweep.points.index(sweep.chosen)
    tables = [_table(titles, rows, len(sweep.axes), best)]
    if len(sweep.axes) > 2:
        texts = [
            [axis.path, text_of(value), _accuracy(values)]
            for number, axis in enumerate(sweep.axes)
            for value, values in marginals(sweep, number)
        ]
        mean = f"mean {sweep.measure(sweep.split)}, %, ± over the other options"
        tables.append(_table(["option", "value", mean], texts, 2, None))
    return Group(*tables, Text(), *(Text(sentence, style="dim") for sentence in notes(sweep)))


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]], names: int, best: int | None) -> Table:
    """Return a table whose first `names` columns are names and the others numbers, the best row bold."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for number, title in enumerate(titles):
        table.add_column(title, justify="left" if number < names else "right", overflow="fold")
    for number, row in enumerate(rows):
        table.add_row(*row, style="bold" if number == best else None)
    return table
