"""Adversarial training: the attack, what averages and perturbs the weights, how robustness is measured. No torch."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

from pydantic import AfterValidator, Field, model_validator

from limbeck.config_models import ModelOptions
from limbeck.config_terms import NonNegative, Options, Positive, did_you_mean
from limbeck.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from limbeck.config_losses import Term


def _known_attack(name: str) -> str:
    if not re.fullmatch(r"(pgd|cw)[1-9][0-9]*|aa", name):
        raise ValueError(f"`attacks` expected names such as pgd20, cw20 or aa, got {name!r}")
    return name


def _gradient_attack(name: str) -> str:
    if not re.fullmatch(r"(pgd|cw)[1-9][0-9]*", name):
        raise ValueError(f"`validation_attack` expected a name such as pgd10 or cw10, got {name!r}")
    return name


AttackName = Annotated[str, AfterValidator(_known_attack)]
GradientAttackName = Annotated[str, AfterValidator(_gradient_attack)]


class AdversaryOptions(Options):
    """The adversary of the task `adversarial`. Radii and steps are in units of the pixels, which lie in [0, 1]."""

    norm: Literal["linf", "l2"] = Field("linf", description="Norm of the ball around each image.")
    epsilon: Positive = Field(8 / 255, description="Radius of the ball.")
    epsilon_ramp: bool = Field(False, description="Train with epsilon · epoch / epochs.")
    steps: Annotated[int, Field(ge=1)] = Field(10, description="Steps of the attack in training.")
    step_ratio: Positive = Field(0.25, description="Size of a step over the radius.")
    growing_steps: bool = Field(
        False,
        description="Over the quarters of the run 2, 3, 4, 5 steps of 1, 2/3, 1/2, 1/2 of the radius, as the GKL paper "
        "says; its code always takes 5 of 1/2.",
    )
    start: Literal["none", "uniform", "gaussian"] = Field(
        "gaussian", description="Where it begins: the image, anywhere in the ball, or the image plus .001 · N(0, 1)."
    )
    loss: Literal["auto", "cross_entropy", "margin", "kl", "gkl"] = Field(
        "auto",
        description="What it climbs: the labels' cross-entropy or margin; KL from the clean logits, which is also the "
        "direction of the cross-entropy part of DKL, IKL and GKL; or that part and the weighted MSE, both of factor 1. "
        "auto is kl where a term compares two logits, else cross_entropy.",
    )
    bn_mode: Literal["eval", "batch"] = Field(
        "eval", description="BatchNorm in the attack: running statistics, or the batch's own without tracking them."
    )
    awp: NonNegative = Field(0.0, description="Relative size of adversarial weight perturbation; 0 is off.")
    awp_from_epoch: Annotated[int, Field(ge=1)] = Field(1, description="First epoch with weight perturbation.")
    guide: ModelOptions | None = Field(
        None, description="Second network, trained beside the first, that terms with `on: guide` refer to."
    )
    second_view_weight: NonNegative = Field(
        1.0, description="Factor of the second view's divergences; its cross-entropies count as the first view's."
    )
    validation_attack: GradientAttackName = Field(
        "cw10",
        description="Measures robust accuracy after each epoch, pgdN or cwN with N steps. Smoothed labels "
        "flatter a network less under the margin of cwN than under the cross-entropy of pgdN.",
    )
    attacks: tuple[AttackName, ...] = Field(
        ("pgd20",), description="On the test images of the finished run: pgdN, cwN, aa (AutoAttack, standard)."
    )

    @model_validator(mode="after")
    def _start(self) -> AdversaryOptions:
        if self.start == "none" and self.loss in ("kl", "gkl"):
            raise ValueError(
                f"`start: none` expected a loss of the labels, got `{self.loss}`: at the image itself its gradient is "
                "rounding noise; use `start: gaussian` or `uniform`"
            )
        return self

    def climbs(self, terms: Sequence[Term]) -> Literal["cross_entropy", "margin", "kl", "gkl"]:
        """Return what the attack climbs when a network trains with some terms.

        >>> from limbeck.config import CrossEntropyTerm, KLTerm
        >>> AdversaryOptions().climbs([CrossEntropyTerm(), KLTerm(weight=6.0)])
        'kl'
        >>> AdversaryOptions().climbs([CrossEntropyTerm(on="adversarial")])
        'cross_entropy'
        """
        if self.loss != "auto":
            return self.loss
        return "kl" if any(term.name not in ("cross_entropy", "mart") for term in terms) else "cross_entropy"


def check_terms(adversary: AdversaryOptions, terms: Sequence[Term]) -> None:
    """Raise ValueError for terms that do not make adversarial training with an adversary."""
    for term in terms:
        if term.name != "cross_entropy" and term.on == "adversarial":
            raise ValueError(
                f"`{term.name}` draws the adversarial logits to others, so its `on` expected clean or guide, got "
                "adversarial"
            )
        if term.on == "guide" and adversary.guide is None:
            raise ValueError(f"`{term.name}` with `on: guide` expected a network in `adversary.guide`, got null")
    if all(term.name == "cross_entropy" and term.on != "adversarial" for term in terms):
        raise ValueError(
            "task `adversarial` expected a term of the adversarial images: a cross_entropy with `on: adversarial`, or "
            "a divergence such as kl or gkl"
        )
    if adversary.start == "none" and adversary.climbs(terms) in ("kl", "gkl"):
        raise ValueError(
            "`adversary.start` expected gaussian or uniform where the attack leaves the clean logits, got none: its "
            "first gradient is rounding noise"
        )


# --- the command line -------------------------------------------------------------------------------------


class AttackRequest(NamedTuple):
    """What `limbeck evaluate` is to attack with; None is what the recipe's `adversary` says.

    Attributes:
        attacks: "clean", "pgdN", "cwN", "aa".
        epsilons: Radii.
        norm: "linf" or "l2".
        robustbench: File for RobustBench's entry.
    """

    attacks: tuple[str, ...] | None
    epsilons: tuple[float, ...] | None
    norm: Literal["linf", "l2"] | None
    robustbench: Path | None


def read_request(
    attacks: str | None, epsilon: str | None, norm: Literal["linf", "l2"] | None, file: Path | None
) -> AttackRequest | None:
    """Read the options of `limbeck evaluate` about attacks; None if it has none.

    Raises:
        UserError: an attack or a radius is none, or the file could not be written or would lack AutoAttack's figure.
    """
    if attacks is None and epsilon is None and norm is None and file is None:
        return None
    names = None if attacks is None else read_attacks(attacks)
    if file is not None and "aa" not in (names or ()):
        raise UserError("--robustbench expected `aa` among --attacks: its entry holds AutoAttack's figure")
    if file is not None and not file.parent.is_dir():
        raise UserError(f"--robustbench {file}: there is no folder {file.parent}; make it first")
    return AttackRequest(names, None if epsilon is None else read_epsilons(epsilon), norm, file)


def read_attacks(text: str) -> tuple[str, ...]:
    """Read attacks between commas.

    Raises:
        UserError: one is unknown, or there is none.

    >>> read_attacks("clean,pgd20,aa")
    ('clean', 'pgd20', 'aa')
    """
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    for name in names:
        if not re.fullmatch(r"(pgd|cw)[1-9][0-9]*|aa|clean", name):
            known = ("clean", "pgd10", "pgd20", "cw10", "cw20", "aa")
            raise UserError(f"--attacks expected clean, pgdN, cwN or aa, got `{name}`; {did_you_mean(name, known)}")
    if not names:
        raise UserError("--attacks expected names such as clean,pgd20,aa, got none")
    return names


def read_epsilons(text: str) -> tuple[float, ...]:
    """Read radii between commas, each a number or a fraction of whole numbers.

    Raises:
        UserError: one is no number above 0, or there is none.

    >>> read_epsilons("0.1, 8/255")
    (0.1, 0.03137254901960784)
    """
    words = [word.strip() for word in text.split(",") if word.strip()]
    radii = tuple(_radius(word) for word in words)
    if not radii:
        raise UserError("--epsilon expected radii such as 0.1,0.2 or 8/255, got none")
    return radii


def _radius(word: str) -> float:
    try:
        numerator, _, denominator = word.partition("/")
        radius = float(numerator) / float(denominator or 1)
    except (ValueError, ZeroDivisionError):
        radius = math.nan
    if not 0 < radius < math.inf:
        raise UserError(f"--epsilon expected numbers above 0 such as 0.1 or 8/255, got `{word}`")
    return radius
