"""Runs trained at once are those trained one after another, however the processes end."""

from __future__ import annotations

import io
import multiprocessing
import os
import re
import signal

import pytest
import torch
from engine_runs import Hook, assert_same_run, recipe
from rich.console import Console

from limbeck.analysis.comparison import summarise
from limbeck.config_files import dump
from limbeck.engine import plan, run_folder
from limbeck.engine.compare import compare
from limbeck.engine.fit import train_run
from limbeck.engine.plan import Job, automatic_workers, run_plan
from limbeck.engine.progress import PlainReporter, Reporter, RichReporter
from limbeck.engine.signals import StopRequest
from limbeck.engine.workers import WorkerError
from limbeck.errors import Interrupted, UserError

CE, KL = {"name": "cross_entropy"}, {"name": "kl", "temperature": 2.0}
GKL = {"name": "gkl", "weight_power": 0.5}


def rows(tmp_path, **changes):
    """Two rows over a teacher of each seed's split, with views that the rows of a seed share."""
    (tmp_path / "teacher.yaml").write_text(dump(recipe(data={"labels_per_class": None}, train={"epochs": 1})))
    base = {
        "title": "rows",
        "task": "distill",
        "teachers": [{"recipe": str(tmp_path / "teacher.yaml")}],
        "data": {"augment": {"crop_padding": 1, "mixup": 0.5}},
        "model": {"dropout": 0.3},
        "compare": {
            "contenders": {"kl": {"settings": [[CE, KL]]}, "gkl": {"settings": [[CE, GKL]]}},
            "vary_split": True,
        },
    }
    return recipe(**{**base, **changes})


RUNS = [*(f"{row}/setting0/seed{s}" for row in ("kl", "gkl") for s in (0, 1)), "split0/teacher0", "split1/teacher0"]


def test_two_at_once_are_the_same_as_one_after_another(tmp_path):
    stream = io.StringIO()
    at_once = compare(rows(tmp_path), tmp_path / "two", seeds=2, workers=2, reporter=PlainReporter(stream))
    in_turn = compare(rows(tmp_path), tmp_path / "one", seeds=2, workers=1)
    for run in RUNS:
        assert_same_run(tmp_path / "two" / run, tmp_path / "one" / run)
    assert at_once | {"seconds": None} == in_turn | {"seconds": None}
    first, *lines = stream.getvalue().splitlines()
    assert first == "rows: 6 runs"
    titles = [f"{row}, seed {s}" for row in ("kl", "gkl") for s in (0, 1)] + [f"teacher 0, split {s}" for s in (0, 1)]
    assert sorted(re.sub(r"^\[\d/6\] (.*): test [\d.]+ % \(\d:\d\d:\d\d left\)$", r"\1", s) for s in lines) == sorted(
        titles
    )
    assert [int(line[1]) for line in lines] == [1, 2, 3, 4, 5, 6]


def test_bars_of_runs_that_go_on_beside_one_another_stand_under_the_plans(tmp_path):
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=120)
    compare(rows(tmp_path), tmp_path / "c", seeds=2, workers=2, reporter=RichReporter(console))
    plan_bar, *run_bars = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", stream.getvalue()).replace("\r", "").splitlines()[-3:]
    assert "rows" in plan_bar
    assert "6/6" in plan_bar
    assert all(re.search(r"^k?gkl|^kl", bar) and "14/14" in bar for bar in run_bars)


class Stop(Hook):
    """Signals this process, or kills the first worker, when a student begins."""

    def __init__(self, act) -> None:
        super().__init__(lambda step: None)
        self.act = act
        self.acted = False

    def begin_run(self, title, *, steps, done):
        if "seed" in title and not self.acted:
            self.acted = True
            self.act()


def children() -> list[int]:
    """The workers that live."""
    return [process.pid for process in multiprocessing.active_children()]


LONG = {"epochs": 400, "batch_size": 16, "threads": 1}


def test_a_signal_lets_every_worker_save_and_the_same_call_goes_on(tmp_path):
    options = rows(tmp_path, train=LONG, save={"every_seconds": None, "every_epochs": 400})
    hook = Stop(lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted, match=r"stopped by SIGTERM: .*; the same command continues the comparison in "):
        compare(options, tmp_path / "c", seeds=2, workers=2, reporter=hook)
    assert not children()
    begun = {path.parent for path in (tmp_path / "c").rglob(run_folder.METRICS)}
    assert {run for run in begun if not (run / run_folder.CHECKPOINT).is_file()} == set()
    steps = [torch.load(run / run_folder.CHECKPOINT, weights_only=True)["step"] for run in begun]
    assert any(0 < step < 400 * 7 for step in steps)
    assert summarise_is_unfinished(tmp_path / "c")


