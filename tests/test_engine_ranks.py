"""Several ranks are one run: the same losses and statistics, one folder, resumable on another number of ranks."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import rank_weights
import torch
from engine_runs import recipe
from safetensors.torch import load_file

from limbeck.config import TERMS
from limbeck.config_files import dump
from limbeck.engine import run_folder
from limbeck.engine.fit import fit
from limbeck.engine.robustness import read_figures
from limbeck.launch import launch

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="gloo and signals as on Linux")
STUDENT = {"name": "convnet", "width": 8, "depth": 2, "norm": "group"}  # BatchNorm's statistics are each rank's own
LOSSES = {
    "gkl": [{"name": "cross_entropy"}, {"name": "gkl", "mse_weight": 4.0, "weight_power": 0.3}],
    "wkd": [{"name": "cross_entropy"}, {"name": "wkd_logit", "transport_weight": 20.0}],
}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    run = tmp_path_factory.mktemp("teacher") / "run"
    model = {"name": "convnet", "width": 8, "depth": 2}
    fit(recipe(data={"labels_per_class": None}, model=model, train={"epochs": 2}), run)
    return run


def options(teacher, losses, **changes):
    base = {
        "task": "distill",
        "teachers": [{"run": str(teacher)}],
        "data": {"labels_per_class": 13, "augment": {"crop_padding": 1}},  # 130 images: the last batch has two
        "model": STUDENT,
        "losses": losses,
        "optimizer": {"learning_rate": 0.01},
        "train": {"epochs": 1, "batch_size": 32},
        "save": {"log_every": 1},
    }
    return recipe(**{**base, **changes})


def attacked(changes=None, **adversary):
    base = {
        "task": "adversarial",
        "data": {"labels_per_class": 13, "standardise": False},
        "model": STUDENT,
        "losses": LOSSES["gkl"],
        "adversary": {"epsilon": 0.1, "steps": 2, **adversary},
        "optimizer": {"learning_rate": 0.01},
        "train": {"epochs": 1, "batch_size": 32},
        "save": {"log_every": 1},
    }
    return recipe(**{**base, **(changes or {})})


def train(file: Path, run: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "limbeck", "train", str(file), "--run", str(run), *more]
    return subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)


def on_one_and_on_two_ranks(content, tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(dump(content))
    fit(content, tmp_path / "one")
    ended = train(file, tmp_path / "two", "--nproc", "2")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("Run folder") == 1  # one rank speaks
    return tmp_path / "one", tmp_path / "two"


def read_lines(run):
    return [json.loads(line) for line in (run / run_folder.METRICS).read_text().splitlines()]


def curve(run):
    return [line["loss"] for line in read_lines(run) if line["kind"] == "step"]


def losses_of(run):
    return torch.load(run / run_folder.CHECKPOINT, weights_only=True)["losses"]


def assert_one_run(one, two):
    assert curve(two) == pytest.approx(curve(one), rel=1e-4)
    first, second = losses_of(one), losses_of(two)
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert (value.double() - second[name].double()).abs().max() <= 1e-6, name
    measured = [run_folder.read_results(run)["last"]["test"] for run in (one, two)]
    assert measured[1]["samples"] == measured[0]["samples"]
    assert measured[1]["nll"] == pytest.approx(measured[0]["nll"], rel=1e-3)


@pytest.mark.parametrize("name", LOSSES)
def test_two_ranks_have_the_losses_and_the_statistics_of_one(name, teacher, tmp_path):
    assert_one_run(*on_one_and_on_two_ranks(options(teacher, LOSSES[name]), tmp_path))


def test_two_ranks_learn_phase_by_phase_as_one(tmp_path):
    content = recipe(
        task="distill",
        incremental={"phases": 2},
        data={"labels_per_class": 12, "class_order": "drawn"},
        model=STUDENT,
        losses=LOSSES["gkl"],
        optimizer={"learning_rate": 0.01},
        train={"epochs": 1, "batch_size": 32},
        save={"log_every": 1},
    )
    one, two = on_one_and_on_two_ranks(content, tmp_path)
    assert_one_run(one / "phase0", two / "phase0")
    assert curve(two / "phase1") == pytest.approx(curve(one / "phase1"), rel=2e-4)
    kept = [run_folder.read_results(run)["incremental"]["after_phase"] for run in (one, two)]
    assert kept[1] == pytest.approx(kept[0], abs=0.01)


def test_two_ranks_compare_views_as_one(tmp_path):
    data = {"name": "mnist5k", "labels_per_class": 5, "test": 0.05, "validation": 0.01, "augmix": {"views": 2}}
    content = recipe(
        task="consistency",
        data=data,
        model=STUDENT,
        losses=[*LOSSES["gkl"], {"name": "multi_js", "weight": 4.0}],
        optimizer={"learning_rate": 0.01},
        train={"epochs": 1, "batch_size": 18},
        save={"log_every": 1},
    )
    assert_one_run(*on_one_and_on_two_ranks(content, tmp_path))


@pytest.mark.parametrize(
    "options",
    [{"confidence": 0.15}, {"method": "mean_teacher", "confidence": 0.15, "evaluate": "teacher", "teacher_decay": 0.9}],
    ids=["fixmatch", "mean_teacher"],
)
def test_two_ranks_share_a_pool_as_one(options, tmp_path):
    unlabelled = {"ratio": 3, "strong": {"crop_padding": 2}, "steps_per_epoch": 4}
    content = recipe(
        task="semi_supervised",
        data={"labels_per_class": 3, "unlabelled": unlabelled},
        model=STUDENT,
        losses=LOSSES["gkl"],
        semi_supervised=options,
        optimizer={"learning_rate": 0.01},
        train={"epochs": 1, "batch_size": 14, "accumulate": 2},  # parts of 3 and 4 samples
        save={"log_every": 1},
    )
    one, two = on_one_and_on_two_ranks(content, tmp_path)
    assert any(line["parts"]["mask"] > 0 for line in read_lines(one) if line["kind"] == "step")
    assert_one_run(one, two)


def test_two_ranks_mix_the_images_of_the_whole_batch(teacher, tmp_path):
    content = options(teacher, LOSSES["gkl"], data={"labels_per_class": 13, "augment": {"mixup": 1.0}})
    assert_one_run(*on_one_and_on_two_ranks(content, tmp_path))


def test_two_ranks_attack_and_perturb_as_one(tmp_path):
    one, two = on_one_and_on_two_ranks(attacked(awp=0.005), tmp_path)
    assert curve(two) == pytest.approx(curve(one), rel=1e-4)
    # The prior is of the network's own logits, whose weights differ by rounding.
    priors = [losses_of(run)["gkl.prior.prior"] for run in (one, two)]
    assert (priors[0] - priors[1]).abs().max() < 1e-5


def test_averaged_weights_are_measured_as_the_first_rank_has_them(teacher, tmp_path):
    train_options = {"epochs": 2, "batch_size": 32, "ema_decay": 0.9}
    content = options(teacher, LOSSES["wkd"], model={**STUDENT, "norm": "batch"}, train=train_options)
    _, two = on_one_and_on_two_ranks(content, tmp_path)
    last = [line for line in read_lines(two) if line["kind"] == "epoch"][-1]
    assert last["ema_validation"]["nll"] == pytest.approx(run_folder.read_results(two)["ema"]["validation"]["nll"])


def test_micro_batches_of_two_ranks_are_those_of_one_batch(teacher, tmp_path):
    content = options(teacher, LOSSES["wkd"], train={"epochs": 1, "batch_size": 26, "accumulate": 2})
    whole = options(teacher, LOSSES["wkd"], train={"epochs": 1, "batch_size": 26})
    fit(whole, tmp_path / "whole")
    _, two = on_one_and_on_two_ranks(content, tmp_path)
    assert curve(two) == pytest.approx(curve(tmp_path / "whole"), rel=1e-4)


def test_a_batch_too_small_for_the_ranks_is_refused_before_training(teacher, tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(dump(options(teacher, LOSSES["wkd"], train={"epochs": 1, "batch_size": 43})))
    ended = train(file, tmp_path / "run", "--nproc", "2")
    assert ended.returncode == 2
    assert "leaves a batch of 1 of the 130 training images for 2 ranks" in ended.stderr
    assert "Traceback" not in ended.stderr


def children(parent: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1]) == parent:
                    found.append(int(entry.name))
            except (OSError, IndexError):
                continue
    return sorted(found)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for the ranks in /proc")
def test_a_rank_that_dies_is_named_and_the_run_resumes_on_one(teacher, tmp_path):
    file = tmp_path / "recipe.yaml"
    content = options(teacher, LOSSES["gkl"], train={"epochs": 100, "batch_size": 32}, save={"every_steps": 5})
    file.write_text(dump(content))
    command = [sys.executable, "-m", "limbeck", "train", str(file), "--run", str(tmp_path / "run"), "--nproc", "2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        while not (tmp_path / "run" / run_folder.CHECKPOINT).exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        os.kill(children(process.pid)[1], signal.SIGKILL)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "rank 1 of 2 died by SIGKILL" in said
    assert "continues it (train: with --resume), on any number of ranks" in said
    assert "Traceback" not in said
    step = torch.load(tmp_path / "run" / run_folder.CHECKPOINT, weights_only=True)["step"]
    assert 0 < step < 100 * 5
    state = train(file, tmp_path / "run", "--resume")
    assert state.returncode == 0, state.stderr
    assert run_folder.read_results(tmp_path / "run")["steps"] == 100 * 5


def test_a_mistake_of_all_ranks_is_their_line_and_their_exit_code(tmp_path, capfd):
    assert launch(["train", str(tmp_path / "none.yaml")], 2) == 2
    said = capfd.readouterr().err
    assert "no such file" in said
    assert said.count("limbeck:") == 1


def limbeck(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "limbeck", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)


def test_two_ranks_share_the_attacks_on_a_run(tmp_path):
    pytest.importorskip("pyautoattack")
    # 270 test images: two chunks of AutoAttack, two batches of everything else.
    data = {"labels_per_class": 13, "standardise": False, "test": 0.15}
    content = attacked({"data": data}, attacks=["pgd5"])
    fit(content, tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    for name, nproc in (("one", "1"), ("two", "2")):
        ended = limbeck("evaluate", str(tmp_path / name), "--attacks", "pgd5,aa", "--epsilon", "0.15", "--nproc", nproc)
        assert ended.returncode == 0, ended.stderr
        assert ended.stdout.count("Figures and flags") == 1
    figures = [read_figures(tmp_path / name) for name in ("one", "two")]
    for row in (row for content in figures for row in content["rows"]):
        row.pop("seconds")
    assert figures[1] == figures[0]
    files = [np.load(tmp_path / name / "robust_predictions.npz") for name in ("one", "two")]
    assert files[0].files == files[1].files
    for name in files[0].files:
        np.testing.assert_array_equal(files[1][name], files[0][name], err_msg=name)
    chunks = [sorted(file.name for file in (tmp_path / name / "autoattack").iterdir()) for name in ("one", "two")]
    assert len(chunks[0]) > 1
    assert chunks[1] == chunks[0]


def test_two_ranks_share_each_run_of_a_comparison(teacher, tmp_path):
    rows = {name: {"settings": [terms]} for name, terms in LOSSES.items()}
    content = options(teacher, LOSSES["wkd"], compare={"contenders": rows, "baseline": "wkd"})
    file = tmp_path / "recipe.yaml"
    file.write_text(dump(content))
    for name, nproc in (("one", "1"), ("two", "2")):
        words = ("compare", str(file), "--seeds", "2", "--folder", str(tmp_path / name), "--nproc", nproc)
        ended = limbeck(*words)
        assert ended.returncode == 0, ended.stderr
        assert "Trained 4 runs" in ended.stdout
    for run in (f"{row}/setting0/seed{seed}" for row in LOSSES for seed in (0, 1)):
        assert curve(tmp_path / "two" / run) == pytest.approx(curve(tmp_path / "one" / run), rel=1e-4)
    again = limbeck(*words)
    assert again.returncode == 0, again.stderr
    assert "nothing was trained" in again.stdout
    assert not (tmp_path / "two" / run_folder.LOCK).exists()


def test_runs_at_once_and_ranks_of_a_run_are_one_or_the_other(tmp_path):
    ended = limbeck("compare", "distill/digits/few-labels", "--workers", "2", "--nproc", "2")
    assert ended.returncode == 2
    assert "expected one of --workers" in ended.stderr


WITH_PROJECTOR = [*LOSSES["wkd"], {"name": "wkd_feature", "features": ["last"], "projector": "conv1x1"}]


@pytest.mark.parametrize("batch_norm", [{"batch_norm": "synchronised"}, {"ghost_batch": 8}])
def test_two_ranks_normalise_as_one(batch_norm, teacher, tmp_path):
    train_options = {"epochs": 2, "batch_size": 32, "drop_last": "ghost_batch" in batch_norm, **batch_norm}
    content = options(teacher, WITH_PROJECTOR, model={**STUDENT, "norm": "batch"}, train=train_options)
    one, two = on_one_and_on_two_ranks(content, tmp_path)
    assert curve(two) == pytest.approx(curve(one), rel=1e-4)
    weights = [load_file(run / run_folder.WEIGHTS["last"]) for run in (one, two)]
    assert any("running_var" in name for name in weights[0])
    for name, value in weights[0].items():
        assert (value.double() - weights[1][name].double()).abs().max() <= 1e-4, name


RELATED = [
    {"name": "dist"},
    {"name": "mlkd"},
    {"name": "rkd"},
    {"name": "cc"},
    {"name": "pkt"},
    {"name": "sp"},
    {"name": "emd", "features": ["last"]},
    {"name": "uskd", "features": ["stage1"]},
]


def test_losses_that_relate_samples_see_the_whole_batch_when_asked(teacher, tmp_path):
    terms = [{"name": "cross_entropy"}, *({**term, "weight": 0.1} for term in RELATED)]
    train_options = {"epochs": 1, "batch_size": 33, "gather": True}  # parts of 16 and 17
    one, two = on_one_and_on_two_ranks(options(teacher, terms, train=train_options), tmp_path)
    lines = [[line["parts"] for line in read_lines(run) if line["kind"] == "step"] for run in (one, two)]
    for ours, theirs in zip(*lines, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-6)
    assert curve(two) == pytest.approx(curve(one), rel=1e-4)
    known = {name for name, term in TERMS.items() if term.relates_samples}
    assert known == {term["name"] for term in RELATED}


@pytest.fixture(scope="module")
def teacher_of_mnist5k(tmp_path_factory):
    run = tmp_path_factory.mktemp("teacher") / "run"
    model = {"name": "convnet", "width": 16, "depth": 2}
    train_options = {"epochs": 1, "batch_size": 64}
    fit(recipe(data={"name": "mnist5k", "labels_per_class": None}, model=model, train=train_options), run)
    return run


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gkl", "wkd", "gkl-at"])
def test_two_ranks_repeat_an_epoch_of_mnist5k(name, teacher_of_mnist5k, tmp_path):
    data = {"name": "mnist5k", "labels_per_class": 280, "validation": 0.1, "augment": {"crop_padding": 2}}
    train_options = {"epochs": 1, "batch_size": 96}
    shared = {"data": data, "train": train_options, "optimizer": {"learning_rate": 0.02}}
    if name == "gkl-at":
        content = attacked({**shared, "data": {**data, "standardise": False}}, awp=0.005, validation_attack="pgd1")
    else:
        content = options(teacher_of_mnist5k, LOSSES[name], **shared)
    one, two = on_one_and_on_two_ranks(content, tmp_path)
    assert len(curve(one)) == 30  # 2,800 images; the last batch has sixteen
    assert curve(two) == pytest.approx(curve(one), rel=1e-4)
    measured = [run_folder.read_results(run)["last"]["validation"] for run in (one, two)]
    assert measured[0]["samples"] == 350  # two batches, one of each rank
    assert measured[1] == pytest.approx(measured[0], rel=1e-2)
    if name != "wkd":
        priors = [next(value for key, value in losses_of(run).items() if key.endswith(".prior")) for run in (one, two)]
        # Measured 0 and 2e-7; an attack's sign turns the rounding of a small gradient into a pixel's whole step.
        assert (priors[0] - priors[1]).abs().max() < (1e-6 if name == "gkl" else 1e-5)


def test_ranks_with_batch_norms_of_their_own_are_perturbed_alike(tmp_path):
    content = attacked({"model": {**STUDENT, "norm": "batch"}}, awp=0.05)
    torch.multiprocessing.start_processes(
        rank_weights.train, args=(2, tmp_path, content), nprocs=2, start_method="spawn"
    )
    seen = torch.load(tmp_path / "seen.pt")
    assert len(seen) == 2 * len(curve(tmp_path / "run"))
    assert max(seen) == 0


def test_a_checkpoint_between_two_lines_of_the_log_has_the_statistics_of_all_ranks(teacher, tmp_path):
    save = {"log_every": 1000, "every_steps": 3, "every_epochs": 5}
    train_options = {"epochs": 3, "batch_size": 32, "refresh_every": 1000}
    content = options(teacher, LOSSES["gkl"], train=train_options, save=save)
    one, two = on_one_and_on_two_ranks(content, tmp_path)
    (counts,) = (value for name, value in losses_of(two).items() if name.endswith("counts"))
    assert counts.sum() == 3 * 130
    pending = [next(v for name, v in losses_of(run).items() if name.endswith("pending")) for run in (one, two)]
    torch.testing.assert_close(pending[1], pending[0], rtol=0, atol=1e-6)
