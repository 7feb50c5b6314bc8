"""A comparison beside a paper's table: the paper's figure and ours, with the weights that each method was given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from limbeck.analysis.comparison import WAY_OUT, summarise
from limbeck.analysis.robust import AUTO_ATTACK
from limbeck.analysis.run_files import Run, read_versioned
from limbeck.analysis.statistics import Spread, spread
from limbeck.analysis.wording import mean_and_std, plural
from limbeck.errors import UserError, missing_extra

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from rich.console import Group

    from limbeck.analysis.comparison import Comparison
    from limbeck.analysis.rows import Row

Term = dict[str, Any]

NAMES = {
    "cross_entropy": "CE",
    "reverse_kl": "reverse KL",
    "logit_mse": "logit MSE",
    "pseudo_label": "pseudo-label",
    "probability_mse": "probability MSE",
    "multi_js": "JS of views",
    "fitnet": "FitNet",
    "review_kd": "ReviewKD",
    "wkd_logit": "WKD-L",
    "wkd_feature": "WKD-F",
    "feature_distribution": "distribution",
    "tf_kd": "Tf-KD",
    "zipf": "Zipf",
    "detection": "detector",
    "box_regression": "box regression",
}
"""Losses that are not written in capitals as they are."""
SHORT = {
    "mse_weight": "mse",
    "ce_weight": "ce",
    "weight_power": "γ",
    "prior_temperature": "τ",
    "temperature": "T",
    "warmup_epochs": "warm-up",
    "ramp_epochs": "ramp",
    "label_smoothing": "smoothing",
    "target_threshold": "threshold",
    "target_weight": "target",
    "rest_weight": "rest",
    "transport_weight": "transport",
    "mean_weight": "means",
    "decay_after_epoch": "after epoch",
}
UNSAID = {
    "on": "clean",
    "decay": "none",
    "warmup_epochs": 0.0,
    "ramp_epochs": 0,
    "label_smoothing": 0.0,
    "temperature": 1.0,
    "scale_by_t2": False,
    "symmetric": False,
}
UNTOLD = ("name", "weight", "features", "target_features", "impl")
"""Keys that are not among the options in brackets: `impl` says how a loss is computed, not which."""
NORMALIZERS = {"ikl": "samples", "gkl": "weights"}
"""What the public code divides by. Options that a description leaves out at these values, here and above."""


@dataclass(frozen=True)
class PublishedRow:
    """One line of the table; accuracies in percent, what is not known is None.

    Attributes:
        name: the row's, or "teacher".
        terms: the loss terms of its setting; empty where nothing is trained.
        paper: the paper's figure on test: top-1, or the task's measure.
        ours: the same on test, over the seeds.
        optimistic: of the epoch that was best on the test images, which the figure above never is.
        robust_paper: the paper's accuracy under AutoAttack.
        robust: accuracy under the attack that the comparison is made by, over the seeds.
        remark: why there is no figure of ours; empty where there is one.
    """

    name: str
    terms: tuple[Term, ...] = ()
    paper: float | None = None
    ours: Spread | None = None
    optimistic: Spread | None = None
    robust_paper: float | None = None
    robust: Spread | None = None
    remark: str = ""


@dataclass(frozen=True)
class PublishedTable:
    """A column of a paper's table beside a comparison: `source` names the column.

    `attack` is the one by which adversarial training is compared, None where there is no such training.
    """

    source: str
    attack: str | None
    protocol: str
    rows: tuple[PublishedRow, ...]
    epochs: int
    seeds: int
    missing: tuple[str, ...]


def has_published(folder: Path) -> bool:
    """Return whether the recipe of the comparison in `folder` names a paper's figures."""
    return bool(read_versioned(folder / "comparison.json", way_out=WAY_OUT).get("published"))


def compare_with_paper(folder: Path) -> PublishedTable:
    """Return the comparison in `folder` beside the column of the paper that its recipe names.

    First the teacher, then what has no figure in the column (the student alone has its own), then the paper's rows in
    their order, those of rivals without a loss here among them.

    Raises:
        UserError: no comparison there, its recipe has no published figures, or what `summarise` raises.
    """
    content = read_versioned(folder / "comparison.json", way_out=WAY_OUT)
    published = content.get("published")
    if not published:
        raise UserError(f"{folder}: the recipe has no `compare.published`, the figures of a paper; leave out --table")
    comparison = summarise(folder)
    measured = {row.name: row for row in comparison.rows}
    names = [*(name for name in content["contenders"] if name not in published["rows"]), *published["rows"]]
    teacher = PublishedRow("teacher", paper=published["teacher"], ours=_teacher(comparison))
    rows = [_row(name, measured.get(name), content, published) for name in names]
    if published["student"] is not None and not any(_is_student_alone(row) for row in rows):
        rows.insert(0, PublishedRow("student alone", paper=published["student"], remark="no row of this comparison"))
    return PublishedTable(
        source=published["source"],
        attack=None if comparison.attacks is None else comparison.attacks.headline,
        protocol=content["protocol"],
        rows=tuple(rows) if teacher.paper is None and teacher.ours is None else (teacher, *rows),
        epochs=comparison.epochs,
        seeds=len(comparison.seeds),
        missing=comparison.missing,
    )


