"""What a finished run leaves behind: weights, predictions, results."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from safetensors.torch import save as save_safetensors

from limbeck.engine import run_folder
from limbeck.engine.corrupted import example_images, with_corrupted
from limbeck.engine.judged import judge
from limbeck.engine.metrics import EVALUATION_BATCH
from limbeck.engine.pool_examples import pool_examples
from limbeck.engine.robustness import evaluate_robustness
from limbeck.engine.run_folder import atomic_file, write_json
from limbeck.engine.shifted import measure_shifted
from limbeck.measures import JUDGES
from limbeck.models import Network

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor, nn

    from limbeck.data import Samples
    from limbeck.engine.loop import Trainer

MAX_FEATURES = 2000  # test samples whose features are kept, for pictures


def finish(trainer: Trainer) -> dict[str, Any]:
    """Write what a trained run leaves behind, `results.json` last, and return what that holds.

    Several ranks share the images, and the first one writes.
    """
    run, which, lead = trainer.run, _reported(trainer), trainer.ranks.lead
    networks = _networks(trainer)
    judged = trainer.recipe.task in JUDGES
    logits = {name: None if judged else _test_logits(trainer, model) for name, (model, _) in networks.items()}
    results: dict[str, Any] = {**_description(trainer), "last": None, "best": None, "ema": None}
    for name, (model, epoch) in networks.items():
        if lead:
            _write_weights(run / run_folder.WEIGHTS[name], model.state_dict())
        results[name] = _evaluation(trainer, model, epoch, logits[name])
    results |= {"optimistic": trainer.optimistic, "teachers": [teacher.metrics for teacher in trainer.teachers]}
    reported, _ = networks[which]
    results[which] = with_corrupted(results[which], reported, trainer.data, trainer.ranks)
    if trainer.recipe.task == "adversarial":
        results |= {"adversary": trainer.recipe.adversary.model_dump(mode="json"), "reported": which}
        attack_reported(trainer, reported, which)
    test_logits = logits[which]
    arrays = _judged_arrays(trainer, reported) if test_logits is None else _predictions(trainer, reported, test_logits)
    if lead:
        with atomic_file(run / run_folder.PREDICTIONS) as file:
            np.savez(file, allow_pickle=False, **arrays)
        write_json(run / run_folder.RESULTS, results)
    trainer.ranks.wait()  # nobody looks for the files before they are there
    return results


def _networks(trainer: Trainer) -> dict[str, tuple[nn.Module, int]]:
    """Return name -> network and epoch of all weights that the run has, the last ones first."""
    networks: dict[str, tuple[nn.Module, int]] = {"last": (trainer.objective.reported, trainer.epochs)}
    if trainer.best is not None:
        best = copy.deepcopy(trainer.model)
        best.load_state_dict(trainer.best["weights"])
        networks["best"] = best, trainer.best["epoch"]
    if trainer.average is not None:
        networks["ema"] = trainer.average.model, trainer.epochs
    return networks


def _test_logits(trainer: Trainer, model: nn.Module) -> Tensor:
    """Return the logits on the test images, `(N, C)`; N may be 0."""
    return trainer.predict("test", model) if len(trainer.data.test) else torch.empty(0, trainer.data.num_classes)


def attack_reported(trainer: Trainer, model: nn.Module, which: str) -> None:
    """Make the recipe's attacks on the test images; robustness.json keeps what they leave."""
    adversary = trainer.recipe.adversary
    if adversary.attacks and len(trainer.data.test):
        evaluate_robustness(
            model,
            trainer.data.test,
            trainer.recipe,
            attacks=adversary.attacks,
            epsilons=(adversary.epsilon,),
            folder=trainer.run,
            reporter=trainer.reporter,
            stop=trainer.stop,
            weights=which,
        )


def _reported(trainer: Trainer) -> Literal["last", "best", "ema"]:
    """Return which weights a run stands for: the last, but in adversarial training others if there are some.

    Those of the best robust validation accuracy, because robust overfitting is the rule (Rice et al., 2020); without
    a validation split the averaged ones, as the GKL paper has it, or else the last.
    """
    if trainer.recipe.task != "adversarial":
        return "last"
    if trainer.best is not None:
        return "best"
    return "ema" if trainer.average is not None else "last"


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
        "training_images": len(data.train),
        "class_counts": data.class_counts.tolist(),
        "group_classes": {name: len(members) for name, members in data.groups.items()},
        "epochs": trainer.epochs,
        "steps": trainer.steps,
        "parameters": sum(parameter.numel() for parameter in trainer.model.parameters()),
        "train_seconds": trainer.seconds,
    }


def _evaluation(trainer: Trainer, model: nn.Module, epoch: int, test_logits: Tensor | None) -> dict[str, Any]:
    """Return `{"epoch", "validation", "test"}` of the weights in `model`, and `shifted` if there are such tests."""
    validation = trainer.validator.measure("validation", model) if len(trainer.data.validation) else None
    test = trainer.validator.measure("test", model, test_logits) if len(trainer.data.test) else None
    shifted = measure_shifted(model, trainer.data, trainer.ranks)
    return {"epoch": epoch, "validation": validation, "test": test, **shifted}


def _write_weights(path: Path, weights: Mapping[str, Tensor]) -> None:
    # Copies, because the format refuses tensors that share memory, as tied weights do.
    content = save_safetensors({name: value.detach().cpu().contiguous().clone() for name, value in weights.items()})
    with atomic_file(path) as file:
        file.write(content)


def _judged_arrays(trainer: Trainer, model: nn.Module) -> dict[str, np.ndarray[Any, Any]]:
    """Return the arrays of predictions.npz of a task that has a judge: what pictures need of the split reported."""
    data = trainer.data
    split, part = ("test", data.test) if len(data.test) else ("validation", data.validation)
    if not len(part):
        return {}
    arrays = judge(trainer.recipe.task, model, part, data, trainer.ranks).arrays
    taught = trainer.teachers[0].arrays.get(split, {}) if trainer.teachers else {}
    if "predicted" in taught:
        arrays = {**arrays, "teacher_predicted": taught["predicted"]}
    return {f"{split}_{name}": value.cpu().numpy() for name, value in arrays.items()}


def _predictions(trainer: Trainer, model: nn.Module, test_logits: Tensor) -> dict[str, np.ndarray[Any, Any]]:
    """Return the arrays of predictions.npz, made with the weights that are reported."""
    data, teacher = trainer.data, trainer.teachers[0] if trainer.teachers else None
    arrays = {
        "test_logits": test_logits,
        "test_labels": data.test.labels,
        "validation_logits": trainer.predict("validation", model) if len(data.validation) else test_logits[:0],
        "validation_labels": data.validation.labels,
        "train_class_counts": data.class_counts,
        "class_means": class_means(test_logits, data.test.labels.cpu()),
    }
    if isinstance(model, Network) and len(data.test):
        arrays["test_features"] = _features(model, data.test)
    arrays |= example_images(data, trainer.recipe)
    if trainer.recipe.task == "semi_supervised":
        arrays |= pool_examples(trainer)
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
