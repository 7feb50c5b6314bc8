"""Every loss of the catalogue trains in the engine, from a recipe, and a run of it resumes to the bit."""

from __future__ import annotations

import signal

import pytest
import torch
from engine_runs import Hook, assert_same_run, recipe
from torch import nn

import limbeck
from limbeck.config import TERMS, CRDTerm, CrossEntropyTerm, RKDTerm, SPTerm, USKDTerm
from limbeck.config_files import dump
from limbeck.config_tasks import TASK_ONLY
from limbeck.engine.build_interrelations import build_interrelations
from limbeck.engine.fit import fit
from limbeck.engine.loop import Trainer
from limbeck.engine.progress import Reporter
from limbeck.engine.run_folder import CHECKPOINT
from limbeck.errors import Diverged, Interrupted, UserError
from limbeck.interrelation_files import KINDS, InterrelationRequest

CONVNET = {"name": "convnet", "width": 4, "depth": 3}
FEW = {"crd": {"negatives": 16, "dim": 8}, "mlkd": {"temperatures": [2.0, 4.0]}}
OTHER_TASKS = {name for name, tasks in TASK_ONLY.items() if "distill" not in tasks}
LOSSES = sorted(TERMS.keys() - {"cross_entropy", "mart"} - OTHER_TASKS)
STOP = 5  # of 14 steps


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    run = tmp_path_factory.mktemp("teacher") / "run"
    fit(recipe(model={**CONVNET, "width": 8}, train={"epochs": 1}), run)
    return run


def student(teacher, *terms, **changes):
    base = {
        "task": "distill",
        "teachers": [{"run": str(teacher)}],
        "model": CONVNET,
        "losses": [{"name": "cross_entropy"}, *terms],
        "data": {"augment": {"crop_padding": 1}},
        "optimizer": {"learning_rate": 0.01, "clip_norm": 1.0},
    }
    return recipe(**{**base, **changes})


@pytest.mark.parametrize("name", LOSSES)
def test_a_run_resumes_to_the_bit(name, teacher, tmp_path):
    options = student(teacher, {"name": name, "weight": 0.01, **FEW.get(name, {})})
    fit(options, tmp_path / "whole")

    def interrupt(step: int) -> None:
        if step == STOP:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted):
        fit(options, tmp_path / "broken", reporter=Hook(interrupt))
    fit(options, tmp_path / "broken", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "broken")


def test_a_loss_for_maps_refuses_a_network_without_them_before_training(teacher, tmp_path):
    options = student(teacher, {"name": "at"}, model={"name": "mlp", "width": 8, "depth": 2})
    with pytest.raises(UserError, match=r"^`losses`: .*\(N, D, H, W\).*got"):
        fit(options, tmp_path / "run")
    assert not (tmp_path / "run").exists()  # the next attempt may take the folder


def test_unequal_numbers_of_layers_are_refused_before_training(teacher, tmp_path):
    options = student(teacher, {"name": "at"}, model={**CONVNET, "depth": 4})
    message = r"`losses`: `at` expected as many layers of the student as of the teacher, got 3 \(.*\) and 2 \("
    with pytest.raises(UserError, match=message):
        fit(options, tmp_path / "run")


def test_a_layer_that_is_not_there_is_an_error_of_one_line(teacher, tmp_path):
    options = student(teacher, {"name": "at", "features": ["stage9"]})
    message = r"`losses`: `at`, `features` of the student: the network has no module `stage9`; expected a path"
    with pytest.raises(UserError, match=message):
        fit(options, tmp_path / "run")


