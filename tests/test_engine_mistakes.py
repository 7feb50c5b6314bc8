"""What the engine says of damaged folders, of numbers that are not finite, and of what it begins again."""

from __future__ import annotations

import errno
import io
import os
import shutil
from pathlib import Path

import pytest
from engine_runs import recipe, student_recipe

from limbeck.engine import loop, run_folder
from limbeck.engine.evaluate import evaluate
from limbeck.engine.fit import fit
from limbeck.engine.metrics import NotFiniteLogits
from limbeck.engine.progress import PlainReporter
from limbeck.errors import UserError


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "teacher"
    fit(recipe(), run)
    return run


@pytest.fixture(scope="module")
def finished(teacher, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "student"
    fit(student_recipe(teacher), run)
    return run


@pytest.fixture
def student(finished, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(finished, tmp_path / "student")


# --- folders that are damaged -----------------------------------------------------------------------------


@pytest.mark.parametrize("content", ["", '{"format": 1, "tit', "[1, 2]", '{"format": 99}'])
def test_damaged_results_are_one_line_whose_way_out_works(content, student, teacher):
    before = run_folder.read_results(student)
    (student / run_folder.RESULTS).write_text(content)
    with pytest.raises(UserError, match=r"results\.json.*; delete it and run: limbeck train .*--resume$") as error:
        evaluate(student)
    assert "\n" not in str(error.value)
    (student / run_folder.RESULTS).unlink()
    after = fit(student_recipe(teacher), student, resume=True)
    assert after["last"] == before["last"]


def test_evaluation_without_predictions_leaves_the_agreement_open(student):
    expected = run_folder.read_results(student)["last"]["test"]
    (student / run_folder.PREDICTIONS).unlink()
    measured = evaluate(student)["test"]
    assert measured["agreement"] is None
    assert {**measured, "agreement": 0} == pytest.approx({**expected, "agreement": 0})


def test_damaged_predictions_are_one_line(student):
    path = student / run_folder.PREDICTIONS
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(UserError, match=r"predictions\.npz cannot be read .*; delete it to evaluate without"):
        evaluate(student)


@pytest.mark.parametrize(("kind", "place"), [("comparison", "kl/setting0/seed0"), ("sweep", "temperature=2/seed0")])
def test_a_folder_of_runs_is_no_run_but_names_one(tmp_path, kind, place):
    (tmp_path / f"{kind}.json").write_text("{}")
    with pytest.raises(UserError, match=f"got a {kind}; name one of its runs; none is finished yet"):
        evaluate(tmp_path)
    run = tmp_path / place
    run.mkdir(parents=True)
    (run / run_folder.RESULTS).write_text("{}")
    message = f"got a {kind}; name one of its runs, such as {run}"
    with pytest.raises(UserError, match=message):
        evaluate(tmp_path)
    with pytest.raises(UserError, match=message):
        fit(recipe(task="distill", teachers=[{"run": str(tmp_path)}]), tmp_path / "student")


def test_weights_that_cannot_be_read_are_one_line(student, monkeypatch):
    read_bytes = Path.read_bytes

    def refuse(path):
        if path.name == run_folder.WEIGHTS["last"]:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(UserError, match=r"weights\.safetensors cannot be read \(permission denied\); mend that"):
        evaluate(student)


def test_a_resumed_run_without_its_checkpoint_says_that_it_begins_again(tmp_path):
    told = io.StringIO()
    fit(recipe(), tmp_path / "run", resume=True, reporter=PlainReporter(told))
    assert "from the beginning" not in told.getvalue()  # a new folder is no surprise
    (tmp_path / "run" / run_folder.RESULTS).unlink()
    (tmp_path / "run" / run_folder.CHECKPOINT).unlink()
    fit(recipe(), tmp_path / "run", resume=True, reporter=PlainReporter(told))
    assert f"{tmp_path / 'run'}: there is no checkpoint.pt, so the run starts from the beginning\n" in told.getvalue()


# --- numbers that are not finite --------------------------------------------------------------------------


@pytest.mark.parametrize(("split", "step", "epoch"), [("validation", 14, 2), ("test", 14, 2)])
def test_logits_that_are_not_finite_name_split_step_and_checkpoint(split, step, epoch, tmp_path, monkeypatch):
    run, real, calls = tmp_path / "run", loop.predict, []

    def poisoned(model, source, place):
        calls.append(source)
        if len(calls) == {"validation": 2, "test": 3}[split]:  # two epochs, then the test split
            raise NotFiniteLogits("not finite")
        return real(model, source, place)

    monkeypatch.setattr(loop, "predict", poisoned)
    saved = {"validation": 7, "test": 14}[split]
    expected = (
        rf"`logits of the {split} split` is not finite at step {step} of 14 \(epoch {epoch} of 2\); "
        rf"the last good checkpoint, {run}/checkpoint.pt, is from step {saved}\. .*learning_rate"
    )
    with pytest.raises(UserError, match=expected):
        fit(recipe(), run)


def test_at_the_first_step_the_terms_own_factors_are_to_blame(teacher, tmp_path):
    terms = [{"name": "cross_entropy"}, {"name": "gkl", "mse_weight": 1e300}]
    with pytest.raises(UserError, match=r"`gkl` is not finite at step 1 of 14") as error:
        fit(student_recipe(teacher, losses=terms), tmp_path / "run")
    assert "`losses.1.weight` (now 1), `losses.1.mse_weight` (now 1e+300)" in str(error.value)
    assert "optimizer.learning_rate" not in str(error.value)


def test_a_kernel_without_a_gpu_is_refused_before_anything_is_written(teacher, tmp_path):
    asked = student_recipe(teacher, losses=[{"name": "gkl", "impl": "triton"}])
    with pytest.raises(UserError, match=r"`gkl`: `impl: triton` expected a GPU, got the device cpu; take `impl: auto`"):
        fit(asked, tmp_path / "run")
    assert not (tmp_path / "run").exists()
