"""What a run tells: lines where there is no terminal, bars where there is one."""

from __future__ import annotations

import io
import re

import pytest
from engine_runs import STEPS, recipe, student_recipe
from rich.console import Console

from limbeck import listings
from limbeck.engine.compare import compare
from limbeck.engine.fit import fit
from limbeck.engine.progress import PlainReporter, RichReporter, open_reporter


def terminal(width: int = 160) -> tuple[Console, io.StringIO]:
    stream = io.StringIO()
    return Console(file=stream, force_terminal=True, width=width), stream


def shown_on(stream: io.StringIO) -> list[str]:
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", stream.getvalue()).replace("\r", "").splitlines()


@pytest.fixture
def rows(tmp_path):
    fit(recipe(), tmp_path / "teacher")
    settings = [[[{"name": "kl"}]], [[{"name": "kl"}], [{"name": "kl", "temperature": 2.0}]]]
    contenders = {name: {"settings": setting} for name, setting in zip(("kl", "both"), settings, strict=True)}
    options = student_recipe(tmp_path / "teacher", title="rows", compare={"contenders": contenders})
    return options.model_copy(update={"train": options.train.model_copy(update={"epochs": 1})})


def test_one_run_is_no_plural():
    stream = io.StringIO()
    reporter = PlainReporter(stream)
    reporter.begin_plan("a", runs=1, done=0)
    reporter.begin_plan("b", runs=2, done=1)
    assert stream.getvalue().splitlines() == ["a: 1 run", "b: 2 runs, 1 finished already"]


def test_lines_tell_each_epoch_with_speed_and_time_left(tmp_path):
    stream = io.StringIO()
    fit(recipe(title="digits"), tmp_path, reporter=PlainReporter(stream))
    first, *epochs, last = stream.getvalue().splitlines()
    assert first == f"digits: {STEPS} steps"
    pattern = (
        r"epoch {}/2: loss \d\.\d{{3}}, train [\d.]+ %, validation [\d.]+ % \([\d,]+ images/s, \d:\d\d:\d\d left\)"
    )
    for number, line in enumerate(epochs, start=1):
        assert re.fullmatch(pattern.format(number), line), line
    assert re.fullmatch(r"digits: test [\d.]+ %", last)


def test_lines_of_a_comparison_are_one_per_run(rows, tmp_path):
    stream = io.StringIO()
    compare(rows, tmp_path / "c", seeds=1, reporter=PlainReporter(stream))
    first, *runs = stream.getvalue().splitlines()
    assert first == "rows: 3 runs"
    for number, line in enumerate(runs, start=1):
        assert re.match(rf"\[{number}/3\] \w+(, setting \d)?, seed 0: test [\d.]+ % \(\d:\d\d:\d\d left\)$", line), line
    stream.truncate(0)
    compare(rows, tmp_path / "c", seeds=1, reporter=PlainReporter(stream))
    assert stream.getvalue().strip("\0").splitlines() == ["rows: 3 runs, 3 finished already"]


def test_bars_show_the_comparison_and_the_run(rows, tmp_path):
    console, stream = terminal()
    compare(rows, tmp_path / "c", seeds=1, reporter=RichReporter(console))
    last = shown_on(stream)[-2:]
    assert "rows" in last[0]
    assert "3/3" in last[0]
    assert "both, setting 1, seed 0" in last[1]
    assert "7/7" in last[1]
    assert "images/s" in last[1]


@pytest.mark.parametrize("width", [80, 120])
def test_narrow_bars_give_up_words_but_neither_times_nor_bar(width):
    console, stream = terminal(width)
    line = {"epoch": 7, "train": {"loss": 0.123, "top1": 0.9}, "validation": {"top1": 0.9}}
    with RichReporter(console) as reporter:
        reporter.begin_plan("A student of 64 units with twenty labels per class of handwritten digits", runs=60, done=3)
        reporter.begin_run("gkl, setting 1, seed 10", steps=1200, done=0)
        reporter.epoch(line, 20)
        reporter.step(1200, 10**7)
        reporter.end_run({})
    plan, run = shown_on(stream)[-2:]
    assert re.search(r"━{10,} +4/60 +\d:\d\d:\d\d [\d:]+ left$", plan.rstrip())
    assert re.search(r"━{10,} 1200/1200 epoch 7/20.* \d:\d\d:\d\d 0:00:00 left$", run.rstrip())
    assert "…" not in run
    assert ("validation 90.0 %" in run) == (width == 120)
    assert "images/s" not in run


def test_a_terminal_is_told_that_torch_is_loaded(monkeypatch):
    for is_terminal in (True, False):
        stream = io.StringIO()
        console = Console(file=stream, force_terminal=is_terminal, width=80)
        monkeypatch.setattr(listings, "Console", lambda *, stderr, console=console: console)
        with listings.loading():
            pass
        assert ("loading torch…" in stream.getvalue()) == is_terminal


def test_bars_give_the_terminal_back_however_the_run_ends(tmp_path):
    console, stream = terminal()

    class Broken(RichReporter):
        def step(self, step, samples):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fit(recipe(), tmp_path, reporter=Broken(console))
    assert stream.getvalue().endswith("\x1b[?25h")  # the cursor is shown again


def test_a_stream_that_is_no_terminal_gets_lines():
    assert isinstance(open_reporter(Console(file=io.StringIO())), PlainReporter)
    assert isinstance(open_reporter(terminal()[0]), RichReporter)


def test_the_default_tells_nothing(tmp_path, capfd):
    fit(recipe(), tmp_path)
    assert capfd.readouterr() == ("", "")
