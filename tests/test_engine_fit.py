"""One run: what it leaves behind, what it does with micro-batches, and the one line that each mistake gets."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import signal
import sys

import numpy as np
import pytest
import torch
from engine_runs import STEPS, Hook, assert_same_run, recipe, student_recipe
from safetensors.torch import load_file
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from limbeck.config_files import dump, load_recipe
from limbeck.engine import checkpoint, loop, objective, run_folder, teachers, validation
from limbeck.engine import fit as fit_module
from limbeck.engine.checkpoint import load_checkpoint, save_checkpoint
from limbeck.engine.evaluate import evaluate
from limbeck.engine.fit import fit
from limbeck.errors import Interrupted, UserError
from limbeck.losses import ClassPrior
from limbeck.models import Network
from limbeck.objectives import build_objective, supervised


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    run = tmp_path_factory.mktemp("teacher") / "run"
    fit(recipe(data={"labels_per_class": None}, train={"epochs": 2}), run)
    return run


@pytest.fixture(scope="module")
def student(teacher, tmp_path_factory):
    run = tmp_path_factory.mktemp("student") / "run"
    fit(student_recipe(teacher), run)
    return run


def lines(run, kind):
    content = [json.loads(line) for line in (run / run_folder.METRICS).read_text().splitlines()]
    return [line for line in content if line["kind"] == kind]


def refuses(message, options, run, **arguments):
    """The run is refused with one line, and the folder is not touched."""
    before = sorted(run.rglob("*")) if run.exists() else None
    with pytest.raises(UserError, match=message) as error:
        fit(options, run, **arguments)
    assert "\n" not in str(error.value)
    assert (sorted(run.rglob("*")) if run.exists() else None) == before


# --- what is left behind ----------------------------------------------------------------------------------


def test_the_log_holds_a_line_every_so_many_steps_and_one_per_epoch(student):
    steps, epochs = lines(student, "step"), lines(student, "epoch")
    assert [line["step"] for line in steps] == [4, 8, 12]
    assert [(line["epoch"], line["step"]) for line in epochs] == [(1, 7), (2, 14)]
    assert steps[0]["weights"] == {"cross_entropy": 0.5, "gkl": 0.5}  # the first of two epochs of warm-up
    assert steps[2]["weights"] == {"cross_entropy": 0.5, "gkl": 1.0}
    for line in steps:
        total = sum(line["weights"][name] * line["parts"][name] for name in line["weights"])
        if line["step"] != 8:  # that one spans two epochs, whose weights differ
            assert line["loss"] == pytest.approx(total, rel=1e-5)
    for line in epochs:
        assert line["validation"].keys() == {"top1", "top5", "nll", "ece", "agreement", "samples"}
        assert line["ema_validation"].keys() == line["validation"].keys()
        assert len(line["accuracy_by_teacher_score"]) == 4
        mean = np.mean(line["accuracy_by_teacher_score"])
        assert mean == pytest.approx(line["validation"]["top1"], abs=0.01)


def test_results_tell_last_best_average_and_teacher(student, teacher):
    results = run_folder.read_results(student)
    epochs = lines(student, "epoch")
    assert results["last"]["validation"] == epochs[-1]["validation"]
    assert results["ema"]["validation"] == epochs[-1]["ema_validation"]
    best = max(epochs, key=lambda line: line["validation"]["top1"])
    assert (results["best"]["epoch"], results["best"]["validation"]) == (best["epoch"], best["validation"])
    assert results["teachers"][0]["test"]["top1"] == run_folder.read_results(teacher)["last"]["test"]["top1"]
    assert (results["steps"], results["epochs"], results["seed"]) == (STEPS, 2, 0)
    assert results["class_counts"] == [10] * 10
    assert results["parameters"] == 64 * 8 + 16 + 8 * 10 + 10
    assert [term["name"] for term in results["losses"]] == ["cross_entropy", "gkl"]


def test_best_is_the_first_epoch_with_the_largest_validation_accuracy(tmp_path):
    schedule = {"name": "constant"}
    fit(recipe(train={"epochs": 8}, optimizer={"learning_rate": 2.0}, schedule=schedule), tmp_path)
    accuracies = [line["validation"]["top1"] for line in lines(tmp_path, "epoch")]
    assert run_folder.read_results(tmp_path)["best"]["epoch"] == 1 + accuracies.index(max(accuracies))
    assert max(accuracies) > accuracies[-1]  # otherwise this shows nothing
    best = run_folder.read_results(tmp_path)["best"]
    assert best["validation"]["top1"] == max(accuracies)  # measured again with the kept weights
    assert evaluate(tmp_path, which="best")["test"] == pytest.approx(best["test"])


def test_best_is_the_first_of_equals(tmp_path, monkeypatch):
    monkeypatch.setattr(
        validation, "measure", lambda logits, labels, teacher, groups: {"top1": 0.5, "samples": len(labels)}
    )
    assert fit(recipe(train={"epochs": 3}), tmp_path)["best"]["epoch"] == 1


def test_predictions_are_those_of_the_last_weights(student, teacher):
    with np.load(student / run_folder.PREDICTIONS) as arrays:
        results = run_folder.read_results(student)
        accuracy = (arrays["test_logits"].argmax(1) == arrays["test_labels"]).mean()
        assert accuracy == results["last"]["test"]["top1"]
        head = load_file(student / run_folder.WEIGHTS["last"])
        again = arrays["test_features"] @ head["head.weight"].numpy().T + head["head.bias"].numpy()
        np.testing.assert_allclose(again, arrays["test_logits"], rtol=1e-4, atol=1e-5)
        scores = torch.from_numpy(arrays["test_logits"]).softmax(1).numpy()
        means = [scores[arrays["test_labels"] == label].mean(0) for label in range(10)]  # of the true classes
        np.testing.assert_allclose(arrays["class_means"], means, rtol=1e-4)
        assert arrays["prior"].shape == (10, 10)
        np.testing.assert_allclose(arrays["prior"].sum(1), 1, rtol=1e-5)
        assert arrays["prior"].std() > 0.01  # refreshed, not uniform
        with np.load(teacher / run_folder.PREDICTIONS) as theirs:
            np.testing.assert_allclose(arrays["teacher_test_logits"], theirs["test_logits"], rtol=1e-5, atol=1e-6)
            assert "prior" not in theirs
            assert "teacher_test_logits" not in theirs


@pytest.mark.parametrize("which", ["last", "best", "ema"])
def test_evaluate_repeats_the_results(which, student):
    measured = evaluate(student, which=which)
    expected = run_folder.read_results(student)[which]
    assert measured.keys() == {"weights", *expected}
    assert measured["weights"] == which
    for split in ("validation", "test"):
        assert measured[split] == pytest.approx(expected[split], rel=1e-6)


def test_evaluate_says_what_is_missing(teacher, tmp_path):
    with pytest.raises(UserError, match=r"ema.safetensors: no such file; .*`train.ema_decay`"):
        evaluate(teacher, which="ema")
    with pytest.raises(UserError, match="expected the folder of a finished run, got no run"):
        evaluate(tmp_path)


def test_a_run_without_validation_has_no_best(tmp_path):
    results = fit(recipe(data={"validation": 0.0}), tmp_path)
    assert results["best"] is None
    assert results["last"]["validation"] is None
    assert lines(tmp_path, "epoch")[0]["validation"] is None
    with np.load(tmp_path / run_folder.PREDICTIONS) as arrays:
        assert arrays["validation_logits"].shape == (0, 10)
    assert not (tmp_path / run_folder.WEIGHTS["best"]).exists()


def test_the_resolved_recipe_is_kept_and_trains_the_same_run(student, tmp_path):
    again = load_recipe(str(student / run_folder.CONFIG))
    fit(again, tmp_path / "again")
    assert_same_run(student, tmp_path / "again")


def test_the_seed_decides_the_run(teacher, student, tmp_path):
    fit(student_recipe(teacher, seed=1), tmp_path / "run")
    assert (tmp_path / "run" / run_folder.METRICS).read_bytes() != (student / run_folder.METRICS).read_bytes()


def test_the_callers_random_state_and_threads_are_left_alone(teacher, tmp_path):
    torch.manual_seed(7)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    fit(student_recipe(teacher), tmp_path / "run")
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads


def test_the_callers_random_state_decides_nothing(teacher, student, tmp_path):
    torch.manual_seed(8)  # dropout would draw from it
    fit(student_recipe(teacher), tmp_path / "run")
    assert_same_run(tmp_path / "run", student)


def test_tensorboard_events_are_written_when_wanted(tmp_path):
    pytest.importorskip("tensorboard")
    fit(recipe(save={"tensorboard": True}), tmp_path)
    assert list((tmp_path / run_folder.TENSORBOARD).glob("events*"))


def test_without_tensorboard_the_run_goes_on(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    fit(recipe(save={"tensorboard": True}), tmp_path)
    assert not (tmp_path / run_folder.TENSORBOARD).exists()


# --- the step ---------------------------------------------------------------------------------------------


def linear(options, *, image_shape, num_classes, seed, **others):
    """A network whose samples do not see each other: no BatchNorm."""
    torch.manual_seed(seed)
    return Network({"pooled": nn.Flatten()}, 64, num_classes)


def test_micro_batches_add_up_to_the_whole_batch(teacher, tmp_path, monkeypatch):
    monkeypatch.setattr(fit_module, "build_model", linear)
    terms = [{"name": "cross_entropy"}, {"name": "gkl", "normalizer": "row"}, {"name": "kl", "temperature": 2.0}]
    options = {"losses": terms, "data": {"augment": {"mixup": 0.0}}, "model": {"dropout": 0.0}}
    for accumulate in (1, 4):  # the last batch, of four samples, is one micro-batch of four
        fit(student_recipe(teacher, train={"accumulate": accumulate}, **options), tmp_path / str(accumulate))
    whole, parts = (load_file(tmp_path / name / run_folder.WEIGHTS["last"]) for name in ("1", "4"))
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-5, atol=1e-6)
    for one, four in zip(lines(tmp_path / "1", "step"), lines(tmp_path / "4", "step"), strict=True):
        assert four["parts"] == pytest.approx(one["parts"], rel=1e-4)


def test_uneven_micro_batches_count_by_their_samples(tmp_path, monkeypatch):
    monkeypatch.setattr(fit_module, "build_model", linear)
    for accumulate in (1, 2):  # the last batch has 12 of the 100 images: 11 and 1
        options = recipe(train={"batch_size": 22, "accumulate": accumulate, "epochs": 1})
        fit(options, tmp_path / str(accumulate))
    whole, parts = (load_file(tmp_path / name / run_folder.WEIGHTS["last"]) for name in ("1", "2"))
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-5, atol=1e-6)


def test_clipping_bounds_the_step(tmp_path, monkeypatch):
    norms = []
    step = torch.optim.SGD.step

    def measured(self, *arguments):
        gradients = [p.grad for group in self.param_groups for p in group["params"]]
        norms.append(torch.linalg.vector_norm(torch.cat([gradient.flatten() for gradient in gradients])).item())
        return step(self, *arguments)

    monkeypatch.setattr(torch.optim.SGD, "step", measured)
    fit(recipe(optimizer={"clip_norm": 0.05}), tmp_path)
    assert len(norms) == STEPS
    assert max(norms) == pytest.approx(0.05, rel=1e-3)


def test_the_learning_rate_in_the_log_is_the_optimizers(tmp_path, monkeypatch):
    rates = []
    step = torch.optim.SGD.step
    monkeypatch.setattr(torch.optim.SGD, "step", lambda self: (rates.append(self.param_groups[0]["lr"]), step(self))[1])
    fit(recipe(schedule={"name": "cosine", "warmup_epochs": 0.5}), tmp_path)
    for line in lines(tmp_path, "step"):
        assert line["learning_rate"] == rates[line["step"] - 1]
    assert len(set(rates)) == STEPS


@pytest.mark.parametrize("every", ["epoch", 5])
def test_priors_are_refreshed_each_epoch_or_every_so_many_steps(every, teacher, tmp_path, monkeypatch):
    steps, refreshed_at = [], []
    refresh = ClassPrior.refresh
    monkeypatch.setattr(ClassPrior, "refresh", lambda self: (refreshed_at.append(steps[-1]), refresh(self)))
    options = student_recipe(teacher, losses=[{"name": "gkl"}], train={"refresh_every": every})
    fit(options, tmp_path / "run", reporter=Hook(steps.append))
    assert refreshed_at == ([7, 14] if every == "epoch" else [5, 10])


class _Waits(TorchDispatchMode):
    """Counts what makes the host wait for the device: reading a value."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*arguments, **(options or {}))


