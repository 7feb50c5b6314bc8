"""What a run writes down while it trains: means of the loss, lines of JSON, TensorBoard events."""

from __future__ import annotations

import errno
import json
import math
import os
from typing import TYPE_CHECKING, Any

import torch

from limbeck.engine import run_folder
from limbeck.engine.run_folder import disk_errors
from limbeck.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor
    from torch.utils.tensorboard import SummaryWriter

    from limbeck.config import Term


class NotFinite(Exception):
    """A loss or one of its parts was not finite.

    Args:
        term: Name of the part, or "loss".
        step: Optimizer step, from 1.
    """

    def __init__(self, term: str, step: int) -> None:
        super().__init__(f"{term} at step {step}")
        self.term = term
        self.step = step


def remedy(error: NotFinite, terms: Mapping[str, Term]) -> str:
    """Return what to change: before the first update the learning rate has had no say in what is not finite."""
    if error.step == 1 and error.term == "attack":
        return "Nothing was trained yet, so look at the network: its logits, or their gradients to the images, are not"
    names = list(terms)
    if error.step > 1 or error.term not in names:
        return "Start a new run with a lower `optimizer.learning_rate`, or with `optimizer.clip_norm`"
    place, term = f"losses.{names.index(error.term)}", terms[error.term]
    factors = {name: value for name, value in term if name == "weight" or name.endswith("_weight")}
    listed = ", ".join(f"`{place}.{name}` (now {value:g})" for name, value in factors.items())
    return (
        f"Start a new run with smaller factors of this term, {listed}: the learning rate has changed nothing before "
        "this step"
    )


class RunningMeans:
    """Means over the samples since the last line and since the epoch began, without a wait for the device.

    `add` keeps tensors on their device; `flush` reads them, in the order of the steps whenever it is called, so the
    sums do not depend on when a checkpoint was written.

    Args:
        terms: Names of the loss's parts.
    """

    def __init__(self, terms: Sequence[str]) -> None:
        self.names = ("loss", *terms)
        self._waiting: list[tuple[int, int, Tensor]] = []
        self._sums = {"line": self._zeros(), "epoch": self._zeros()}

    def _zeros(self) -> list[float]:
        return [0.0] * (len(self.names) + 2)  # the names', scores, samples

    def add(self, step: int, samples: int, values: Tensor) -> None:
        """Take in a step: `values` holds the loss, the parts, and the objective's score."""
        self._waiting.append((step, samples, values))

    def flush(self) -> None:
        """Read what waits on the device, and add it up.

        Raises:
            NotFinite: With the first such step and its term; a part is blamed rather than the sum.
        """
        if not self._waiting:
            return
        rows = torch.stack([values for _, _, values in self._waiting]).tolist()
        for (step, samples, _), row in zip(self._waiting, rows, strict=True):
            for term, value in [*zip(self.names[1:], row[1:-1], strict=True), ("loss", row[0])]:
                if not math.isfinite(value):
                    raise NotFinite(term, step)
            addends = [*(value * samples for value in row[:-1]), _counted(row[-1], samples), samples]
            for sums in self._sums.values():
                sums[:] = [total + addend for total, addend in zip(sums, addends, strict=True)]
        self._waiting.clear()

    def take(self, span: str) -> dict[str, float]:
        """Return the means of a span, "line" or "epoch", and start it anew: `loss`, each part, `score`."""
        self.flush()
        *totals, samples = self._sums[span]
        self._sums[span] = self._zeros()
        return {name: total / samples for name, total in zip((*self.names, "score"), totals, strict=True)}

    def state_dict(self) -> dict[str, list[float]]:
        """Return the sums, after a flush."""
        self.flush()
        return {span: list(sums) for span, sums in self._sums.items()}

    def load_state_dict(self, state: Mapping[str, list[float]]) -> None:
        """Go on from the sums of `state_dict`."""
        self._sums = {span: list(sums) for span, sums in state.items()}


class LineFile:
    """A file of JSON lines that is never buffered, so its length is known and a full disk is noticed at once.

    Args:
        path: The file.
        length: Bytes to keep of what is there.

    Raises:
        UserError: The file is shorter than `length`, or cannot be written.
    """

    def __init__(self, path: Path, length: int) -> None:
        self._path = path
        with disk_errors(path):
            self._file = path.open("ab", buffering=0)
            if self._file.tell() < length:
                raise UserError(f"{path}: expected at least {length} bytes, got {self._file.tell()}; restore the file")
            self._file.truncate(length)

    def write(self, line: Mapping[str, Any]) -> None:
        """Append a line."""
        content = json.dumps(line, allow_nan=False).encode() + b"\n"
        with disk_errors(self._path):
            if self._file.write(content) != len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def sync(self) -> int:
        """Put the lines on the disk and return the file's length in bytes."""
        with disk_errors(self._path):
            os.fsync(self._file.fileno())
            return self._file.tell()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class RunLog:
    """The logs of a run.

    Args:
        run: Folder of the run.
        lengths: Bytes to keep of the files, by name, as `sync` returned them; none for a new run.
        step: Last step that is kept.
        tensorboard: Write TensorBoard events if the package is installed.
    """

    def __init__(self, run: Path, *, lengths: Mapping[str, int], step: int, tensorboard: bool) -> None:
        self._metrics = LineFile(run / run_folder.METRICS, lengths.get(run_folder.METRICS, 0))
        self._timing = LineFile(run / run_folder.TIMING, lengths.get(run_folder.TIMING, 0))
        self._events = _tensorboard_writer(run / run_folder.TENSORBOARD, step) if tensorboard else None

    def write(self, line: Mapping[str, Any], timing: Mapping[str, float]) -> None:
        """Write a line of metrics, which a resumed run repeats to the byte, and its times, which no run repeats."""
        self._metrics.write(line)
        self._timing.write({"kind": line["kind"], "step": line["step"], "epoch": line["epoch"], **timing})
        if self._events is not None:
            for name, value in _scalars(line):
                self._events.add_scalar(name, value, line["step"])

    def sync(self) -> dict[str, int]:
        """Put the lines on the disk; return the files' lengths in bytes by name."""
        return {run_folder.METRICS: self._metrics.sync(), run_folder.TIMING: self._timing.sync()}

    def close(self) -> None:
        """Close the files."""
        self._metrics.close()
        self._timing.close()
        if self._events is not None:
            self._events.close()


class SilentLog:
    """The log of a rank that writes nothing."""

    def write(self, line: Mapping[str, Any], timing: Mapping[str, float]) -> None:
        """Write nothing."""

    def sync(self) -> dict[str, int]:
        """Return no lengths."""
        return {}

    def close(self) -> None:
        """Close nothing."""


def _tensorboard_writer(folder: Path, step: int) -> SummaryWriter | None:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    with disk_errors(folder):
        return SummaryWriter(str(folder), purge_step=step + 1 if step else None)


def _scalars(line: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Yield the numbers of a line under names such as `parts/kl`."""
    for key, value in line.items():
        if isinstance(value, dict):
            yield from _scalars(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and key not in ("step", "epoch", "samples"):
            yield prefix + key, value


def _counted(share: float, samples: int) -> float:
    """Return a share times the samples; where that is a number of samples but for float32's rounding, that number.

    >>> _counted(0.8166666626930237, 60)  # 49 / 60 in float32
    49
    """
    value, whole = share * samples, round(share * samples)
    return whole if abs(value - whole) <= 1e-6 * samples else value
