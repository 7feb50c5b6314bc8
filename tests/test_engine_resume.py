"""A run that is killed, at any moment, and resumed ends as the run that nobody touched: to the bit."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
import torch
from engine_runs import STEPS, Hook, assert_same_run, recipe, student_recipe

from limbeck.engine import fit as fit_module
from limbeck.engine import loop, results, run_folder, validation
from limbeck.engine.fit import fit
from limbeck.engine.log import LineFile
from limbeck.errors import EXIT_INTERRUPTED, Interrupted
from limbeck.losses import ClassPrior

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a forked process at chosen moments")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    run = tmp_path_factory.mktemp("teacher") / "run"
    fit(recipe(data={"labels_per_class": None}, train={"epochs": 1}), run)
    return run


@pytest.fixture(scope="module")
def unbroken(teacher, tmp_path_factory):
    run = tmp_path_factory.mktemp("unbroken") / "run"
    fit(student_recipe(teacher), run)
    return run


# --- moments ----------------------------------------------------------------------------------------------


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def at_call(number, function, *, before=True):
    """Wrap a function so that the process dies in its call `number` (from 1), before or after the work."""
    calls = 0

    def wrapped(*arguments, **options):
        nonlocal calls
        calls += 1
        if calls == number and before:
            die()
        value = function(*arguments, **options)
        if calls == number:
            die()
        return value

    return wrapped


def half_written(save):
    """Wrap torch.save so that the second checkpoint is cut off in the middle."""
    calls = 0

    def wrapped(state, file):
        nonlocal calls
        calls += 1
        if calls < 2:
            save(state, file)
            return
        start = file.tell()
        save(state, file)
        file.truncate((start + file.tell()) // 2)
        file.flush()
        die()

    return wrapped


def half_a_line(write):
    """Wrap LineFile.write so that the third line of metrics is cut off."""
    lines = 0

    def wrapped(self, line):
        nonlocal lines
        lines += "samples" not in line
        if lines == 5:
            self._file.write(b'{"kind": "st')
            die()
        write(self, line)

    return wrapped


MOMENTS = {
    "before anything is written": lambda: patch(fit_module, "build_model", at_call(1, fit_module.build_model)),
    "before config.yaml is renamed": lambda: patch(Path, "replace", at_call(1, Path.replace)),
    "after config.yaml is renamed": lambda: patch(Path, "replace", at_call(1, Path.replace, before=False)),
    "before environment.json is renamed": lambda: patch(Path, "replace", at_call(2, Path.replace)),
    "before the first checkpoint": lambda: patch(loop.Trainer, "_optimize", at_call(2, loop.Trainer._optimize)),
    "between forward and backward": lambda: patch(torch.Tensor, "backward", at_call(5, torch.Tensor.backward)),
    "between the step and what it observes": lambda: patch(
        torch.optim.SGD, "step", at_call(8, torch.optim.SGD.step, before=False)
    ),
    "while the prior observes": lambda: patch(ClassPrior, "observe", at_call(6, ClassPrior.observe, before=False)),
    "while a checkpoint is written": lambda: patch(torch, "save", half_written(torch.save)),
    "before a checkpoint is renamed": lambda: patch(Path, "replace", at_call(5, Path.replace)),
    "after a checkpoint is renamed": lambda: patch(Path, "replace", at_call(5, Path.replace, before=False)),
    "in the refresh": lambda: patch(ClassPrior, "synchronize", at_call(8, ClassPrior.synchronize, before=False)),
    "in the validation": lambda: patch(validation, "measure", at_call(1, validation.measure)),
    "in the validation of the second epoch": lambda: patch(validation, "measure", at_call(3, validation.measure)),
    "while a line is written": lambda: patch(LineFile, "write", half_a_line(LineFile.write)),
    "at the change of the epoch": lambda: patch(
        loop.Trainer, "_keep_best", at_call(1, loop.Trainer._keep_best, before=False)
    ),
    "after the last epoch": lambda: patch(
        loop.Trainer, "_end_epoch", at_call(2, loop.Trainer._end_epoch, before=False)
    ),
    "before the results": lambda: patch(results, "write_json", at_call(1, results.write_json)),
}


def patch(owner, name, value) -> None:
    setattr(owner, name, value)  # in a process that is about to die


def killed(moment, options, run, *, resume=False) -> None:
    """Run `fit` in a forked process that dies of SIGKILL, and wait for it."""
    child = os.fork()
    if not child:
        try:
            moment()
            fit(options, run, resume=resume)
        finally:
            os._exit(0)  # the moment never came, and the parent will say so
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL


# --- claims -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("moment", MOMENTS.values(), ids=MOMENTS.keys())
def test_resume_after_a_kill_equals_an_unbroken_run(moment, teacher, unbroken, tmp_path):
    run = tmp_path / "run"
    killed(moment, student_recipe(teacher), run)
    assert not (run / run_folder.RESULTS).exists()
    fit(student_recipe(teacher), run, resume=True)
    assert_same_run(run, unbroken)
    assert not list(run.glob(".*"))  # what a killed write left is gone


def test_a_kill_in_the_first_write_leaves_a_folder_for_a_new_run(teacher, unbroken, tmp_path):
    run = tmp_path / "run"
    killed(MOMENTS["before config.yaml is renamed"], student_recipe(teacher), run)
    assert [path.name for path in run.glob("*.tmp")] == [".config.yaml.tmp"]
    fit(student_recipe(teacher), run)  # without `resume`, as nothing has begun
    assert_same_run(run, unbroken)


def test_a_chain_of_kills_equals_an_unbroken_run(teacher, unbroken, tmp_path):
    run = tmp_path / "run"
    for number, step in enumerate((4, 1, 3, 5)):
        die_at = lambda: patch(loop.Trainer, "_after_step", at_call(step, loop.Trainer._after_step, before=False))  # noqa: B023, E731
        killed(die_at, student_recipe(teacher), run, resume=number > 0)
    fit(student_recipe(teacher), run, resume=True)
    assert_same_run(run, unbroken)


@pytest.mark.parametrize(
    "save", [{"every_steps": None}, {"every_steps": 1, "every_epochs": 2}, {"every_seconds": 1e-9}]
)
def test_when_checkpoints_are_written_changes_nothing(save, teacher, unbroken, tmp_path):
    fit(student_recipe(teacher, save=save), tmp_path / "run")
    assert_same_run(tmp_path / "run", unbroken)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGINT"])
@pytest.mark.parametrize("step", [1, 7, 9])  # 7 is the last of the first epoch
def test_a_signal_ends_the_step_saves_and_resumes_to_the_bit(name, step, teacher, unbroken, tmp_path):
    run = tmp_path / "run"
    seen = []

    def send(now):
        seen.append(now)
        if now == step:
            os.kill(os.getpid(), getattr(signal, name))

    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
    with pytest.raises(Interrupted, match=f"stopped by {name}.*step {step} of {STEPS}.*--run {run} --resume$"):
        fit(student_recipe(teacher, save={"every_steps": None}), run, reporter=Hook(send))
    assert seen[-1] == step
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)] == before
    fit(student_recipe(teacher), run, resume=True)
    assert_same_run(run, unbroken)


def test_a_second_ctrl_c_stops_at_once(tmp_path):
    def twice(step):
        if step == 3:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)  # never reached: Python handles the signal first

    with pytest.raises(KeyboardInterrupt):
        fit(recipe(), tmp_path / "run", reporter=Hook(twice))
    assert not (tmp_path / "run" / run_folder.CHECKPOINT).exists()


def test_the_message_is_a_command_that_resumes(tmp_path):
    from limbeck.cli import main

    def stop(step):
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted) as stopped:
        fit(recipe(), tmp_path / "run", reporter=Hook(stop))
    command = str(stopped.value).split("continue with: limbeck ")[1]
    assert main(command.split()) == 0
    fit(recipe(), tmp_path / "unbroken")
    assert_same_run(tmp_path / "run", tmp_path / "unbroken")


def test_a_signal_while_the_teacher_trains_resumes_to_the_bit(tmp_path):
    from limbeck.config_files import dump

    (tmp_path / "teacher.yaml").write_text(dump(recipe()))
    options = student_recipe(Path("unused"), teachers=[{"recipe": str(tmp_path / "teacher.yaml")}])
    fit(options, tmp_path / "unbroken")

    def stop(step):
        if step == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    run = tmp_path / "run"
    with pytest.raises(Interrupted, match=f"{run}/teacher0 is saved.* --run {run} --resume"):
        fit(options, run, reporter=Hook(stop))
    fit(options, run, resume=True)
    assert_same_run(run, tmp_path / "unbroken")
    assert_same_run(run / "teacher0", tmp_path / "unbroken" / "teacher0")


def test_the_command_line_exits_with_75(tmp_path):
    from limbeck.cli import main
    from limbeck.config_files import dump

    (tmp_path / "recipe.yaml").write_text(dump(recipe()))
    child = os.fork()
    if not child:
        code = 1
        try:
            step = loop.Trainer._optimize

            def send(self, batch):
                os.kill(os.getpid(), signal.SIGTERM)
                step(self, batch)

            loop.Trainer._optimize = send
            code = main(["train", str(tmp_path / "recipe.yaml"), "--run", str(tmp_path / "run")])
        finally:
            os._exit(code)
    assert os.WEXITSTATUS(os.waitpid(child, 0)[1]) == EXIT_INTERRUPTED
