"""The pictures of a run and of a comparison: which there are, their titles and captions, their files."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from limbeck.analysis import (
    convergence,
    curves,
    differences,
    margins,
    per_class,
    predicted_scores,
    prior,
    robust_pictures,
)
from limbeck.analysis.comparison import summarise
from limbeck.analysis.run_files import Run, read_run
from limbeck.analysis.style import Picture, new_figure, png, styled
from limbeck.analysis.task_pictures import of_task
from limbeck.errors import UserError, reason

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from limbeck.analysis.comparison import Comparison

    Rows = Mapping[str, Sequence[Run]]


SHOWN = 6  # rows in a picture, if there are too many for all


def draw_run(run: Path, out: Path, *, against: Path | None = None) -> list[Path]:
    """Draw the pictures of the run folder `run` into the folder `out`, made when missing; return the files.

    With `against`, a second run, both are drawn and the margins' difference is taken to it. Runs that are not finished
    have learning curves only.

    Raises:
        UserError: no run folder, a damaged file, runs that do not fit together, a folder that cannot be written, or
            matplotlib is not installed.
    """
    folders = [run] if against is None else [against, run]
    names = [run.resolve().name] if against is None else _short_names(against, run)
    rows = {name: [read_run(folder)] for name, folder in zip(names, folders, strict=True)}
    finished = all(opened.finished for runs in rows.values() for opened in runs)
    with styled():
        pictures = list(_learning(rows))
        if finished:
            pictures += of_task(rows)
        if finished and _classifies(rows):
            baseline = None if against is None else names[0]
            pictures += [*_predictions(rows, baseline), *robust_pictures.of_attacks(rows, baseline)]
        return save(pictures, out)


def _classifies(rows: Rows) -> bool:
    """Whether the runs say one class of each image, so that the pictures of predictions can be drawn."""
    return all(run.headline.main.key == "top1" for runs in rows.values() for run in runs)


def _short_names(first: Path, second: Path) -> list[str]:
    """Return what tells two paths apart: they lose the parts that both begin with, and those that both end with."""
    paths = [list(first.resolve().parts), list(second.resolve().parts)]
    if paths[0] == paths[1]:
        raise UserError(f"expected two runs, got {first} twice")
    for end in (0, -1):
        while min(map(len, paths)) > 1 and paths[0][end] == paths[1][end]:
            for path in paths:
                del path[end]
    return ["/".join(path) for path in paths]


def draw_comparison(folder: Path) -> list[Path]:
    """Draw the pictures of a comparison into its folder; return the files. Errors as `draw_run`."""
    return save(comparison_pictures(summarise(folder)), folder)


def draw_rows(folder: Path, names: Sequence[str]) -> list[Path]:
    """Draw some rows of a comparison alone, over the seeds that all of them have finished, into a folder in it.

    Errors as `draw_run`, and a UserError for a row that is not there.
    """
    comparison = summarise(folder)
    rows = pick_rows(comparison, names)
    baseline = comparison.baseline if comparison.baseline in rows else None
    with styled():
        shown = _predictions(rows, baseline) if _classifies(rows) else ()
        pictures = [*_learning(rows), *of_task(rows), *shown, *robust_pictures.of_attacks(rows, baseline)]
    return save(pictures, folder / f"rows-{'-'.join(rows)}")


def pick_rows(comparison: Comparison, names: Sequence[str]) -> dict[str, list[Run]]:
    """Return the runs of the rows named, of the seeds that all of them have finished; UserError without."""
    known = [row.name for row in comparison.rows]
    for name in names:
        if name not in known:
            raise UserError(
                f"{comparison.folder}: expected rows of the comparison, got `{name}`; it has {', '.join(known)}"
            )
    runs = {name: comparison.row(name).runs for name in names}
    seeds = [seed for seed in comparison.seeds if runs and all(seed in each for each in runs.values())]
    if not seeds:
        raise UserError(f"{comparison.folder}: no seed is finished in all of {', '.join(names) or 'no row'}")
    return {name: [each[seed] for seed in seeds] for name, each in runs.items()}


def comparison_pictures(comparison: Comparison) -> list[Picture]:
    """Return the pictures of a comparison, each row at its chosen setting; of many rows, of some of them."""
    rows = some_rows(comparison)
    with styled():
        of_some = [
            *_learning(rows),
            *of_task(rows),
            *(_predictions(rows, comparison.baseline) if _classifies(rows) else ()),
            *robust_pictures.of_attacks(rows, comparison.baseline),
        ]
        if len(rows) < len(comparison.rows):
            note = f" Of {len(comparison.rows)} rows: {_which(comparison, rows)}."
            of_some = [replace(picture, caption=picture.caption + note) for picture in of_some]
        return [*_differences(comparison), *robust_pictures.of_comparison(comparison), *of_some]


def some_rows(comparison: Comparison) -> dict[str, list[Run]]:
    """Return the runs of the rows that can be told apart in one picture: all, or the baseline and the best few.

    The best are chosen on validation, as settings are; without it the first ones stand for all.
    """
    rows = comparison.selected_runs()
    if len(rows) <= differences.MANY:
        return rows
    chosen = {row.name: row.validation[row.selected] for row in comparison.rows}
    best = sorted(rows, key=lambda name: -(spread.mean if (spread := chosen[name]) else 0.0))
    kept = [name for name in best if name != comparison.baseline][: SHOWN - 1]
    return {name: runs for name, runs in rows.items() if name in kept or name == comparison.baseline}


def _which(comparison: Comparison, rows: Rows) -> str:
    """Say which rows `some_rows` has kept."""
    validated = any(row.validation[row.selected] for row in comparison.rows)
    others = f"{len(rows) - (comparison.baseline in rows)} {'best on validation' if validated else 'first ones'}"
    return f"the baseline and the {others}" if comparison.baseline in rows else f"the {others}"


def save(pictures: Sequence[Picture], out: Path) -> list[Path]:
    """Write each picture as a PNG file into `out`; return the paths."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        paths = [out / f"{picture.name}.png" for picture in pictures]
        for path, picture in zip(paths, pictures, strict=True):
            path.write_bytes(picture.png)
    except OSError as error:
        raise UserError(
            f"{out} cannot be written ({reason(error)}); make room, or copy the folder it is in elsewhere"
        ) from error
    return paths


