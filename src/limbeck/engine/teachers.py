"""Data and trained teachers, read once however many runs of a process use them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors

from limbeck.config import AugmentOptions
from limbeck.config_files import load_recipe
from limbeck.data import DataBundle, Source, build_data
from limbeck.engine import run_folder
from limbeck.engine.metrics import measure, predict
from limbeck.engine.run_folder import read_results
from limbeck.errors import UserError
from limbeck.models import build_model

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor

    from limbeck.config import DataOptions, Recipe
    from limbeck.models import Network


@dataclass(frozen=True, eq=False)
class Teacher:
    """A teacher and what it says of the data of a run.

    Attributes:
        model: The network, frozen, in eval mode.
        recipe: What trained it.
        fingerprint: SHA-256 of its weights' file.
        test_logits: `(N, C)` on the test split, on the CPU.
        validation_logits: `(N, C)` on the validation split; N may be 0.
        metrics: `{"test": metrics, "validation": metrics or None}`.
    """

    model: Network
    recipe: Recipe
    fingerprint: str
    test_logits: Tensor
    validation_logits: Tensor
    metrics: dict[str, Any]


class Resources:
    """What the runs of a process share. Everything in it is read-only."""

    def __init__(self) -> None:
        self._data: dict[tuple[DataOptions, torch.device], DataBundle] = {}
        self._teachers: dict[tuple[Path, str, torch.device], Teacher] = {}
        self._recorded: dict[tuple[str, str, torch.device], Tensor] = {}

    def data(self, options: DataOptions, device: torch.device) -> DataBundle:
        """Return a data set on a device."""
        key = (options.model_copy(update={"augment": AugmentOptions()}), device)
        if key not in self._data:
            self._data[key] = _to_device(build_data(options), device)
        return self._data[key]

    def teacher(self, run: Path, data: DataBundle, options: DataOptions, device: torch.device) -> Teacher:
        """Return the teacher of a finished run, with its logits on `data`.

        Args:
            run: Folder of the teacher's run.
            data: Data of the student's run.
            options: Options of that data.
            device: Where both lie.

        Raises:
            UserError: There is no finished run, or it is no teacher for this data.
        """
        key = (run.resolve(), data.fingerprint, device)
        if key not in self._teachers:
            model, recipe, fingerprint = load_trained(run, run_folder.WEIGHTS["last"], data)
            refuse_seen_test_images(recipe.data, options, str(run))
            model = model.to(device).eval().requires_grad_(False)
            self._teachers[key] = _with_logits(model, recipe, fingerprint, data)
        return self._teachers[key]

    def recorded(self, teacher: Teacher, data: DataBundle) -> Tensor:
        """Return a teacher's logits on the training images as they are, `(N, C)`, on the data's device."""
        device = data.train.images.device
        key = (teacher.fingerprint, data.fingerprint, device)
        if key not in self._recorded:
            self._recorded[key] = predict(teacher.model, data.train).to(device)
        return self._recorded[key]


def _to_device(data: DataBundle, device: torch.device) -> DataBundle:
    train, validation, test = (
        Source(part.images.to(device), part.labels.to(device)) for part in (data.train, data.validation, data.test)
    )
    return replace(data, train=train, validation=validation, test=test)


def load_trained(run: Path, weights: str, data: DataBundle) -> tuple[Network, Recipe, str]:
    """Return the network of a finished run, on the CPU, its recipe and the SHA-256 of its weights' file.

    Args:
        run: Folder of the run.
        weights: Name of the file in it.
        data: What the network will see; its classes and image shape have to be the network's.

    Raises:
        UserError: There is no finished run or no such file, or classes or image shape differ.
    """
    results = read_results(run)
    refuse_other_shape(results["num_classes"], results["image_shape"], data, str(run))
    path = run / weights
    if not path.is_file():
        raise UserError(f"{path}: no such file; `best` needs a validation split, `ema` needs `train.ema_decay`")
    recipe = load_recipe(str(run / run_folder.CONFIG))
    model = build_model(recipe.model, image_shape=data.image_shape, num_classes=data.num_classes, seed=0)
    content = path.read_bytes()
    try:
        model.load_state_dict(load_safetensors(content))
    except (SafetensorError, RuntimeError) as error:
        raise UserError(
            f"{path}: expected weights of the network in {run_folder.CONFIG}, got others or a damaged file"
        ) from error
    return model, recipe, hashlib.sha256(content).hexdigest()


def refuse_other_shape(num_classes: int, image_shape: Sequence[int], data: DataBundle, who: str) -> None:
    """Raise UserError if a network for `num_classes` and `image_shape` cannot look at `data`."""
    expected, got = (data.num_classes, data.image_shape), (num_classes, tuple(image_shape))
    if got != expected:
        raise UserError(
            f"{who}: expected a network for {expected[0]} classes of {expected[1]} images, as `{data.name}` has, "
            f"got one for {got[0]} classes of {got[1]}"
        )


def refuse_seen_test_images(teacher: DataOptions, student: DataOptions, who: str) -> None:
    """Raise UserError if a teacher has learned from the student's test images.

    The test split is made first, from `test` and `split_seed`, so with the same two the teacher's is the same.
    """
    for key, theirs, ours in (
        ("test", teacher.test, student.test),
        ("split_seed", teacher.split_seed, student.split_seed),
    ):
        if teacher.name == student.name and theirs != ours:
            raise UserError(
                f"{who}: expected `data.{key}` {ours}, as the student's, got {theirs}; "
                "otherwise the teacher has learned from the student's test images"
            )


def _with_logits(model: Network, recipe: Recipe, fingerprint: str, data: DataBundle) -> Teacher:
    test = predict(model, data.test)
    validation = predict(model, data.validation) if len(data.validation) else test[:0]
    metrics = {
        "test": measure(test, data.test.labels),
        "validation": measure(validation, data.validation.labels) if len(data.validation) else None,
    }
    return Teacher(model, recipe, fingerprint, test, validation, metrics)
