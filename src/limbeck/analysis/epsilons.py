"""Robust accuracy against the radius of the ball: how it falls, and whether rows keep their order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from limbeck.analysis.robust import AUTO_ATTACK, attacks_of, epsilon_text, training_epsilon
from limbeck.analysis.style import TEACHER, look, marker

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes

    from limbeck.analysis.run_files import Array, Run


@dataclass(frozen=True)
class Fall:
    """Accuracy in percent (runs, E) at the radii `epsilons` (E,), which begin with 0, the clean images."""

    epsilons: Array
    accuracy: Array


@dataclass(frozen=True)
class Falls:
    """Robust accuracy against the radius.

    Attributes:
        lines: for several rows one of each, under `attack`; for a single row one of each attack.
        attack: of all lines; None where each line is an attack.
        trained: the radius of the training; None without, or where the runs differ.
        norm: of the ball.
    """

    lines: Mapping[str, Fall]
    attack: str | None
    trained: float | None
    norm: str

    @property
    def empty(self) -> bool:
        """Whether there are not two radii that all runs were attacked at."""
        return not self.lines


def compute(rows: Mapping[str, Sequence[Run]]) -> Falls:
    """Return accuracy against the radius, at the radii that all runs of all rows have in common."""
    runs = [run for group in rows.values() for run in group]
    found = [{(attack.name, attack.epsilon): attack for attack in attacks_of(run)} for run in runs]
    common = [key for key in found[0] if all(key in attacks for attacks in found)]
    radii: dict[str, list[float]] = {}
    for name, epsilon in common:
        radii.setdefault(name, []).append(epsilon)
    several = {name: sorted(values) for name, values in radii.items() if len(values) > 1}
    norm = found[0][common[0]].norm if common else ""
    trained = {training_epsilon(run) for run in runs}
    at = trained.pop() if len(trained) == 1 else None
    if not several:
        return Falls({}, None, at, norm)
    if len(rows) == 1:
        (group,) = rows.values()
        return Falls({name: _fall(group, name, values) for name, values in several.items()}, None, at, norm)
    attack = AUTO_ATTACK if AUTO_ATTACK in several else max(several, key=lambda name: len(several[name]))
    return Falls({name: _fall(group, attack, several[attack]) for name, group in rows.items()}, attack, at, norm)


def draw(result: Falls, axes: Axes) -> Axes:
    """Draw the mean over the runs as a line with a marker at each radius, their range as a band."""
    for index, (name, fall) in enumerate(result.lines.items()):
        style = look(index)
        axes.plot(fall.epsilons, fall.accuracy.mean(0), label=name, markersize=5, **style | marker(index))
        if len(fall.accuracy) > 1:
            low, high = fall.accuracy.min(0), fall.accuracy.max(0)
            axes.fill_between(fall.epsilons, low, high, color=style["color"], alpha=0.15, linewidth=0)
    if result.trained is not None:
        axes.axvline(result.trained, color=TEACHER, linewidth=1, linestyle=":", label="trained at")
    radii = np.unique(np.concatenate([fall.epsilons for fall in result.lines.values()]))
    axes.set_xticks(radii, ["0, clean" if radius == 0 else epsilon_text(radius) for radius in radii])
    axes.set_xlabel("epsilon, radius of the ball")
    axes.set_ylabel("accuracy, %" if result.attack is None else f"accuracy under {result.attack}, %")
    axes.set_ylim(0, 102)
    axes.legend()
    return axes


def _fall(runs: Sequence[Run], name: str, epsilons: Sequence[float]) -> Fall:
    accuracy = []
    for run in runs:
        left = {attack.epsilon: attack.accuracy for attack in attacks_of(run) if attack.name == name}
        clean = 100 * float((run.robustness or {})["clean"])
        accuracy.append([clean, *(left[epsilon] for epsilon in epsilons)])
    return Fall(np.array([0.0, *epsilons]), np.array(accuracy))
