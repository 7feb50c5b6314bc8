"""Robust accuracy: what attacks left of a run's accuracy, and by which attack the rows of a comparison are compared."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from limbeck.analysis.run_files import foreign
from limbeck.analysis.statistics import Judged, Spread, spread
from limbeck.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from limbeck.analysis.rows import Row
    from limbeck.analysis.run_files import Run

AUTO_ATTACK = "aa"
PIXEL_LEVELS = 255
LARGEST_IN_LEVELS = 32
"""Radii up to so many pixel levels are written as a fraction of 255, as papers do."""


@dataclass(frozen=True)
class Attack:
    """One attack on the test images of one run.

    Attributes:
        name: pgdN, cwN or aa.
        epsilon: radius of the ball, pixels lie in [0, 1].
        norm: of the ball.
        accuracy: what the attack left, in percent.
        samples: images attacked.
        made: how, in words: steps, their size, start, iterate, seed, library. What is not known is left out.
    """

    name: str
    epsilon: float
    norm: str
    accuracy: float
    samples: int
    made: str


@dataclass(frozen=True)
class RobustRow:
    """What a row of adversarially trained nets has besides its clean accuracy; accuracies in percent.

    Attributes:
        accuracy: under the attack that the comparison is made by.
        attacks: under each attack that all runs of the comparison have at its epsilon.
        worst: share of images that no attack at this epsilon got wrong; None unless all runs have the same attacks.
        epoch: of the reported weights.
        clean: top-1 on clean images less the baseline's, in percentage points.
    """

    accuracy: Spread
    attacks: Mapping[str, Spread]
    worst: Spread | None
    epoch: Spread
    clean: Judged = field(default_factory=Judged)


@dataclass(frozen=True)
class AttackPlan:
    """The attacks that a comparison's table shows, all at one epsilon.

    Attributes:
        headline: the attack by which rows are compared: AutoAttack where all runs have it, else the one that leaves
            least, on average over the rows.
        made: attack -> how it was made; several ways, where the runs differ, make its figures incomparable.
        samples: images attacked, the numbers found in the runs.
        validation: the attack behind the accuracy on validation, which chooses settings and epochs.
        reported: which weights the runs report, sorted.
        warnings: what the evaluation warned of -> in how many of the runs.
        runs: how many there are.
        partial: attacks on test images that only some of the runs have -> how many.
    """

    epsilon: float
    norm: str
    headline: str
    made: Mapping[str, tuple[str, ...]]
    samples: tuple[int, ...]
    validation: str
    reported: tuple[str, ...]
    warnings: Mapping[str, int]
    runs: int
    partial: Mapping[str, int]


def epsilon_text(epsilon: float) -> str:
    """Return a radius as papers write it.

    >>> epsilon_text(8 / 255), epsilon_text(0.2), epsilon_text(0.031)
    ('8/255', '0.2', '0.031')
    """
    levels = epsilon * PIXEL_LEVELS
    if 0 < round(levels) <= LARGEST_IN_LEVELS and math.isclose(levels, round(levels), rel_tol=1e-6):
        return f"{round(levels)}/{PIXEL_LEVELS}"
    return f"{epsilon:g}"


def same_radius(first: float, second: float) -> bool:
    """Return whether two radii are equal but for their rounding."""
    return math.isclose(first, second, rel_tol=1e-6)


def training_epsilon(run: Run) -> float | None:
    """Return the radius that a run was trained at; None without an adversary."""
    adversary = run.results.get("adversary") if run.adversarial else None
    return None if adversary is None else float(_entry(run, adversary, "epsilon"))


def validation_attack(run: Run) -> str:
    """Return the attack behind the `robust` entries of results.json and metrics.jsonl."""
    return str(_entry(run, run.results.get("adversary"), "validation_attack"))


def attacks_of(run: Run) -> tuple[Attack, ...]:
    """Return the attacks on the test images of a run, in the order they were made; none is ()."""
    content = run.robustness
    if content is None:
        return ()
    try:
        return tuple(_attack(row) for row in content["rows"])
    except (KeyError, TypeError, ValueError) as error:
        raise foreign(run.folder / "robustness.json", f"no such rows of attacks as expected ({error!r})") from error


def attacks_at(run: Run, epsilon: float) -> dict[str, Attack]:
    """Return attack -> what it left at one radius.

    Beside those made on test images, that of the validation is there too: at its end the training makes it on every
    split, at its own radius.
    """
    own = training_epsilon(run)
    left = run.metric(run.reported, run.split, "robust")
    found: dict[str, Attack] = {}
    if left is not None and own is not None and same_radius(own, epsilon):
        name, norm = validation_attack(run), str(_entry(run, run.results["adversary"], "norm"))
        samples = int(run.metric(run.reported, run.split, "samples") or 0)
        found[name] = Attack(name, own, norm, 100 * left, samples, "as on validation")
    return found | _made_at(run, epsilon)


def plan_attacks(runs: Sequence[Run], leader: Run) -> AttackPlan:
    """Return the attacks that all of several runs have at the epsilon that the run `leader` was trained at.

    They are those made on test images; where these have none in common, because they are not finished or not wanted,
    that of the validation stands in for them.

    Raises:
        UserError: there is no such attack, or the runs were attacked in different norms.
    """
    epsilon = training_epsilon(leader)
    if epsilon is None:
        raise UserError(f"{leader.folder}: expected a run of task adversarial, as the others are; train it again")
    made = [_made_at(run, epsilon) for run in runs]
    common = _common(made)
    found = made if common else [attacks_at(run, epsilon) for run in runs]
    common = common or _common(found)
    if not common:
        lacking = next((run for run, attacks in zip(runs, found, strict=True) if not attacks), runs[-1])
        raise UserError(
            f"{lacking.folder}: expected an attack at epsilon {epsilon_text(epsilon)} that the runs beside it have; "
            f"make one with `limbeck evaluate RUN --attacks pgd20 --epsilon {epsilon:g}`"
        )
    norms = sorted({attacks[name].norm for attacks in found for name in common})
    if len(norms) > 1:
        raise UserError(f"the runs were attacked in the norms {' and '.join(norms)}, which cannot be compared")
    counts = Counter(name for attacks in made for name in attacks)
    average = {name: sum(attacks[name].accuracy for attacks in found) for name in common}
    return AttackPlan(
        epsilon=epsilon,
        norm=norms[0],
        headline=AUTO_ATTACK if AUTO_ATTACK in common else min(common, key=lambda name: average[name]),
        made={name: tuple(dict.fromkeys(attacks[name].made for attacks in found)) for name in common},
        samples=tuple(sorted({attacks[name].samples for attacks in found for name in common})),
        validation=validation_attack(leader),
        reported=tuple(sorted({run.reported for run in runs})),
        warnings=_warnings(runs),
        runs=len(runs),
        partial={name: count for name, count in counts.items() if count < len(runs)},
    )


def robust_rows(rows: Sequence[Row], plan: AttackPlan) -> list[RobustRow]:
    """Return what the attacks of `plan` left of each row, differences not yet taken."""
    worst = {row.name: [_worst(run, plan.epsilon) for run in row.runs.values()] for row in rows}
    kinds = {case[0] if case else () for cases in worst.values() for case in cases}
    show_worst = len(kinds) == 1 and len(kinds.pop()) > 1
    found = []
    for row in rows:
        runs = list(row.runs.values())
        at = [attacks_at(run, plan.epsilon) for run in runs]
        left = {name: spread([attacks[name].accuracy for attacks in at]) for name in plan.made}
        cases = [case[1] for case in worst[row.name] if case]
        epochs = spread([run.metric(run.reported, "epoch") or 0.0 for run in runs])
        found.append(RobustRow(left[plan.headline], left, spread(cases) if show_worst else None, epochs))
    return found


def _made_at(run: Run, epsilon: float) -> dict[str, Attack]:
    """Return attack -> what it left of the test images at one radius."""
    return {attack.name: attack for attack in attacks_of(run) if same_radius(attack.epsilon, epsilon)}


def _common(found: Sequence[Mapping[str, Attack]]) -> list[str]:
    return [name for name in found[0] if all(name in attacks for attacks in found)]


def _attack(row: Mapping[str, Any]) -> Attack:
    return Attack(
        name=str(row["attack"]),
        epsilon=float(row["epsilon"]),
        norm=str(row["norm"]),
        accuracy=100 * float(row["accuracy"]),
        samples=int(row["n"]),
        made=_made(row),
    )


def _made(row: Mapping[str, Any]) -> str:
    """Return how an attack was made, in words."""
    words = []
    if row["attack"] == AUTO_ATTACK:
        words.append("standard" if row.get("standard") else "not the standard version")
    elif row.get("steps") is not None and row.get("step_size") is not None:
        words.append(f"{row['steps']} steps of {row['step_size'] / row['epsilon']:.3g} epsilon")
        words += [f"up the {row['loss']}".replace("_", "-")] if row.get("loss") else []
        words += [f"{row['start']} start"] if row.get("start") else []
        words += [f"{row['iterate']} iterate"] if row.get("iterate") else []
    words += [f"seed {row['seed']}"] if row.get("seed") is not None else []
    words += [str(row["library"])] if row.get("library") else []
    return ", ".join(words)


def _worst(run: Run, epsilon: float) -> tuple[tuple[str, ...], float] | None:
    """Return the attacks behind the worst case at a radius, and what they left together in percent; None without."""
    content = run.robustness or {}
    try:
        for case in content.get("worst", ()):
            if same_radius(float(case["epsilon"]), epsilon):
                return tuple(sorted(case["attacks"])), 100 * float(case["accuracy"])
    except (KeyError, TypeError, ValueError) as error:
        raise foreign(run.folder / "robustness.json", f"no such worst case as expected ({error!r})") from error
    return None


def _warnings(runs: Sequence[Run]) -> dict[str, int]:
    """Return what the evaluations warned of, and in how many runs."""
    return Counter(str(text) for run in runs for text in dict.fromkeys((run.robustness or {}).get("warnings", ())))


def _entry(run: Run, adversary: Any, key: str) -> Any:
    try:
        return adversary[key]
    except (KeyError, TypeError) as error:
        raise foreign(run.folder / "results.json", f"expected the key `adversary.{key}`") from error
