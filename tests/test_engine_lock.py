"""A folder is one process's at a time, and nobody's once that process is dead."""

from __future__ import annotations

import errno
import os
import re
import signal

import pytest
from engine_runs import Hook, assert_same_run, recipe

from limbeck.config import CompareOptions
from limbeck.engine import run_folder
from limbeck.engine.compare import compare
from limbeck.engine.fit import fit
from limbeck.engine.lock import locked
from limbeck.errors import UserError

fcntl = pytest.importorskip("fcntl", reason="there are no locks without it")


def in_another_process(work) -> int:
    """Run `work(ready)` in a forked process, and return its number once it called `ready`, which never returns."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:

            def ready():
                os.write(writing, b".")
                signal.pause()

            work(ready)
        finally:
            os._exit(1)
    os.close(writing)
    assert os.read(reading, 1) == b"."
    os.close(reading)
    return child


def kill(child) -> None:
    os.kill(child, signal.SIGKILL)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL


def test_a_run_in_use_is_refused_untouched_and_goes_on_once_its_process_is_dead(tmp_path):
    run = tmp_path / "run"

    def train(ready):
        fit(recipe(save={"every_steps": 3}), run, reporter=Hook(lambda step: ready() if step == 8 else None))

    child = in_another_process(train)
    try:
        before = {path.name: path.read_bytes() for path in run.iterdir()}
        message = f"{run} is in use by another process (pid {child}); wait for it or choose another --run"
        with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
            fit(recipe(), run, resume=True)
        assert {path.name: path.read_bytes() for path in run.iterdir()} == before
    finally:
        kill(child)
    assert (run / run_folder.LOCK).exists()
    fit(recipe(), run, resume=True)
    fit(recipe(), tmp_path / "unbroken")
    assert_same_run(run, tmp_path / "unbroken")
    assert not (run / run_folder.LOCK).exists()


def test_a_lock_left_by_a_dead_process_leaves_a_folder_for_a_new_run(tmp_path):
    def hold(ready):
        with locked(tmp_path / "run"):
            ready()

    kill(in_another_process(hold))
    fit(recipe(train={"epochs": 1}), tmp_path / "run")


def test_a_comparison_in_use_is_refused(tmp_path):
    def hold(ready):
        with locked(tmp_path):
            ready()

    terms = CompareOptions.model_validate(
        {"contenders": {"ce": {"settings": [[{"name": "cross_entropy"}]]}}, "baseline": "ce"}
    )
    child = in_another_process(hold)
    try:
        with pytest.raises(UserError, match=rf"\(pid {child}\); wait for it or choose another --folder$"):
            compare(recipe().model_copy(update={"compare": terms}), tmp_path, seeds=1)
    finally:
        kill(child)


def test_a_folder_that_stays_empty_is_removed_with_the_parents_it_needed(tmp_path):
    (tmp_path / "old").mkdir()
    with locked(tmp_path / "new" / "run"), locked(tmp_path / "old"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    assert not list((tmp_path / "old").iterdir())


def test_a_lock_on_a_removed_file_is_not_taken_for_the_folders(tmp_path, monkeypatch):
    flock, calls = fcntl.flock, []

    def removed_before_the_first(descriptor, operation):
        calls.append(descriptor)
        if len(calls) == 1:
            (tmp_path / run_folder.LOCK).unlink()
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", removed_before_the_first)
    with locked(tmp_path):
        assert len(calls) == 2
        assert (tmp_path / run_folder.LOCK).read_text() == str(os.getpid())


def test_a_file_system_without_locks_is_no_obstacle(tmp_path, monkeypatch):
    def flock(descriptor, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    with locked(tmp_path / "run"):
        assert (tmp_path / "run").is_dir()


def test_two_folders_are_locked_apart(tmp_path):
    with locked(tmp_path), locked(tmp_path / "teacher0"), pytest.raises(UserError, match="in use"), locked(tmp_path):
        pytest.fail("both hold it")
