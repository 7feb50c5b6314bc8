"""Numbers and differences as the texts of tables and notes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from limbeck.analysis.statistics import Judged, Spread


def mean_and_std(values: Spread) -> str:
    """Return a percentage with its standard deviation.

    >>> from limbeck.analysis.statistics import spread
    >>> mean_and_std(spread([90.0, 92.0])), mean_and_std(spread([90.0]))
    ('91.00 ± 1.41', '90.00')
    """
    return f"{values.mean:.2f}" if values.std is None else f"{values.mean:.2f} ± {values.std:.2f}"


def accuracy_text(values: Spread | None, seeds: int) -> str:
    """Return mean and standard deviation, with its own n when runs are missing; a dash without values."""
    if values is None:
        return "-"
    return mean_and_std(values) + ("" if values.n == seeds else f" (n={values.n})")


def difference_text(judged: Judged) -> str:
    """Return a difference and its interval, in points; a dash where there is none."""
    difference = judged.difference
    if difference is None:
        return "-"
    text = f"{difference.mean:+.2f}"
    return text if difference.low is None else f"{text} [{difference.low:+.2f}, {difference.high:+.2f}]"


def p_text(judged: Judged) -> str:
    """Return the p-value after Holm's correction; a dash where no test was made."""
    if judged.p_holm is None:
        return "-"
    return "< 0.001" if judged.p_holm < 0.001 else f"{judged.p_holm:.3f}"


def value_text(value: Any) -> str:
    """Return the value of an option.

    >>> value_text(True), value_text(0.5), value_text("class")
    ('yes', '0.5', 'class')
    """
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, int | float) else str(value)


def plural(word: str, count: int) -> str:
    """Return the word with an s, but for a count of 1."""
    return word if count == 1 else word + "s"


def groups_text(bounds: Sequence[int], classes: Mapping[str, int]) -> str:
    """Say which classes are many, medium and few, and how many there are of each.

    >>> groups_text([100, 20], {"many": 2, "few": 4})
    'Classes by training images: many 2 (more than 100), few 4 (fewer than 20)'
    """
    many, few = bounds
    said = {"many": f"more than {many}", "medium": f"{few} to {many}", "few": f"fewer than {few}"}
    return "Classes by training images: " + ", ".join(f"{name} {classes[name]} ({said[name]})" for name in classes)
