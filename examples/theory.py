"""The theory in numbers: computes every table and picture of the documentation's page on theory.

    python examples/theory.py [FOLDER]

prints the numbers, draws the pictures into FOLDER/assets and rewrites the tables between the marks
`<!-- theory: NAME -->` and `<!-- end -->` in FOLDER/*.md. FOLDER is docs/ by default. Takes about ten seconds.
All arithmetic is in float64. Equation numbers are those of arXiv 2503.08038 (GKL) unless said otherwise.
"""

from __future__ import annotations

import functools
import inspect
import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from theory_pictures import draw_all
from theory_tools import digits_and_teacher, gradients, normal, part_gradients, teacher_logits, train
from torch import Tensor
from torch.autograd.functional import hessian

from limbeck import (
    GKLLoss,
    dkl_divergence,
    gkl_divergence,
    gkl_normalizer,
    ikl_divergence,
    js_divergence,
    kl_divergence,
    soft_cross_entropy,
    weighted_mse,
)
from limbeck.losses.presets import PRESETS

UNSET_BY_PRESETS = ("num_classes", "normalizer", "reduction", "impl")
ROUNDING = 1e-12  # a difference below this is called rounding
DOCS = Path(__file__).resolve().parent.parent / "docs"


class Table(NamedTuple):
    """Titles and rows, all text."""

    titles: tuple[str, ...]
    rows: list[tuple[str, ...]]

    def markdown(self) -> str:
        """Return a Markdown table; columns that hold a number to the right."""
        numeric = [any(cell[:1] in "-0123456789" for cell in column) for column in zip(*self.rows, strict=True)]
        lines = [self.titles, tuple("---:" if right else "---" for right in numeric), *self.rows]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def number(value: float | Tensor) -> str:
    """Return four digits; an exact zero is named."""
    return f"{float(value):.4g}" if value else "0 exactly"


def largest(difference: Tensor) -> str:
    """Return the largest absolute difference; rounding is named, since its size is the machine's."""
    size = float(difference.abs().max())
    return f"below {ROUNDING:g}" if size < ROUNDING else number(size)


# --- one batch --------------------------------------------------------------------------------------------


def theorem_1() -> Table:
    """DKL has the first derivatives of KL; not its values, not all of its second derivatives."""
    s, t = normal(32, 10, seed=0, scale=2), normal(32, 10, seed=1, scale=2)
    first = [gradients(divergence, s, t) for divergence in (kl_divergence, dkl_divergence)]
    value = [divergence(s, t) for divergence in (kl_divergence, dkl_divergence)]
    second = [hessian(divergence, (s[0], t[0])) for divergence in (kl_divergence, dkl_divergence)]

    def row(name: str, kl: Tensor, dkl: Tensor) -> tuple[str, ...]:
        return name, number(kl.norm()), number(dkl.norm()), largest(kl - dkl)

    return Table(
        ("", "KL", "DKL", "largest difference"),
        [
            row("value", *value),
            row("first derivative, student's logits", first[0][0], first[1][0]),
            row("first derivative, target's logits", first[0][1], first[1][1]),
            row("second derivative, student-student", second[0][0][0], second[1][0][0]),
            row("second derivative, student-target", second[0][0][1], second[1][0][1]),
            row("second derivative, target-target", second[0][1][1], second[1][1][1]),
        ],
    )


def broken_asymmetry() -> Table:
    """Eq. 10: with a frozen target the weighted MSE moves nothing. Eq. 11: with BA it moves both sides alike."""
    s, t = normal(32, 10, seed=0, scale=2), normal(32, 10, seed=1, scale=2)
    rows = []
    for symmetric in (False, True):
        for part, (to_student, to_target) in part_gradients(s, t, symmetric=symmetric).items():
            both = "yes" if bool(to_student.any()) and float((to_student + to_target).abs().max()) < ROUNDING else "no"
            rows.append(
                ("with" if symmetric else "without", part, number(to_student.norm()), number(to_target.norm()), both)
            )
    return Table(("BA", "part", "gradient to the student", "gradient to the target", "equal and opposite"), rows)


