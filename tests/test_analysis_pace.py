"""Claims about some rows of a comparison drawn alone, and about which of two learns sooner."""

import json

import numpy as np
import pytest
from fake_runs import demo_like
from matplotlib.figure import Figure
from typer.testing import CliRunner

from limbeck.analysis import convergence
from limbeck.analysis.comparison import summarise
from limbeck.analysis.pictures import draw_rows, pick_rows
from limbeck.analysis.statistics import holm, paired_difference
from limbeck.commands import app
from limbeck.errors import UserError

SEEDS, EPOCHS = 4, 6


def accuracies():
    """Accuracy by row, seed, epoch and quarter; gkl learns the highest quarter sooner and the lowest later."""
    rng = np.random.default_rng(3)
    base = np.linspace(0.2, 0.8, EPOCHS)[None, :, None] + rng.normal(scale=0.02, size=(SEEDS, EPOCHS, 4))
    gain = np.array([-0.1, 0.0, 0.0, 0.1]) + rng.normal(scale=0.01, size=(SEEDS, 1, 4))
    return {"kl": base, "gkl": base + gain}


@pytest.fixture
def folder(tmp_path):
    demo_like(tmp_path, seeds=SEEDS)
    for name, values in accuracies().items():
        for seed in range(SEEDS):
            for path in tmp_path.glob(f"{name}/setting*/seed{seed}/metrics.jsonl"):
                lines = [json.loads(line) for line in path.read_text().splitlines()]
                epochs = [line for line in lines if line["kind"] == "epoch"][:EPOCHS]
                for line, quarters in zip(epochs, values[seed].tolist(), strict=True):
                    line["accuracy_by_teacher_score"] = quarters
                path.write_text("".join(json.dumps(line) + "\n" for line in epochs))
    return tmp_path


def rows_of(folder, *names):
    return pick_rows(summarise(folder), names)


def test_pace_is_the_mean_over_the_epochs_paired_by_seed(folder):
    found = convergence.paces(convergence.compute(rows_of(folder, "kl", "gkl")))
    means = {name: 100 * values.mean(1) for name, values in accuracies().items()}
    tests = [paired_difference(means["gkl"][:, q], means["kl"][:, q]) for q in range(4)]
    assert [pace.quarter for pace in found] == list(convergence.QUARTERS)
    for quarter, (pace, expected) in enumerate(zip(found, tests, strict=True)):
        assert pace.rows[0].values == pytest.approx(means["kl"][:, quarter])
        assert pace.judged.difference.values == pytest.approx(expected.values)
    assert [pace.judged.p_holm for pace in found] == pytest.approx(holm([test.p for test in tests]))
    assert found[0].judged.verdict == "worse"
    assert found[3].judged.verdict == "better"


def test_rows_are_paired_over_the_seeds_that_both_have_finished(folder):
    for path in folder.glob("gkl/setting*/seed1/results.json"):
        path.unlink()
    picked = rows_of(folder, "gkl", "kl")
    assert [[run.folder.name for run in runs] for runs in picked.values()] == [["seed0", "seed2", "seed3"]] * 2
    means = {name: 100 * values[[0, 2, 3], :, 3].mean(1) for name, values in accuracies().items()}
    highest = convergence.paces(convergence.compute(picked))[3]
    assert highest.judged.difference.mean == pytest.approx((means["kl"] - means["gkl"]).mean())


def test_bands_of_few_rows_are_one_standard_deviation_and_many_rows_have_none(folder):
    result = convergence.compute(rows_of(folder, "kl", "gkl"))
    axes = convergence.draw(result, Figure().subplots(), 3)
    values = 100 * accuracies()["kl"][..., 3]
    edge = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert edge.max() == pytest.approx((values.mean(0) + values.std(0, ddof=1)).max())
    assert edge.min() == pytest.approx((values.mean(0) - values.std(0, ddof=1)).min())
    every = convergence.compute(rows_of(folder, "ce", "kl", "ikl", "gkl"))
    assert not convergence.draw(every, Figure().subplots()).collections


def test_the_command_draws_two_rows_alone_and_prints_their_pace(folder, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    said = CliRunner().invoke(app, ["plot", str(folder), "--rows", "kl,gkl"])
    assert said.exit_code == 0, said.output
    highest = next(line for line in said.output.splitlines() if line.startswith("highest"))
    pace = convergence.paces(convergence.compute(rows_of(folder, "kl", "gkl")))[3]
    assert f"{pace.judged.difference.mean:+.2f} [" in highest
    assert "better" in highest
    assert (folder / "rows-kl-gkl" / "convergence.png").is_file()
    assert not (folder / "report.html").exists()


def test_a_row_that_is_not_there_is_one_line_with_those_that_are(folder):
    with pytest.raises(UserError, match=r"expected rows of the comparison, got `gk`; it has ce, kl, dkl, ikl, gkl$"):
        draw_rows(folder, ["kl", "gk"])


def test_rows_need_a_comparison_and_no_second_run(folder):
    run = folder / "kl/setting0/seed0"
    for arguments, message in (
        (["plot", str(run), "--rows", "kl"], "--rows expected the folder of a comparison"),
        (["plot", str(folder), "--rows", "kl", "--against", str(run)], "expected one of --rows and --against"),
    ):
        with pytest.raises(UserError, match=message):
            CliRunner().invoke(app, arguments, catch_exceptions=False)