def test_a_step_between_two_log_lines_reads_no_value(teacher, tmp_path, monkeypatch):
    counts = []
    optimize = loop.Trainer._optimize

    def counted(self, batch):
        with _Waits() as waits:
            optimize(self, batch)
        counts.append(waits.count)

    monkeypatch.setattr(loop.Trainer, "_optimize", counted)
    terms = [{"name": "cross_entropy"}, {"name": "kl", "temperature": 2.0}]
    fit(student_recipe(teacher, losses=terms, optimizer={"clip_norm": 1.0}), tmp_path / "run")
    assert counts == [0] * STEPS


@pytest.mark.parametrize("model", ["mlp", "convnet"])
def test_bf16_and_channels_last_keep_float32_weights_and_logs(model, tmp_path):
    options = recipe(model={"name": model}, train={"precision": "bf16", "channels_last": True})
    fit(options, tmp_path)
    losses = [line["loss"] for line in lines(tmp_path, "step")]
    assert losses[-1] < losses[0]
    assert {value.dtype for value in load_file(tmp_path / run_folder.WEIGHTS["last"]).values()} <= {
        torch.float32,
        torch.int64,
    }


@pytest.mark.parametrize(("optimizer", "rate"), [("sgd", 0.02), ("adamw", 0.02), ("lamb", 0.05)])
@pytest.mark.parametrize("schedule", ["multistep", "onecycle"])
def test_every_optimizer_and_schedule_learns(optimizer, rate, schedule, tmp_path):
    options = recipe(
        optimizer={"name": optimizer, "learning_rate": rate, "decay_norms_and_biases": False},
        schedule={"name": schedule, "milestones": [6]},
        train={"epochs": 8},
    )
    fit(options, tmp_path)
    losses = [line["train"]["loss"] for line in lines(tmp_path, "epoch")]
    assert losses[-1] < 0.6 * losses[0]


