"""What a run tells the person who waits: bars in a terminal, lines elsewhere, nothing at all from the base class."""

from __future__ import annotations

import copy
import sys
import time
from typing import TYPE_CHECKING, Any

from limbeck.headlines import main_measure, training_measure

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    from rich.console import Console
    from rich.progress import TaskID

    from limbeck.headlines import Measure

REFRESH_SECONDS = 0.25
MIN_BAR = 10  # columns of a terminal
TIMES = len("0:00:00 0:00:00 left")  # elapsed and left
ATTACK_SECONDS = 60.0  # between two lines about an attack
DROPPED_FIRST = ("speed", "loss", "train", "validation", "epoch")  # where a line has no room for all


class Reporter:
    """A silent reporter, and the calls that `fit` and `compare` make. A context: it tidies up however it ends.

    A plan is a number of runs (a comparison); a run is a number of optimizer steps. Runs come one after another, with
    or without a plan around them; in a plan also beside one another, in lanes.
    """

    def __enter__(self) -> Reporter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the terminal back."""

    def begin_plan(self, title: str, *, runs: int, done: int) -> None:
        """Announce a plan of which `done` runs are finished already."""

    def lane(self) -> Reporter:
        """Return a reporter for the runs of a plan, which has begun, that go on beside those of other lanes."""
        return self

    def begin_run(self, title: str, *, steps: int, done: int) -> None:
        """Announce a run of `steps` optimizer steps of which `done` were made in an earlier session."""

    def step(self, step: int, samples: int) -> None:
        """Tell that optimizer step `step` is done, which was made of `samples` images."""

    def epoch(self, line: Mapping[str, Any], epochs: int) -> None:
        """Tell the end of an epoch; `line` is what metrics.jsonl holds of it."""

    def attack(self, title: str, *, done: int, images: int) -> None:
        """Tell how many of the images have met an attack; its first call counts those of an earlier session."""

    def end_run(self, results: Mapping[str, Any]) -> None:
        """Tell the results of the run."""

    def diverged(self, text: str) -> None:
        """Tell that the run is given up, and why."""

    def note(self, text: str) -> None:
        """Tell a sentence."""


class _Speed:
    """Steps, images and time of the session, for throughput and the time that is left."""

    def __init__(self, steps: int, done: int) -> None:
        self.steps, self.first, self.now = steps, done, done
        self.samples = 0
        self.start = time.monotonic()

    def add(self, step: int, samples: int) -> None:
        self.now = step
        self.samples += samples

    def per_second(self) -> float:
        return self.samples / max(time.monotonic() - self.start, 1e-9)

    def left(self) -> str:
        return _clock((time.monotonic() - self.start) / max(self.now - self.first, 1) * (self.steps - self.now))


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"


def _counted(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


def describe_epoch(line: Mapping[str, Any]) -> str:
    """Return the losses and accuracies of an epoch's line in words.

    >>> describe_epoch({"train": {"loss": 0.5, "top1": 0.875}, "validation": None})
    'loss 0.500, train 87.5 %'
    >>> describe_epoch({"train": {"loss": 0.5, "top1": 0.875}, "validation": {"top1": 0.75, "robust": 0.5}})
    'loss 0.500, train 87.5 %, validation 75.0 %, under attack 50.0 %'
    >>> describe_epoch({"train": {"loss": 0.5, "pixel_accuracy": 0.875}, "validation": {"miou": 0.75}})
    'loss 0.500, train pixels 87.5 %, validation mIoU 75.0 %'
    """
    return ", ".join(_epoch_words(line).values())


def _epoch_words(line: Mapping[str, Any]) -> dict[str, str]:
    train, validation = line["train"], line["validation"]
    words = {"loss": f"loss {train['loss']:.3f}", "train": f"train {_share(train, training_measure(train))}"}
    if validation:
        words["validation"] = f"validation {_share(validation, main_measure(validation))}"
        if "robust" in validation:
            words["robust"] = f"under attack {100 * validation['robust']:.1f} %"
    return words


def _share(metrics: Mapping[str, Any], measure: Measure) -> str:
    """Return a measure in words; of accuracies the name is left out."""
    name = "" if measure.key == "top1" else f"{measure.short} "
    return f"{name}{100 * metrics[measure.key]:.1f} %"


def _final_words(results: Mapping[str, Any]) -> str:
    for split in ("test", "validation"):
        if metrics := results[results.get("reported", "last")][split]:
            words = f"{split} {_share(metrics, main_measure(metrics))}"
            for row in (results.get("robustness") or {}).get("rows", ()):
                words += f", {row['attack']} {100 * row['accuracy']:.1f} %"
            if "robust" in metrics and not results.get("robustness"):
                words += f", under attack {100 * metrics['robust']:.1f} %"
            return words
    return "done"


def fit_words(words: Mapping[str, str], room: int) -> str:
    """Return words side by side, less those that find no room; `DROPPED_FIRST` says which go.

    >>> fit_words({"epoch": "epoch 3/9", "loss": "loss 0.500", "speed": "900 images/s"}, 24)
    'epoch 3/9, loss 0.500'
    """
    kept = dict(words)
    for name in DROPPED_FIRST:
        if len(", ".join(kept.values())) <= room:
            break
        kept.pop(name, None)
    return ", ".join(kept.values())


class PlainReporter(Reporter):
    """Lines on a stream: one per epoch of a single run, one per run of a plan.

    Args:
        stream: Where to; standard error by default, so that a command's output stays its own.
    """

    def __init__(self, stream: Any = None) -> None:
        self._stream = stream if stream is not None else sys.stderr
        self._title = self._attack = ""
        self._plan: _Speed | None = None

    def note(self, text: str) -> None:
        """Print the sentence."""
        print(text, file=self._stream, flush=True)

    def begin_plan(self, title: str, *, runs: int, done: int) -> None:
        """Print how many runs there are."""
        self._plan = _Speed(runs, done)
        self.note(f"{title}: {_counted(runs, 'run')}" + (f", {done} finished already" if done else ""))

    def lane(self) -> Reporter:
        """Return one with a run of its own; the plan is the same."""
        return copy.copy(self)

    def begin_run(self, title: str, *, steps: int, done: int) -> None:
        """Print the title; runs of a plan print when they end."""
        self._title = title
        self._run = _Speed(steps, done)
        if self._plan is None:
            self.note(f"{title}: {_counted(steps, 'step')}" + (f", {done} done before" if done else ""))

    def step(self, step: int, samples: int) -> None:
        """Count."""
        self._run.add(step, samples)

    def epoch(self, line: Mapping[str, Any], epochs: int) -> None:
        """Print the epoch, the throughput and the time that is left."""
        if self._plan is None:
            speed = f"{self._run.per_second():,.0f} images/s, {self._run.left()} left"
            self.note(f"epoch {line['epoch']}/{epochs}: {describe_epoch(line)} ({speed})")

    def attack(self, title: str, *, done: int, images: int) -> None:
        """Print the images and the time that is left, once a minute and when the attack is done."""
        now = time.monotonic()
        if title != self._attack:
            self._attack, self._told, self._images = title, now, _Speed(images, done)
        self._images.add(done, 0)
        if done == images or now - self._told > ATTACK_SECONDS:
            self._told = now
            self.note(
                f"{title}: {done} of {images} images" + ("" if done == images else f", {self._images.left()} left")
            )

    def end_run(self, results: Mapping[str, Any]) -> None:
        """Print the accuracy on the test split, or else on validation, and in a plan the time that is left."""
        text = f"{self._title}: {_final_words(results)}"
        if self._plan is not None:
            self._plan.add(self._plan.now + 1, 0)
            text = f"[{self._plan.now}/{self._plan.steps}] {text} ({self._plan.left()} left)"
        self.note(text)

    def diverged(self, text: str) -> None:
        """Print why, and count the run as done."""
        if self._plan is not None:
            self._plan.add(self._plan.now + 1, 0)
        self.note(text)


class RichReporter(Reporter):
    """Bars in a terminal: one for the plan, one for the run, with throughput and the time that is left.

    Args:
        console: The terminal.
    """

    def __init__(self, console: Console) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
        from rich.table import Column

        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None, table_column=Column(ratio=1)),  # what the words leave, MIN_BAR at least
            MofNCompleteColumn(),
            TextColumn("{task.fields[info]}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=console,
            refresh_per_second=1 / REFRESH_SECONDS,
            expand=True,
        )
        self._plan: _Speed | None = None
        self._plan_task: TaskID | None = None
        self._run_task: TaskID | None = None
        self._attack = ""
        self._shown = 0.0

    def close(self) -> None:
        """Stop drawing; the bars stay where they are."""
        self._progress.stop()

    def note(self, text: str) -> None:
        """Print the sentence above the bars."""
        self._progress.console.print(text, markup=False, highlight=False)

    def begin_plan(self, title: str, *, runs: int, done: int) -> None:
        """Start the bar of the plan."""
        self._progress.start()
        self._plan = _Speed(runs, done)
        self._plan_task = self._progress.add_task(self._cut(title), total=runs, completed=done, info="", left="")

    def lane(self) -> Reporter:
        """Return one with a bar of its own; the plan is the same."""
        return copy.copy(self)

    def begin_run(self, title: str, *, steps: int, done: int) -> None:
        """Start the bar of the run in the place of the one before."""
        self._progress.start()
        if self._run_task is not None:
            self._progress.remove_task(self._run_task)
        self._run = _Speed(steps, done)
        self._words: dict[str, str] = {}
        self._run_task = self._progress.add_task(self._cut(title), total=steps, completed=done, info="", left="")

    def step(self, step: int, samples: int) -> None:
        """Count, and draw now and then."""
        self._run.add(step, samples)
        now = time.monotonic()
        if now - self._shown > REFRESH_SECONDS or step == self._run.steps:
            self._shown = now
            self._draw()

    def _cut(self, title: str) -> str:
        """Return a title that leaves two thirds of the line to bar, numbers and times."""
        room = max(self._progress.console.width // 3, 8)
        return title if len(title) <= room else f"{title[: room - 1]}…"

    def _room(self) -> int:
        """Return the columns that are left to words between the counts and the times."""
        tasks = self._progress.tasks
        titles = max(len(task.description) for task in tasks)
        counts = max(2 * len(str(task.total)) + 1 for task in tasks)
        gaps = 5  # between six columns
        return self._progress.console.width - titles - MIN_BAR - counts - TIMES - gaps

    def _draw(self) -> None:
        speed = {"speed": f"{self._run.per_second():,.0f} images/s"}
        info = fit_words(self._words | speed, self._room())
        if self._run_task is not None:
            self._progress.update(self._run_task, completed=self._run.now, info=info, left=f"{self._run.left()} left")

    def epoch(self, line: Mapping[str, Any], epochs: int) -> None:
        """Show the epoch's losses and accuracies beside the bar."""
        self._words = {"epoch": f"epoch {line['epoch']}/{epochs}", **_epoch_words(line)}

    def attack(self, title: str, *, done: int, images: int) -> None:
        """Move the bar of the attack, in the place of the run's."""
        if title != self._attack:
            self._attack = title
            self.begin_run(title, steps=images, done=done)
        self.step(done, done - self._run.now)

    def end_run(self, results: Mapping[str, Any]) -> None:
        """Draw the bar full and move the plan's."""
        self._draw()
        self._advance()

    def diverged(self, text: str) -> None:
        """Print why above the bars, and move the plan's."""
        self.note(text)
        self._advance()

    def _advance(self) -> None:
        if self._plan is not None and self._plan_task is not None:
            self._plan.add(self._plan.now + 1, 0)
            self._progress.update(self._plan_task, completed=self._plan.now, left=f"{self._plan.left()} left")


def open_reporter(console: Console | None = None) -> Reporter:
    """Return bars if standard error is a terminal, lines otherwise."""
    from rich.console import Console as RichConsole

    console = console or RichConsole(stderr=True)
    return RichReporter(console) if console.is_terminal else PlainReporter(console.file)
