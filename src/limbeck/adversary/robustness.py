"""What an evaluation found: a row per attack and radius, flags per sample, worst cases, averages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from limbeck.adversary.balls import Norm


@dataclass(frozen=True)
class Row:
    """The accuracy under one attack at one radius, and all that it depends on.

    Attributes:
        attack: "pgdN" or "cwN" with N steps, or "aa".
        epsilon: Radius of the ball, in units of the pixels.
        accuracy: Share of the samples that are classified right under the attack.
        step_size: Length of a step; None for AutoAttack, which adapts it.
        steps: Steps of PGD; None for AutoAttack.
        start: Where PGD begins; None for AutoAttack.
        iterate: Which point of PGD counts; None for AutoAttack.
        loss: What PGD climbs; None for AutoAttack.
        norm: "linf" or "l2".
        n: Samples.
        seed: Of the draws.
        library: What computed it, with its version.
        standard: Whether AutoAttack ran in its standard version; None for PGD.
        seconds: Wall time.
    """

    attack: str
    epsilon: float
    accuracy: float
    step_size: float | None
    steps: int | None
    start: str | None
    iterate: str | None
    loss: str | None
    norm: str
    n: int
    seed: int
    library: str
    standard: bool | None
    seconds: float


@dataclass(frozen=True, eq=False)
class Robustness:
    """What `evaluate` measured.

    Attributes:
        clean: Which samples are classified right without an attack, bool `(N,)` on the CPU.
        rows: One per attack and radius.
        flags: (attack, epsilon) -> which samples are classified right under it, bool `(N,)` on the CPU.
        warnings: Signs that the figures cannot be trusted, in sentences.
        norm: Of all rows.
        seed: Of all rows.
    """

    clean: Tensor
    rows: tuple[Row, ...]
    flags: dict[tuple[str, float], Tensor]
    warnings: tuple[str, ...]
    norm: Norm
    seed: int

    @property
    def epsilons(self) -> list[float]:
        """The radii, rising."""
        return sorted({row.epsilon for row in self.rows})

    def worst(self, epsilon: float) -> Tensor:
        """Return which samples stand without an attack and under all that were made at a radius, bool `(N,)`.

        Reference:
            Cui et al., "Generalized Kullback-Leibler Divergence Loss", arXiv 2503.08038, table XV.
        """
        return torch.stack([self.clean, *(flags for (_, at), flags in self.flags.items() if at == epsilon)]).all(0)

    def merged(self, earlier: Robustness) -> Robustness:
        """Return this with the rows of an earlier evaluation of the same network and images that it does not have."""
        kept = tuple(row for row in earlier.rows if (row.attack, row.epsilon) not in self.flags)
        return Robustness(
            clean=self.clean,
            rows=kept + self.rows,
            flags=earlier.flags | self.flags,
            warnings=tuple(dict.fromkeys(earlier.warnings + self.warnings)),
            norm=self.norm,
            seed=self.seed,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return all but the flags, for JSON: rows, the worst case of each radius, averages over the radii.

        The average over radii is that of table XIV of arXiv 2503.08038; an attack with a single radius has none.
        """
        by_attack: dict[str, list[Row]] = {}
        for row in self.rows:
            by_attack.setdefault(row.attack, []).append(row)
        return {
            "samples": len(self.clean),
            "norm": self.norm,
            "seed": self.seed,
            "clean": share(self.clean),
            "rows": [asdict(row) for row in self.rows],
            "worst": [
                {
                    "epsilon": epsilon,
                    "accuracy": share(self.worst(epsilon)),
                    "attacks": [row.attack for row in self.rows if row.epsilon == epsilon],
                }
                for epsilon in self.epsilons
            ],
            "averages": [
                {
                    "attack": attack,
                    "epsilons": [row.epsilon for row in rows],
                    "accuracy": sum(row.accuracy for row in rows) / len(rows),
                }
                for attack, rows in by_attack.items()
                if len(rows) > 1
            ],
            "warnings": list(self.warnings),
        }


def robustbench(
    figures: Mapping[str, Any], epsilon: float, *, dataset: str, architecture: str, footnote: str = ""
) -> dict[str, Any]:
    """Return an entry of RobustBench's `model_info`; link, name, authors and venue are left to the author.

    Args:
        figures: What `Robustness.to_dict` returned, or robustness.json holds.
        epsilon: The radius that is reported.
        dataset: Such as "cifar10".
        architecture: Such as "WideResNet-34-10".
        footnote: What readers should know, such as that generated images were used. Warnings are added.

    Returns:
        The entry; percentages are strings, as there. `external` is there if the worst case over all attacks is below
        AutoAttack's figure.

    Raises:
        ValueError: AutoAttack was not run at this radius.

    Example:
        >>> flags = torch.tensor([True, False])
        >>> row = Row("aa", 8 / 255, 0.5, None, None, None, None, None, "linf", 2, 0, "pyautoattack 0.2.0", True, 1.0)
        >>> figures = Robustness(flags, (row,), {("aa", 8 / 255): flags}, (), "linf", 0).to_dict()
        >>> entry = robustbench(figures, 8 / 255, dataset="cifar10", architecture="WideResNet-34-10")
        >>> entry["eps"], entry["autoattack_acc"]
        ('8/255', '50.00')

    Reference:
        Croce et al., "RobustBench: a standardized adversarial robustness benchmark", arXiv 2010.09670.
    """
    found = [row for row in figures["rows"] if (row["attack"], row["epsilon"]) == ("aa", epsilon)]
    if not found:
        raise ValueError(f"RobustBench's entry expected AutoAttack at epsilon {epsilon:g}; add `aa` to the attacks")
    (aa,) = found
    (worst,) = [case["accuracy"] for case in figures["worst"] if case["epsilon"] == epsilon]
    version = "" if aa["standard"] else "Not the standard version of AutoAttack: fewer than 10 classes."
    notes = [f"{aa['norm']}, n = {aa['n']}.", footnote, version, *(f"{warning}." for warning in figures["warnings"])]
    entry = {
        "link": "",
        "name": "",
        "authors": "",
        "additional_data": False,
        "number_forward_passes": 1,
        "dataset": dataset,
        "venue": "",
        "architecture": architecture,
        "eps": _of_255(epsilon),
        "clean_acc": _percent(figures["clean"]),
        "reported": _percent(aa["accuracy"]),
        "autoattack_acc": _percent(aa["accuracy"]),
        "footnote": " ".join(filter(None, notes)),
        "unreliable": bool(figures["warnings"]),
    }
    return entry | ({"external": _percent(worst)} if worst < aa["accuracy"] else {})


def share(flags: Tensor) -> float:
    """Return the share of flags, bool `(N,)`, that are set."""
    return flags.double().mean().item()


def _percent(accuracy: float) -> str:
    return f"{100 * accuracy:.2f}"


def _of_255(epsilon: float) -> str:
    """Return a radius as RobustBench writes it.

    >>> _of_255(8 / 255), _of_255(0.5)
    ('8/255', '0.5')
    """
    levels = 255 * epsilon
    return f"{levels:.0f}/255" if abs(levels - round(levels)) < 1e-6 else f"{epsilon:g}"
