"""Reads run folders. A file that is missing, cut off or foreign is a UserError that names it and the way out."""

from __future__ import annotations

import json
import zipfile
import zlib
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from limbeck.errors import UserError, reason
from limbeck.headlines import headline_of

if TYPE_CHECKING:
    from pathlib import Path

    from limbeck.headlines import Headline

Array = np.ndarray[Any, np.dtype[Any]]

FORMAT = 1
"""Of results.json, robustness.json, comparison.json and sweep.json."""


@dataclass(frozen=True)
class Scores:
    """What the pictures need of the predictions on the split that is reported, see `Run.split`.

    Attributes:
        train_counts: training images per class (C,); empty where a user's own loader hides them.
        accuracy: fraction of each class's images classified right (C,); NaN for a class without images.
        class_means: mean probability vector of each true class (C, C); a row of NaN for a class without images.
        teacher_class_means: the first teacher's (C, C), or None without a teacher.
        prior: class prior of the first term that has one (C, C), or None.
    """

    train_counts: Array
    accuracy: Array
    class_means: Array
    teacher_class_means: Array | None
    prior: Array | None


@dataclass(frozen=True)
class Run:
    """A run folder; files are read when first asked for."""

    folder: Path

    @property
    def finished(self) -> bool:
        """Whether results.json is there: it is written last."""
        return (self.folder / "results.json").is_file()

    @cached_property
    def results(self) -> dict[str, Any]:
        """Content of results.json."""
        return read_versioned(self.folder / "results.json", way_out="finish the run with `limbeck train ... --resume`")

    @cached_property
    def environment(self) -> dict[str, Any]:
        """Content of environment.json."""
        return read_object(self.folder / "environment.json", way_out="train the run again")

    @cached_property
    def epochs(self) -> tuple[dict[str, Any], ...]:
        """The lines of kind "epoch" in metrics.jsonl, in order."""
        return tuple(_epoch_lines(self.folder / "metrics.jsonl"))

    @property
    def headline(self) -> Headline:
        """What the task of a finished run is judged by."""
        phases = "incremental" in self.results
        return headline_of("incremental" if phases else str(self.results.get("task", "supervised")))

    @property
    def adversarial(self) -> bool:
        """Whether it was trained against attacks: then robust accuracy is what chooses and what is compared."""
        return bool(self.results.get("task") == "adversarial")

    @property
    def reported(self) -> str:
        """The weights that are reported, a key of results.json: "last", or what early stopping or averaging made."""
        return str(self.results.get("reported", "last"))

    @cached_property
    def robustness(self) -> dict[str, Any] | None:
        """What attacks left of the reported weights' accuracy; None where no attack was made.

        robustness.json may have attacks that were added after the training; results.json has those made at its end.
        """
        path = self.folder / "robustness.json"
        if path.is_file():
            content = read_versioned(path, way_out="make the attacks again with `limbeck evaluate ... --attacks`")
            if not self.adversarial or content.get("weights") == self.reported:
                return content
        made: dict[str, Any] | None = self.results.get("robustness")
        return made

    @cached_property
    def split(self) -> str:
        """What a finished run reports: "test", or "validation" where a user's own loaders have no test images."""
        last = self.results.get("last")
        for split in ("test", "validation"):
            if isinstance(last, dict) and last.get(split) is not None:
                return split
        raise UserError(
            f"{self.folder}: expected a test or a validation split to report, got neither; train with `val` or `test`"
        )

    @cached_property
    def scores(self) -> Scores:
        """Summary of predictions.npz; the logits themselves are not kept."""
        return _scores(self.folder / "predictions.npz", self.split)

    def metric(self, *keys: str) -> float | None:
        """Return the number of results.json under `keys`; None where the run says null or has no such measure.

        The last key may be absent (no teacher, no agreement) and any value may be null (no validation split); a key
        missing further up is a UserError.
        """
        value: Any = self.results
        for depth, key in enumerate(keys):
            if value is None:
                return None
            if not isinstance(value, dict) or (key not in value and depth < len(keys) - 1):
                raise foreign(self.folder / "results.json", f"expected the key `{'.'.join(keys[: depth + 1])}`")
            value = value.get(key)
        if value is not None and not isinstance(value, int | float):
            raise foreign(self.folder / "results.json", f"expected a number at `{'.'.join(keys)}`, got {value!r}")
        return None if value is None else float(value)