def ikl_is_gkl() -> Table:
    """GKL at power 1 is IKL under each normaliser, for class-wise rows as for the samples' own."""
    s, t = normal(32, 10, seed=0, scale=2), normal(32, 10, seed=1, scale=2)
    labels = torch.arange(32) % 10
    prior = torch.softmax(normal(10, 10, seed=2), -1)
    rows = []
    for name, weights in (("class-wise", prior[labels]), ("sample-wise", torch.softmax(t, -1))):
        for normalizer in ("weights", "row", "samples"):
            options = {"mse_weight": 4.0, "temperature": 4.0}
            values = [
                ikl_divergence(s, t, weights, **options),
                gkl_divergence(s, t, weights, weight_power=1.0, normalizer=normalizer, **options),
            ]
            slopes = [
                gradients(ikl_divergence, s, t, weights, **options),
                gradients(gkl_divergence, s, t, weights, weight_power=1.0, normalizer=normalizer, **options),
            ]
            rows.append(
                (
                    name,
                    f'"{normalizer}"',
                    largest(values[0] - values[1]),
                    largest(torch.stack(slopes[0]) - torch.stack(slopes[1])),
                )
            )
    return Table(("weights", "GKL's normaliser", "difference of values", "largest difference of gradients"), rows)


def algorithm_2(logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Return the paper's Algorithm 2 per sample: three pieces, 2 sum(w x y) - 2 sum(w x) sum(w y) each, over 4."""

    def piece(x: Tensor, y: Tensor) -> Tensor:
        return 2 * (weight * x * y).sum(-1) - 2 * (weight * x).sum(-1) * (weight * y).sum(-1)

    return (piece(target, target) - 2 * piece(target, logits) + piece(logits, logits)) / 4


def all_pairs(logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Return the definition per sample: 1/4 sum_jk w_j w_k ((t_j - t_k) - (s_j - s_k))^2, pair by pair."""
    gap = (target.unsqueeze(-1) - target.unsqueeze(-2)) - (logits.unsqueeze(-1) - logits.unsqueeze(-2))
    return (weight.unsqueeze(-1) * weight.unsqueeze(-2) * gap**2).sum((-2, -1)) / 4


def compact_forms() -> Table:
    """Algorithm 2 leaves out the factor S, so that it holds for weights that sum to 1 only."""
    s, t = normal(1, 10, seed=3), normal(1, 10, seed=4)
    rows = []
    for power in (1.0, 0.5, 0.3, 0.1, 0.0):
        weight = torch.softmax(t, -1) ** power
        pairs = all_pairs(s, t, weight)
        ours, printed = weighted_mse(s, t, weight, reduction="none"), algorithm_2(s, t, weight)
        rows.append(
            (
                f"{power:g}",
                *map(number, (weight.sum(), pairs, ours, printed)),
                largest(ours - pairs),
                largest(printed - pairs),
            )
        )
    titles = (
        "power",
        "S",
        "all pairs",
        "`weighted_mse`",
        "Algorithm 2",
        "error of `weighted_mse`",
        "error of Algorithm 2",
    )
    return Table(titles, rows)


def cancellation() -> Table:
    """Relative errors in float32 when all logits are shifted by a constant, which changes no difference."""
    s, t = normal(64, 10, seed=3), normal(64, 10, seed=4)
    weight = torch.softmax(t, -1)
    exact = all_pairs(s, t, weight)
    rows = []
    for shift in (0.0, 10.0, 100.0, 1000.0):
        # Round the logits first: their own rounding is not the fault of a formula.
        low = [(x + shift).float() for x in (s, t)]
        exact = all_pairs(low[0].double(), low[1].double(), weight.float().double())
        errors = [
            ((form(*low, weight.float()).double() - exact).abs() / exact).max()
            for form in (functools.partial(weighted_mse, reduction="none"), algorithm_2)
        ]
        rows.append((f"{shift:g}", *(f"{float(error):.0e}" for error in errors)))
    return Table(("shift of all logits", "`weighted_mse`, float32", "Algorithm 2, float32"), rows)


def closed_gradients() -> Table:
    """Eq. 15-18: the printed gradients of JSD and IKL to the student's logits, against automatic differentiation."""
    s, t = normal(32, 10, seed=0, scale=2), normal(32, 10, seed=1, scale=2)
    p, q = torch.softmax(t, -1), torch.softmax(s, -1)

    def pull(weight: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """sum_j w_i w_j ((x_i - x_j) - (y_i - y_j))"""
        gap = x - y
        return weight * (weight.sum(-1, keepdim=True) * gap - (weight * gap).sum(-1, keepdim=True))

    middle = ((p + q) / 2).log()
    found = gradients(js_divergence, s, t, reduction="sum")[0]
    printed = pull(q, s, middle)
    found_ikl = gradients(ikl_divergence, s, t, p, mse_weight=3.0, ce_weight=2.0, reduction="sum")[0]
    printed_ikl = 3.0 * pull(p, s, t) + 2.0 * (q - p)
    return Table(
        (
            "gradient",
            "norm, computed",
            "norm, as printed",
            "computed / printed",
            "largest difference from the scaled formula",
        ),
        [
            (
                name,
                number(computed.norm()),
                number(formula.norm()),
                number((computed * formula).sum() / (formula * formula).sum()),
                largest(computed - factor * formula),
            )
            for name, computed, formula, factor in (
                ("JSD", found, printed, 0.5),
                ("IKL", found_ikl, printed_ikl, 1.0),
            )
        ],
    )


def same_weights() -> Table:
    """The same student, data and steps: KL against DKL without and with BA."""
    rows = []
    for both_learn in (False, True):
        baseline = train("kl", both_learn=both_learn)
        for name in ("dkl", "dkl with BA"):
            other = train(name, both_learn=both_learn)
            rows.append(
                (
                    "both sides learn" if both_learn else "frozen teacher",
                    name.upper().replace("WITH", "with"),
                    number(baseline.losses[-1]),
                    number(other.losses[-1]),
                    largest(other.weights[-1] - baseline.weights[-1]),
                )
            )
    titles = (
        "",
        "compared with KL",
        "KL's last loss",
        "its last loss",
        "largest difference of the weights after 300 steps",
    )
    return Table(titles, rows)


# --- normalisers and powers -------------------------------------------------------------------------------


def uneven_batch() -> tuple[Tensor, Tensor, Tensor]:
    """Return logits and class rows of 64 samples: sharp rows in the first half, flat ones in the second."""
    prior = torch.softmax(normal(10, 10, seed=5) * torch.linspace(4, 0.2, 10, dtype=torch.float64).unsqueeze(-1), -1)
    labels = torch.arange(64) * 10 // 64
    return normal(64, 10, seed=6), normal(64, 10, seed=7, scale=2), prior[labels]


def normalizers() -> Table:
    """The weighted MSE under each normaliser: of the whole batch, and averaged over two halves of it."""
    s, t, prior = uneven_batch()
    rows = []
    for power in (1.0, 0.3, 0.1, 0.0):
        mse = functools.partial(gkl_divergence, ce_weight=0.0, weight_power=power)

        def halves(normalizer: str | Tensor, mse: functools.partial[Tensor] = mse) -> Tensor:
            parts = zip(s.split(32), t.split(32), prior.split(32), strict=True)
            return torch.stack([mse(*part, normalizer=normalizer) for part in parts]).mean()

        cells = []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # "samples" with a power other than 1: that is the point here
            for normalizer in ("weights", "row", "samples"):
                cells += [mse(s, t, prior, normalizer=normalizer), halves(normalizer)]
        whole = gkl_normalizer(prior, weight_power=power)
        cells.append(halves(whole / 2))
        rows.append((f"{power:g}", *map(number, cells)))
    titles = (
        "power",
        '"weights"',
        "in halves",
        '"row"',
        "in halves",
        '"samples"',
        "in halves",
        "halves, caller's denominator",
    )
    return Table(titles, rows)


def power_and_temperature() -> Table:
    """A power of a softmax is a temperature; a power of a mean of softmaxes is none."""
    samples = teacher_logits()
    own = samples[:1]
    rows = []
    for power in (0.7, 0.3, 0.1):
        cells = []
        for of_class in (False, True):
            scores = samples if of_class else own
            weight = torch.softmax(scores, -1).mean(0) ** power
            tempered = torch.softmax(power * scores, -1).mean(0)
            cells.append(largest(weight / weight.sum() - tempered))
        rows.append((f"{power:g}", *cells))
    return Table(("power", "sample-wise: largest difference", "class-wise: largest difference"), rows)


def temperature_and_t2() -> Table:
    """What T does to the gradient of the soft cross-entropy, with and without T squared."""
    s, t = normal(64, 10, seed=0), normal(64, 10, seed=1, scale=4)
    rows = []
    for temperature in (1.0, 2.0, 4.0, 8.0):
        plain = gradients(soft_cross_entropy, s, t, temperature=temperature)[0].norm()
        scaled = gradients(kl_divergence, s, t, temperature=temperature, scale_by_t2=True)[0].norm()
        rows.append((f"{temperature:g}", number(plain), number(scaled), number(scaled / plain)))
    titles = ("T", "soft cross-entropy of GKL", "KL with `scale_by_t2=True`", "ratio")
    return Table(titles, rows)


def preset_values() -> Table:
    """The options of each preset, defaults included."""
    names = [name for name in inspect.signature(GKLLoss).parameters if name not in UNSET_BY_PRESETS]
    defaults = {name: inspect.signature(GKLLoss).parameters[name].default for name in names}
    rows = [
        (f"`{preset}`", *(value if isinstance(value, str) else f"{value:g}" for value in (defaults | options).values()))
        for preset, options in PRESETS.items()
    ]
    return Table(("preset", *(f"`{name}`" for name in names)), rows)


def presets() -> Table:
    """How much of the student's gradient each part of a preset gives, on digits, early in the training."""
    images, labels, teacher = digits_and_teacher()
    t = teacher(images)
    s = train("kl", steps=20).network(images).detach()
    rows = []
    for name, options in PRESETS.items():
        norms = []
        for other_part in ("ce_weight", "mse_weight"):
            loss = GKLLoss(10, **{**options, other_part: 0.0, "ramp_epochs": 0})
            loss.observe(t, labels)
            loss.refresh()
            norms.append(len(s) * gradients(loss, s, t, labels)[0].norm(dim=-1).mean())
        rows.append((f"`{name}`", *map(number, norms), number(norms[0] / norms[1])))
    return Table(("preset", "gradient of the weighted MSE", "of the soft cross-entropy", "ratio"), rows)


# --- the page ---------------------------------------------------------------------------------------------

TABLES: dict[str, Callable[[], Table]] = {
    "theorem-1": theorem_1,
    "broken-asymmetry": broken_asymmetry,
    "ikl-is-gkl": ikl_is_gkl,
    "same-weights": same_weights,
    "compact-forms": compact_forms,
    "cancellation": cancellation,
    "closed-gradients": closed_gradients,
    "normalizers": normalizers,
    "power-and-temperature": power_and_temperature,
    "temperature-and-t2": temperature_and_t2,
    "preset-values": preset_values,
    "presets": presets,
}


def fill_in(text: str, tables: dict[str, str]) -> str:
    """Replace what stands between the marks of each table in a page."""
    for name, table in tables.items():
        block = re.compile(rf"(<!-- theory: {re.escape(name)} -->\n).*?(<!-- end -->)", re.DOTALL)
        text = block.sub(lambda match, table=table: f"{match[1]}\n{table}\n\n{match[2]}", text)
    return text


def main(docs: Path) -> None:
    """Compute, print, draw and fill in."""
    tables = {name: table().markdown() for name, table in TABLES.items()}
    for name, table in tables.items():
        print(f"\n{name}\n\n{table}")
    for path in draw_all(docs / "assets"):
        print(f"  {path.name}")
    for page in docs.glob("*.md"):
        text = page.read_text(encoding="utf-8")
        page.write_text(fill_in(text, tables), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else DOCS)
