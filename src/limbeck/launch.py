"""Several processes that train one run on this machine. Imports no torch: the processes do."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from tempfile import TemporaryFile
from typing import IO, TYPE_CHECKING

from limbeck.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

LOOK_EVERY = 0.1  # seconds
GRACE = 30.0  # seconds that the others have to end by themselves when one has died


def launch(arguments: Sequence[str], ranks: int) -> int:
    """Run `limbeck` with some arguments in so many processes, and return when all have ended.

    What Ctrl-C and SIGTERM mean to one process they mean to all: each is handed on, and the run saves and stops. When
    one dies the others are ended, since they would wait for it for ever.

    Args:
        arguments: Words after `limbeck`.
        ranks: How many processes.

    Returns:
        The exit code of the first rank that failed with a message of its own, or 0.

    Raises:
        UserError: A rank died without a word, as from lack of memory.
    """
    port = _free_port()
    with ExitStack() as stack:
        # What is wrong is wrong on all ranks, most often, and the first one says it.
        words = [None, *(stack.enter_context(TemporaryFile()) for _ in range(ranks - 1))]
        processes = [_start(arguments, rank, ranks, port, said) for rank, said in enumerate(words)]
        previous = {number: signal.signal(number, _hand_on(processes)) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            failed = _wait(processes)
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
        # With the same exit code the first rank has said the same.
        if failed and (said := words[failed[0]]) and processes[0].returncode != failed[1]:
            said.seek(0)
            sys.stderr.write(said.read().decode(errors="replace"))
    if failed is None:
        return 0
    rank, code = failed
    if code > 0:
        return code  # its own line is on the screen
    raise UserError(
        f"rank {rank} of {ranks} died by {signal.Signals(-code).name}, so the others were ended; what the run has "
        "saved is whole: the same command continues it (train: with --resume), on any number of ranks"
    )


def without_nproc(arguments: Sequence[str]) -> list[str]:
    """Return the words of a command line without the option that asks for ranks.

    >>> without_nproc(["train", "digits", "--nproc", "2", "--resume"]), without_nproc(["train", "--nproc=2"])
    (['train', 'digits', '--resume'], ['train'])
    """
    kept, skip = [], False
    for word in arguments:
        if not skip and word != "--nproc" and not word.startswith("--nproc="):
            kept.append(word)
        skip = word == "--nproc"
    return kept


def _start(
    arguments: Sequence[str], rank: int, ranks: int, port: int, said: IO[bytes] | None
) -> subprocess.Popen[bytes]:
    place = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": ranks,
        "LOCAL_WORLD_SIZE": ranks,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    environment = {**os.environ, **{name: str(value) for name, value in place.items()}}
    # A session of its own: Ctrl-C in the terminal reaches the ranks once, through this process.
    command = [sys.executable, "-m", "limbeck", *arguments]
    return subprocess.Popen(command, env=environment, start_new_session=True, stderr=said)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _hand_on(processes: Sequence[subprocess.Popen[bytes]]) -> signal._HANDLER:
    def handler(number: int, frame: object) -> None:
        for process in processes:
            if process.poll() is None:
                process.send_signal(number)

    return handler


def _wait(processes: Sequence[subprocess.Popen[bytes]]) -> tuple[int, int] | None:
    """Return the rank and exit code of the first that failed, when all have ended; None if none did."""
    failed: tuple[int, int] | None = None
    deadline = float("inf")
    while any(process.poll() is None for process in processes):
        if failed is None:
            failed = _first_failure(processes)
            if failed is not None:
                deadline = time.monotonic() + (GRACE if failed[1] > 0 else 0.0)
        if time.monotonic() > deadline:
            for process in processes:
                process.kill()
        time.sleep(LOOK_EVERY)
    return failed or _first_failure(processes)


def _first_failure(processes: Sequence[subprocess.Popen[bytes]]) -> tuple[int, int] | None:
    codes = [(rank, process.poll()) for rank, process in enumerate(processes)]
    return next(((rank, code) for rank, code in codes if code), None)
