"""Protocol `paper`: all images train, the last epoch is what is reported, the best on test is only shown."""

from __future__ import annotations

import json
import os
import signal

import pytest
from engine_runs import Hook, recipe

from limbeck.config import Recipe
from limbeck.engine.fit import fit
from limbeck.errors import Interrupted


def paper(**changes):
    train = {"epochs": 4, "batch_size": 16, "threads": 1}
    return recipe(protocol="paper", data={"validation": 0.0, "labels_per_class": 10}, train=train, **changes)


def epochs_of(run):
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == "epoch"]


def test_the_last_epoch_is_reported_and_the_best_on_test_is_only_optimistic(tmp_path):
    results = fit(paper(), tmp_path / "run")
    tests = [line["test"]["top1"] for line in epochs_of(tmp_path / "run")]
    assert results["last"]["test"]["top1"] == tests[-1]
    assert results["last"]["validation"] is None
    assert results["best"] is None  # no weights are kept for what nothing may be chosen by
    best = tests.index(max(tests))
    assert results["optimistic"]["epoch"] == best + 1
    assert results["optimistic"]["test"]["top1"] == tests[best]


def test_a_holdout_run_never_looks_at_the_test_split_before_its_end(tmp_path):
    results = fit(recipe(), tmp_path / "run")
    assert results["optimistic"] is None
    assert all("test" not in line for line in epochs_of(tmp_path / "run"))


def test_what_is_optimistic_survives_a_stop(tmp_path):
    def stop(step: int) -> None:
        if step == 16:
            os.kill(os.getpid(), signal.SIGTERM)

    fit(paper(), tmp_path / "whole")
    with pytest.raises(Interrupted):
        fit(
            paper(),
            tmp_path / "run",
            reporter=Hook(lambda step: os.kill(os.getpid(), signal.SIGTERM) if step == 16 else None),
        )
    fit(paper(), tmp_path / "run", resume=True)
    one, other = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("whole", "run"))
    assert one["optimistic"] == other["optimistic"]


def test_a_paper_s_protocol_has_no_validation_split():
    with pytest.raises(ValueError, match=r"`data.validation` expected 0, got 0.2"):
        Recipe.model_validate({"protocol": "paper"})


def test_a_paper_s_protocol_cannot_choose_between_settings():
    settings = [[{"name": "cross_entropy"}], [{"name": "cross_entropy", "label_smoothing": 0.1}]]
    compare = {"contenders": {"ce": {"settings": settings}}, "baseline": "ce"}
    with pytest.raises(ValueError, match=r"`compare.contenders.ce` expected one, got 2"):
        Recipe.model_validate({"protocol": "paper", "data": {"validation": 0}, "compare": compare})