# --- training that diverges -------------------------------------------------------------------------------


@contextlib.contextmanager
def diverging(monkeypatch, at):
    """The loss of step `at` is NaN; the gradient, and so the weights after it, are too."""
    calls = 0
    real = supervised.cross_entropy

    def poisoned(*arguments):
        nonlocal calls
        calls += 1
        return real(*arguments) * (float("nan") if calls == at else 1.0)

    with monkeypatch.context() as patch:
        patch.setattr(supervised, "cross_entropy", poisoned)
        yield


def finite_checkpoint(run):
    state = load_checkpoint(run / run_folder.CHECKPOINT)
    assert all(value.isfinite().all() for value in state["model"].values())
    return state


def test_nan_stops_the_run_and_names_step_term_and_checkpoint(tmp_path, monkeypatch):
    run = tmp_path / "run"
    message = (
        f"`cross_entropy` is not finite at step 5 of 14 (epoch 1 of 2); "
        f"the last good checkpoint, {run}/checkpoint.pt, is from step 3"
    )
    with diverging(monkeypatch, at=5), pytest.raises(UserError, match=re.escape(message)):
        fit(recipe(save={"every_steps": 3, "log_every": 50}), run)
    assert finite_checkpoint(run)["step"] == 3
    assert not (run / run_folder.RESULTS).exists()
    fit(recipe(save={"every_steps": 3, "log_every": 50}), run, resume=True)  # the trouble was not in the data
    fit(recipe(save={"log_every": 50}), tmp_path / "unbroken")
    assert_same_run(run, tmp_path / "unbroken")