def _row(name: str, row: Row | None, content: Mapping[str, Any], published: Mapping[str, Any]) -> PublishedRow:
    """Return the line of a contender that was trained, of one that was not, or of a rival."""
    paper, robust_paper = published["rows"].get(name), published.get("robust_rows", {}).get(name)
    if row is None:
        remark = "not trained" if name in content["contenders"] else "no loss here yet"
        return PublishedRow(name, paper=paper, robust_paper=robust_paper, remark=remark)
    terms = tuple(row.settings[row.selected])
    robust = row.robust.accuracy if row.robust else None
    line = PublishedRow(name, terms, paper, row.main, _optimistic(list(row.runs.values())), robust_paper, robust)
    if paper is None and _is_student_alone(line):
        return PublishedRow(name, terms, published["student"], line.ours, line.optimistic)
    return line


def _is_student_alone(row: PublishedRow) -> bool:
    plain = (term["name"] == "cross_entropy" and term.get("on", "clean") == "clean" for term in row.terms)
    return bool(row.terms) and all(plain)


def _teacher(comparison: Comparison) -> Spread | None:
    """Return the first teacher's main measure on test, as the students' runs took it down, each teacher once."""
    runs, key = [run for row in comparison.rows for run in row.runs.values()], comparison.headline.main.key
    found = {teachers[0]["test"][key] * 100 for run in runs if (teachers := run.results["teachers"])}
    return spread(sorted(found)) if found else None


def _optimistic(runs: Sequence[Run]) -> Spread | None:
    """Return the main measure on test of the epoch best on test; None unless every run has it."""
    best, key = [run.results.get("optimistic") for run in runs], runs[0].headline.main.key
    return spread([each["test"][key] * 100 for each in best if each]) if all(best) else None


# --- weights in few words -----------------------------------------------------------------------------------


def describe(terms: Sequence[Term]) -> str:
    """Return a setting in few words: γ is `weight_power`, τ `prior_temperature`.

    >>> kd = [{"name": "cross_entropy", "weight": 0.1}, {"name": "kl", "weight": 0.9, "temperature": 4.0}]
    >>> describe([kd[0], {**kd[1], "scale_by_t2": True}])
    '0.1·CE + 0.9·KL(T 4, ×T²)'
    >>> describe([{"name": "gkl", "weight": 1.0, "prior": "class", "mse_weight": 16.0, "ce_weight": 1.0}])
    '1·GKL(class, mse 16, ce 1)'
    """
    return " + ".join(map(_describe_term, terms))


def _describe_term(term: Term) -> str:
    unsaid = {**UNSAID, "normalizer": NORMALIZERS.get(term["name"])}
    said = {key: value for key, value in term.items() if key not in UNTOLD and unsaid.get(key) != value}
    said = {key: value for key, value in said.items() if value is not None and value is not False}
    if "warmup_epochs" in said:
        said["warmup_epochs"] = said.pop("warmup_epochs")  # to the end: it is the term's, not the loss's
    options = ", ".join(_describe_option(key, value) for key, value in said.items())
    name = NAMES.get(term["name"], term["name"].upper())
    return f"{term.get('weight', 1.0):g}·{name}" + (f"({options})" if options else "")


def _describe_option(key: str, value: Any) -> str:
    if key == "scale_by_t2":
        return "×T²"
    if value is True:
        return key
    if isinstance(value, str):
        return value
    numbers = value if isinstance(value, list | tuple) else [value]
    return f"{SHORT.get(key, key)} {'/'.join(f'{number:g}' for number in numbers)}"


def soft_gradient(terms: Sequence[Term]) -> float | None:
    """Return the factor of `softmax(z / T) - softmax(z_teacher / T)` in the gradient to the student's logits z.

    It is what the weights of soft labels have to be compared by: KL times T² has weight · T, a cross-entropy with soft
    labels at temperature T, as in IKL and GKL, weight · ce_weight / T. Warm-ups are over.

    Returns:
        The factor; None where no term has soft labels, or where they differ in temperature or in the form of their
        gradient (reverse KL, Jensen-Shannon, standardised logits), so that there is no such factor.

    >>> soft_gradient([{"name": "kl", "weight": 1.0, "temperature": 4.0, "scale_by_t2": True}])
    4.0
    >>> soft_gradient([{"name": "gkl", "weight": 1.0, "ce_weight": 1.0, "temperature": 4.0}])
    0.25
    """
    soft = [term for term in terms if term["name"] != "cross_entropy"]
    temperatures = {term.get("temperature", 1.0) for term in soft}
    if len(temperatures) != 1 or any(term["name"] not in ("kl", "dkl", "ikl", "gkl") for term in soft):
        return None
    if any(term.get("standardize") for term in soft):
        return None
    (temperature,) = temperatures
    squares = (temperature**2 if term.get("scale_by_t2") else 1.0 for term in soft)
    weights = (term.get("weight", 1.0) * term.get("ce_weight", 1.0) for term in soft)
    return float(sum(w * s for w, s in zip(weights, squares, strict=True)) / temperature)


