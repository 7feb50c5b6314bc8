"""The entry point `limbeck`: runs one of `commands.py`, and turns what goes wrong into one line and an exit code.

Imports nothing outside the standard library, so that it can say what to install.
"""

from __future__ import annotations

import io
import sys
import traceback
from typing import TYPE_CHECKING

from limbeck.errors import EXIT_INTERRUPTED, EXIT_USER_ERROR, Interrupted, UserError, missing_extra

if TYPE_CHECKING:
    from collections.abc import Sequence

EXIT_BUG = 1
EXIT_KEYBOARD = 130  # 128 + SIGINT, as shells have it
CLI_PACKAGES = ("typer", "click", "rich", "pydantic", "pydantic_core", "yaml", "numpy", "scipy", "safetensors")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    0 done; 2 a mistake that the user can mend; 75 stopped by a signal after saving; 130 stopped by Ctrl-C outside of
    training; 1 anything else. Whatever is not 0 comes with one line on stderr, and with a traceback only after
    `--debug`, which may stand anywhere on the line.

    Args:
        arguments: the words after `limbeck`; those of the process by default.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal or a file that cannot hold Σ shows `?`
    try:
        return _run([word for word in words if word != "--debug"])
    except (Exception, KeyboardInterrupt) as error:
        if debug:
            traceback.print_exc()
        message, code = _explain(error)
        sys.stderr.write(f"limbeck: {' '.join(message.split())}\n")
        return code


def _run(words: list[str]) -> int:
    from typer.main import get_command

    from limbeck.commands import app

    result = get_command(app).main(words or ["--help"], prog_name="limbeck", standalone_mode=False)
    if result == EXIT_KEYBOARD:  # typer took the KeyboardInterrupt, and says nothing
        raise KeyboardInterrupt
    return result if isinstance(result, int) else 0


def _explain(error: BaseException) -> tuple[str, int]:
    match error:
        case UserError():
            return str(error), EXIT_USER_ERROR
        case Interrupted():
            return str(error), EXIT_INTERRUPTED
        case KeyboardInterrupt():
            return "interrupted", EXIT_KEYBOARD
        case ModuleNotFoundError(name=str(name)) if name.split(".")[0] in CLI_PACKAGES:
            return str(missing_extra(name.split(".")[0], "cli", "the command line")), EXIT_USER_ERROR
        case OSError(strerror=str(reason)):
            place = f"{error.filename}: " if error.filename else ""
            return f"{place}{reason}", EXIT_USER_ERROR
    if hasattr(error, "format_message"):  # click's exceptions, which typer has of its own since 0.26
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "limbeck"
        message = error.format_message().replace("Value error, ", "")  # pydantic's words, by way of typer
        return f"{message} (`{command} --help` shows the usage)", EXIT_USER_ERROR
    return f"{type(error).__name__}: {error} (a bug, most likely; --debug shows the traceback)", EXIT_BUG