def test_nan_is_found_at_the_next_log_line(tmp_path, monkeypatch):
    seen = []
    with diverging(monkeypatch, at=9), pytest.raises(UserError, match=r"step 9 of 14 .* the last good .* step 7"):
        fit(recipe(), tmp_path / "run", reporter=Hook(seen.append))
    assert seen[-1] == 12


def test_no_checkpoint_is_written_from_weights_that_are_not_finite(tmp_path, monkeypatch):
    step = torch.optim.SGD.step
    calls = 0

    def poisoned(self):
        nonlocal calls
        calls += 1
        step(self)
        if calls == 9:
            self.param_groups[0]["params"][0].data[0] = float("nan")
            os.kill(os.getpid(), signal.SIGTERM)  # asks for a checkpoint while every loss so far was finite

    monkeypatch.setattr(torch.optim.SGD, "step", poisoned)
    with pytest.raises(
        UserError, match=r"`weights` is not finite at step 9 of 14 .* the last good checkpoint.* step 7"
    ):
        fit(recipe(), tmp_path / "run")
    assert finite_checkpoint(tmp_path / "run")["step"] == 7


def test_a_learning_rate_out_of_all_reason_is_one_line(tmp_path):
    with pytest.raises(UserError, match="not finite"):
        fit(recipe(optimizer={"learning_rate": 1e30}), tmp_path / "run")


