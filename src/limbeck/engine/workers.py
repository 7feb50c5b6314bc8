"""Several runs of a plan at once, each in a process of its own; the parent hands them out and tells of them.

The parent trains nothing. Each worker has a pipe to it: jobs go down, what happens comes up. A signal, a mistake or
the end of a worker ends the plan: the other workers save their runs first.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.resource_tracker
import os
import signal
import sys
import time
import traceback
from contextlib import contextmanager, suppress
from multiprocessing import connection
from typing import TYPE_CHECKING, Any

import torch

from limbeck.engine.plan import leave_out
from limbeck.engine.progress import REFRESH_SECONDS, Reporter
from limbeck.engine.signals import STOPPING, StopRequest
from limbeck.engine.teachers import Resources
from limbeck.engine.views import ViewStore
from limbeck.errors import Diverged, Interrupted, UserError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from multiprocessing.connection import Connection
    from multiprocessing.context import ForkServerContext, SpawnContext
    from multiprocessing.process import BaseProcess

    from limbeck.engine.plan import GiveUp, Job, TrainJob


# --- the worker's side ------------------------------------------------------------------------------------


class _Sender(Reporter):
    """Sends what happens to the parent, steps a few times a second. A parent that is gone stops the run."""

    def __init__(self, pipe: Connection, stop: StopRequest) -> None:
        self._pipe, self._stop = pipe, stop
        self._samples, self._sent = 0, 0.0

    def _send(self, *message: Any) -> None:
        try:
            self._pipe.send(message)
        except OSError:
            self._stop.signal_name = "the end of the parent process"

    def begin_run(self, title: str, *, steps: int, done: int) -> None:
        self._samples, self._last = 0, steps
        self._send("begin", title, steps, done)

    def step(self, step: int, samples: int) -> None:
        self._samples += samples
        now = time.monotonic()
        if now - self._sent > REFRESH_SECONDS or step == self._last:
            self._send("step", step, self._samples)
            self._samples, self._sent = 0, now

    def epoch(self, line: Mapping[str, Any], epochs: int) -> None:
        self._send("epoch", {key: line[key] for key in ("epoch", "train", "validation")}, epochs)

    def attack(self, title: str, *, done: int, images: int) -> None:
        self._send("attack", title, done, images)

    def end_run(self, results: Mapping[str, Any]) -> None:
        told = {results.get("reported", "last"), "last"}
        kept = {key: results[key] for key in (*told, "reported", "robustness") if key in results}
        self._send("end", kept)

    def note(self, text: str) -> None:
        self._send("note", text)


def serve(pipe: Connection, train: TrainJob) -> None:
    """Train the jobs that come through a pipe, as long as the parent lives; the life of a worker."""
    torch.set_num_threads(1)
    resources = Resources(ViewStore())
    with StopRequest() as stop:
        _hold_signals(False)
        reporter = _Sender(pipe, stop)
        try:
            while True:
                job = pipe.recv()
                pipe.send(("over", _error_of(job, train, reporter, stop, resources)))
        except (EOFError, OSError, KeyboardInterrupt):
            return  # the parent is gone, or was told to hurry and says so itself


def _error_of(
    job: Job,
    train: TrainJob,
    reporter: Reporter,
    stop: StopRequest,
    resources: Resources,
) -> Exception | None:
    """Train a job; return what it raised, with the traceback as its cause, for pickles leave that behind."""
    try:
        train(job, reporter, stop, resources)
    except (UserError, Interrupted) as error:
        return error
    except Exception as error:
        return WorkerError(f"{type(error).__name__}: {error}", traceback.format_exc())
    return None


class WorkerError(RuntimeError):
    """A mistake of the program in a worker.

    Args:
        message: Type and words of the error.
        trace: Its traceback.
    """

    def __init__(self, message: str, trace: str) -> None:
        super().__init__(message, trace)
        self.message, self.trace = message, trace

    def __str__(self) -> str:
        return self.message


# --- the parent's side ------------------------------------------------------------------------------------


def _hold_signals(hold: bool) -> None:
    """Let stopping signals wait, or come: a worker that is just being born would die of them."""
    if sys.platform != "win32":
        signal.pthread_sigmask(signal.SIG_BLOCK if hold else signal.SIG_UNBLOCK, STOPPING)


def _context() -> ForkServerContext | SpawnContext:
    """Return how workers start: forked from a server that imports torch once for all plans; spawned on Windows."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


class _Worker:
    """A process, what it does, and where on the screen that is told."""

    def __init__(self, train: TrainJob, reporter: Reporter) -> None:
        context = _context()
        self.pipe, theirs = context.Pipe()
        self.process: BaseProcess = context.Process(target=serve, args=(theirs, train), daemon=True)
        self.process.start()
        theirs.close()  # so that the pipe ends with the process
        self.reporter = reporter
        self.job: Job | None = None
        self.group: int | None = None

    def begin(self, job: Job) -> None:
        """Hand out a job."""
        self.job, self.group = job, job.group
        with suppress(OSError):  # a process that died while it was idle is noticed when it is listened to
            self.pipe.send(job)