def read_object(path: Path, *, way_out: str) -> dict[str, Any]:
    """Return the JSON object in `path`; a UserError ending in `way_out` when it is missing or unreadable."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing; {way_out}") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON ({reason(error)}); {way_out}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a JSON object, got {type(content).__name__}; {way_out}")
    return content


def read_versioned(path: Path, *, way_out: str) -> dict[str, Any]:
    """Return the JSON object in `path` as `read_object`, its `format` checked."""
    content = read_object(path, way_out=way_out)
    if content.get("format") != FORMAT:
        got = content.get("format")
        raise UserError(f"{path}: expected format {FORMAT} of this version of limbeck, got {got}; {way_out}")
    return content


def read_run(folder: Path) -> Run:
    """Return the run in `folder`, finished or not; UserError when it is no run folder."""
    if not (folder / "results.json").is_file() and not (folder / "metrics.jsonl").is_file():
        raise UserError(f"{folder} is no run folder (neither results.json nor metrics.jsonl); see `limbeck train`")
    return Run(folder)


def foreign(path: Path, problem: str) -> UserError:
    """Return the error for a file that is not what the engine writes."""
    return UserError(f"{path}: {problem}; the file is damaged or of another version: train the run again")


def _epoch_lines(path: Path) -> list[dict[str, Any]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({reason(error)}); train the run again") from error
    if lines and not lines[-1].endswith("\n"):
        del lines[-1]  # a run that is still going, or was killed, may leave half a line; resuming cuts it off too
    records = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            if record["kind"] == "epoch":
                records.append(record)
        except (ValueError, KeyError, TypeError) as error:
            raise foreign(path, f"line {number} is not a line of metrics") from error
    return records


def _scores(path: Path, split: str) -> Scores:
    try:
        with np.load(path, allow_pickle=False) as file:
            labels, logits, counts = file[f"{split}_labels"], file[f"{split}_logits"], file["train_class_counts"]
            classes = logits.shape[1]
            accuracy = class_accuracy(logits, labels, classes)
            kept = file["class_means"].astype(np.float64) if split == "test" else class_means(logits, labels, classes)
            means = np.where(np.isnan(accuracy)[:, None], np.nan, kept)
            teacher = None
            if f"teacher_{split}_logits" in file:
                teacher = class_means(file[f"teacher_{split}_logits"], labels, classes)
            prior = file["prior"].astype(np.float64) if "prior" in file else None
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing; train the run again") from error
    except (OSError, ValueError, KeyError, IndexError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise foreign(path, f"cannot be read ({reason(error)})") from error
    return Scores(counts, accuracy, means, teacher, prior)


def class_accuracy(logits: Array, labels: Array, classes: int) -> Array:
    """Return the accuracy on each class (C,) from logits (N, C) and labels (N,); NaN for a class without samples."""
    right = np.bincount(labels, weights=logits.argmax(-1) == labels, minlength=classes)
    return _ratio(right, np.bincount(labels, minlength=classes))


def class_means(logits: Array, labels: Array, classes: int) -> Array:
    """Return the mean softmax of each true class (C, C) from logits (N, C); NaN rows for classes without samples."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    sums = np.zeros((classes, logits.shape[-1]))
    np.add.at(sums, labels, shifted / shifted.sum(-1, keepdims=True))
    return _ratio(sums, np.bincount(labels, minlength=classes)[:, None])


def _ratio(numerator: Array, denominator: Array) -> Array:
    ratio = np.full(np.shape(numerator), np.nan)
    np.divide(numerator, denominator, out=ratio, where=np.broadcast_to(denominator > 0, ratio.shape))
    return ratio
