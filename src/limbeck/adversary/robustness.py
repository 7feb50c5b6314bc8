"""What an evaluation found: a row per attack and radius, flags per sample, worst cases, averages."""

from __future__ import annotations

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
        self, epsilon: float, *, dataset: str, architecture: str, additional_data: bool = False
    ) -> dict[str, Any]:
        """Return an entry of RobustBench's `model_info`. Link, name, authors and venue are left for the author.

        Args:
            epsilon: The radius that is reported.
            dataset: RobustBench's name of it, such as "cifar10".
            architecture: Such as "WideResNet-34-10".
            additional_data: Whether real images beyond the training set were used; generated ones belong in the
                footnote.

        Returns:
            The entry; percentages are strings, as there. `external` is there if other attacks break more.

        Raises:
            ValueError: AutoAttack was not run at this radius.
        """
        aa = next((row for row in self.rows if (row.attack, row.epsilon) == ("aa", epsilon)), None)
        if aa is None:
            raise ValueError(f"RobustBench's entry expected AutoAttack at epsilon {epsilon:g}; add `aa` to the attacks")
        worst = share(self.worst(epsilon))
        notes = [
            "" if aa.standard else "Not the standard version of AutoAttack: fewer than 10 classes.",
            *self.warnings,
        ]
        entry = {
            "link": "",
            "name": "",
            "authors": "",
            "additional_data": additional_data,
            "number_forward_passes": 1,
            "dataset": dataset,
            "venue": "",
            "architecture": architecture,
            "eps": _fraction_of_255(epsilon),
            "clean_acc": _percent(share(self.clean)),
            "reported": _percent(aa.accuracy),
            "autoattack_acc": _percent(aa.accuracy),
            "footnote": " ".join(filter(None, [f"n = {aa.n}, {self.norm}.", *notes])),
            "unreliable": bool(self.warnings),
        }
        return entry | ({"external": _percent(worst)} if worst < aa.accuracy else {})


def share(flags: Tensor) -> float:
    """Return the share of flags, bool `(N,)`, that are set."""
    return flags.double().mean().item()


def _percent(accuracy: float) -> str:
    return f"{100 * accuracy:.2f}"


def _fraction_of_255(epsilon: float) -> str:
    """Return a radius as RobustBench writes it.

    >>> _fraction_of_255(8 / 255), _fraction_of_255(0.5)
    ('8/255', '0.5')
    """
    levels = 255 * epsilon
    return f"{levels:.0f}/255" if abs(levels - round(levels)) < 1e-6 else f"{epsilon:g}"
