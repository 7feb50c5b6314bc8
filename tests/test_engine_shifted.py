"""ImageNet-V2, -Sketch and -R beside the test split: whose classes they have, and what a run says of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from folders import RENDERED, WNIDS, write_imagenet, write_shifted
from torch import nn

from limbeck.cli import main
from limbeck.config import DataOptions, Recipe
from limbeck.config_data import ShiftedTests, read_shifted
from limbeck.data import build_data
from limbeck.engine.fit import fit
from limbeck.engine.shifted import measure_shifted
from limbeck.errors import UserError

SIZES = {"image_size": 8, "test_resize": 9, "workers": 0, "validation": 0}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("shifted")
    write_imagenet(root / "imagenet", train=2, val=1)
    return {"folder": str(root / "imagenet"), "shifted_tests": write_shifted(root)}


@pytest.fixture(scope="module")
def run(folders, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    fit(recipe(folders), folder)
    return folder


def recipe(folders):
    return Recipe.model_validate(
        {
            "data": {"name": "imagenet", **folders, **SIZES},
            "model": {"name": "mlp", "width": 8, "depth": 1},
            "train": {"epochs": 1, "batch_size": 10, "threads": 1},
            "save": {"tensorboard": False},
        }
    )


class Says(nn.Module):
    """Logits that are the same for all images."""

    def __init__(self, logits):
        super().__init__()
        self.logits = logits

    def forward(self, images):
        return self.logits.expand(len(images), -1)


def test_labels_follow_the_name_of_the_class_or_its_number(folders):
    data = build_data(DataOptions(name="imagenet", **folders, **SIZES))
    v2, sketch, rendered = (data.shifted[name] for name in ("imagenet_v2", "imagenet_sketch", "imagenet_r"))
    for test in (v2, sketch):
        assert test.classes.tolist() == list(range(10))
    assert sketch.samples.labels.tolist() == sorted(list(range(10)) * 2)
    for place, label in zip(v2.samples.places.tolist(), v2.samples.labels.tolist(), strict=True):
        assert v2.samples.files.name(place).split("/")[0] == str(label)
    assert [WNIDS[label] for label in rendered.classes] == list(RENDERED)
    for place, label in zip(rendered.samples.places.tolist(), rendered.samples.labels.tolist(), strict=True):
        assert rendered.samples.files.name(place).split("/")[0] == RENDERED[label]


def test_numbers_are_read_as_numbers_and_not_as_words(tmp_path):
    """Of eleven classes the folder `10` comes before `2` by name."""
    names = [f"c{label:02d}" for label in range(11)]
    write_imagenet(tmp_path / "data", train=1, val=1, classes=names)
    write_imagenet(tmp_path / "v2", train=1, val=0, classes=[str(label) for label in range(11)])
    tests = {"imagenet_v2": str(tmp_path / "v2" / "train")}
    options = {"name": "imagenet", "folder": str(tmp_path / "data"), "shifted_tests": tests, **SIZES}
    test = build_data(DataOptions.model_validate(options)).shifted["imagenet_v2"]
    found = {test.samples.files.name(p).split("/")[0]: label.item() for p, label in enumerate(test.samples.labels)}
    assert found == {str(label): label for label in range(11)}


def test_logits_of_classes_that_a_test_has_not_are_left_out(folders):
    """The network prefers class 0, which the folder lacks, and then the class of its first images."""
    data = build_data(DataOptions(name="imagenet", **folders, **SIZES))
    logits = torch.zeros(10)
    logits[0], logits[WNIDS.index(RENDERED[0])] = 9.0, 5.0
    metrics = measure_shifted(Says(logits), data)["shifted"]
    assert metrics["imagenet_r"]["top1"] == 1 / len(RENDERED)
    assert metrics["imagenet_sketch"]["top1"] == 0.1
    assert "top5" not in metrics["imagenet_r"]
    assert metrics["imagenet_v2"]["top5"] >= 0.5


def test_a_run_keeps_them_and_evaluate_finds_them_again(run, folders, capsys):
    results = json.loads((run / "results.json").read_text())
    shifted = results["last"]["shifted"]
    assert {name: values["samples"] for name, values in shifted.items()} == {
        "imagenet_v2": 20,
        "imagenet_sketch": 20,
        "imagenet_r": 8,
    }
    assert main(["evaluate", str(run), "--shifted", f"imagenet_r={folders['shifted_tests']['imagenet_r']}"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    row = next(line for line in lines if "imagenet_r" in line)
    assert float(row[2]) == pytest.approx(100 * shifted["imagenet_r"]["top1"], abs=0.01)
    assert not any("imagenet_v2" in line for line in lines)


def test_folders_start_at_the_data_folder_and_those_of_the_terminal_at_the_current_one(
    run, folders, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    tests = {"imagenet_r": "../imagenet_r", "imagenet_sketch": folders["shifted_tests"]["imagenet_sketch"]}
    options = {"name": "imagenet", **folders, **SIZES, "shifted_tests": tests}
    shifted = build_data(DataOptions.model_validate(options)).shifted
    assert {name: len(test.samples) for name, test in shifted.items()} == {"imagenet_r": 8, "imagenet_sketch": 20}

    root = Path(folders["folder"]).parent
    monkeypatch.chdir(root)
    assert main(["evaluate", str(run), "--shifted", "imagenet_r=imagenet_r"]) == 0
    assert "imagenet_r" in capsys.readouterr().out
    monkeypatch.setenv("HOME", str(root))
    assert read_shifted(["imagenet_r=~/r"]) == ShiftedTests(imagenet_r=str(root / "r"))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            ["RUN", "--shifted", "imagenet_s=x"],
            "no test images of the name `imagenet_s`; did you mean `imagenet_sketch",
        ),
        (["RUN", "--shifted", "imagenet_r"], "--shifted expected NAME=FOLDER, got no folder of `imagenet_r`"),
        (["RUN", "--shifted", "imagenet_r=/nowhere"], "/nowhere: no such folder"),
        (["--shifted", "imagenet_r=x", "--model", "mlp", "--weights", "w", "--data", "digits"], "--set data.shifted_"),
    ],
)
def test_a_mistake_is_one_line(words, expected, run, capsys):
    assert main(["evaluate", *(str(run) if word == "RUN" else word for word in words)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert expected in line


def test_a_class_that_the_training_images_lack_is_refused(folders, tmp_path):
    write_imagenet(tmp_path, train=1, val=0, classes=[WNIDS[0], "n99999999"])
    tests = {"imagenet_r": str(tmp_path / "train")}
    with pytest.raises(
        UserError, match=r"expected folders of the 10 classes .* got 'n99999999', which is none of them"
    ):
        build_data(DataOptions.model_validate({"name": "imagenet", **folders, **SIZES, "shifted_tests": tests}))