# --- folders ----------------------------------------------------------------------------------------------


@pytest.fixture
def interrupted(tmp_path):
    """An unfinished run, saved after step 5."""
    run = tmp_path / "interrupted"
    with pytest.raises(Interrupted):
        fit(recipe(), run, reporter=Hook(lambda step: os.kill(os.getpid(), signal.SIGTERM) if step == 5 else None))
    return run


def test_a_finished_run_is_refused_without_resume_and_returned_with_it(student, teacher):
    refuses("holds a finished run; choose another --run, or delete", student_recipe(teacher), student)
    assert fit(student_recipe(teacher), student, resume=True) == run_folder.read_results(student)


def test_an_unfinished_run_is_refused_without_resume(interrupted):
    refuses("holds an unfinished run; continue it with --resume", recipe(), interrupted)


def test_a_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    refuses("expected a new or empty folder", recipe(), tmp_path)
    refuses("thesis.tex is a file, not a folder; choose another --run", recipe(), tmp_path / "thesis.tex")


def test_resume_of_nothing_starts(tmp_path):
    fit(recipe(), tmp_path / "run", resume=True)
    fit(recipe(), tmp_path / "plain")
    assert_same_run(tmp_path / "run", tmp_path / "plain")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimizer": {"learning_rate": 0.2}}, r"`optimizer.learning_rate` was 0.1 when the run began, got 0.2"),
        ({"seed": 3}, "`seed` was 0 when the run began, got 3"),
        ({"losses": [{"name": "cross_entropy", "label_smoothing": 0.1}]}, "`losses` was "),
        ({"save": {"log_every": 5}}, "`save.log_every` was 4 "),
    ],
)
def test_another_recipe_is_refused_with_the_option_that_differs(change, message, interrupted):
    refuses(message, recipe(**change), interrupted, resume=True)


def test_cadence_title_and_device_may_change(interrupted, tmp_path):
    change = {"title": "new", "save": {"every_steps": 2, "every_seconds": None, "tensorboard": False}}
    fit(recipe(**change), interrupted, resume=True)
    fit(recipe(title="new"), tmp_path / "plain")
    assert_same_run(interrupted, tmp_path / "plain")


def test_other_data_are_refused(interrupted, monkeypatch):
    from dataclasses import replace

    build = teachers.build_data
    monkeypatch.setattr(teachers, "build_data", lambda *asked: replace(build(*asked), fingerprint="0" * 64))
    with pytest.raises(UserError, match="was written with other data than now"):
        fit(recipe(), interrupted, resume=True)


