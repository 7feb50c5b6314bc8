"""The objective of segmentation: pixels that take part count alike, however a batch is cut; and whole runs."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from engine_runs import Hook, assert_same_run, merge
from torch.nn import functional as F

from limbeck.config import ModelOptions, Recipe
from limbeck.config_files import dump
from limbeck.data import Batch
from limbeck.engine import run_folder
from limbeck.engine.fit import fit
from limbeck.engine.micro_batches import micro_batches
from limbeck.engine.progress import Reporter
from limbeck.errors import Interrupted, UserError
from limbeck.losses import DenseGKLLoss
from limbeck.models import build_model
from limbeck.objectives import Facts, Segmentation
from limbeck.objectives.segmentation import pixel_cross_entropy

TINY = {
    "task": "segment",
    "data": {"name": "scenes", "scenes": {"side": 16, "train": 22, "validation": 4, "test": 4}},
    "model": {"name": "encoder_decoder", "width": 4, "depth": 2, "norm": "group"},
    "optimizer": {"name": "adamw", "learning_rate": 0.01},
    "train": {"epochs": 2, "batch_size": 8, "threads": 1},
    "save": {"log_every": 1, "tensorboard": False},
}
TERMS = [
    {"name": "cross_entropy"},
    {"name": "gkl", "weight_power": 0.5},
    {"name": "kl", "temperature": 2.0},
    {"name": "cwd", "weight": 0.1},
    {"name": "apd", "width": 8, "weight": 0.1, "adapter_learning_rate": 0.01},
]


def network(name: str, seed: int, **options) -> torch.nn.Module:
    return build_model(ModelOptions(name=name, **options), image_shape=(3, 16, 16), num_classes=9, seed=seed)


def objective(terms, student=None, **options) -> Segmentation:
    content = merge(TINY, {"losses": terms, "teachers": [{"run": "runs/none"}], **options})
    student = student or network("encoder_decoder", 0, width=4, depth=2, norm="group")
    facts = Facts(num_classes=9, example=torch.zeros(1, 3, 16, 16))
    teacher = network("encoder_decoder", 1, width=6, depth=2)
    return Segmentation(student, [teacher], Recipe.model_validate(content), facts=facts)


def batch(count: int = 8) -> Batch:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(9, (count, 16, 16), generator=generator)
    labels[: count // 2, :12] = 255  # the first images have few pixels that take part
    return Batch(torch.randn(count, 3, 16, 16, generator=generator), labels, torch.arange(count), 0)


@pytest.mark.parametrize(
    "terms", [TERMS[:1], [*TERMS[:1], TERMS[2]], [*TERMS[:1], TERMS[3]]], ids=["cross-entropy", "kl", "cwd"]
)
def test_micro_batches_add_up_to_the_batch_where_pixels_are_left_out(terms):
    whole = batch()
    gradients = []
    for parts in ([whole], micro_batches(whole, accumulate=4, batch_size=8, world=1)):
        made = objective(terms)
        for part in made.prepare_step(parts):
            (len(part.labels) / 8 * made(part).loss).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in made.student.parameters()]))
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-6)


def test_cross_entropy_leaves_pixels_without_a_class_out():
    made, whole = objective(TERMS[:1]), batch()
    outcome = made(made.prepare_step([whole])[0])
    kept = whole.labels != 255
    rows = made.student(whole.images).movedim(1, -1)[kept]
    torch.testing.assert_close(outcome.loss, F.cross_entropy(rows, whole.labels[kept]))
    torch.testing.assert_close(made.score(whole, outcome), (rows.argmax(1) == whole.labels[kept]).float().mean())
    assert pixel_cross_entropy(torch.zeros(1, 2, 3, 3), torch.full((1, 3, 3), 255)) == 0


def test_every_term_pulls_the_student_alone_and_observes():
    made = objective(TERMS)
    outcome = made(made.prepare_step([batch()])[0])
    outcome.loss.backward()
    made.after_step(batch(), outcome)
    assert set(outcome.parts) == {term["name"] for term in TERMS}
    assert all(p.grad is not None and p.grad.isfinite().all() for p in made.student.parameters())
    assert all(p.grad is None for teacher in made.teachers for p in teacher.parameters())
    gkl, apd = made.losses["gkl"][0], made.losses["apd"][0]
    assert isinstance(gkl, DenseGKLLoss)
    assert gkl.prior.counts.sum() == (batch().labels != 255).sum()
    assert apd.steps == 1


@pytest.mark.parametrize(("terms", "weight"), [(TERMS[:1], 0.0), (TERMS[2:3], 0.4)], ids=["weight-0", "kl-alone"])
def test_an_auxiliary_head_that_no_loss_reads_does_not_train(terms, weight):
    made = objective(terms, network("pspnet_resnet18", 0).train(), segment={"auxiliary_weight": weight})
    made(batch()).loss.backward()
    assert all(p.grad is not None for p in made.parameters() if p.requires_grad)
    assert not any(p.requires_grad for p in made.student.auxiliary.parameters())


def test_the_auxiliary_head_adds_its_cross_entropy_in_training_alone():
    student = network("pspnet_resnet18", 0).train()
    made = objective(TERMS[:1], student)
    made.student.features.eval()  # so that BatchNorm is the same in both modes
    outcome = made(batch())
    aside = []
    hook = student.auxiliary.register_forward_hook(lambda module, inputs, logits: aside.append(logits))
    student(batch().images)
    hook.remove()
    assert len(aside) == 1
    assert outcome.loss > pixel_cross_entropy(outcome.logits, batch().labels)
    student.eval()
    outcome = made(batch())
    torch.testing.assert_close(outcome.loss, pixel_cross_entropy(outcome.logits, batch().labels))
    made.close()


def test_logits_of_smaller_maps_are_enlarged_to_the_labels():
    student = torch.nn.Conv2d(3, 9, 4, stride=4)
    made = objective([TERMS[0], TERMS[2]], student)
    assert made(batch()).logits.shape == (8, 9, 16, 16)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    run = tmp_path_factory.mktemp("teacher") / "run"
    fit(Recipe.model_validate(merge(TINY, {"train": {"epochs": 1}})), run)
    return run


def content(teacher, **changes) -> Recipe:
    return Recipe.model_validate(merge(TINY, {"losses": TERMS, "teachers": [{"run": str(teacher)}], **changes}))


def test_a_run_resumes_to_the_bit_with_priors_and_adapters(teacher, tmp_path):
    options = content(teacher, save={"every_steps": 1})
    fit(options, tmp_path / "unbroken")

    def stop(step: int) -> None:
        if step == 4:
            raise Interrupted("in the second epoch")

    with pytest.raises(Interrupted):
        fit(options, tmp_path / "broken", reporter=Hook(stop))
    fit(options, tmp_path / "broken", reporter=Reporter(), resume=True)
    assert_same_run(tmp_path / "unbroken", tmp_path / "broken")
    results = run_folder.read_results(tmp_path / "broken")
    assert 0 <= results["last"]["test"]["miou"] <= 1
    assert results["last"]["test"]["samples"] == 4


def test_two_ranks_have_the_losses_and_priors_of_one(teacher, tmp_path):
    options = content(teacher, losses=TERMS[:4], train={"epochs": 1}, data={"masks": {"scale": [0.6, 1.0]}})
    (tmp_path / "recipe.yaml").write_text(dump(options))
    fit(options, tmp_path / "one")
    command = [sys.executable, "-m", "limbeck", "train", str(tmp_path / "recipe.yaml"), "--run", str(tmp_path / "two")]
    ended = subprocess.run([*command, "--nproc", "2"], capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 0, ended.stderr
    curves, priors = [], []
    for name in ("one", "two"):
        lines = map(json.loads, (tmp_path / name / run_folder.METRICS).read_text().splitlines())
        curves.append([line["loss"] for line in lines if line["kind"] == "step"])
        losses = torch.load(tmp_path / name / run_folder.CHECKPOINT, weights_only=True)["losses"]
        priors.append(next(value for key, value in losses.items() if key.endswith("prior.prior")))
    assert curves[1] == pytest.approx(curves[0], rel=1e-4)
    torch.testing.assert_close(priors[1], priors[0], rtol=0, atol=1e-5)
    measured = [run_folder.read_results(tmp_path / name)["last"]["test"] for name in ("one", "two")]
    assert measured[1]["miou"] == pytest.approx(measured[0]["miou"], abs=0.02)


def test_a_batch_of_one_image_has_no_variance_at_the_top_of_the_pyramid(tmp_path):
    pspnet = {"name": "pspnet_resnet18", "width": None, "depth": None, "norm": "batch"}
    recipe = Recipe.model_validate(merge(TINY, {"model": pspnet, "data": {"scenes": {"train": 9}}}))
    with pytest.raises(UserError, match="leaves a batch of one of the 9 training images"):
        fit(recipe, tmp_path / "run")


def test_what_pixels_do_not_have_is_refused():
    for change, match in (
        ({"losses": [{"name": "cross_entropy", "binary": True}]}, "expected `binary: false`"),
        ({"losses": [{"name": "dkd"}], "teachers": [{"run": "a"}]}, "expected losses among"),
        ({"losses": [{"name": "kl"}]}, "expected at least one entry in `teachers`"),
        ({"model": {"name": "convnet"}}, "expected a network among encoder_decoder"),
        (
            {"losses": TERMS[4:], "teachers": [{"run": "a"}], "train": {"batch_size": 8, "accumulate": 2}},
            r"`train\.accumulate` expected 1, got 2",
        ),
    ):
        with pytest.raises(ValueError, match=match):
            Recipe.model_validate({**TINY, **change})