def test_a_layer_that_is_not_there_is_found_before_the_teacher_is_trained(tmp_path):
    (tmp_path / "teacher.yaml").write_text(dump(recipe(model=CONVNET, train={"epochs": 1})))
    changes = {"teachers": [{"recipe": str(tmp_path / "teacher.yaml")}]}
    with pytest.raises(UserError, match="no module `stage9`"):
        fit(student("", {"name": "at", "features": ["stage9"]}, **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()  # nor was the teacher trained


def test_a_layer_that_runs_twice_is_an_error_of_one_line_and_leaves_no_hook(tmp_path):
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.hidden, self.relu, self.head = nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)

        def forward(self, x):
            return self.head(self.relu(self.hidden(self.relu(x))))

    student, loader = Shared(), [(torch.eye(4), torch.arange(4))]
    options = {"losses": SPTerm(features=("relu",)), "folder": tmp_path / "run", "progress": False}
    with pytest.raises(UserError, match=r"^`losses`: `relu` expected to run once .* ran 2 times"):
        limbeck.fit(student, loader, teacher=Shared(), **options)
    assert not student.relu._forward_hooks


@pytest.mark.parametrize(
    "terms",
    [
        [RKDTerm(features=("head",)), CRDTerm(features=("head",))],  # a loader hides its labels
        [RKDTerm(features=("head",), target_features=("nowhere",))],
        [CrossEntropyTerm(), USKDTerm(features=("head", "head"))],
    ],
)
def test_losses_that_cannot_be_built_leave_no_hook(terms, tmp_path):
    class Small(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(4, 4)

        def forward(self, x):
            return self.head(x)

    student, teacher = Small(), Small()
    with pytest.raises(UserError, match=r"^`losses`: "):
        limbeck.fit(
            student,
            [(torch.eye(4), torch.arange(4))],
            teacher=teacher,
            losses=terms,
            folder=tmp_path / "run",
            progress=False,
        )
    assert not student.head._forward_hooks
    assert not teacher.head._forward_hooks


def test_no_checkpoint_holds_a_loss_whose_weights_are_not_finite(teacher, tmp_path, monkeypatch):
    optimize = Trainer._optimize

    def spoil(trainer, batch):
        optimize(trainer, batch)
        if trainer.step == trainer.steps_per_epoch:  # after the last forward pass before a checkpoint
            nn.init.constant_(next(trainer.objective.losses.parameters()), torch.nan)

    monkeypatch.setattr(Trainer, "_optimize", spoil)
    with pytest.raises(Diverged, match="`weights` is not finite at step 7"):
        fit(student(teacher, {"name": "fitnet"}), tmp_path / "run")
    assert not (tmp_path / "run" / CHECKPOINT).exists()


def test_a_rehearsal_leaves_no_trace(teacher, tmp_path):
    terms = [{"name": name, "weight": 0.0} for name in ("fitnet", "review_kd", "vid")]
    plain = {"optimizer": {"learning_rate": 0.01}}  # a clipped norm is summed over the losses' parameters too
    fit(student(teacher, *terms, **plain), tmp_path / "with")
    fit(student(teacher, **plain), tmp_path / "without")
    weights = [(tmp_path / name / "weights.safetensors").read_bytes() for name in ("with", "without")]
    assert weights[0] == weights[1]


# --- costs between classes --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_interrelations_can_be_computed_from_the_teacher(kind, teacher, tmp_path):
    fit(student(teacher, {"name": "wkd_logit", "interrelations": kind}, train={"epochs": 1}), tmp_path / "run")


def test_a_file_of_interrelations_is_the_kind_that_it_was_made_of(teacher, tmp_path):
    path = tmp_path / "centroid.safetensors"
    request = InterrelationRequest("centroid")
    build_interrelations(teacher, recipe(), path, request, sharpness=1.0, data_name="digits", reporter=Reporter())
    for name, source in (("file", str(path)), ("kind", "centroid")):
        fit(student(teacher, {"name": "wkd_logit", "interrelations": source}), tmp_path / name)
    weights = [(tmp_path / name / "weights.safetensors").read_bytes() for name in ("file", "kind")]
    assert weights[0] == weights[1]


def test_a_missing_file_of_interrelations_is_an_error_of_one_line(teacher, tmp_path):
    options = student(teacher, {"name": "wkd_logit", "interrelations": str(tmp_path / "no.safetensors")})
    with pytest.raises(UserError, match=r"no\.safetensors"):
        fit(options, tmp_path / "run")


def test_a_misspelt_kind_of_interrelations_is_told_the_kinds(teacher, tmp_path):
    options = student(teacher, {"name": "wkd_logit", "interrelations": "centriod"})
    with pytest.raises(UserError, match=r"expected a file or a kind, got 'centriod'.*did you mean `centroid`\?"):
        fit(options, tmp_path / "run")
