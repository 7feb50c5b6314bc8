"""What `limbeck train`, `evaluate` and `plot` print of runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from limbeck.headlines import all_measures
from limbeck.listings import print_table, say

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from limbeck.analysis.convergence import Convergence


def print_results(results: Mapping[str, Any], folder: Path) -> None:
    """Print a finished run: its metrics per set of weights and split, and its folder."""
    measured = [
        (
            f"{weights}, epoch {results[weights]['epoch']}" if weights == "best" else weights,
            *row,
        )
        for weights in ("last", "best", "ema")
        if results[weights]
        for row in _splits(results[weights])
    ]
    measured += [("teacher", *row) for teacher in results["teachers"] for row in _splits(teacher)]
    _print_metrics(measured)
    if classes := results.get("group_classes"):
        from limbeck.analysis.wording import groups_text

        say(f"{groups_text(results['data']['groups'], classes)}.")
    say(f"Epochs: {results['epochs']}, in {results['train_seconds']:.1f} s. Run folder: {folder}")


def print_generations(content: Mapping[str, Any], folder: Path) -> None:
    """Print what generations.json holds: each generation alone, and the ensemble of all up to it."""
    rows = [
        (
            generation["run"],
            *(
                f"{generation[which][metric] * factor:.{digits}f}"
                for which in ("test", "ensemble")
                for metric, factor, digits in (("top1", 100, 2), ("nll", 1, 3))
            ),
        )
        for generation in content["generations"]
    ]
    titles = ("generation", "test top-1, %", "NLL, nats", "ensemble top-1, %", "ensemble NLL")
    print_table(titles, rows, numbers=True)
    say(f"The ensemble averages the probabilities of all generations up to a line. Folder: {folder}")


def print_metrics(metrics: Mapping[str, Any], which: str) -> None:
    """Print what `evaluate` returned for the weights `which`."""
    _print_metrics([(which, *row) for row in _splits(metrics)])


def _splits(metrics: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Return what was measured, by the name of the images."""
    measured = {name: metrics[name] for name in ("validation", "test")} | metrics.get("shifted", {})
    return [(name, values) for name, values in measured.items() if values]


def _print_metrics(metrics: Sequence[tuple[str, str, Mapping[str, Any]]]) -> None:
    measured = [(weights, split, {**values, **values.get("groups", {})}) for weights, split, values in metrics]
    columns = {
        **{key: (measure.title, 100, 2) for key, measure in all_measures().items()},
        "top5": ("top-5, %", 100, 2),
        "many": ("many, %", 100, 2),
        "medium": ("medium, %", 100, 2),
        "few": ("few, %", 100, 2),
        "nll": ("NLL, nats", 1, 3),
        "ece": ("ECE, %", 100, 2),
        "robust": ("under attack, %", 100, 2),
        "agreement": ("agreement, %", 100, 2),
        "samples": ("n", 1, 0),
    }
    shown = {key: column for key, column in columns.items() if any(key in values for *_, values in measured)}
    rows = [
        (
            weights,
            split,
            *(
                "-" if (value := values.get(key)) is None else f"{value * factor:.{digits}f}"
                for key, (_, factor, digits) in shown.items()
            ),
        )
        for weights, split, values in measured
    ]
    print_table(("weights", "split", *(title for title, *_ in shown.values())), rows, numbers=True)


def print_paces(result: Convergence) -> None:
    """Print how soon two rows of a comparison learn the images of each quarter by teacher score."""
    from limbeck.analysis.convergence import paces
    from limbeck.analysis.wording import difference_text, mean_and_std, p_text

    first, second = result.rows
    titles = ("teacher score", f"{first}, %", f"{second}, %", "difference, points", "p (Holm)", "verdict")
    rows = [
        (
            each.quarter,
            *map(mean_and_std, each.rows),
            difference_text(each.judged),
            p_text(each.judged),
            each.judged.verdict,
        )
        for each in paces(result)
    ]
    print_table(titles, rows, numbers=True)
    say(
        "Validation accuracy, mean over all epochs, by quarter of the teacher's probability of the true class; "
        f"{second} less {first}, paired by seed, 95 % t-interval, Holm over the quarters."
    )


def print_robustness(content: Mapping[str, Any]) -> None:
    """Print what robustness.json holds: a row per attack and radius, worst cases, averages, warnings."""
    from limbeck.analysis.robust import epsilon_text

    rows = [("clean", "-", f"{100 * content['clean']:.2f}", "-", "-", "-", str(content["samples"]), "-")]
    rows += [
        (
            row["attack"],
            epsilon_text(row["epsilon"]),
            f"{100 * row['accuracy']:.2f}",
            "-" if row["step_size"] is None else f"{row['step_size']:.4g}",
            row["start"] or "-",
            row["iterate"] or "-",
            str(row["n"]),
            {None: "-", True: "yes", False: "no"}[row["standard"]],
        )
        for row in content["rows"]
    ]
    print_table(("attack", "epsilon", "top-1, %", "step", "start", "iterate", "n", "standard"), rows, numbers=True)
    summary = [
        ("worst case per image", epsilon_text(case["epsilon"]), f"{100 * case['accuracy']:.2f}", *case["attacks"])
        for case in content["worst"]
        if len(case["attacks"]) > 1
    ]
    summary += [
        (
            "average over epsilon",
            ", ".join(map(epsilon_text, mean["epsilons"])),
            f"{100 * mean['accuracy']:.2f}",
            mean["attack"],
        )
        for mean in content["averages"]
    ]
    if summary:
        titles = ("", "epsilon", "top-1, %", "of")
        print_table(titles, [(*row[:3], ", ".join(row[3:])) for row in summary], numbers=True)
    libraries = ", ".join(dict.fromkeys(row["library"] for row in content["rows"]))
    say(
        f"{content['weights']} weights, {content['split']} images, pixels in [0, 1], norm {content['norm']}, "
        f"seed {content['seed']}{f'; {libraries}' if libraries else ''}."
    )
    for warning in content["warnings"]:
        say(f"WARNING: {warning}.")
