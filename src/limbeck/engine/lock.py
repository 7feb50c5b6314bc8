"""One process at a time in a folder: two that append to one log would ruin it."""

from __future__ import annotations

import os
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from limbeck.engine import ranks
from limbeck.engine.run_folder import LOCK, disk_errors
from limbeck.errors import UserError

try:
    import fcntl
except ImportError:  # Windows, where runs are not locked
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def locked(folder: Path, option: str = "--run") -> Iterator[None]:
    """Keep a folder, which is made if need be, to this process; folders that stay empty are removed again.

    Of several ranks the first has it for all.

    The lock is the operating system's (flock), so it ends with the process, however that ends; a file that a killed
    process left means nothing.

    Args:
        folder: What to lock.
        option: Of the command line, that chooses another folder.

    Raises:
        UserError: Another process has the folder, or it cannot be written.
    """
    if fcntl is None:
        yield
        return
    place = ranks.here()
    descriptor, new = place.first_tells(lambda: _take(folder, option))
    try:
        yield
    finally:
        if place.lead:
            _give_back(folder, descriptor, new)


def _take(folder: Path, option: str) -> tuple[int, list[Path]]:
    """Return the descriptor of the lock's file, and the folders that were made for it."""
    new = [parent for parent in (folder, *folder.parents) if not os.path.exists(parent)]
    with disk_errors(folder, option):
        folder.mkdir(parents=True, exist_ok=True)
        return _acquire(folder, option), new


def _give_back(folder: Path, descriptor: int, new: list[Path]) -> None:
    (folder / LOCK).unlink(missing_ok=True)  # while it is held, so that it is this process's own
    os.close(descriptor)
    for parent in new:
        with suppress(OSError):  # it is not empty
            parent.rmdir()


def _acquire(folder: Path, option: str) -> int:
    """Return the descriptor of the lock's file, locked, with this process's number in it."""
    path = folder / LOCK
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(descriptor, 32).decode() or "unknown"
            os.close(descriptor)
            raise UserError(
                f"{folder} is in use by another process (pid {owner}); wait for it or choose another {option}"
            ) from None
        except OSError:  # a file system without locks, as some network ones are
            return descriptor
        # The process before may have removed the file between the two calls; then another one may lock a new file.
        if _is_open_at(path, descriptor):
            os.ftruncate(descriptor, 0)
            os.write(descriptor, str(os.getpid()).encode())
            return descriptor
        os.close(descriptor)


def _is_open_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
