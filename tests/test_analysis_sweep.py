"""What a sweep's table says, and what it must not say."""

from __future__ import annotations

import itertools
import json

import pytest
from fake_runs import fake_run, write_json

from limbeck.analysis.style import new_figure, styled
from limbeck.analysis.sweep import columns, marginals, notes, rich_table, summarise
from limbeck.analysis.sweep_picture import draw_lines, picture
from limbeck.errors import UserError


def fake_sweep(folder, axes, accuracies, *, seeds=2, diverged=(), missing=()):
    """Write a sweep whose points have (validation, test) top-1 `accuracies`, a tenth of a point apart over seeds."""
    points = []
    for values, (validation, test) in zip(itertools.product(*axes.values()), accuracies, strict=True):
        name = ",".join(f"{path.rsplit('.', 1)[-1]}={v}" for path, v in zip(axes, values, strict=True))
        runs = [f"{name}/seed{seed}" for seed in range(seeds)]
        for seed, run in enumerate(runs):
            if run not in (*diverged, *missing):
                shift = 0.001 * seed
                held_out = None if validation is None else validation + shift
                fake_run(folder / run, top1=test + shift, validation=held_out, seed=seed, epochs=2)
        points.append({"name": name, "values": list(values), "runs": runs})
    content = {
        "format": 1,
        "title": "A sweep",
        "protocol": "holdout" if accuracies[0][0] else "paper",
        "axes": [{"path": path, "values": list(values)} for path, values in axes.items()],
        "points": points,
        "seeds": list(range(seeds)),
        "vary_split": False,
        "diverged": dict.fromkeys(diverged, "not finite"),
        "teachers": [],
    }
    write_json(folder / "sweep.json", content)
    return folder


RATES = {"optimizer.learning_rate": (0.01, 0.1, 1.0)}
THREE = [(0.80, 0.85), (0.90, 0.82), (0.70, 0.95)]  # the best on test is the worst on validation


def test_the_best_on_validation_is_chosen_and_no_other_test_accuracy_is_shown(tmp_path):
    sweep = summarise(fake_sweep(tmp_path, RATES, THREE))
    assert sweep.chosen is sweep.points[1]
    titles, rows = columns(sweep)
    assert titles == ["optimizer.\nlearning_rate", "validation top-1, %", "n", "test top-1, %"]
    assert rows == [
        ["0.01", "80.05 ± 0.07", "2/2", ""],
        ["0.1", "90.05 ± 0.07", "2/2", "82.05 ± 0.07 *"],
        ["1", "70.05 ± 0.07", "2/2", ""],
    ]


def test_another_task_is_swept_by_its_own_measure(tmp_path):
    folder = fake_sweep(tmp_path, RATES, THREE)
    for path in folder.rglob("results.json"):
        results = json.loads(path.read_text())
        for split in ("validation", "test"):
            results["last"][split] = {"miou": results["last"][split]["top1"], "samples": 20}
        write_json(path, results | {"task": "segment"})
    sweep = summarise(folder)
    assert columns(sweep)[0] == ["optimizer.\nlearning_rate", "validation mIoU, %", "n", "test mIoU, %"]
    assert columns(sweep)[1][1][1:] == ["90.05 ± 0.07", "2/2", "82.05 ± 0.07 *"]
    assert "only its test mIoU is shown" in notes(sweep)[-1]


def test_without_validation_all_rows_show_test_and_none_is_chosen(tmp_path):
    sweep = summarise(fake_sweep(tmp_path, RATES, [(None, test) for _, test in THREE]))
    assert sweep.chosen is None
    titles, rows = columns(sweep)
    assert titles[1:] == ["test top-1, %", "n"]
    assert [row[1] for row in rows] == ["85.05 ± 0.07", "82.05 ± 0.07", "95.05 ± 0.07"]
    assert "no setting may be chosen by them" in " ".join(notes(sweep))


