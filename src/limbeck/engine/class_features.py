"""Features of the training images, class by class: read in one pass, summed or kept in bounded memory."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from limbeck.data import ShardSource, Source, StoredSource
from limbeck.draws import uniform
from limbeck.engine.given import device_of
from limbeck.engine.metrics import EVALUATION_BATCH
from limbeck.errors import UserError
from limbeck.objectives.layers import classifier

if TYPE_CHECKING:
    from collections.abc import Iterator

    from limbeck.data.user import UserTraining
    from limbeck.engine.progress import Reporter
    from limbeck.interrelation_files import InterrelationRequest

Training: TypeAlias = "Source | StoredSource | ShardSource | UserTraining"
MOST = 500  # samples of each class that are paired, unless one asks for more
FEWEST = 10  # below, a default is none
LIMIT = 10 * 2**30  # bytes of what is kept of the features
WITH_FLOAT64 = 12  # bytes of a number that is kept and then copied
NOTHING = 1e-12  # share of the squared length of features: what rounding leaves of no variance


# --- reading features -------------------------------------------------------------------------------------


class Reading(NamedTuple):
    """A pass over the training images."""

    model: nn.Module
    source: Training
    request: InterrelationRequest
    num_classes: int
    reporter: Reporter

    def batches(self, chosen: Tensor | None = None) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield features `(B, D)`, labels and places in the source, on the CPU; of `chosen` images or of all."""
        device = device_of(self.model, "model")
        if isinstance(self.source, Source | StoredSource):
            places = torch.arange(len(self.source)) if chosen is None else chosen
            parts, steps = _of_images(self.source, places), -(-len(places) // EVALUATION_BATCH)
        elif isinstance(self.source, ShardSource):
            raise UserError("interrelations are of images in files or in memory; set `data.shards` to null")
        else:
            stream = self.source.stream(0, device)
            parts, steps = ((each.images, each.labels, each.indices) for each in stream.batches(1)), len(self.source)
        self.reporter.begin_run(f"{self.request.kind}: features of training images", steps=steps, done=0)
        with _looking(self.model, self.num_classes, self.request.features) as look:
            for step, (inputs, labels, at) in enumerate(parts, start=1):
                features = look(inputs.to(device))
                yield features, _hard(labels, self.num_classes), at.cpu()
                self.reporter.step(step, len(features))


def _of_images(source: Source | StoredSource, places: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    parts = torch.split(places, EVALUATION_BATCH)
    for part, images in zip(parts, source.seen(places, EVALUATION_BATCH), strict=True):
        yield images, source.labels[part.to(source.labels.device)], part


def _hard(labels: Tensor, num_classes: int) -> Tensor:
    labels = labels.cpu()
    if labels.is_floating_point():
        raise UserError("interrelations expected labels that are class numbers, got soft ones; leave mixing out")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_classes:
        raise UserError(f"interrelations expected labels from 0 to {num_classes - 1}, got {low if low < 0 else high}")
    return labels


class _Look:
    """What a network makes of a batch: float32 `(B, D)` on the CPU."""

    def __init__(self, model: nn.Module, num_classes: int, tapped: list[Tensor] | None) -> None:
        self._model, self._num_classes, self._tapped = model, num_classes, tapped

    @torch.no_grad()
    def __call__(self, inputs: Tensor) -> Tensor:
        tapped = self._tapped
        if tapped is not None:
            tapped.clear()
        logits = self._model(inputs)
        if not isinstance(logits, Tensor) or logits.shape != (len(inputs), self._num_classes):
            got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            expected = (len(inputs), self._num_classes)
            raise UserError(f"interrelations expected a network that returns logits {expected}, got {got}")
        if tapped is not None and (len(tapped) != 1 or tapped[0].dim() != 2 or len(tapped[0]) != len(inputs)):
            got = ", ".join(str(tuple(each.shape)) for each in tapped) or "nothing"
            raise UserError(
                f"interrelations expected features (N, D) to go into the classifier once in a batch of {len(inputs)}, "
                f"got {got}; take the features `logits`"
            )
        features = (logits if tapped is None else tapped[0]).float().cpu()
        if not bool(features.isfinite().all()):
            raise UserError("interrelations expected finite features of all images, got NaN or infinity from the model")
        return features


@contextmanager
def _looking(model: nn.Module, num_classes: int, which: str) -> Iterator[_Look]:
    """Put a network into eval mode and listen to its classifier; undo both at the end."""
    modes = [(part, part.training) for part in model.modules()]
    tapped: list[Tensor] | None = None
    handle = None
    if which == "penultimate":
        heard: list[Tensor] = []
        tapped = heard
        head = find_classifier(model, num_classes)
        handle = head.register_forward_pre_hook(lambda _, inputs: heard.append(inputs[0]))
    model.eval()
    try:
        yield _Look(model, num_classes, tapped)
    finally:
        if handle is not None:
            handle.remove()
        for part, training in modes:
            part.training = training


def find_classifier(model: nn.Module, num_classes: int) -> nn.Linear:
    """Return the linear layer that a network ends with, or raise UserError if there is none."""
    try:
        return classifier(model, num_classes)
    except ValueError as error:
        words = str(error).split(";")[0]
        raise UserError(f"interrelations {words}; the features `logits` need no such layer") from error


# --- what is kept of them ---------------------------------------------------------------------------------


class Moments:
    """Sums over the samples of each class, in float64; the products of features only if asked for."""

    def __init__(self, num_classes: int, products: bool) -> None:
        self.counts = torch.zeros(num_classes, dtype=torch.int64)
        self._products = products
        self._sums = self._squares = torch.empty(0)

    def add(self, features: Tensor, labels: Tensor) -> None:
        """Add a batch."""
        classes, size = len(self.counts), features.shape[1]
        if not self._sums.numel():
            if self._products:
                _refuse_large("covariance", 8 * classes * size**2, "take the kind centroid or classifier")
                self._squares = torch.zeros(classes, size, size, dtype=torch.float64)
            self._sums = torch.zeros(classes, size, dtype=torch.float64)
        x = features.double()
        self._sums.index_add_(0, labels, x)
        self.counts += labels.bincount(minlength=classes)
        if self._products:
            for c in sorted(set(labels.tolist())):
                rows = x[labels == c]
                self._squares[c].addmm_(rows.mT, rows)

    @property
    def means(self) -> Tensor:
        """`(C, D)`."""
        return self._sums / self.counts.unsqueeze(1)

    def covariances(self) -> Tensor:
        """`(C, D, D)`, in the place of the sums; a class whose samples are all alike is refused."""
        means, second = self.means, self._squares
        second /= self.counts.view(-1, 1, 1)
        length = second.diagonal(dim1=1, dim2=2).sum(1)
        for covariance, mean in zip(second, means, strict=True):
            covariance.addr_(mean, mean, alpha=-1)
        alike = second.diagonal(dim1=1, dim2=2).sum(1) <= NOTHING * length
        if bool(alike.any()):
            raise UserError(f"class {int(alike.nonzero()[0])} expected samples that differ, got none; leave it out")
        return second


def sum_up(reading: Reading) -> Moments:
    """Return the sums over all training images."""
    moments = Moments(reading.num_classes, products=reading.request.kind == "covariance")
    for features, labels, _ in reading.batches():
        moments.add(features, labels)
    _refuse_few(moments.counts, 2 if reading.request.kind == "covariance" else 1, reading.request.kind)
    return moments


def pair(reading: Reading) -> Tensor:
    """Return the features `(C, N, D)` of N samples of each class: those with the smallest draws, in their order."""
    request, chosen = reading.request, None
    if request.per_class is not None and request.per_class < 2:
        raise UserError(f"`per_class` expected at least 2 samples of each class, got {request.per_class}")
    limit = most = request.per_class or _most(reading)
    if isinstance(reading.source, Source | StoredSource):
        labels = _hard(reading.source.labels, reading.num_classes)
        limit = _samples_each(labels.bincount(minlength=reading.num_classes), request, most)
        draws = _draws(request.seed, torch.arange(len(labels)))
        chosen = torch.cat([_smallest(draws, labels == c, limit) for c in range(reading.num_classes)])
    counts = torch.zeros(reading.num_classes, dtype=torch.int64)
    drawn = torch.full((reading.num_classes, limit), torch.inf, dtype=torch.float64)
    kept = torch.empty(0)
    for features, labels, places in reading.batches(chosen):
        if not kept.numel():
            size = features.shape[1]
            _refuse_large(
                request.kind, WITH_FLOAT64 * drawn.numel() * size, "lower `per_class`, or take the features `logits`"
            )
            kept = torch.empty(*drawn.shape, size)
        counts += labels.bincount(minlength=reading.num_classes)
        for row, c, draw in zip(features, labels.tolist(), _draws(request.seed, places).tolist(), strict=True):
            slot = int(drawn[c].argmax())  # an empty one, as long as there are
            if draw < drawn[c, slot]:
                drawn[c, slot], kept[c, slot] = draw, row
    each = _samples_each(counts, request, most)
    for c, order in enumerate(drawn.argsort(1)):
        kept[c] = kept[c, order]
    return kept[:, :each]


def _draws(seed: int, places: Tensor) -> Tensor:
    return uniform(seed, 0, places, "interrelations")


def _smallest(draws: Tensor, among: Tensor, count: int) -> Tensor:
    """Return the places, in rising order, of the smallest draws of a class."""
    places = among.nonzero().squeeze(1)
    return places[draws[places].argsort()[:count]].sort().values


def _most(reading: Reading) -> int:
    """Return how many samples of each class are paired at most by default: what fits."""
    size = reading.num_classes
    if reading.request.features == "penultimate":
        size = find_classifier(reading.model, reading.num_classes).in_features
    return min(MOST, max(FEWEST, LIMIT // (WITH_FLOAT64 * reading.num_classes * size)))


def _samples_each(counts: Tensor, request: InterrelationRequest, most: int) -> int:
    """Return how many samples of each class are paired, or raise UserError if a class has too few."""
    wanted = request.per_class
    _refuse_few(counts, FEWEST if wanted is None else wanted, request.kind, paired=True)
    return min(int(counts.min()), most) if wanted is None else wanted


def _refuse_few(counts: Tensor, fewest: int, kind: str, *, paired: bool = False) -> None:
    count, smallest = int(counts.min()), int(counts.argmin())
    if count < fewest:
        way_out = "; say a smaller `per_class`, or take the kind centroid or classifier" if paired else ""
        raise UserError(
            f"interrelations of the kind {kind} expected at least {fewest} training images of each class, "
            f"got {count} of class {smallest}{way_out}"
        )


def _refuse_large(kind: str, size: int, way_out: str) -> None:
    if size > LIMIT:
        raise UserError(
            f"interrelations of the kind {kind} would keep {size / 2**30:.1f} GiB of features, at most "
            f"{LIMIT / 2**30:.0f} are kept; {way_out}"
        )