class Pool:
    """Workers and the jobs that wait for them. See `run_plan` for the arguments."""

    def __init__(
        self,
        jobs: Sequence[Job],
        workers: int,
        *,
        train: TrainJob,
        reporter: Reporter,
        stop: StopRequest,
        give_up: GiveUp,
    ) -> None:
        self.waiting = list(jobs)
        self.size, self.train, self.reporter, self.stop, self.give_up = workers, train, reporter, stop, give_up
        self.workers: list[_Worker] = []
        self.end: Exception | None = None  # why no more jobs are handed out

    def run(self) -> None:
        """Train all jobs.

        Raises:
            Interrupted: A signal came; what was training is saved.
            UserError: What the training of a run raises, or a process ended before its run did.
        """
        with self._processes():
            while self._busy() or (self.waiting and self.end is None):
                if self.stop.signal_name and self.end is None:
                    self._wind_up(Interrupted(f"stopped by {self.stop.signal_name}: what was training is saved"))
                if self.end is None:
                    self._hand_out()
                for worker in self._heard():
                    self._take(worker)
        if self.end is not None:
            raise self.end

    @contextmanager
    def _processes(self) -> Iterator[None]:
        try:
            with _signals_held():
                for _ in range(self.size):
                    self.workers.append(_Worker(self.train, self.reporter.lane()))
            yield
        finally:
            for worker in self.workers:  # idle by now, unless an error or a second Ctrl-C came; to leave takes seconds
                worker.process.kill()
                worker.process.join()

    def _busy(self) -> list[_Worker]:
        return [worker for worker in self.workers if worker.job is not None]

    def _hand_out(self) -> None:
        """Give each idle worker a job whose teachers are finished: of its last group, else of one nobody is at."""
        for worker in self.workers:
            pending = {job.run for job in self.waiting} | {other.job.run for other in self._busy() if other.job}
            ready = [job for job in self.waiting if not pending.intersection(job.sources or ())]
            if worker.job is None and ready:
                others = {other.group for other in self._busy()}
                job = min(ready, key=lambda job: (job.group != worker.group, job.group in others))
                self.waiting.remove(job)
                worker.begin(job)

    def _heard(self) -> list[_Worker]:
        """Return the workers that have something to say, or have died; wait a moment for them."""
        pipes = {worker.pipe: worker for worker in self._busy()}
        return [pipes[pipe] for pipe in connection.wait(list(pipes), REFRESH_SECONDS) if pipe in pipes]

    def _take(self, worker: _Worker) -> None:
        """Take one message of a worker."""
        try:
            message = worker.pipe.recv()
        except (EOFError, OSError):
            self._bury(worker)
            return
        match message:
            case "begin", title, steps, done:
                worker.reporter.begin_run(title, steps=steps, done=done)
            case "step", step, samples:
                worker.reporter.step(step, samples)
            case "epoch", line, epochs:
                worker.reporter.epoch(line, epochs)
            case "attack", title, done, images:
                worker.reporter.attack(title, done=done, images=images)
            case "end", results:
                worker.reporter.end_run(results)
            case "note", text:
                worker.reporter.note(text)
            case "over", error:
                job, worker.job = worker.job, None
                self._close(worker, job, error)

    def _close(self, worker: _Worker, job: Job | None, error: Exception | None) -> None:
        """Note how a job ended."""
        try:
            if isinstance(error, Diverged) and job is not None:
                leave_out(job, error, worker.reporter, self.give_up)
            elif error is not None:
                raise error
        except Exception as fatal:
            self._wind_up(fatal)

    def _bury(self, worker: _Worker) -> None:
        """End the plan because a worker died in the middle of its job."""
        job, worker.job = worker.job, None
        self.workers.remove(worker)
        worker.process.join()
        code = worker.process.exitcode or 0
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        hint = "; out of memory, perhaps: use fewer workers" if code == -9 else ""
        if job is not None:
            text = f"the process that worked on {job.run} {how}{hint}; start again to go on from what was saved"
            self._wind_up(UserError(text))

    def _wind_up(self, error: Exception) -> None:
        """Let the workers save what they train, and remember why."""
        if self.end is not None:
            return
        self.end = error
        for worker in self._busy():
            if worker.process.pid is not None:
                os.kill(worker.process.pid, signal.SIGTERM)


@contextmanager
def _signals_held() -> Iterator[None]:
    """Start processes that no stopping signal reaches before they can mind it; nor their server, ever."""
    # It would let the signals come again if it were started with the first process.
    multiprocessing.resource_tracker.ensure_running()
    _hold_signals(True)
    try:
        yield
    finally:
        _hold_signals(False)
