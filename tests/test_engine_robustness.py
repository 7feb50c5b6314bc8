"""What `limbeck evaluate --attacks` measures of a run, keeps in its folder, adds to and goes on with."""

from __future__ import annotations

import importlib
import io
import json
import re

import numpy as np
import pyautoattack
import pytest
import torch
from attacked_nets import QuickAutoAttack
from engine_runs import recipe
from folders import write_imagenet
from rich.console import Console
from safetensors.torch import load_file, save_file

from limbeck import cli
from limbeck.config import DataOptions, Recipe
from limbeck.config_adversary import AttackRequest, read_attacks, read_epsilons
from limbeck.data import Pixels, Source, build_data, normalise
from limbeck.data.user import user_data
from limbeck.engine import robustness, run_folder
from limbeck.engine.evaluate import attack_file, attack_folder, attack_run
from limbeck.engine.fit import fit
from limbeck.engine.progress import PlainReporter, Reporter, RichReporter
from limbeck.engine.robustness import FIGURES, PREDICTIONS, OnPixels, evaluate_robustness
from limbeck.errors import EXIT_INTERRUPTED, Interrupted, UserError
from limbeck.models import build_model

adapter = importlib.import_module("limbeck.adversary.autoattack")
evaluation = importlib.import_module("limbeck.adversary.evaluate")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(pyautoattack, "AutoAttack", QuickAutoAttack)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run on standardised digits, 60 of them for testing."""
    run = tmp_path_factory.mktemp("trained") / "run"
    fit(recipe(data={"labels_per_class": None, "test": 0.035, "validation": 0.5}), run)
    return run


@pytest.fixture
def run(trained, tmp_path):
    """A copy of the run, without what attacks have left."""
    folder = tmp_path / "run"
    folder.mkdir()
    for path in trained.iterdir():
        if path.is_file():
            (folder / path.name).write_bytes(path.read_bytes())
    return folder


def request(attacks="pgd5", epsilons=(0.1,), norm=None, file=None):
    return AttackRequest(tuple(attacks.split(",")), epsilons, norm, file)


def attacked(run, *arguments, which=None, reporter=None, **options):
    return attack_run(run, request(*arguments, **options), which=which, reporter=reporter or Reporter())


def rows(content):
    return [(row["attack"], row["epsilon"]) for row in content["rows"]]


def arrays(run, suffix=""):
    with np.load(run / PREDICTIONS.format(suffix)) as file:
        return dict(file)


# --- what is measured -------------------------------------------------------------------------------------


def test_the_file_holds_what_is_returned(run):
    content = attacked(run, "clean,pgd5,cw5", (0.1, 0.2))
    assert json.loads((run / "robustness.json").read_text()) == content
    assert rows(content) == [("pgd5", 0.1), ("pgd5", 0.2), ("cw5", 0.1), ("cw5", 0.2)]
    figures = {"format": 1, "weights": "last", "split": "test", "samples": 60, "norm": "linf", "seed": 0}
    assert {key: content[key] for key in figures} == figures
    assert [case["epsilon"] for case in content["worst"]] == [0.1, 0.2]
    assert [mean["attack"] for mean in content["averages"]] == ["pgd5", "cw5"]
    accuracies = [row["accuracy"] for row in content["rows"]]
    assert content["clean"] > accuracies[0] > accuracies[1]


def test_the_clean_figure_is_the_runs_own_though_its_images_are_standardised(run):
    results = run_folder.read_results(run)
    assert attacked(run)["clean"] == results["last"]["test"]["top1"]
    with np.load(run / run_folder.PREDICTIONS) as predictions:
        assert np.array_equal(arrays(run)["clean_logits"], predictions["test_logits"])  # to the bit
        assert np.array_equal(arrays(run)["clean_features"], predictions["test_features"])


def test_attacks_move_pixels_of_standardised_images():
    pixels = Pixels(16, (0.3,), (0.25,))
    images = torch.randint(0, 17, (5, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    seen = []
    on_pixels = OnPixels(lambda_module(seen.append), pixels, torch.device("cpu"))
    on_pixels(images.float() / 16)
    assert torch.equal(seen[0], normalise(images, pixels))


def lambda_module(call):
    module = torch.nn.Identity()
    module.register_forward_pre_hook(lambda _, inputs: call(inputs[0]))
    return module


def test_the_arrays_are_of_pgd_20_at_the_first_radius(run):
    content = attacked(run, "pgd20", (0.15, 0.1))
    found = arrays(run)
    assert found["labels"].shape == (60,)
    assert found["adversarial_epsilon"] == 0.15
    left = found["adversarial_logits"].argmax(1) == found["labels"]
    assert np.array_equal(left, found["robust__pgd20__0.15"])
    assert left.mean() == content["rows"][0]["accuracy"]
    assert found["adversarial_features"].shape == found["clean_features"].shape == (60, 8)
    assert not np.array_equal(found["adversarial_features"], found["clean_features"])


def test_only_the_first_features_are_kept(run, monkeypatch):
    monkeypatch.setattr(robustness, "MAX_FEATURES", 10)
    attacked(run)
    assert arrays(run)["clean_features"].shape == (10, 8)
    assert arrays(run)["clean_logits"].shape == (60, 10)


def test_the_recipe_says_what_the_request_leaves_open(run):
    content = attack_run(run, AttackRequest(None, None, None, None), which=None, reporter=Reporter())
    assert rows(content) == [("pgd20", 8 / 255)]
    assert content["norm"] == "linf"
    assert f"robust__pgd20__{8 / 255!r}" in arrays(run)


def test_a_file_of_weights_is_as_its_run(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    expected = attacked(run, "pgd5")
    options = recipe(data={"labels_per_class": None, "test": 0.035, "validation": 0.5})
    content = attack_file(options, run / "weights.safetensors", request("pgd5"), reporter=Reporter())
    assert content["rows"][0]["accuracy"] == expected["rows"][0]["accuracy"]
    assert attack_folder(run / "weights.safetensors") == (tmp_path / "runs/evaluate-weights").relative_to(tmp_path)
    assert (tmp_path / "runs/evaluate-weights/robustness.json").is_file()


# --- a second call ----------------------------------------------------------------------------------------


def test_a_second_call_adds_rows_and_the_worst_case_is_over_all(run):
    first = attacked(run, "pgd20", (0.1, 0.2))
    second = attacked(run, "cw20", (0.2,))
    assert rows(second) == [*rows(first), ("cw20", 0.2)]
    assert second["worst"][1]["attacks"] == ["pgd20", "cw20"]
    found = arrays(run)
    everywhere = (
        found["robust__pgd20__0.2"] & found["robust__cw20__0.2"] & (found["clean_logits"].argmax(1) == found["labels"])
    )
    assert second["worst"][1]["accuracy"] == everywhere.mean()
    assert found["adversarial_epsilon"] == 0.1  # of the first call


def test_an_evaluation_that_was_killed_between_its_two_files_is_made_again(run):
    """The flags of the last attack are there, its row is not."""
    attacked(run, "pgd5")
    before = (run / FIGURES.format("")).read_bytes()
    attacked(run, "cw5")
    (run / FIGURES.format("")).write_bytes(before)
    assert rows(attacked(run, "cw5")) == [("pgd5", 0.1), ("cw5", 0.1)]


def test_other_weights_have_files_of_their_own(run):
    attacked(run, "pgd5")
    content = attacked(run, "pgd5", which="best")
    assert content["weights"] == "best"
    assert rows(content) == [("pgd5", 0.1)]
    assert json.loads((run / FIGURES.format("")).read_text())["weights"] == "last"
    assert (run / "robustness-best.json").is_file()
    assert (run / "robust_predictions-best.npz").is_file()


def test_another_norm_has_files_of_its_own(run):
    attacked(run, "pgd5")
    content = attacked(run, "pgd5", (0.5,), norm="l2")
    assert (content["norm"], rows(content)) == ("l2", [("pgd5", 0.5)])
    assert json.loads((run / "robustness-l2.json").read_text()) == content


def test_rows_of_other_weights_do_not_stay(run):
    attacked(run, "pgd5", (0.1, 0.2))
    weights = load_file(run / "weights.safetensors")
    weights["head.bias"] += 1e-6
    save_file(weights, run / "weights.safetensors")
    assert rows(attacked(run, "cw5")) == [("cw5", 0.1)]


@pytest.mark.parametrize(("name", "content"), [("robustness.json", b"{"), ("robust_predictions.npz", b"PK")])
def test_a_damaged_file_is_made_again(run, name, content):
    attacked(run, "pgd5", (0.2,))
    (run / name).write_bytes(content)
    assert rows(attacked(run, "pgd5")) == [("pgd5", 0.1)]
    assert rows(attacked(run, "cw5")) == [("pgd5", 0.1), ("cw5", 0.1)]


# --- AutoAttack -------------------------------------------------------------------------------------------


def test_autoattack_goes_on_after_ctrl_c(run, monkeypatch):
    monkeypatch.setattr(adapter, "CHUNK", 40)
    calls, perturb = [], adapter._perturb

    def wrapped(*arguments):
        calls.append(arguments[1])
        if len(calls) == 6:
            raise KeyboardInterrupt
        return perturb(*arguments)

    monkeypatch.setattr(adapter, "_perturb", wrapped)
    with pytest.raises(Interrupted, match="go on with the same command"):
        attacked(run, "aa")
    content = attacked(run, "aa")
    assert calls[6:] == list(adapter.STANDARD)  # the second chunk alone
    assert content["rows"][0]["standard"] is True
    assert not (run / ".lock").exists()
    attacked(run, "aa")
    assert len(calls) == 10  # nothing is attacked twice


def test_a_missing_extra_is_one_line(run, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyautoattack", None)
    with pytest.raises(UserError, match=r'pip install "limbeck\[autoattack\]"'):
        attacked(run, "pgd5,aa")
    assert not (run / "robustness.json").exists()


def test_robustbench_gets_an_entry(run, tmp_path):
    file = tmp_path / "entry.json"
    content = attacked(run, "aa", (0.1, 0.2), file=file)
    entry = json.loads(file.read_text())
    assert (entry["dataset"], entry["architecture"], entry["eps"]) == ("digits", "mlp", "0.1")
    assert float(entry["autoattack_acc"]) == pytest.approx(100 * content["rows"][0]["accuracy"], abs=0.005)


# --- any source -------------------------------------------------------------------------------------------


def model_of_digits():
    return build_model(recipe().model, image_shape=(1, 8, 8), num_classes=10, seed=0)


def user_test(images, labels):
    batches = [(images, labels)]
    device = torch.device("cpu")
    return user_data(batches, None, batches, unpack=lambda batch: batch, num_classes=10, device=device).test


def measure(source, folder, attacks=("pgd2",), epsilons=(0.1,), **options):
    return evaluate_robustness(
        model_of_digits(),
        source,
        recipe(),
        attacks=attacks,
        epsilons=epsilons,
        folder=folder,
        reporter=Reporter(),
        **options,
    )


def test_a_users_images_are_attacked_as_they_are(tmp_path):
    images = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert measure(user_test(images, torch.arange(6)), tmp_path)["samples"] == 6


@pytest.mark.parametrize(
    ("images", "labels", "attacks", "epsilons", "message"),
    [
        (torch.full((2, 1, 8, 8), 1.5), [0, 1], ["pgd2"], [0.1], r"`images` expected pixels in \[0, 1\], got 1\.5"),
        (torch.rand(2, 64), [0, 1], ["pgd2"], [0.1], r"`images` expected shape \(N, C, H, W\)"),
        (torch.rand(2, 1, 8, 8), [0, 1], ["pgd"], [0.1], "`attacks` expected clean, pgdN.*did you mean"),
        (torch.rand(2, 1, 8, 8), [0, 1], ["pgd2"], [-1], "`epsilons` expected numbers above 0"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(images, labels, attacks, epsilons, message, tmp_path):
    with pytest.raises(UserError, match=message):
        measure(user_test(images, torch.tensor(labels)), tmp_path, attacks, epsilons)
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_classifies_no_images_is_not_attacked(tmp_path):
    other = recipe().model_copy(update={"task": "segment"})
    source = user_test(torch.rand(2, 1, 8, 8), torch.tensor([0, 1]))
    with pytest.raises(UserError, match="expected a network that classifies images, got one of task `segment`"):
        evaluate_robustness(
            torch.nn.Identity(), source, other, attacks=["pgd2"], epsilons=[0.1], folder=tmp_path, reporter=Reporter()
        )


def test_without_test_images_nothing_is_measured(tmp_path):
    empty = Source(
        torch.zeros(0, 1, 8, 8, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64), Pixels(16, (0,), (1,))
    )
    with pytest.raises(UserError, match="robustness is measured on test images, got none"):
        measure(empty, tmp_path)


def test_a_network_whose_gradient_is_not_finite_is_one_line(tmp_path):
    source = user_test(torch.rand(2, 1, 8, 8), torch.tensor([0, 1]))
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    model[1].weight.data.fill_(torch.inf)
    with pytest.raises(UserError, match="expected finite logits"):
        evaluate_robustness(
            model, source, recipe(), attacks=["pgd2"], epsilons=[0.1], folder=tmp_path, reporter=Reporter()
        )


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "autoattack").write_text("in the way")
    source = user_test(torch.rand(2, 1, 8, 8), torch.tensor([0, 1]))
    with pytest.raises(UserError, match=r"cannot be written \(.*\); mend this and evaluate again"):
        measure(source, tmp_path, ["aa"])


# --- the command line -------------------------------------------------------------------------------------


def test_the_command_prints_a_row_per_attack_and_radius(run, capsys):
    words = ["evaluate", str(run), "--attacks", "clean,pgd5,aa", "--epsilon", "0.1,8/255"]
    assert cli.main(words) == 0
    out = capsys.readouterr().out
    lines = [line.split() for line in out.splitlines()]
    assert [line[:2] for line in lines if line and line[0] in ("clean", "pgd5", "aa")] == [
        ["clean", "-"],
        ["pgd5", "0.1"],
        ["pgd5", "8/255"],
        ["aa", "0.1"],
        ["aa", "8/255"],
    ]
    assert "worst case per image" in out
    assert "average over epsilon" in out
    assert "pyautoattack 0.2.0" in out
    assert max(map(len, out.splitlines())) <= 120


def test_warnings_are_printed(run, capsys):
    content = attacked(run, "pgd5")
    (run / "robustness.json").write_text(json.dumps(content | {"warnings": ["gradients are masked"]}))
    assert cli.main(["evaluate", str(run), "--attacks", "clean"]) == 0
    assert "WARNING: gradients are masked." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--attacks", "pdg20"], "got `pdg20`; did you mean `pgd20`?"),
        (["--attacks", ","], "--attacks expected names"),
        (["--epsilon", "0"], "--epsilon expected numbers above 0 such as 0.1 or 8/255, got `0`"),
        (["--epsilon", "8/0"], "got `8/0`"),
        (["--epsilon", "a"], "got `a`"),
        (["--epsilon", "inf"], "got `inf`"),
        (["--epsilon", ""], "--epsilon expected radii"),
        (["--norm", "l1"], "l1"),
        (["--attacks", "pgd20", "--robustbench", "x.json"], "--robustbench expected `aa` among --attacks"),
        (["--attacks", "aa", "--robustbench", "no/such/x.json"], "there is no folder no/such"),
    ],
)
def test_a_mistake_on_the_line_is_told_before_torch_is_loaded(words, message, capsys, monkeypatch):
    monkeypatch.setattr("limbeck.engine.evaluate.attack_run", lambda *_, **__: pytest.fail("the engine was called"))
    assert cli.main(["evaluate", "run", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_ctrl_c_has_the_exit_code_of_a_stopped_run(run, monkeypatch, capsys):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(robustness, "evaluate", stop)
    assert cli.main(["evaluate", str(run), "--attacks", "pgd5"]) == EXIT_INTERRUPTED
    assert "go on with the same command" in capsys.readouterr().err


def test_radii_may_be_fractions():
    assert read_epsilons("8/255, .1") == (8 / 255, 0.1)
    assert read_attacks("pgd20 , aa,") == ("pgd20", "aa")


# --- progress ---------------------------------------------------------------------------------------------


def test_lines_say_what_is_done_and_what_is_left(monkeypatch):
    now = iter([0.0, 0.0, 30.0, 100.0, 100.0, 120.0])
    monkeypatch.setattr("limbeck.engine.progress.time.monotonic", lambda: next(now))
    stream = io.StringIO()
    reporter = PlainReporter(stream)
    for done in (200, 300, 400, 500):  # the first 200 in an earlier session
        reporter.attack("aa, epsilon 0.1", done=done, images=500)
    assert stream.getvalue().splitlines() == [
        "aa, epsilon 0.1: 400 of 500 images, 0:00:50 left",
        "aa, epsilon 0.1: 500 of 500 images",
    ]


def test_a_bar_takes_the_place_of_the_one_before():
    stream = io.StringIO()
    with RichReporter(Console(file=stream, force_terminal=True, width=120)) as reporter:
        for title in ("pgd20, epsilon 0.1", "aa, epsilon 0.1"):
            for done in (0, 250, 500):
                reporter.attack(title, done=done, images=500)
    last = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", stream.getvalue()).replace("\r", "").splitlines()[-1]
    assert "aa, epsilon 0.1" in last
    assert "500/500" in last
    assert "0:00:00 left" in last


def test_more_test_images_than_memory_holds_are_not_attacked(tmp_path, monkeypatch):
    options = DataOptions(
        name="imagenet", folder=str(write_imagenet(tmp_path, train=3, val=1)), image_size=32, test_resize=32
    )
    data = build_data(options)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 10))
    monkeypatch.setattr(robustness, "MOST_BYTES", 2**16)
    with pytest.raises(UserError, match="keep the test images in memory, at most 0 GiB, got 10 images"):
        evaluate_robustness(
            network, data.test, Recipe(), attacks=["pgd1"], epsilons=[0.1], folder=tmp_path / "run", reporter=Reporter()
        )
