"""What a finished run leaves behind: weights, predictions, results."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import save as save_safetensors

from limbeck.engine import run_folder
from limbeck.engine.metrics import EVALUATION_BATCH, measure
from limbeck.engine.run_folder import atomic_file, write_json
from limbeck.models import Network

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor, nn

    from limbeck.data import Samples
    from limbeck.engine.loop import Trainer

MAX_FEATURES = 2000  # test samples whose features are kept, for pictures


def finish(trainer: Trainer) -> dict[str, Any]:
    """Write what a trained run leaves behind, `results.json` last, and return what that holds."""
    run = trainer.run
    last = trainer.predict("test") if len(trainer.data.test) else torch.empty(0, trainer.data.num_classes)
    _write_weights(run / run_folder.WEIGHTS["last"], trainer.model.state_dict())
    results = {
        **_description(trainer),
        "last": _evaluation(trainer, trainer.model, trainer.epochs, last),
        "best": None,
        "ema": None,
        "optimistic": trainer.optimistic,
        "teachers": [teacher.metrics for teacher in trainer.teachers],
    }
    if trainer.best is not None:
        best = copy.deepcopy(trainer.model)
        best.load_state_dict(trainer.best["weights"])
        _write_weights(run / run_folder.WEIGHTS["best"], trainer.best["weights"])
        results["best"] = _evaluation(trainer, best, trainer.best["epoch"])
    if trainer.average is not None:
        _write_weights(run / run_folder.WEIGHTS["ema"], trainer.average.model.state_dict())
        results["ema"] = _evaluation(trainer, trainer.average.model, trainer.epochs)
    with atomic_file(run / run_folder.PREDICTIONS) as file:
        np.savez(file, allow_pickle=False, **_predictions(trainer, last))
    write_json(run / run_folder.RESULTS, results)
    return results


def _description(trainer: Trainer) -> dict[str, Any]:
    recipe, data = trainer.recipe, trainer.data
    return {
        "format": run_folder.RESULTS_FORMAT,
        "title": recipe.title,
        "task": recipe.task,
        "protocol": recipe.protocol,
        "seed": recipe.seed,
        "losses": [term.model_dump(mode="json") for term in recipe.losses],
        "data": recipe.data.model_dump(mode="json"),
        "data_fingerprint": data.fingerprint,
        "teacher_fingerprints": [teacher.fingerprint for teacher in trainer.teachers],
        "num_classes": data.num_classes,
        "image_shape": list(data.image_shape),
        "class_counts": data.class_counts.tolist(),
        "epochs": trainer.epochs,
        "steps": trainer.steps,
        "parameters": sum(parameter.numel() for parameter in trainer.model.parameters()),
        "train_seconds": trainer.seconds,
    }


def _evaluation(trainer: Trainer, model: nn.Module, epoch: int, test_logits: Tensor | None = None) -> dict[str, Any]:
    """Return `{"epoch", "validation", "test"}` of the weights in `model`."""
    data, teacher = trainer.data, trainer.teachers[0] if trainer.teachers else None
    validation = test = None
    if len(data.validation):
        targets = teacher.validation_logits if teacher else None
        validation = measure(trainer.predict("validation", model), data.validation.labels, targets)
    if len(data.test):
        logits = trainer.predict("test", model) if test_logits is None else test_logits
        test = measure(logits, data.test.labels, teacher.test_logits if teacher else None)
    return {"epoch": epoch, "validation": validation, "test": test}


def _write_weights(path: Path, weights: Mapping[str, Tensor]) -> None:
    # Copies, because the format refuses tensors that share memory, as tied weights do.
    content = save_safetensors({name: value.detach().cpu().contiguous().clone() for name, value in weights.items()})
    with atomic_file(path) as file:
        file.write(content)


def _predictions(trainer: Trainer, test_logits: Tensor) -> dict[str, np.ndarray[Any, Any]]:
    """Return the arrays of predictions.npz, made with the last weights."""
    data, teacher = trainer.data, trainer.teachers[0] if trainer.teachers else None
    arrays = {
        "test_logits": test_logits,
        "test_labels": data.test.labels,
        "validation_logits": trainer.predict("validation") if len(data.validation) else test_logits[:0],
        "validation_labels": data.validation.labels,
        "train_class_counts": data.class_counts,
        "class_means": class_means(test_logits, data.test.labels.cpu()),
    }
    if isinstance(trainer.model, Network) and len(data.test):
        arrays["test_features"] = _features(trainer.model, data.test)
    prior = trainer.objective.class_prior()
    if prior is not None:
        arrays["prior"] = prior
    if teacher is not None:
        arrays["teacher_test_logits"] = teacher.test_logits
        arrays["teacher_validation_logits"] = teacher.validation_logits
    return {name: value.cpu().numpy() for name, value in arrays.items()}


@torch.no_grad()
def _features(model: Network, source: Samples) -> Tensor:
    """Return the penultimate features of the first `MAX_FEATURES` samples."""
    training = model.training
    model.eval()
    features: list[Tensor] = []
    for images in source.batches(EVALUATION_BATCH):
        features.append(model.forward_features(images).float())
        if sum(map(len, features)) >= MAX_FEATURES:
            break
    model.train(training)
    return torch.cat(features)[:MAX_FEATURES]


def class_means(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean softmax over the samples of each class, `(C, C)`; the row of a class without samples is NaN.

    >>> class_means(torch.tensor([[0.0, 0.0], [0.0, 0.0]]), torch.tensor([1, 1]))
    tensor([[   nan,    nan],
            [0.5000, 0.5000]])
    """
    classes = logits.shape[1]
    sums = torch.zeros(classes, classes, dtype=torch.float64).index_add_(0, labels, logits.double().softmax(dim=1))
    return (sums / labels.bincount(minlength=classes).unsqueeze(1)).float()