def _differences(comparison: Comparison) -> Iterator[Picture]:
    if comparison.baseline is None or len(comparison.rows) < 2:
        return
    kinds = (False,) if comparison.attacks is None else (False, True)
    results = [differences.compute(comparison, clean=clean) for clean in kinds]
    count = len(results[0].rows)
    height = 0.9 + differences.row_height(count) * count
    figure, panels = new_figure(height * len(kinds), len(kinds))
    title = f"Differences to {comparison.baseline}"
    for result, axes in zip(results, panels, strict=True):
        differences.draw(result, axes)
    panels[0].set_title(title)
    measures = " and, below, ".join(result.measure for result in results)
    caption = (
        f"{measures[:1].upper()}{measures[1:]} less that of {comparison.baseline}, paired by seed. Small dots: "
        "seeds. Diamond: their mean. Bar: 95 % t-interval, absent where no test can be made. An "
        "interval that covers 0 shows no difference."
    )
    yield Picture("differences", title, caption, png(figure))


def _learning(rows: Rows) -> Iterator[Picture]:
    """Draw what metrics.jsonl holds. Losses differ in scale between rows: several rows show validation NLL instead."""
    result, several = curves.compute(rows), len(rows) > 1
    wanted: tuple[curves.Quantity, ...] = ("nll" if several else "train_loss", "main")
    if result.has("robust"):
        wanted = ("main", "robust") if several else ("train_loss", "main", "robust")
    titles: dict[curves.Quantity, str] = {
        "train_loss": "Loss on training images",
        "nll": "NLL on validation images",
        "main": f"{'Accuracy' if result.main == 'top-1, %' else result.main.removesuffix(', %')} on validation images",
        "robust": "Robust accuracy on validation",
    }
    shown = [quantity for quantity in wanted if result.has(quantity)] or ["train_loss"]
    figure, panels = new_figure(3.4, 1, len(shown)) if len(shown) < 3 else new_figure(6.4, 3, sharex=True)
    for axes, quantity in zip(panels, shown, strict=True):
        curves.draw(result, axes, quantity).set_title(titles[quantity])
    for axes in panels[:-1] if len(shown) > 2 else ():
        axes.set_xlabel("")  # they have the last one's axis
    title = "How training went"
    bands = " Lines: mean over seeds; bands: their range." if any(len(runs) > 1 for runs in rows.values()) else ""
    caption = f"Over the epochs.{bands} The vertical axes fit the last four fifths of the epochs."
    yield Picture("curves", title, caption, png(figure))
    by_score = convergence.compute(rows)
    if not by_score.empty:
        yield _convergence(by_score)


