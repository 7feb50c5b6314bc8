"""Between two lines of the log, a step never waits for the device.

The engine trains on torch's `meta` device, whose tensors have no numbers: whatever needs one on the host raises there,
as it would wait on an accelerator. Copies from the host to the device, which wait too unless they are told not to, are
listed beside.
"""

from __future__ import annotations

import time
import traceback
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from engine_runs import merge, recipe
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from limbeck.config import TERMS
from limbeck.config_tasks import TASK_ONLY
from limbeck.engine import loop
from limbeck.engine.fit import fit
from limbeck.engine.loop import Trainer
from limbeck.engine.optimizer import build_optimizer
from limbeck.engine.views import open_run_stream
from limbeck.objectives.terms import asks_teacher

META = torch.device("meta")
CONVNET = {"name": "convnet", "width": 4, "depth": 3}
FEW = {"crd": {"negatives": 16, "dim": 8}, "mlkd": {"temperatures": [2.0, 4.0]}}
TAUGHT = sorted(
    name
    for name, term in TERMS.items()
    if asks_teacher(term()) and name != "mart" and "distill" in TASK_ONLY.get(name, ("distill",))
)


def place() -> str:
    """Return the line of the library that is running."""
    frame = [each for each in traceback.extract_stack() if "/limbeck/" in each.filename][-1]
    return f"{frame.filename.rpartition('/limbeck/')[2]}:{frame.lineno} {frame.line}"


class Copies(TorchDispatchMode):
    """Lists the operations that copy tensors from the host to the device and wait for it."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name, waits = func.overloadpacket.__name__, not kwargs.get("non_blocking", False)
        if name == "_to_copy" and waits and args[0].device.type == "cpu" and result.device.type == "meta":
            self.found.append(place())
        if name in ("copy_", "index", "index_put_", "index_put") and waits and result.device.type == "meta":
            indices = args[1] if isinstance(args[1], (list, tuple)) else [args[1]]
            if any(isinstance(each, torch.Tensor) and each.device.type == "cpu" for each in indices):
                self.found.append(place())
        return result


class Numbers(TorchFunctionMode):
    """Lists the tensors that are made of numbers of the host, on the device."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func in (torch.tensor, torch.as_tensor, torch.Tensor.new_tensor) and result.device.type == "meta":
            self.found.append(place())
        if func in (torch.Tensor.__getitem__, torch.Tensor.__setitem__) and args[0].device.type == "meta":
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            self.found += [place() for each in index if isinstance(each, list)]
        return result


@pytest.fixture(autouse=True)
def no_autocast(monkeypatch):
    """The device has none, and torch raises where it is asked."""
    enabled, autocast = torch.is_autocast_enabled, torch.autocast
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: device != "meta" and enabled(device))
    monkeypatch.setattr(
        torch, "autocast", lambda device, **options: nullcontext() if device == "meta" else autocast(device, **options)
    )


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    run = tmp_path_factory.mktemp("teacher") / "run"
    fit(recipe(model={**CONVNET, "width": 8}, train={"epochs": 1}), run)
    return run


def trainer_of(options, folder, monkeypatch) -> Trainer:
    """Return the trainer of a run, as it stands before the first step."""
    caught: list[Trainer] = []

    def catch(trainer: Trainer) -> None:
        caught.append(trainer)
        raise KeyboardInterrupt

    monkeypatch.setattr(loop.Trainer, "train", catch)
    with pytest.raises(KeyboardInterrupt):
        fit(options, folder)
    return caught[0]


def to_meta(trainer: Trainer) -> None:
    """Move a run to a device without numbers."""
    trainer.device = META
    trainer.data = replace(trainer.data, train=trainer.data.train.to(META), device=META)
    trainer.objective.to(META)
    for model in getattr(trainer.objective, "teachers", ()):
        model.to(META)
    if trainer.recipe.task == "distill":
        trainer.objective.recorded = tuple(logits.to(META) for logits in trainer.objective.recorded)
    trainer.optimizer = build_optimizer(trainer.objective, trainer.recipe.optimizer)
    trainer.average = trainer._build_average()
    trainer.stream = open_run_stream(trainer.recipe, trainer.data)
    trainer.saved_at = trainer.started = time.monotonic()


def waits(options, folder, monkeypatch) -> list[str]:
    """Return the lines that wait for the device in steps that are not logged; reading a number raises."""
    trainer = trainer_of(options, folder, monkeypatch)
    to_meta(trainer)
    return steps(trainer)


def steps(trainer: Trainer) -> list[str]:
    """Return the lines of the library that wait for the device in two steps."""
    with Copies() as copies, Numbers() as numbers:
        for batch in trainer._batches():
            trainer._optimize(batch)
            trainer._after_step()
            if trainer.step == 2:
                break
    return sorted(set(copies.found + numbers.found))


def options_of(task, **changes):
    base = {"task": task, "model": CONVNET, "data": {"augment": {"crop_padding": 1}}, "save": {"log_every": 1000}}
    return recipe(**merge(base, changes))


