"""Errors that the command line turns into one line and an exit code. Imports nothing."""

from __future__ import annotations

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 75  # EX_TEMPFAIL of sysexits.h: schedulers read it as "start me again"


class UserError(Exception):
    """Something the user can mend. One line: what, expected, got, the way out. The command line exits with 2."""


class Diverged(UserError):
    """A loss, the weights or the logits of a run are not finite. A comparison leaves the run out and goes on."""


class Interrupted(Exception):
    """A signal ended the run, and what it saved stands; the message says how to go on. Exit code 75."""


def missing_extra(package: str, extra: str, purpose: str) -> UserError:
    """Return the error for an optional package that is not installed."""
    return UserError(f"{purpose} needs `{package}`: {install(extra)}")


def install(extra: str) -> str:
    """Return how to install an extra, which differs in a clone."""
    return f'pip install "limbeck[{extra}]", or in a clone pip install ".[{extra}]"'


def reason(error: Exception) -> str:
    """Return an error's words, the operating system's without its number and the path.

    >>> reason(OSError(30, "Read-only file system", "runs/a"))
    'read-only file system'
    """
    words = (isinstance(error, OSError) and error.strerror) or str(error)
    return words[:1].lower() + words[1:]