def test_another_teacher_is_refused(teacher, tmp_path):
    run, other = tmp_path / "run", tmp_path / "other"
    with pytest.raises(Interrupted):
        fit(student_recipe(teacher), run, reporter=Hook(lambda step: os.kill(os.getpid(), signal.SIGTERM)))
    fit(recipe(), other)
    with pytest.raises(UserError, match="was written with other teachers than now"):
        fit(student_recipe(other), run, resume=True)


def test_threads_are_the_checkpoints_unless_the_recipe_says_otherwise(tmp_path, monkeypatch):
    used = []
    batches = loop.Trainer._batches
    monkeypatch.setattr(loop.Trainer, "_batches", lambda self: (used.append(torch.get_num_threads()), batches(self))[1])
    run = tmp_path / "run"
    stop = Hook(lambda step: os.kill(os.getpid(), signal.SIGTERM) if step == 3 else None)
    with pytest.raises(Interrupted):
        fit(recipe(), run, reporter=stop)
    refuses("was written with 1 threads, got `train.threads` 2", recipe(train={"threads": 2}), run, resume=True)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        fit(recipe(train={"threads": None}), run, resume=True)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert set(used) == {1}


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_truncated_checkpoint_is_one_line(share, interrupted):
    path = interrupted / run_folder.CHECKPOINT
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    refuses(
        "checkpoint.pt: expected a checkpoint, got a truncated, damaged, foreign or unreadable file",
        recipe(),
        interrupted,
        resume=True,
    )


def test_what_a_prior_observed_is_synchronized_before_every_save(teacher, tmp_path, monkeypatch):
    """Otherwise a checkpoint would lack what the other ranks observed."""
    events = []

    def recorded(name, function):
        def wrapped(*arguments):
            events.append(name)
            return function(*arguments)

        return wrapped

    for name in ("observe", "synchronize"):
        monkeypatch.setattr(ClassPrior, name, recorded(name, getattr(ClassPrior, name)))
    monkeypatch.setattr(checkpoint, "save_checkpoint", recorded("save", checkpoint.save_checkpoint))
    fit(student_recipe(teacher), tmp_path)
    before = [[e for e in events[:place] if e != "save"] for place, event in enumerate(events) if event == "save"]
    assert len(before) > 3
    assert {names[-1] for names in before} == {"synchronize"}
    assert events.count("observe") == STEPS


def test_one_flipped_bit_of_a_checkpoint_is_one_line(interrupted):
    """Wherever it is in a record: in a tensor it would only make the results wrong."""
    path = interrupted / run_folder.CHECKPOINT
    content = path.read_bytes()
    weight = max(load_checkpoint(path)["model"].values(), key=torch.numel).numpy().tobytes()
    places = [content.index(weight) + place for place in (0, len(weight) // 2, len(weight) - 1)]
    places.append(content.index(b"step_in_epoch"))  # in the part that is no tensor
    for place in places:
        flipped = bytearray(content)
        flipped[place] ^= 1
        path.write_bytes(flipped)
        refuses("checkpoint.pt: expected a checkpoint, got a truncated, damaged, ", recipe(), interrupted, resume=True)
    path.write_bytes(content)
    fit(recipe(), interrupted, resume=True)


def test_a_checkpoint_has_checksums_where_the_program_wants_none(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        save_checkpoint(tmp_path / "checkpoint.pt", {"weight": torch.ones(3)})
        assert not torch.serialization.get_crc32_options()
    finally:
        torch.serialization.set_crc32_options(True)
    assert load_checkpoint(tmp_path / "checkpoint.pt")["weight"].tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("foreign", "message"),
    [
        ({"epoch": 1}, "not a Limbeck checkpoint; delete it to start the run again"),
        ([1, 2], "not a Limbeck checkpoint; delete it to start the run again"),
        ({"format": "limbeck checkpoint 9"}, "got 'limbeck checkpoint 9'; use the version that wrote it"),
        (nn.Linear(2, 2), "expected a checkpoint, got a truncated, damaged, foreign "),
        ("text", "expected a checkpoint, got a truncated, damaged, foreign "),
    ],
)
def test_a_foreign_checkpoint_is_one_line(foreign, message, interrupted):
    path = interrupted / run_folder.CHECKPOINT
    torch.save(foreign, path) if foreign != "text" else path.write_text("not a checkpoint")
    refuses(f"checkpoint.pt: .*{message}", recipe(), interrupted, resume=True)


def test_a_stale_temporary_file_is_cleaned(interrupted):
    stale = interrupted / f".{run_folder.RESULTS}{run_folder.TEMPORARY}"
    stale.write_bytes(b"half")
    other = interrupted / f".anything{run_folder.TEMPORARY}"
    other.write_bytes(b"half")
    fit(recipe(), interrupted, resume=True)
    assert not stale.exists()
    assert not other.exists()


def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path):
    """The limit on a file's size stands for the full disk; it is below a checkpoint's and above all else."""
    run = tmp_path / "run"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(step):
        if step == 4:
            resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))

    try:
        with pytest.raises(
            UserError, match=r"checkpoint.pt: cannot be written \(file too large\); what was saved .*"
        ) as error:
            fit(recipe(save={"every_steps": 3}), run, reporter=Hook(fill))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(error.value)
    assert load_checkpoint(run / run_folder.CHECKPOINT)["step"] == 3
    assert not list(run.glob(".*"))
    fit(recipe(), run, resume=True)
    fit(recipe(), tmp_path / "unbroken")
    assert_same_run(run, tmp_path / "unbroken")


