"""Tiny runs on real images, and what has to be equal for two of them to be the same run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from limbeck.config import Recipe
from limbeck.engine import run_folder
from limbeck.engine.progress import Reporter

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

STEPS = 14  # of `student_recipe`: 100 images, batches of 16 with a short last one, two epochs
WALL_CLOCK = {"seconds", "log_lengths"}  # of a checkpoint; the length of metrics.jsonl shows in that file itself


def merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        merged[key] = merge(base[key], value) if isinstance(value, dict) and isinstance(base.get(key), dict) else value
    return merged


def recipe(**changes: Any) -> Recipe:
    """A supervised run of a perceptron of eight units on 100 digits."""
    base = {
        "data": {"labels_per_class": 10},
        "model": {"name": "mlp", "width": 8, "depth": 1},
        "optimizer": {"learning_rate": 0.1},
        "train": {"epochs": 2, "batch_size": 16, "threads": 1},
        "save": {"log_every": 4, "tensorboard": False},
    }
    return Recipe.model_validate(merge(base, changes))


def student_recipe(teacher: Path, **changes: Any) -> Recipe:
    """A distillation in which everything that a checkpoint holds matters: prior, average, dropout, mixed labels."""
    base = {
        "task": "distill",
        "teachers": [{"run": str(teacher)}],
        "losses": [
            {"name": "cross_entropy", "weight": 0.5},
            {"name": "gkl", "weight_power": 0.5, "ramp_epochs": 2, "warmup_epochs": 2.0},
        ],
        "data": {"augment": {"crop_padding": 1, "mixup": 0.5}},
        "model": {"dropout": 0.3},
        "train": {"ema_decay": 0.9},
        "save": {"every_steps": 3},
    }
    return recipe(**merge(base, changes))


class Hook(Reporter):
    """A reporter that calls a function with every step."""

    def __init__(self, call: Callable[[int], None]) -> None:
        self._call = call

    def step(self, step: int, samples: int) -> None:
        self._call(step)


def assert_equal_states(state: Any, other: Any, path: str = "state") -> None:
    """Equal to the bit, all the way down."""
    assert type(state) is type(other), path
    if isinstance(state, dict):
        assert state.keys() == other.keys(), path
        for key in state.keys() - WALL_CLOCK:
            assert_equal_states(state[key], other[key], f"{path}.{key}")
    elif isinstance(state, (list, tuple)):
        assert len(state) == len(other), path
        for index, (item, twin) in enumerate(zip(state, other, strict=True)):
            assert_equal_states(item, twin, f"{path}.{index}")
    elif isinstance(state, torch.Tensor):
        assert torch.equal(state, other), path
    else:
        assert state == other, path


def assert_same_run(run: Path, other: Path) -> None:
    """Weights, average, prior, optimizer, random states, metrics, predictions: equal to the bit."""
    states = [torch.load(folder / run_folder.CHECKPOINT, weights_only=True) for folder in (run, other)]
    assert_equal_states(*states)
    for name in (run_folder.METRICS, *run_folder.WEIGHTS.values()):
        contents = [(folder / name).read_bytes() if (folder / name).exists() else None for folder in (run, other)]
        assert contents[0] == contents[1], name
    with np.load(run / run_folder.PREDICTIONS) as arrays, np.load(other / run_folder.PREDICTIONS) as others:
        assert arrays.files == others.files
        for name in arrays.files:
            assert np.array_equal(arrays[name], others[name], equal_nan=True), name
    results = [run_folder.read_results(folder) for folder in (run, other)]
    for result in results:
        assert result.pop("train_seconds") > 0
    assert results[0] == results[1]