def test_a_point_with_missing_or_diverged_seeds_is_not_chosen(tmp_path):
    sweep = summarise(fake_sweep(tmp_path, RATES, THREE, diverged=["learning_rate=0.1/seed0"]))
    assert sweep.chosen is sweep.points[0]
    assert "Diverged and left out: learning_rate=0.1 (1 of 2)." in notes(sweep)
    sweep = summarise(fake_sweep(tmp_path / "b", RATES, THREE, missing=["learning_rate=0.1/seed0"]))
    assert sweep.chosen is sweep.points[0]
    assert notes(sweep)[0] == "Unfinished: 1 of 6 runs is missing."


def test_marginals_are_means_over_the_other_options(tmp_path):
    axes = {"a.x": (1, 2), "a.y": ("k", "l"), "a.z": (True, False)}
    accuracies = [(0.1 * number + 0.05, 0.5) for number in range(8)]
    sweep = summarise(fake_sweep(tmp_path, axes, accuracies, seeds=1))
    means = [[values.mean for _, values in marginals(sweep, axis)] for axis in range(3)]
    assert means == [pytest.approx(pair) for pair in ([20, 60], [30, 50], [35, 45])]
    assert picture(sweep) is None


@pytest.mark.parametrize(
    "axes",
    [
        RATES,
        {"losses.1.name": ("kl", "gkl", "ikl")},
        {**RATES, "losses.1.temperature": (1.0, 4.0)},
        {"losses.1.name": ("kl", "gkl"), "train.epochs": tuple(range(1, 9))},
    ],
)
def test_one_or_two_options_make_a_picture(axes, tmp_path):
    points = len(list(itertools.product(*axes.values())))
    sweep = summarise(fake_sweep(tmp_path, axes, [(0.8 + 0.01 * n, 0.8) for n in range(points)], seeds=1))
    assert picture(sweep).png.startswith(b"\x89PNG")


@pytest.mark.parametrize("rates", [(0.01, 0.1, 1.0), (1.0, 2.0, 3.0)])  # logarithmic, linear
def test_every_mean_lies_within_the_picture(rates, tmp_path):
    axes = {"optimizer.learning_rate": rates, "losses.1.temperature": (1.0, 4.0)}
    sweep = summarise(fake_sweep(tmp_path, axes, [(0.7 + 0.05 * n, 0.8) for n in range(6)]))
    with styled():
        drawn = draw_lines(sweep, new_figure(3)[1][0])
    (left, right), (low, high) = drawn.get_xlim(), drawn.get_ylim()
    assert left < min(rates) < max(rates) < right
    assert low < 70 < 95.05 < high
    lines = [bars.lines[0].get_xdata() for bars in drawn.containers]
    assert all(lines[0] < lines[1])  # bars of two lines stand beside one another


def test_the_table_prints_in_eighty_columns(tmp_path):
    from rich.console import Console

    console = Console(width=80, record=True, file=open(tmp_path / "out", "w", encoding="utf-8"))  # noqa: SIM115
    console.print(rich_table(summarise(fake_sweep(tmp_path, {**RATES, "losses.1.temperature": (1.0,)}, THREE))))
    assert "82.05 ± 0.07 *" in console.export_text()


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (None, "sweep.json is missing; start the sweep again"),
        ({"format": 7}, "expected format 1"),
        ({"format": 1}, "sweep.json: lacks 'points'"),
    ],
)
def test_a_folder_without_a_whole_sweep_is_told(content, line, tmp_path):
    if content is not None:
        write_json(tmp_path / "sweep.json", content)
    with pytest.raises(UserError, match=line):
        summarise(tmp_path)


def test_a_sweep_without_a_finished_run_is_told(tmp_path):
    runs = [f"learning_rate={rate}/seed0" for rate in RATES["optimizer.learning_rate"]]
    with pytest.raises(UserError, match="none of the runs of this sweep is finished"):
        summarise(fake_sweep(tmp_path, RATES, THREE, seeds=1, missing=runs))
