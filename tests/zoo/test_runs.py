"""Whole runs between networks of several libraries, on a few images in files."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from engine_runs import Hook, assert_same_run
from folders import write_imagenet
from zoo_networks import CLASSES, PROCESSOR, build, folder

from limbeck.config import DataOptions, Recipe
from limbeck.data import build_data
from limbeck.engine.evaluate import evaluate
from limbeck.engine.fit import fit
from limbeck.engine.progress import Reporter
from limbeck.engine.teachers import load_file
from limbeck.errors import UserError

SIDE = 64
CROSS_ENTROPY = {"name": "cross_entropy"}
LAST = {"name": "wkd_feature", "weight": 0.01, "projector": "linear", "features": ["last"]}
# Teacher, its own mean and deviation, student, losses.
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5,) * 3, (0.5,) * 3)
RUNS = {
    "swin to resnet": ("timm:swin_pico_patch4_window7_224", IMAGENET, "tv:resnet18", [{"name": "gkl"}, LAST]),
    "vit to convnext": ("timm:vit_tiny_patch16_224", HALF, "timm:convnext_atto", [{"name": "wkd_logit"}, LAST]),
    "convnext to deit": ("timm:convnext_atto", IMAGENET, "timm:deit_tiny_patch16_224", [{"name": "rkd"}, LAST]),
    "hf swin to ours": ("hf:swin", (PROCESSOR["image_mean"], PROCESSOR["image_std"]), "resnet18", [{"name": "ofa"}]),
}


class Notes(Reporter):
    """Keeps what it is told."""

    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_imagenet(tmp_path_factory.mktemp("images"), train=2, val=1)


def data_options(images):
    return {"name": "image_folder", "folder": str(images), "image_size": SIDE, "test_resize": SIDE, "workers": 0}


def save(network, path):
    """Write weights as the library of a network would."""
    torch.save(network.network.state_dict(), path)
    return str(path)


def recipe(images, student, **changes):
    base = {
        "data": {**data_options(images), "validation": 0.0},
        "model": {"name": student},
        "optimizer": {"learning_rate": 0.01},
        "train": {"epochs": 1, "batch_size": 10, "threads": 1},
        "save": {"tensorboard": False},
        "protocol": "paper",
    }
    return Recipe.model_validate({**base, **changes})


@pytest.mark.parametrize("pair", RUNS)
def test_a_student_learns_from_a_teacher_that_sees_its_own_units(pair, images, tmp_path):
    name, own, student, losses = RUNS[pair]
    name = folder("swin", tmp_path / "swin") if name == "hf:swin" else name
    teacher = build(name, SIDE, seed=1)
    weights = save(teacher, tmp_path / "teacher.pth")
    options = recipe(
        images,
        student,
        task="distill",
        teachers=[{"model": {"name": name}, "weights": weights}],
        losses=[CROSS_ENTROPY, *losses],
    )
    results = fit(options, tmp_path / "run")
    assert evaluate(tmp_path / "run")["test"]["nll"] == pytest.approx(results["last"]["test"]["nll"], rel=1e-5)

    source = build_data(DataOptions.model_validate(data_options(images))).test
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in own)
    data_mean, data_std = (torch.tensor(values).view(-1, 1, 1) for values in (source.pixels.mean, source.pixels.std))
    seen = torch.cat([(batch * data_std + data_mean - mean) / std for batch in source.batches(10)])
    teacher.network.eval()
    with torch.no_grad():
        output = teacher.network(seen)
    expected = output if isinstance(output, torch.Tensor) else output.logits
    logits = np.load(tmp_path / "run" / "predictions.npz")["teacher_test_logits"]
    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-4)


def test_a_student_starts_from_a_file_with_a_new_head(images, tmp_path):
    weights = save(build("tv:resnet18", SIDE, seed=1), tmp_path / "ten.pth")
    few = write_imagenet(tmp_path / "four", train=3, val=1, classes=("a", "b", "c", "d"))
    told = Notes()
    fit(recipe(few, "tv:resnet18", model={"name": "tv:resnet18", "weights": weights}), tmp_path / "run", reporter=told)
    assert told.notes.count(f"tv:resnet18: a new head for 4 classes; {weights} came for 10 classes") == 1
    (tmp_path / "ten.pth").unlink()  # what was learned is in the run
    assert evaluate(tmp_path / "run")["test"]["samples"] == 4


def test_a_run_resumes_to_the_bit_without_the_file_it_started_from(images, tmp_path):
    """Its own mean and deviation, and its draws of stochastic depth, are in the checkpoint."""
    path = tmp_path / "start.pth"
    save(build("timm:test_vit", SIDE, seed=1), path)
    model = {"name": "timm:test_vit", "weights": str(path), "stochastic_depth": 0.3}
    options = recipe(images, "", model=model, save={"tensorboard": False, "every_steps": 1})
    fit(options, tmp_path / "unbroken")

    class Killed(Exception):
        pass

    def kill(step):
        if step == 2:  # before its checkpoint
            raise Killed

    with pytest.raises(Killed):
        fit(options, tmp_path / "resumed", reporter=Hook(kill))
    path.unlink()
    fit(options, tmp_path / "resumed", resume=True)
    assert_same_run(tmp_path / "unbroken", tmp_path / "resumed")


def test_a_library_without_a_net_names_the_way_out(images):
    """The tests are offline, and the cache has nothing."""
    data = build_data(DataOptions.model_validate(data_options(images)))
    options = recipe(images, "timm:convnext_atto").model
    with pytest.raises(UserError, match=r"timm finds no weights .*; copy their file to this machine and name it in `w"):
        load_file(options, "pretrained", data)


def test_pretrained_weights_come_through_the_librarys_cache(images, tmp_path, monkeypatch):
    """The library reads its own file; a file of the same weights gives the same network."""
    import timm

    data = build_data(DataOptions.model_validate(data_options(images)))
    options = recipe(images, "timm:test_vit").model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        there = timm.create_model("test_vit", img_size=SIDE, num_classes=CLASSES)
    path = tmp_path / "test_vit.pth"
    torch.save(there.state_dict(), path)
    create = timm.create_model
    overlay = {"file": str(path), "num_classes": CLASSES, "url": "", "hf_hub_id": None}
    monkeypatch.setattr(timm, "create_model", lambda *a, **k: create(*a, **k, pretrained_cfg_overlay=overlay))
    (cached, _), (file, _) = load_file(options, "pretrained", data), load_file(options, str(path), data)
    for key, value in file.state_dict().items():
        assert torch.equal(value, cached.state_dict()[key]), key
    assert cached.rescales