@pytest.mark.parametrize("name", TAUGHT)
def test_a_step_of_distillation_never_waits(name, teacher, tmp_path, monkeypatch):
    term = {"name": name, "weight": 0.01, **FEW.get(name, {})}
    losses = [{"name": "cross_entropy"}, term]
    options = options_of("distill", teachers=[{"run": str(teacher)}], losses=losses)
    assert waits(options, tmp_path / "run", monkeypatch) == []


AUGMENTED = {"crop_padding": 1, "flip": True, "cutout": 3}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"data": {"augment": {**AUGMENTED, "crop_padding": 2}}},
        {"data": {"augment": {"crop_padding": 0, "resized_crop": [0.5, 1.0]}}},
        {"data": {"augment": {"mixup": 0.5, "cutmix": 0.5}}, "train": {"ema_decay": 0.9}},
        {"optimizer": {"name": "adamw", "clip_norm": 1.0}, "train": {"accumulate": 2, "channels_last": True}},
        {"optimizer": {"name": "lamb"}},
        {"losses": [{"name": "cross_entropy", "binary": True}], "data": {"augment": {"mixup": 0.5}}},
        *({"losses": [{"name": "cross_entropy"}, {"name": name}]} for name in ("tf_kd", "zipf", "uskd")),
    ],
    ids=str,
)
def test_a_supervised_step_never_waits(changes, tmp_path, monkeypatch):
    assert waits(options_of("supervised", **changes), tmp_path / "run", monkeypatch) == []


@pytest.mark.parametrize(
    ("losses", "adversary"),
    [
        ([{"name": "cross_entropy", "on": "adversarial"}], {}),
        ([{"name": "cross_entropy"}, {"name": "kl"}], {"start": "uniform"}),
        ([{"name": "cross_entropy"}, {"name": "gkl"}], {"awp": 0.005}),
        ([{"name": "mart"}], {"norm": "l2", "epsilon": 0.5}),
    ],
    ids=str,
)
def test_an_adversarial_step_never_waits(losses, adversary, tmp_path, monkeypatch):
    options = options_of("adversarial", losses=losses, adversary={"steps": 2, **adversary}, data={"standardise": False})
    assert waits(options, tmp_path / "run", monkeypatch) == []


def test_a_teachers_recorded_logits_are_taken_without_waiting(teacher, tmp_path, monkeypatch):
    losses = [{"name": "gkl"}]
    options = options_of(
        "distill", teachers=[{"run": str(teacher)}], losses=losses, data={"augment": {"crop_padding": 0}}
    )
    trainer = trainer_of(options, tmp_path / "run", monkeypatch)
    assert trainer.objective.recorded
    to_meta(trainer)
    assert steps(trainer) == []


@pytest.mark.parametrize(
    "wait",
    [
        lambda logits: torch.tensor(0.5, device=logits.device),
        lambda logits: logits.new_tensor(0.5),
        lambda logits: torch.ones(2).to(logits.device),
        lambda logits: logits[[0, 1]].sum(),
        lambda logits: logits[torch.arange(2)].sum(),
    ],
)
def test_a_copy_from_the_host_is_seen(wait, tmp_path, monkeypatch):
    values = loop.Trainer._values
    monkeypatch.setattr(
        loop.Trainer, "_values", lambda run, part, outcome: (wait(outcome.logits), values(run, part, outcome))[1]
    )
    found = waits(options_of("supervised"), tmp_path / "run", monkeypatch)
    assert len(found) == 1
    assert found[0].startswith("engine/loop.py")


@pytest.mark.parametrize(
    "wait",
    [lambda logits: logits.sum().item(), lambda logits: logits[logits > 0], lambda logits: logits.cpu()],
)
def test_a_look_at_a_number_raises(wait, tmp_path, monkeypatch):
    monkeypatch.setattr(loop.Trainer, "_values", lambda run, part, outcome: wait(outcome.logits))
    with pytest.raises(RuntimeError, match="meta"):
        waits(options_of("supervised"), tmp_path / "run", monkeypatch)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")
@pytest.mark.parametrize("name", ["gkl", "dkd", "wkd_logit"])
def test_torch_sees_no_wait_on_an_accelerator(name, teacher, tmp_path, monkeypatch):
    losses = [{"name": "cross_entropy"}, {"name": name}]
    teachers, train = [{"run": str(teacher)}], {"device": "cuda"}
    trainer = trainer_of(
        options_of("distill", teachers=teachers, losses=losses, train=train), tmp_path / "run", monkeypatch
    )
    trainer.saved_at = trainer.started = time.monotonic()
    try:
        for batch in trainer._batches():
            trainer._optimize(batch)
            trainer._after_step()
            torch.cuda.set_sync_debug_mode("error")  # after the first step, which allocates
    finally:
        torch.cuda.set_sync_debug_mode("default")
