"""How alike classes are to a teacher: one pass over the training images, in bounded memory."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from limbeck.engine import run_folder
from limbeck.engine.class_features import Reading, Training, find_classifier, pair, sum_up
from limbeck.engine.fit import open_device
from limbeck.engine.progress import Reporter
from limbeck.engine.run_folder import atomic_file, disk_errors, read_results
from limbeck.engine.teachers import Resources, load_file, load_trained, refuse_other_pixels
from limbeck.errors import UserError
from limbeck.functional import interrelations as similarities
from limbeck.interrelation_files import (
    KINDS,
    PAIRED,
    InterrelationFile,
    InterrelationRequest,
    Kind,
    encode,
    read_interrelations,
)

if TYPE_CHECKING:
    from pathlib import Path

    from limbeck.config import Recipe
    from limbeck.data import DataBundle


class Measured(NamedTuple):
    """What a pass over the data found.

    Attributes:
        interrelations: float32 `(C, C)` on the CPU: symmetric, in [0, 1], 1 on the diagonal.
        samples: How many of each class it is made of; empty where no data were needed.
    """

    interrelations: Tensor
    samples: tuple[int, ...]


def compute_interrelations(
    model: nn.Module,
    source: Training | None,
    *,
    kind: Kind,
    num_classes: int,
    features: Literal["penultimate", "logits"] = "penultimate",
    per_class: int | None = None,
    seed: int = 0,
    bandwidth: float = 0.4,
    power: int = 2,
    center: bool = True,
    negative: Literal["shift", "clip"] = "shift",
    reporter: Reporter | None = None,
) -> Tensor:
    """Return how alike classes are to a network.

    Memory: `centroid` keeps a mean of each class; `covariance` a matrix of D x D float64 of each, at most 8 GiB of
    them together; `cka`, `rbf` and `polynomial` the features of `per_class` samples of each class, as much. Nothing
    depends on batches or on the order in which a source in memory is read.

    Args:
        model: Returns logits `(N, C)`. Its penultimate features are what goes into its classifier, the last `nn.Linear`
            with C outputs. It is looked at in eval mode, and left as it was.
        source: Training images; None where the kind needs none (`classifier`, `uniform`).
        kind: What makes two classes alike; see `limbeck.functional.interrelations`.
        num_classes: C.
        features: What goes into the classifier, or the logits.
        per_class: See `InterrelationRequest`; so are the options after it.
        seed: Of the draw of the paired samples.
        bandwidth: Of `rbf`.
        power: Of `polynomial`.
        center: Of `centroid`.
        negative: Of `centroid` and `classifier`.
        reporter: Whom to tell; nobody by default.

    Returns:
        float32 `(C, C)` on the CPU.

    Raises:
        UserError: The network has no such features or other classes, they are not finite, or a class has too few
            samples.
    """
    request = InterrelationRequest(kind, features, per_class, seed, bandwidth, power, center, negative)
    return measure(model, source, request, num_classes, reporter or Reporter()).interrelations


def measure(
    model: nn.Module, source: Training | None, request: InterrelationRequest, num_classes: int, reporter: Reporter
) -> Measured:
    """Do what `compute_interrelations` does, and tell the number of samples."""
    try:
        found, samples = _similarities(model, source, request, num_classes, reporter)
    except ValueError as error:  # of the functions, one line each
        raise UserError(f"interrelations of the kind {request.kind}: {error}") from error
    return Measured(found.float(), samples)


def _similarities(
    model: nn.Module, source: Training | None, request: InterrelationRequest, num_classes: int, reporter: Reporter
) -> tuple[Tensor, tuple[int, ...]]:
    if request.kind not in KINDS:
        raise UserError(f"`kind` expected one of {', '.join(KINDS)}, got {request.kind!r}")
    if request.kind == "uniform":
        return similarities.uniform_interrelations(num_classes), ()
    if request.kind == "classifier":
        weight = find_classifier(model, num_classes).weight.detach().cpu()
        return similarities.classifier_cosine(weight, negative=request.negative), ()
    if source is None:
        raise UserError(f"interrelations of the kind {request.kind} expected training images, got none")
    reading = Reading(model, source, request, num_classes, reporter)
    if request.kind in PAIRED:
        features = pair(reading)
        samples = (features.shape[1],) * num_classes
        if request.kind == "cka":
            return similarities.linear_cka(features), samples
        if request.kind == "rbf":
            return similarities.rbf_cka(features, bandwidth=request.bandwidth), samples
        return similarities.polynomial_cka(features, power=request.power), samples
    moments = sum_up(reading)
    samples = tuple(moments.counts.tolist())
    if request.kind == "centroid":
        return similarities.centroid_cosine(moments.means, center=request.center, negative=request.negative), samples
    return similarities.covariance_alignment(moments.covariances()), samples


# --- files ------------------------------------------------------------------------------------------------


def build_interrelations(
    teacher: Path,
    recipe: Recipe,
    out: Path,
    request: InterrelationRequest,
    *,
    sharpness: float,
    data_name: str,
    reporter: Reporter,
) -> InterrelationFile:
    """Compute how alike classes are to a teacher on the training split of some data, and write it to a file.

    Args:
        teacher: Folder of a finished run, or a file of weights.
        recipe: Its `data` and `train.device` are read; for a file of weights its `model`.
        out: The file, written whole or not at all.
        request: What is to be computed.
        sharpness: kappa of the cost.
        data_name: What the data are called in the file.
        reporter: Whom to tell.

    Returns:
        What the file holds.

    Raises:
        UserError: Teacher or data are missing or do not fit, see `compute_interrelations`, or nothing can be written.
    """
    with disk_errors(out, "--out"):
        out.parent.mkdir(parents=True, exist_ok=True)
    if out.is_dir():
        raise UserError(f"{out} is a folder; choose another --out")
    data = Resources().data(recipe.data, open_device(recipe.train.device))
    model, fingerprint = _open(teacher, recipe, data)
    measured = measure(model.to(data.device), data.train, request, data.num_classes, reporter)
    cost = similarities.cost_from_interrelations(measured.interrelations, sharpness=sharpness)
    content = InterrelationFile(
        interrelations=measured.interrelations.numpy(),
        cost=cost.numpy(),
        kind=request.kind,
        options=request.options(),
        sharpness=sharpness,
        teacher=teacher.resolve().name,
        teacher_fingerprint=fingerprint,
        data=data_name,
        data_fingerprint=data.fingerprint,
        split="training",
        samples=measured.samples,
        limbeck=version("limbeck"),
    )
    _write(out, content)
    return content


def _open(teacher: Path, recipe: Recipe, data: DataBundle) -> tuple[nn.Module, str]:
    """Return a teacher's network and the SHA-256 of its weights."""
    if not teacher.is_dir():
        return load_file(recipe.model, teacher, data)
    reported = cast("str", read_results(teacher).get("reported", "last"))
    model, trained, fingerprint = load_trained(teacher, run_folder.WEIGHTS[reported], data)
    refuse_other_pixels(trained.data, recipe.data, str(teacher))
    return model, fingerprint


def _write(path: Path, content: InterrelationFile) -> None:
    try:
        with atomic_file(path) as file:
            file.write(encode(content))
    except UserError as error:  # of a full disk; there is no --run here
        raise UserError(str(error).replace("another --run", "another --out")) from error


def read_cost(path: Path, num_classes: int) -> Tensor:
    """Return the cost of transport in a file that `limbeck interrelations` wrote, float32 `(C, C)`.

    Args:
        path: The file.
        num_classes: C, of the data it is for.

    Raises:
        UserError: The file is missing, damaged or another one, or of another number of classes.
    """
    cost = torch.from_numpy(read_interrelations(path).cost.copy())
    if cost.shape != (num_classes, num_classes):
        raise UserError(
            f"{path}: expected the cost between {num_classes} classes, got {tuple(cost.shape)}; make one of this data"
        )
    return cost
