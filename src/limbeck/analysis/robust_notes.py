"""The sentences under the table of a robust comparison: what was attacked how, and what was traded for what."""

from __future__ import annotations

from typing import TYPE_CHECKING

from limbeck.analysis.robust import AUTO_ATTACK, epsilon_text
from limbeck.analysis.wording import value_text

if TYPE_CHECKING:
    from limbeck.analysis.comparison import Comparison
    from limbeck.analysis.robust import AttackPlan

WEIGHTS = {
    "best": "of the epoch with the best robust accuracy on validation (early stopping)",
    "ema": "averaged over the training",
    "last": "of the last epoch",
}
NORMS = {"linf": "L∞", "l2": "L2"}


def weights(attacks: AttackPlan) -> str:
    """Return which weights the figures are of."""
    return " or ".join(WEIGHTS.get(kind, kind) for kind in attacks.reported)


def protocol(attacks: AttackPlan) -> list[str]:
    """Return epsilon, norm, number of images, how each attack was made, and what the evaluation warned of."""
    samples = " or ".join(map(str, attacks.samples))
    if len(attacks.samples) > 1:
        samples += " (NOT THE SAME NUMBER FOR ALL)"
    made = "; ".join(
        f"{'aa (AutoAttack)' if name == AUTO_ATTACK else name}: {ways[0]}" for name, ways in attacks.made.items()
    )
    ball = f"{NORMS.get(attacks.norm, attacks.norm)} ball of radius epsilon = {epsilon_text(attacks.epsilon)}"
    partial = ", ".join(f"{name} ({count} of {attacks.runs} runs)" for name, count in attacks.partial.items())
    return [
        *([f"LEFT OUT, because not all runs have it at this epsilon: {partial}."] if partial else []),
        f"Robust accuracy: {ball}, pixels in [0, 1], n = {samples} images. {made}.",
        *(
            f"NOT COMPARABLE: {name} was not made in the same way for all runs: {'; or '.join(ways)}."
            for name, ways in attacks.made.items()
            if len(ways) > 1
        ),
        *(
            f"WARNING of the evaluation in {count} of {attacks.runs} runs: {text.rstrip('.')}."
            for text, count in attacks.warnings.items()
        ),
    ]


def sentences(comparison: Comparison, attacks: AttackPlan) -> list[str]:
    """Return what belongs under the table of a comparison of adversarial training, beside what all tables have."""
    chosen = "AutoAttack" if attacks.headline == AUTO_ATTACK else "the attack that leaves least on average"
    if len(attacks.made) == 1:
        chosen = "the only attack that all runs have"
    compared = f"Rows are compared by {attacks.headline}, {chosen}."
    if any(row.robust and row.robust.worst for row in comparison.rows):
        compared += " worst: images that no attack got wrong."
    found = [*protocol(attacks), compared]
    if comparison.baseline is not None:
        found.append(
            "Clean top-1 is tested in the same way, with a Holm correction of its own: a row may buy one accuracy "
            "with the other."
        )
        found += _trades(comparison, attacks)
    own = [
        f"{row.name}: {', '.join(f'{key} {value_text(value)}' for key, value in row.adversary.items())}"
        for row in comparison.rows
        if row.adversary
    ]
    if own:
        found.append(f"Trained against an adversary of its own: {'; '.join(own)}.")
    return found


def _trades(comparison: Comparison, attacks: AttackPlan) -> list[str]:
    """Return the rows that gain in one accuracy what they lose in the other, both beyond chance."""
    found = []
    for row in comparison.rows:
        clean = row.robust.clean if row.robust else None
        if clean is None or clean.difference is None or row.difference is None:
            continue
        if {row.verdict, clean.verdict} == {"better", "worse"}:
            found.append(
                f"TRADE-OFF: {row.name} has {row.difference.mean:+.2f} points under {attacks.headline} and "
                f"{clean.difference.mean:+.2f} of clean top-1 against {comparison.baseline}."
            )
    return found