def test_a_log_on_a_full_disk_is_one_line_and_loses_nothing(tmp_path):
    run = tmp_path / "run"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    seen = []

    def fill(step):
        seen.append(step)
        if step == 8:
            resource.setrlimit(resource.RLIMIT_FSIZE, ((run / run_folder.METRICS).stat().st_size + 9, hard))

    try:
        with pytest.raises(UserError, match=r"metrics.jsonl: cannot be written"):
            fit(recipe(), run, reporter=Hook(fill))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert seen[-1] == 8  # at once, though nine bytes of the line still found a place
    fit(recipe(), run, resume=True)
    fit(recipe(), tmp_path / "unbroken")
    assert_same_run(run, tmp_path / "unbroken")


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    refuses("file is a file, not a folder; choose another --run", recipe(), tmp_path / "file" / "run")


# --- what arithmetic tells before the training ------------------------------------------------------------


@pytest.mark.parametrize(
    "train",
    [
        {"batch_size": 33},  # 100 = 3 * 33 + 1
        {"batch_size": 66, "accumulate": 2},  # the last batch of 34 is 33 + 1
        {"batch_size": 16, "accumulate": 16, "drop_last": True},
    ],
)
def test_one_sample_under_batch_norm_is_refused_before_training(train, tmp_path):
    refuses(
        "of which BatchNorm has no variance; choose another, or `train.drop_last", recipe(train=train), tmp_path / "r"
    )


def test_one_sample_is_fine_where_it_has_a_variance_or_is_dropped(tmp_path):
    fit(recipe(train={"batch_size": 33, "epochs": 1}, model={"name": "convnet", "width": 2}), tmp_path / "convnet")
    assert fit(recipe(train={"batch_size": 33, "drop_last": True}), tmp_path / "dropped")["steps"] == 6


def test_a_batch_larger_than_the_data_that_may_not_be_incomplete_is_refused(tmp_path):
    refuses(
        "`train.batch_size` expected at most the 100 training images",
        recipe(train={"batch_size": 128, "drop_last": True}),
        tmp_path / "run",
    )


def test_an_unknown_device_is_refused(tmp_path):
    refuses("`train.device` expected a device .*'warp'", recipe(train={"device": "warp"}), tmp_path / "run")


# --- teachers ---------------------------------------------------------------------------------------------


def test_a_teacher_from_a_recipe_is_trained_once_and_used_again(tmp_path):
    (tmp_path / "teacher.yaml").write_text(dump(recipe()))
    options = student_recipe(tmp_path, teachers=[{"recipe": str(tmp_path / "teacher.yaml")}])
    fit(options, tmp_path / "run")
    teacher = tmp_path / "run" / "teacher0"
    assert run_folder.read_results(teacher)["task"] == "supervised"
    fit(student_recipe(teacher), tmp_path / "other")
    for name in (run_folder.WEIGHTS["last"], run_folder.METRICS):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "other" / name).read_bytes()


