"""Ways to run networks that are faster: what a teacher says and what a run writes stay what they are."""

from __future__ import annotations

import signal
from functools import partial

import numpy as np
import pytest
import torch
from engine_runs import Hook, assert_same_run, recipe
from torch import nn

from limbeck.config import TERMS, CrossEntropyTerm, FitNetTerm, KLTerm, ModelOptions
from limbeck.config_tasks import TASK_ONLY
from limbeck.data import Batch
from limbeck.engine import run_folder
from limbeck.engine.fit import fit, open_device, train_run
from limbeck.engine.progress import Reporter
from limbeck.engine.signals import StopRequest
from limbeck.engine.teachers import Resources
from limbeck.engine.views import ViewStore
from limbeck.errors import Interrupted, UserError
from limbeck.models import build_model, running
from limbeck.models.running import Compiled
from limbeck.objectives import Distillation, Facts
from limbeck.objectives.layers import Layers
from limbeck.objectives.terms import asks_teacher

CLASSES, SAMPLES, SIDE = 5, 8, 16
CONVNET = {"name": "convnet", "width": 4, "depth": 3}
FEW = {"crd": {"negatives": 6, "dim": 8}, "mlkd": {"temperatures": [2.0, 4.0]}}
TAUGHT = sorted(
    name
    for name, term in TERMS.items()
    if asks_teacher(term()) and name != "mart" and "distill" in TASK_ONLY.get(name, ("distill",))
)


def network(width: int, seed: int) -> nn.Module:
    options = ModelOptions(name="convnet", width=width, depth=3)
    return build_model(options, image_shape=(1, SIDE, SIDE), num_classes=CLASSES, seed=seed)


def facts() -> Facts:
    cost = 1 - torch.eye(CLASSES)
    return Facts(CLASSES, torch.zeros(1, 1, SIDE, SIDE), torch.arange(40) % CLASSES, lambda *_: cost)