def _convergence(result: convergence.Convergence) -> Picture:
    figure, panels = new_figure(5.2, 2, 2, sharex=True)
    for quarter, axes in enumerate(panels):
        convergence.draw(result, axes, quarter).set_title(f"Teacher score: {convergence.QUARTERS[quarter]} quarter")
    panels[0].legend()
    panels[0].set_xlabel("")
    panels[1].set_xlabel("")
    title = "Which samples are learned sooner"
    caption = (
        "Validation accuracy over the epochs on four quarters of the images, by the probability that the teacher gives "
        "to the true class. A loss that converges faster stands to the left; the vertical axes differ."
    )
    if result.banded:
        caption += " Lines: mean over seeds; bands: one standard deviation to either side."
    return Picture("convergence", title, caption, png(figure))


def _predictions(rows: Rows, baseline: str | None) -> Iterator[Picture]:
    """Draw what the predictions on the reported split show."""
    classes = {name: len(runs[0].scores.accuracy) for name, runs in rows.items()}
    if len(set(classes.values())) > 1:
        counts = ", ".join(f"{name} {count}" for name, count in classes.items())
        raise UserError(f"expected runs with the same classes, got {counts}; draw each by itself")
    split = next(iter(rows.values()))[0].split
    figure, (axes,) = new_figure(3.8)
    per_class.draw(per_class.compute(rows), axes).set_title(title := "Accuracy on each class")
    caption = (
        f"Accuracy by class on the {split} split; whiskers: standard deviation over seeds; grey bars, where there are "
        "any: training images (right axis)."
    )
    yield Picture("per_class", title, caption, png(figure))
    yield _margins(margins.compute(rows), baseline, split)
    figure, (axes,) = new_figure(3.8)
    predicted_scores.draw(predicted_scores.compute(rows), axes).set_title(title := "What is left to the other classes")
    caption = (
        f"Class-mean predicted scores on the {split} split, sorted within each class: rank 1 is the true class as a "
        "rule. The nearer a line is to the teacher's, the more of what it knows of the other classes has come over."
    )
    yield Picture("predicted_scores", title, caption, png(figure))
    with_prior = [(name, runs[0]) for name, runs in rows.items() if runs[0].scores.prior is not None]
    if with_prior:
        name, run = with_prior[-1]  # rows go from the plain losses to the general one
        figure, (axes,) = new_figure(5.4)
        prior.draw(prior.compute(run), axes).set_title(title := f"Class prior of {name}")
        caption = (
            "Mean probability vector of each class, in percent, which weights the pairs of logits. The colours follow "
            "the logit, so that both the classes held for alike and the entries of the diagonal differ."
        )
        yield Picture("prior", title, caption, png(figure))


def _margins(result: margins.Margins, baseline: str | None, split: str) -> Picture:
    compared = baseline is not None and len(result.rows) > 1
    figure, panels = new_figure(5.6 if compared else 3.4, 2 if compared else 1)
    margins.draw(result, panels[0]).set_title("Margin of each class")
    caption = (
        f"Margin: class-mean probability of the true class less that of its strongest rival, on the {split} split "
        "(Eq. 14 of arXiv 2503.08038). Below 0 the class is lost on average."
    )
    if compared and baseline is not None:
        margins.draw_difference(margins.difference(result, baseline), panels[1]).set_title(f"Difference to {baseline}")
        caption += f" Below: each row less {baseline}; bars above 0 are wider margins."
    return Picture("margins", "How far the classes stand apart", caption, png(figure))