def summarise_is_unfinished(folder) -> bool:
    try:
        return bool(summarise(folder).missing)
    except UserError as error:
        return "is finished" in str(error)


def test_an_interrupted_plan_goes_on_to_the_same_results(tmp_path):
    hook = Stop(lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted):
        compare(rows(tmp_path), tmp_path / "c", seeds=2, workers=2, reporter=hook)
    compare(rows(tmp_path), tmp_path / "c", seeds=2, workers=2)
    compare(rows(tmp_path), tmp_path / "one", seeds=2)
    for run in RUNS:
        assert_same_run(tmp_path / "c" / run, tmp_path / "one" / run)


def test_a_killed_worker_is_one_line_and_nothing_is_lost(tmp_path):
    options = rows(tmp_path, train=LONG, save={"every_steps": 50})
    hook = Stop(lambda: os.kill(children()[0], signal.SIGKILL))
    with pytest.raises(UserError) as caught:
        compare(options, tmp_path / "c", seeds=2, workers=2, reporter=hook)
    expected = r"the process that worked on \S+ was killed by SIGKILL; .*; start again to go on from what was saved"
    assert re.fullmatch(expected, str(caught.value))
    assert not children()
    compare(rows(tmp_path), tmp_path / "other", seeds=1, workers=2)  # no lock of the first stands in the way


def test_a_run_that_diverges_is_left_out_and_named(tmp_path):
    wild = {"kl": {"settings": [[CE, KL]]}, "ce": {"settings": [[CE | {"weight": 1e38}]]}}
    options = rows(tmp_path, compare={"contenders": wild, "vary_split": True})
    stream = io.StringIO()
    content = compare(options, tmp_path / "c", seeds=2, workers=2, reporter=PlainReporter(stream))
    assert set(content["diverged"]) == {"ce/setting0/seed0", "ce/setting0/seed1"}
    assert "ce, seed 1 is left out: `" in stream.getvalue()


def test_a_teacher_that_diverges_ends_the_plan(tmp_path):
    (tmp_path / "wild.yaml").write_text(dump(recipe(losses=[CE | {"weight": 1e38}])))
    options = rows(tmp_path, teachers=[{"recipe": str(tmp_path / "wild.yaml")}])
    with pytest.raises(UserError, match="is not finite at step"):
        compare(options, tmp_path / "c", seeds=2, workers=2)


def test_a_mistake_in_a_worker_is_the_same_line_as_without(tmp_path):
    options = rows(tmp_path, train={"batch_size": 101, "drop_last": True, "epochs": 1, "threads": 1})
    lines = []
    for workers in (1, 2):
        with pytest.raises(UserError) as caught:
            compare(options, tmp_path / "c", seeds=2, workers=workers)
        lines.append(str(caught.value))
    assert lines[0] == lines[1]
    assert "`train.batch_size` expected at most the 100 training images" in lines[0]


def broken(job, reporter, stop, resources):
    raise ZeroDivisionError(job.title)


def jobs(folder, count=2):
    return [Job(folder / str(number), recipe(seed=number), f"run {number}", number) for number in range(count)]


def plan_of(folder, **options):
    with StopRequest() as stop:
        run_plan("runs", jobs(folder), reporter=Reporter(), stop=stop, give_up=lambda job, why: None, **options)


def test_a_bug_in_a_worker_comes_through_with_its_traceback(tmp_path):
    with pytest.raises(WorkerError, match="ZeroDivisionError: run ") as caught:
        plan_of(tmp_path, workers=2, train=broken)
    assert "in broken" in caught.value.trace


def test_a_run_of_another_recipe_is_told_before_anything_is_trained(tmp_path):
    other = recipe(seed=1, optimizer={"learning_rate": 0.3})
    with StopRequest() as stop:
        train_run(other, tmp_path / "1", resume=False, reporter=Reporter(), stop=stop, resources=plan.Resources())
    with pytest.raises(UserError, match=r"1: `optimizer.learning_rate` was 0.3 when the run began, got 0.1"):
        plan_of(tmp_path, workers=1)
    assert not (tmp_path / "0").exists()


@pytest.mark.parametrize(
    ("train", "expected"),
    [({"threads": 1}, 8), ({"threads": 3}, 2), ({"threads": 16}, 1), ({"threads": None}, 1), ({"device": "cuda"}, 1)],
)
def test_as_many_runs_at_once_as_have_cores_of_their_own(train, expected, monkeypatch):
    monkeypatch.setattr(plan, "cores", lambda: 8)
    assert automatic_workers(recipe(train=train)) == expected