def batch() -> Batch:
    indices = torch.arange(SAMPLES)
    images = torch.randn(SAMPLES, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    return Batch(images, indices % CLASSES, indices, step=0)


def distillation(*terms, **options) -> Distillation:
    return Distillation(network(4, 0), [network(8, 1)], terms, epochs=2, facts=facts(), **options)


def gradients(name: str) -> list[torch.Tensor | None]:
    """Of two steps, so that class priors and banks have something in them."""
    objective = distillation(
        CrossEntropyTerm(), TERMS[name].model_validate({"name": name, **FEW.get(name, {})})
    ).train()
    found: list[torch.Tensor | None] = []
    for epoch in (1, 2):
        objective.set_epoch(epoch)
        objective.zero_grad()
        torch.manual_seed(epoch)
        outcome = objective(batch())
        outcome.loss.backward()
        found += [outcome.loss, *(parameter.grad for parameter in objective.parameters())]
        objective.after_step(batch(), outcome)
        objective.refresh()
    return found


# --- teachers in inference mode -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TAUGHT)
def test_inference_mode_changes_no_bit_of_a_gradient(name, monkeypatch):
    found = gradients(name)
    monkeypatch.setattr(Layers, "without_graph", torch.no_grad()(Layers.__call__))
    expected = gradients(name)
    assert any(gradient is not None and gradient.abs().sum() > 0 for gradient in expected[1:])
    for ours, twin in zip(found, expected, strict=True):
        assert (ours is None) == (twin is None)
        assert ours is None or torch.equal(ours, twin)


def test_what_a_teacher_says_can_be_saved_for_a_backward_pass():
    said = distillation(KLTerm())(batch()).target_logits[0]
    student = torch.zeros_like(said, requires_grad=True)
    (student * said).sum().backward()
    assert torch.equal(student.grad, said)


def test_a_teacher_whose_layers_nobody_asks_for_runs_in_inference_mode():
    modes = []
    for term in (KLTerm(), FitNetTerm()):
        objective = distillation(term)
        hook = lambda *_: modes.append(torch.is_inference_mode_enabled())  # noqa: E731
        objective.teachers[0].register_forward_hook(hook)
        objective(batch())
    # Where layers are looked at, writes have to be counted.
    assert modes == [True, False]


# --- precision ------------------------------------------------------------------------------------------------


def dtypes_of(objective: Distillation) -> dict[str, set[torch.dtype]]:
    """What the linear layers of both networks make, in one forward pass."""
    seen: dict[str, set[torch.dtype]] = {"student": set(), "teacher": set()}
    for who, net in (("student", objective.student), ("teacher", objective.teachers[0])):
        net.head.register_forward_hook(lambda _, __, output, who=who: seen[who].add(output.dtype))
    objective(batch()).loss.backward()
    return seen


def test_a_teacher_of_bf16_leaves_the_student_alone_and_speaks_float32():
    expected = distillation(KLTerm())(batch()).target_logits[0]
    objective = distillation(KLTerm(), precision="bf16")
    assert dtypes_of(objective) == {"student": {torch.float32}, "teacher": {torch.bfloat16}}
    (logits,) = objective(batch()).target_logits
    assert logits.dtype == torch.float32
    assert not torch.equal(logits, expected)
    torch.testing.assert_close(logits, expected, rtol=0, atol=0.02 * float(expected.std()))


def test_features_of_a_teacher_of_bf16_are_float32_for_the_losses():
    objective = distillation(FitNetTerm(), precision="bf16")
    view = objective.teacher_layers[0].without_graph(batch().images)
    with running.arithmetic("cpu", "bf16"):
        halved = objective.teacher_layers[0].without_graph(batch().images)
    assert halved.features["fitnet"][0].dtype == torch.float32
    assert not torch.equal(halved.features["fitnet"][0], view.features["fitnet"][0])


def test_a_teacher_of_fp32_is_exact_beside_a_student_of_bf16():
    expected = distillation(KLTerm())(batch()).target_logits[0]
    objective = distillation(KLTerm(), precision="fp32")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        seen, found = dtypes_of(objective), objective(batch()).target_logits[0]
    assert seen == {"student": {torch.bfloat16}, "teacher": {torch.float32}}
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("train", "precision"),
    [
        ({}, "fp32"),
        ({"teacher_precision": "bf16"}, "bf16"),
        ({"precision": "bf16"}, "bf16"),
        ({"precision": "bf16", "teacher_precision": "fp32"}, "fp32"),
    ],
)
def test_recorded_logits_have_the_teachers_precision(train, precision, teacher):
    options, resources = student(teacher, train=train), Resources()
    data = resources.data(options.data, open_device("cpu"))
    found = resources.teacher(teacher, data, options.data)
    recorded = resources.recorded(found, data, options.train)
    images = torch.cat(list(data.train.batches(256)))
    with torch.no_grad(), running.arithmetic("cpu", precision):
        expected = found.model(images).float()
    assert torch.equal(recorded, expected)


def test_a_device_without_bf16_is_refused_in_one_line(teacher, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.amp, "is_autocast_available", lambda device: False)
    with pytest.raises(
        UserError, match=r"`train.teacher_precision` bf16 expected a device that computes in it, got cpu"
    ):
        fit(student(teacher, train={"teacher_precision": "bf16"}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_teachers_lie_in_channels_last_where_it_is_asked_for(teacher):
    options, resources = student(teacher), Resources()
    data = resources.data(options.data, open_device("cpu"))
    weights = []
    for layout in (True, False):
        model = resources.teacher(teacher, data, options.data, channels_last=layout).model
        weights.append([value for value in model.parameters() if value.dim() == 4 and value.shape[1] > 1])
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights[0])
    assert all(weight.is_contiguous() for weight in weights[1])
    assert weights[0]


# --- torch.compile --------------------------------------------------------------------------------------------


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
        "losses": [{"name": "cross_entropy"}, *(terms or ({"name": "kl"},))],
    }
    return recipe(**{**base, **changes})


@pytest.fixture
def captured(monkeypatch):
    """torch.compile with a backend that runs what was captured as it is; returns how often it captured something."""
    torch._dynamo.reset()
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(running.torch, "compile", partial(torch.compile, backend=backend))
    return graphs