# --- the table ----------------------------------------------------------------------------------------------

LETTERS = "γ: weight_power, τ: prior_temperature."
OPTIMISTIC = (
    "optimistic: the epoch that was best on the test images. It is chosen by what it is measured on, so it is too "
    "high, but many published figures are made so."
)
SOFT_GRADIENT = (
    "soft gradient: the factor of softmax(z / T) − softmax(z_teacher / T) in the gradient to the student's logits "
    "z. KL times T² has weight · T, GKL's soft cross-entropy weight · ce / T: at T = 4 and equal weights 16 times "
    f"less. {LETTERS}"
)


def titles(table: PublishedTable) -> tuple[str, ...]:
    """Return the titles of the columns."""
    if table.attack is None:
        ours = ("paper,\n%", "ours, last\nepoch, %", "optimistic,\n%", "ours −\npaper")
        return ("method", "weights", "soft\ngradient", *ours)
    clean = ("paper,\nclean %", "ours,\nclean %", "ours −\npaper")
    return ("method", "weights", *clean, "paper,\naa %", f"ours,\n{table.attack} %", "ours −\npaper")


def cells(table: PublishedTable) -> list[tuple[str, ...]]:
    """Return the texts of each line, under the `titles`."""
    return [_cells(row, table) for row in table.rows]


def _cells(row: PublishedRow, table: PublishedTable) -> tuple[str, ...]:
    trained = table.seeds if row.terms else None
    told = (row.name, describe(row.terms) or row.remark or "-")
    paper, ours, difference = _beside(row.paper, row.ours, trained)
    if table.attack is None:
        factor = soft_gradient(row.terms)
        optimistic = "-" if row.optimistic is None else mean_and_std(row.optimistic)
        return (*told, "-" if factor is None else f"{factor:.4g}", paper, ours, optimistic, difference)
    robust_paper, robust, gap = _beside(row.robust_paper, row.robust, trained)
    return (*told, paper, ours, difference, robust_paper, robust, gap if table.attack == AUTO_ATTACK else "-")


def _beside(paper: float | None, ours: Spread | None, seeds: int | None) -> tuple[str, str, str]:
    """Return the paper's figure, ours, with its number where that is not `seeds`, and the difference."""
    if ours is None:
        return "-" if paper is None else f"{paper:.2f}", "-", "-"
    counted = f" (n={ours.n})" if seeds not in (None, ours.n) else ""
    found = mean_and_std(ours) + counted
    return ("-", found, "-") if paper is None else (f"{paper:.2f}", found, f"{ours.mean - paper:+.2f}")


def notes(table: PublishedTable) -> list[str]:
    """Return the sentences that belong under the table."""
    sentences, epochs = [], f"{table.epochs} {plural('epoch', table.epochs)}"
    if table.missing:
        runs = plural("run", len(table.missing))
        sentences.append(f"INCOMPLETE: {len(table.missing)} {runs} not finished; this table may change.")
    protocol = "all training images (protocol paper)"
    if table.protocol != "paper":
        protocol = f"protocol {table.protocol}, which holds out images that the paper trained on"
    weights = "last epoch" if table.attack is None else "reported weights"
    sentences.append(
        f"n = {table.seeds} per row, {epochs}, {protocol}; ± is the standard deviation over seeds. "
        f"ours − paper: points, of the {weights}."
    )
    if table.attack is None:
        return [*sentences, OPTIMISTIC, SOFT_GRADIENT]
    if table.attack != AUTO_ATTACK:
        sentences.append(
            f"The paper's robust accuracy is under AutoAttack (aa), ours under {table.attack}, which leaves more than "
            "AutoAttack would: there is no difference to take."
        )
    return [*sentences, LETTERS]


def rich_published(table: PublishedTable) -> Group:
    """Return the table and its notes for `rich.console.Console.print`."""
    try:
        from rich import box
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text
    except ImportError as error:
        raise missing_extra("rich", "cli", "the table") from error
    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold", title=table.source)
    for title in titles(table):
        left = title in ("method", "weights")
        drawn.add_column(Text(title), justify="left" if left else "right", no_wrap=title != "weights")
    for row, texts in zip(table.rows, cells(table), strict=True):
        drawn.add_row(*map(Text, texts), style="dim" if row.remark else "")
    return Group(drawn, *(Text(sentence, style="dim") for sentence in notes(table)))
