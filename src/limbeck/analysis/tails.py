"""Long tails in a comparison: accuracy on classes with many, medium and few training images, or on head and tail."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from limbeck.analysis.statistics import Judged, Spread, spread
from limbeck.analysis.wording import accuracy_text, difference_text, groups_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from limbeck.analysis.comparison import Comparison
    from limbeck.analysis.run_files import Run

LONG_TAIL = 2.0
"""From this ratio of the largest to the smallest class on, head and tail classes are shown apart."""


@dataclass(frozen=True)
class Group:
    """One group of classes in a row: mean over its classes of their accuracies, percent, and less the baseline's.

    The difference has an interval but no corrected p-value: groups are looked at beside what rows are compared by.
    """

    accuracy: Spread
    judged: Judged = field(default_factory=Judged)


def groups(runs: Sequence[Run], split: str) -> dict[str, Group]:
    """Return the groups that all runs have, as `data.groups` made them; empty without."""
    found = [_groups(run, split) for run in runs]
    shared = [name for name in found[0] if all(name in each for each in found)]
    return {name: Group(spread([100 * float(each[name]) for each in found])) for name in shared}


def _groups(run: Run, split: str) -> Mapping[str, Any]:
    metrics: Mapping[str, Any] = (run.results.get(run.reported) or {}).get(split) or {}
    found: Mapping[str, Any] = metrics.get("groups", {})
    return found


def head_and_tail(runs: Sequence[Run], counts: Sequence[int]) -> tuple[Spread | None, Spread | None]:
    """Return the mean accuracy on the largest and the smallest third of the classes, in percent; None if balanced.

    Args:
        runs: Of one row.
        counts: Training images of each class.
    """
    third = len(counts) // 3
    if third == 0 or max(counts) < LONG_TAIL * max(min(counts), 1):
        return None, None
    order = np.argsort(-np.array(counts), kind="stable")
    accuracies = [run.scores.accuracy * 100 for run in runs]
    head = spread([float(np.nanmean(accuracy[order[:third]])) for accuracy in accuracies])
    return head, spread([float(np.nanmean(accuracy[order[-third:]])) for accuracy in accuracies])


def columns(comparison: Comparison) -> list[tuple[str, list[str]]]:
    """Return the columns of the groups: title, and the text of each row; empty without groups."""
    rows, found = comparison.rows, []
    for name in rows[0].groups:
        groups = [row.groups.get(name) for row in rows]
        texts = [accuracy_text(group.accuracy if group else None, len(comparison.seeds)) for group in groups]
        found.append((f"{name}, %", texts))
        if comparison.baseline is not None:
            differences = [difference_text(group.judged if group else Judged()) for group in groups]
            found.append((f"{name} vs {comparison.baseline}, points [95 % CI]", differences))
    return found


def sentences(comparison: Comparison) -> list[str]:
    """Return what the columns of groups, or those of head and tail, mean; empty without either."""
    counts = comparison.class_counts
    spans = f"training images per class from {max(counts, default=0)} to {min(counts, default=0)}"
    if comparison.rows[0].groups:
        return [_groups_sentence(comparison, spans)]
    if comparison.attacks is None and comparison.rows[0].head is not None:
        third = len(counts) // 3
        return [f"head, tail: mean accuracy on the {third} largest and smallest of {len(counts)} classes ({spans})."]
    return []


def _groups_sentence(comparison: Comparison, spans: str) -> str:
    run = next(iter(comparison.rows[0].runs.values()))
    classes = groups_text(run.results["data"]["groups"], run.results["group_classes"])
    corrected = "" if comparison.baseline is None else "; their intervals are not corrected for the number of columns"
    text = f"{classes}; {spans}. Accuracies of groups are means over their classes{corrected}."
    teachers = _teachers(list(comparison.rows[0].runs.values()), comparison.split)
    means = ", ".join(f"{name} {100 * np.mean(values):.2f}" for name, values in teachers.items())
    return f"{text} The teachers: {means} %, means over the seeds." if means else text


def _teachers(runs: Sequence[Run], split: str) -> dict[str, list[float]]:
    """Return the accuracy of the first teacher of each run on each group, as its student's run measured it."""
    measured = [(run.results["teachers"][0] or {}).get(split) or {} for run in runs if run.results.get("teachers")]
    found = [metrics.get("groups", {}) for metrics in measured]
    return {name: [float(each[name]) for each in found] for name in (found[0] if found and all(found) else {})}