def test_two_teachers_are_both_reported(teacher, tmp_path):
    fit(recipe(seed=5), tmp_path / "second")
    both = [{"run": str(teacher)}, {"run": str(tmp_path / "second")}]
    results = fit(student_recipe(teacher, teachers=both), tmp_path / "run")
    expected = [run_folder.read_results(run)["last"]["test"]["top1"] for run in (teacher, tmp_path / "second")]
    assert [metrics["test"]["top1"] for metrics in results["teachers"]] == expected


def test_recorded_teacher_logits_train_the_same_student(teacher, tmp_path, monkeypatch):
    options = student_recipe(teacher, data={"augment": {"crop_padding": 0, "mixup": 0.0}})
    fit(options, tmp_path / "recorded")
    monkeypatch.setattr(objective, "build_objective", lambda *arguments: build_objective(*arguments[:4]))
    fit(options, tmp_path / "asked")
    recorded, asked = (load_file(tmp_path / name / run_folder.WEIGHTS["last"]) for name in ("recorded", "asked"))
    for name, value in recorded.items():
        torch.testing.assert_close(asked[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "augment", [{"crop_padding": 1}, {"flip": True}, {"cutout": 2}, {"mixup": 1.0}, {"cutmix": 1.0}]
)
def test_teachers_see_the_augmented_views(augment, teacher, tmp_path, monkeypatch):
    off = {"crop_padding": 0, "mixup": 0.0}
    monkeypatch.setattr(fit_module.Resources, "recorded", None)  # calling it would raise
    fit(student_recipe(teacher, data={"augment": off | augment}, train={"epochs": 1}), tmp_path / "run")


def test_a_teacher_for_other_images_or_classes_is_refused(teacher, tmp_path):
    fake = tmp_path / "teacher"
    fake.mkdir()
    for name in (run_folder.CONFIG, run_folder.WEIGHTS["last"]):
        (fake / name).write_bytes((teacher / name).read_bytes())
    for change, message in (
        ({"num_classes": 100}, r"expected a network for 10 classes .*, got one for 100 classes"),
        ({"image_shape": [3, 32, 32]}, r"of \(1, 8, 8\) images, as `digits` has, got .* of \(3, 32, 32\)"),
    ):
        content = run_folder.read_results(teacher) | change
        (fake / run_folder.RESULTS).write_text(json.dumps(content))
        refuses(message, student_recipe(fake), tmp_path / "run")


def test_a_teacher_that_has_seen_the_test_images_is_refused(tmp_path, teacher):
    refuses(
        "expected `data.split_seed` 1, as the student's, got 0; otherwise the teacher has learned from",
        student_recipe(teacher, data={"split_seed": 1}),
        tmp_path / "run",
    )
    (tmp_path / "teacher.yaml").write_text(dump(recipe(data={"test": 0.1})))
    options = student_recipe(teacher, teachers=[{"recipe": str(tmp_path / "teacher.yaml")}])
    refuses("`data.test` 0.3, as the student's, got 0.1", options, tmp_path / "run")


@pytest.mark.parametrize("content", [b"", b"short", None])
def test_a_damaged_or_absent_teacher_is_refused(content, teacher, tmp_path):
    fake = tmp_path / "teacher"
    fake.mkdir()
    if content is not None:
        for name in (run_folder.CONFIG, run_folder.RESULTS):
            (fake / name).write_bytes((teacher / name).read_bytes())
        (fake / run_folder.WEIGHTS["last"]).write_bytes(content)
    message = "expected the folder of a finished run, got no run" if content is None else "got others or a damaged file"
    refuses(message, student_recipe(fake), tmp_path / "run")


def test_supervised_looks_at_no_teacher(teacher, tmp_path):
    results = fit(recipe(teachers=[{"run": str(tmp_path / "nowhere")}]), tmp_path / "run")
    assert results["teachers"] == []
