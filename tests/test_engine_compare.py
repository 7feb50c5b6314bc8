"""A comparison: the same students under every row, nothing trained twice, nothing lost."""

from __future__ import annotations

import json
import os
import signal

import pytest
from engine_runs import STEPS, Hook, assert_same_run, recipe

from limbeck.analysis.comparison import summarise
from limbeck.analysis.tables import notes
from limbeck.config_files import dump
from limbeck.engine import run_folder, teachers
from limbeck.engine.compare import COMPARISON, compare
from limbeck.engine.fit import fit
from limbeck.errors import Interrupted, UserError

CE, KL, DKL = {"name": "cross_entropy"}, {"name": "kl", "temperature": 2.0}, {"name": "dkl", "temperature": 2.0}


@pytest.fixture
def comparison(tmp_path):
    """Three rows, one of them with two settings, over a teacher that is still to be trained."""
    (tmp_path / "teacher.yaml").write_text(dump(recipe(data={"labels_per_class": None}, train={"epochs": 1})))
    return recipe(
        title="rows",
        task="distill",
        teachers=[{"recipe": str(tmp_path / "teacher.yaml")}],
        data={"augment": {"crop_padding": 1}},
        compare={
            "contenders": {
                "ce": {"settings": [[CE]]},
                "kl": {"settings": [[CE, KL], [KL]]},
                "dkl": {"settings": [[CE, DKL]]},
            },
            "baseline": "kl",
            "equal_by_theory": [["kl", "dkl"]],
        },
    )


RUNS = [f"{row}/seed{seed}" for seed in (0, 1) for row in ("ce/setting0", "kl/setting0", "kl/setting1", "dkl/setting0")]


class Stop(Hook):
    """Sends SIGTERM at a step of the n-th run after the teacher's, and counts the steps of all runs."""

    def __init__(self, run: int = 0, step: int = 0) -> None:
        super().__init__(self.count)
        self.at, self.runs, self.steps = (run, step), -1, 0

    def begin_run(self, title, *, steps, done):
        self.runs += 1

    def count(self, step):
        self.steps += 1
        if (self.runs, step) == self.at:
            os.kill(os.getpid(), signal.SIGTERM)


def test_every_row_setting_and_seed_is_trained_and_described(comparison, tmp_path):
    folder = tmp_path / "comparison"
    content = compare(comparison, folder, seeds=2)
    assert content == json.loads((folder / COMPARISON).read_text())
    assert content["rows"]["kl"]["runs"] == [[f"kl/setting{k}/seed{s}" for s in (0, 1)] for k in (0, 1)]
    assert [[term["name"] for term in setting] for setting in content["rows"]["kl"]["settings"]] == [
        ["cross_entropy", "kl"],
        ["kl"],
    ]
    assert (content["seeds"], content["teachers"], content["baseline"]) == ([0, 1], ["teacher0"], "kl")
    results = [run_folder.read_results(folder / run) for run in RUNS]
    assert [[term["name"] for term in result["losses"]] for result in results[:4]] == [
        ["cross_entropy"],
        ["cross_entropy", "kl"],
        ["kl"],
        ["cross_entropy", "dkl"],
    ]
    assert [result["seed"] for result in results] == [0] * 4 + [1] * 4
    assert content["seconds"]["students"] == pytest.approx(sum(result["train_seconds"] for result in results))
    assert {result["teachers"][0]["test"]["top1"] for result in results} == {
        run_folder.read_results(folder / "teacher0")["last"]["test"]["top1"]
    }
    assert {row.name for row in summarise(folder).rows} == {"ce", "kl", "dkl"}


def test_a_comparison_goes_into_no_folder_of_a_run(comparison, tmp_path):
    (tmp_path / run_folder.CONFIG).write_text("")
    with pytest.raises(UserError, match="got that of a run; choose another --folder"):
        compare(comparison, tmp_path, seeds=1)


def test_rows_differ_in_their_losses_alone(comparison, tmp_path):
    compare(comparison, tmp_path / "c", seeds=1)
    # DKL has KL's gradient: with the same student, order and views the two runs are the same up to rounding.
    kl, dkl = (
        json.loads((tmp_path / "c" / row / "setting0/seed0" / run_folder.METRICS).read_text().splitlines()[-1])
        for row in ("kl", "dkl")
    )
    assert dkl["validation"] == pytest.approx(kl["validation"], rel=1e-3)


def test_each_seed_may_have_a_split_and_a_teacher_of_its_own(comparison, tmp_path):
    varied = comparison.model_copy(update={"compare": comparison.compare.model_copy(update={"vary_split": True})})
    content = compare(varied, tmp_path / "c", rows=["kl", "dkl"], seeds=2)
    assert content["teachers"] == ["split0/teacher0", "split1/teacher0"]
    for seed in (0, 1):
        results = [run_folder.read_results(tmp_path / "c" / row / f"setting0/seed{seed}") for row in ("kl", "dkl")]
        teacher = run_folder.read_results(tmp_path / "c" / f"split{seed}/teacher0")
        assert {result["data"]["split_seed"] for result in [*results, teacher]} == {seed}
        assert len({result["data_fingerprint"] for result in results}) == 1
        assert {result["teachers"][0]["test"]["top1"] for result in results} == {teacher["last"]["test"]["top1"]}
    summary = summarise(tmp_path / "c")
    assert summary.vary_split
    assert "each seed with its own split and teacher" in " ".join(notes(summary))
    again = compare(varied, tmp_path / "c", rows=["kl", "dkl"], seeds=2)
    assert again == content


