"""The metrics of a finished run, computed again from its weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from limbeck.config_files import load_recipe
from limbeck.engine import run_folder
from limbeck.engine.fit import open_device
from limbeck.engine.metrics import measure, predict
from limbeck.engine.run_folder import read_results
from limbeck.engine.teachers import Resources, load_trained
from limbeck.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor


def evaluate(run: Path, *, which: Literal["last", "best", "ema"] = "last") -> dict[str, Any]:
    """Return the metrics of a finished run's weights, on its validation and test splits.

    Nothing is written. The agreement with the teacher is with what the run's predictions.npz says of it, so the
    teacher's own run may be gone.

    Args:
        run: Folder of the run.
        which: Weights after the last epoch, those with the best validation accuracy, or the averaged ones.

    Returns:
        `{"epoch": ..., "validation": metrics or None, "test": metrics}`.

    Raises:
        UserError: The run is not finished, has no such weights, or its data are not what they were.
    """
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
            metrics[split] = measure(predict(model, source), source.labels, _teacher_logits(run, split))
    return metrics


def _teacher_logits(run: Path, split: str) -> Tensor | None:
    with np.load(run / run_folder.PREDICTIONS) as predictions:
        name = f"teacher_{split}_logits"
        return torch.from_numpy(predictions[name]) if name in predictions else None
