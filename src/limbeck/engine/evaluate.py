"""The metrics of a finished run, computed again from its weights."""

from __future__ import annotations

import zipfile
import zlib
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from limbeck.config_files import load_recipe
from limbeck.engine import run_folder
from limbeck.engine.compare import COMPARISON
from limbeck.engine.fit import open_device
from limbeck.engine.metrics import measure, predict
from limbeck.engine.run_folder import read_results
from limbeck.engine.teachers import Resources, load_file, load_trained
from limbeck.errors import UserError, reason

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from limbeck.config import Recipe


def evaluate(run: Path, *, which: Literal["last", "best", "ema"] = "last") -> dict[str, Any]:
    """Return the metrics of a finished run's weights, on its validation and test splits.

    Nothing is written. The agreement with the teacher is with what the run's predictions.npz says of it, so the
    teacher's own run may be gone; without that file the agreement is None.

    Args:
        run: Folder of the run.
        which: Weights after the last epoch, those with the best validation accuracy, or the averaged ones.

    Returns:
        `{"epoch": ..., "validation": metrics or None, "test": metrics}`.

    Raises:
        UserError: The run is not finished, has no such weights, its data are not what they were, or a file of it is
            damaged.
    """
    _refuse_comparison(run)
    results = read_results(run)
    recipe = load_recipe(str(run / run_folder.CONFIG))
    device = open_device(recipe.train.device)
    data = Resources().data(recipe.data, device)
    if data.fingerprint != results["data_fingerprint"]:
        raise UserError(
            f"{run}: the data `{data.name}` expected those of the run, got others; install its version of them"
        )
    model = load_trained(run, run_folder.WEIGHTS[which], data)[0].to(device)
    metrics: dict[str, Any] = {"epoch": results[which]["epoch"], "validation": None}
    for split, source in (("validation", data.validation), ("test", data.test)):
        if len(source):
            targets = _teacher_logits(run, split)
            metrics[split] = measure(predict(model, source), source.labels, targets)
            if results["teachers"] and targets is None:
                metrics[split]["agreement"] = None
    return metrics


def evaluate_file(recipe: Recipe, weights: Path) -> dict[str, Any]:
    """Return the metrics of a file of weights.

    Args:
        recipe: Its `model`, `data` and `train.device` are read.
        weights: Our .safetensors or a public file, see `limbeck.models.weights`.

    Returns:
        `{"validation": metrics or None, "test": metrics}`.

    Raises:
        UserError: The file or the data are missing or damaged, or do not fit the network.
    """
    data = Resources().data(recipe.data, open_device(recipe.train.device))
    model = load_file(recipe.model, weights, data)[0].to(data.device)
    parts = {"validation": data.validation, "test": data.test}
    return {name: measure(predict(model, part), part.labels) if len(part) else None for name, part in parts.items()}


def _teacher_logits(run: Path, split: str) -> Tensor | None:
    path, name = run / run_folder.PREDICTIONS, f"teacher_{split}_logits"
    if not path.is_file():
        return None
    try:
        with np.load(path) as predictions:
            return torch.from_numpy(predictions[name]) if name in predictions else None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(
            f"{path} cannot be read ({reason(error)}); delete it to evaluate without the agreement with the teacher"
        ) from error


def _refuse_comparison(run: Path) -> None:
    """Raise UserError, with one of its runs as an example, if the folder is a comparison's."""
    if not (run / COMPARISON).is_file():
        return
    finished = sorted(run.glob(f"*/setting*/seed*/{run_folder.RESULTS}"))
    example = f", such as {finished[0].parent}" if finished else "; none is finished yet"
    raise UserError(f"{run}: expected a run, got a comparison; evaluate one of its runs{example}")