CROP = {"augment": {"crop_padding": 1}}
COMPILED = {"compile": True, "teacher_compile": True}


def test_compiled_networks_train_to_the_same_files(teacher, tmp_path, captured):
    feature = {"name": "fitnet", "weight": 0.1}
    for name, train in (("plain", {}), ("compiled", COMPILED)):
        fit(student(teacher, {"name": "kl"}, feature, data=CROP, train=train), tmp_path / name)
    # Both networks, for whole batches and for the last one.
    assert len(captured) == 4
    for name in (run_folder.METRICS, *run_folder.WEIGHTS.values()):
        files = [tmp_path / which / name for which in ("plain", "compiled")]
        assert files[0].exists() == files[1].exists()
        assert not files[0].exists() or files[0].read_bytes() == files[1].read_bytes(), name
    arrays = [np.load(tmp_path / which / run_folder.PREDICTIONS) for which in ("plain", "compiled")]
    assert all(np.array_equal(arrays[0][name], arrays[1][name]) for name in arrays[0].files)


def test_a_compiled_run_resumes_to_the_bit(teacher, tmp_path, captured):
    options = student(teacher, data=CROP, train=COMPILED)
    fit(options, tmp_path / "whole")

    def interrupt(step: int) -> None:
        if step == 5:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted):
        fit(options, tmp_path / "broken", reporter=Hook(interrupt))
    torch._dynamo.reset()
    fit(options, tmp_path / "broken", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "broken")


def test_runs_of_one_process_hear_the_hooks_of_their_own(captured):
    for layers in (["stage1"], ["stage2"], ["stage1", "stage2"]):
        term = FitNetTerm(features=layers, target_features=layers)
        with torch.compiler.set_stance("force_eager"):  # as the engine builds one
            objective = distillation(CrossEntropyTerm(), term, compiled=True).train()
        twin = distillation(CrossEntropyTerm(), term).train()
        for _ in range(2):
            assert torch.equal(objective(batch()).loss, twin(batch()).loss)
    assert len(captured) == 3


def test_each_batch_size_is_captured_by_itself(captured):
    compiled = Compiled(network(4, 0), "train.compile")
    for samples in (8, 4, 8, 6):
        compiled(batch().images[:samples])
    assert len(captured) == 3


@pytest.mark.parametrize("layout", [False, True])
def test_a_remembered_teacher_is_compiled_behind_its_memory(layout, teacher, tmp_path, captured, monkeypatch):
    calls = []
    forward = Compiled.forward
    monkeypatch.setattr(Compiled, "forward", lambda self, *inputs: (calls.append(1), forward(self, *inputs))[1])
    train = {"teacher_compile": True, "channels_last": layout}
    options, resources = student(teacher, data=CROP, train=train), Resources(ViewStore())
    for name in ("first", "second"):
        train_run(options, tmp_path / name, resume=False, reporter=Reporter(), stop=StopRequest(), resources=resources)
    # The second run asks nobody.
    assert len(calls) == 14
    assert_same_run(tmp_path / "first", tmp_path / "second")


def test_a_network_that_cannot_be_compiled_is_said_in_one_line(teacher, tmp_path, monkeypatch):
    torch._dynamo.reset()

    def broken(graph, inputs):
        raise RuntimeError("no compiler\nis here")

    monkeypatch.setattr(running.torch, "compile", partial(torch.compile, backend=broken))
    for option in COMPILED:
        with pytest.raises(UserError, match=rf"^`train\.{option}`: torch.compile cannot .*no compiler") as error:
            fit(student(teacher, data=CROP, train={option: True}), tmp_path / option)
        assert "\n" not in str(error.value)


@pytest.mark.slow
def test_the_compilers_own_code_computes_the_same_loss():
    objective, twin = distillation(KLTerm(), compiled=True).train(), distillation(KLTerm()).train()
    losses = [each(batch()).loss for each in (objective, twin)]
    for loss in losses:
        loss.backward()
    torch.testing.assert_close(*losses)
    for ours, theirs in zip(objective.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5)
    assert objective.state_dict().keys() == twin.state_dict().keys()
