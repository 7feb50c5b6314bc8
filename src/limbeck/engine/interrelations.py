"""How alike classes are to a teacher: one pass over the training images, in bounded memory."""

from __future__ import annotations

from typing import Literal, NamedTuple

from torch import Tensor, nn

from limbeck.data import Streaming
from limbeck.engine.class_features import Reading, Training, find_classifier, pair, sum_up
from limbeck.engine.progress import Reporter
from limbeck.errors import UserError
from limbeck.functional import interrelations as similarities
from limbeck.interrelation_files import (
    KINDS,
    PAIRED,
    InterrelationRequest,
    Kind,
)


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
    source: Training | Streaming | None,
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

    Memory: `centroid` keeps a mean of each class; `covariance` a matrix of D x D float64 of each; `cka`, `rbf` and
    `polynomial` the features of `per_class` samples of each, 12 bytes a number. What would take more than 10 GiB is
    refused. Nothing
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
    model: nn.Module,
    source: Training | Streaming | None,
    request: InterrelationRequest,
    num_classes: int,
    reporter: Reporter,
) -> Measured:
    """Do what `compute_interrelations` does, and tell the number of samples."""
    try:
        found, samples = _similarities(model, source, request, num_classes, reporter)
    except ValueError as error:  # of the functions, one line each
        raise UserError(f"interrelations of the kind {request.kind}: {error}") from error
    return Measured(found.float(), samples)


def _similarities(
    model: nn.Module,
    source: Training | Streaming | None,
    request: InterrelationRequest,
    num_classes: int,
    reporter: Reporter,
) -> tuple[Tensor, tuple[int, ...]]:
    if request.kind not in KINDS:
        raise UserError(f"`kind` expected one of {', '.join(KINDS)}, got {request.kind!r}")
    if request.kind == "uniform":
        return similarities.uniform_interrelations(num_classes), ()
    if request.kind == "classifier":
        layer = find_classifier(model, num_classes)
        weight = layer.weight.detach().cpu()
        if getattr(layer, "background_first", False):  # the background is the last class of a detector here
            weight = weight.roll(-1, dims=0)
        return similarities.classifier_cosine(weight, negative=request.negative), ()
    if source is None:
        raise UserError(f"interrelations of the kind {request.kind} expected training images, got none")
    if isinstance(source, Streaming):
        raise UserError(
            f"interrelations of the kind {request.kind} expected training images of one class each, got none"
        )
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