def test_a_setting_that_diverges_is_named_and_left_out(comparison, tmp_path):
    rows = {"kl": {"settings": [[CE, KL | {"weight": 1e38}], [CE, KL]]}, "ce": {"settings": [[CE | {"weight": 1e38}]]}}
    wild = comparison.model_copy(update={"compare": type(comparison.compare)(contenders=rows, baseline="kl")})
    content = compare(wild, tmp_path / "c", seeds=2)
    assert set(content["diverged"]) == {f"{row}/setting0/seed{seed}" for row in ("kl", "ce") for seed in (0, 1)}
    assert all("is not finite at step" in why for why in content["diverged"].values())
    summary = summarise(tmp_path / "c")
    assert [(row.name, row.selected) for row in summary.rows] == [("kl", 1)]
    assert not summary.missing
    assert "Diverged and left out: kl/setting0/seed0, ce/setting0/seed0" in " ".join(notes(summary))


def test_a_run_of_a_comparison_is_the_run_alone(comparison, tmp_path):
    compare(comparison, tmp_path / "c", seeds=2)
    options = comparison.model_copy(
        update={
            "seed": 1,
            "losses": comparison.compare.contenders["kl"].settings[0],
            "compare": type(comparison.compare)(),
        }
    )
    fit(options, tmp_path / "alone")
    assert_same_run(tmp_path / "alone", tmp_path / "c" / "kl/setting0/seed1")


def test_finished_runs_are_kept_and_more_seeds_are_added(comparison, tmp_path):
    folder = tmp_path / "c"
    compare(comparison, folder, seeds=1)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob(run_folder.RESULTS)}
    stop = Stop()
    compare(comparison, folder, seeds=2, reporter=stop)
    assert stop.steps == 4 * STEPS
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    assert len(list(folder.rglob(run_folder.RESULTS))) == len(before) + 4


@pytest.mark.parametrize(("run", "step"), [(0, 3), (1, 5), (3, STEPS)])  # the teacher, a student, a run's last step
def test_an_interrupted_comparison_goes_on_with_the_same_call(run, step, comparison, tmp_path):
    folder = tmp_path / "c"
    with pytest.raises(Interrupted, match=f"the same command continues the comparison in {folder}$"):
        compare(comparison, folder, seeds=2, reporter=Stop(run, step))
    compare(comparison, folder, seeds=2)
    compare(comparison, tmp_path / "unbroken", seeds=2)
    for name in ("teacher0", *RUNS):
        assert_same_run(folder / name, tmp_path / "unbroken" / name)


def test_an_unfinished_comparison_can_be_looked_at(comparison, tmp_path):
    with pytest.raises(Interrupted):
        compare(comparison, tmp_path / "c", seeds=2, reporter=Stop(6, 1))
    assert len(summarise(tmp_path / "c").missing) == 3


def test_data_and_teacher_are_read_once(comparison, tmp_path, monkeypatch):
    built = []
    build, load = teachers.build_data, teachers.load_trained
    monkeypatch.setattr(teachers, "build_data", lambda *asked: (built.append("data"), build(*asked))[1])
    monkeypatch.setattr(teachers, "load_trained", lambda *arguments: (built.append("teacher"), load(*arguments))[1])
    compare(comparison, tmp_path / "c", seeds=2)
    assert sorted(built) == ["data", "data", "teacher"]  # the teacher's data are others than the students'


def test_rows_can_be_chosen_and_the_controls_follow(comparison, tmp_path):
    content = compare(comparison, tmp_path / "c", rows=["kl", "ce"], seeds=1)
    assert list(content["rows"]) == ["kl", "ce"]
    assert content["equal_by_theory"] == []


@pytest.mark.parametrize("rows", [["kl", "gkl"], []])
def test_rows_that_are_not_there_are_refused(rows, comparison, tmp_path):
    with pytest.raises(UserError, match=r"expected rows of `compare.contenders` \(ce, kl, dkl\), got "):
        compare(comparison, tmp_path / "c", rows=rows, seeds=1)
    assert not (tmp_path / "c").exists()


def test_another_recipe_in_the_same_folder_is_refused(comparison, tmp_path):
    compare(comparison, tmp_path / "c", rows=["kl"], seeds=1)
    optimizer = comparison.optimizer.model_copy(update={"learning_rate": 0.3})
    changed = comparison.model_copy(update={"optimizer": optimizer})
    with pytest.raises(UserError, match=r"kl/setting0/seed0: `optimizer.learning_rate` was 0.1 .* got 0.3"):
        compare(changed, tmp_path / "c", rows=["kl"], seeds=1)
