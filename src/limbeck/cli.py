"""The entry point `limbeck`: runs one of `commands.py`, and turns what goes wrong into one line and an exit code.

Imports nothing outside the standard library, so that it can say what to install.
"""

from __future__ import annotations

import io
import os
import re
import sys
import traceback
from typing import TYPE_CHECKING

from limbeck.errors import EXIT_INTERRUPTED, EXIT_USER_ERROR, Interrupted, UserError, missing_extra, reason

if TYPE_CHECKING:
    from collections.abc import Sequence

EXIT_BUG = 1
EXIT_PIPE = 141  # 128 + SIGPIPE: the reader went away, as `| head` does
EXIT_KEYBOARD = 130  # 128 + SIGINT, as shells have it
CLI_PACKAGES = ("typer", "click", "rich", "pydantic", "pydantic_core", "yaml", "numpy", "scipy", "safetensors")
OUR_WORDS = {  # for pydantic's, which typer passes on
    "Value error, ": "",
    "Input should be a valid integer, unable to parse string as an integer": "expected an integer",
    "Input should be greater than or equal to": "expected at least",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    0 done; 2 a mistake that the user can mend; 75 stopped by a signal after saving; 130 stopped by Ctrl-C outside of
    training; 141 nobody reads the output any more, of which nothing is said; 1 anything else. All others come with
    one line on stderr, or with a traceback after `--debug`, which may stand anywhere on the line.

    Args:
        arguments: the words after `limbeck`; those of the process by default.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal or a file that cannot hold Σ shows `?`
    try:
        code = _run([word for word in words if word != "--debug"])
        sys.stdout.flush()
        return code
    except (Exception, KeyboardInterrupt, SystemExit) as error:
        if isinstance(error, BrokenPipeError) or isinstance(error.__context__, BrokenPipeError):
            return _leave_pipe()
        if isinstance(error, SystemExit):
            raise
        message, code = _explain(error)
        if debug:
            traceback.print_exc()
        elif not (isinstance(error, Interrupted) and os.environ.get("RANK", "0") != "0"):  # the first rank says it
            sys.stderr.write(f"limbeck: {' '.join(message.split())}\n")
        return code


def _leave_pipe() -> int:
    """Send what is left of the output nowhere, or Python would complain when it flushes it at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return EXIT_PIPE


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
        case OSError(strerror=str()):
            place = f"{error.filename}: " if error.filename else ""
            return f"{place}{reason(error)}; mend that, and run the command again", EXIT_USER_ERROR
    if memory := _out_of_memory(error):
        return memory, EXIT_USER_ERROR
    if hasattr(error, "format_message"):  # click's exceptions, which typer has of its own since 0.26
        context = error.ctx if hasattr(error, "ctx") else None
        command = context.command_path if context else "limbeck"
        message = error.format_message()
        for theirs, ours in OUR_WORDS.items():
            message = message.replace(theirs, ours)
        option = error.option_name if hasattr(error, "option_name") else ""
        sibling = {"--folder": "--run", "--run": "--folder"}.get(option)
        if context and any(sibling in parameter.opts for parameter in context.command.params):
            message += f" Did you mean {sibling}?"
        return f"{message} (`{command} --help` shows the usage)", EXIT_USER_ERROR
    return f"{type(error).__name__}: {error} (a bug, most likely; --debug shows the traceback)", EXIT_BUG


def _out_of_memory(error: BaseException) -> str | None:
    """Return the line for memory that torch or numpy did not get; None for any other error. Imports neither."""
    words = str(error)
    told = re.search("out of memory|not enough memory|can't allocate memory", words)
    if not isinstance(error, MemoryError) and not (isinstance(error, RuntimeError) and told):
        return None
    size = re.search(r"allocate ([\d.]+) ([KMGTP]iB|bytes)", words)
    asked = ""
    if size:
        amount, unit = size.groups()
        asked = f", asked for {f'{float(amount) / 2**30:.1f} GiB' if unit == 'bytes' else f'{amount} {unit}'}"
    return f"out of memory{asked}; lower `model.width` or `train.batch_size`"
