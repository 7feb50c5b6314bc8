"""Learning to detect, from boxes and from other detectors: all of them look at the regions that the student draws."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from limbeck.config import FeatureTerm
from limbeck.config_terms_detection import PYRAMID, REGIONS
from limbeck.functional.boxes import offsets_to
from limbeck.functional.detection import REGION_SCALE
from limbeck.losses.detection import Matched
from limbeck.models.detector import Detector
from limbeck.models.regions import whole_sizes
from limbeck.models.running import Precision, arithmetic
from limbeck.objectives.coupled import shared_normalizer
from limbeck.objectives.distill import Distillation
from limbeck.objectives.layers import Layers
from limbeck.objectives.matching import Chance, draw_anchors, draw_regions, match_anchors, near_objects
from limbeck.objectives.supervised import Batch, Outcome

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from limbeck.config import DetectOptions, Term
    from limbeck.models.detector import Proposed
    from limbeck.objectives.build import Facts
    from limbeck.objectives.matching import Regions


@dataclass(frozen=True)
class RegionOutcome(Outcome):
    """What an objective makes of a batch of images with boxes; its logits are of regions, `(R, C + 1)`.

    Attributes:
        labels: int64 `(R,)`: the regions' classes, C for the background.
    """

    labels: Tensor = field(kw_only=True)


class Said(NamedTuple):
    """What a detector says of regions.

    Attributes:
        logits: `(R, C + 1)`.
        offsets: `(R, 4)`: of each region's class, where classes have boxes of their own.
        features: Name of a term -> its maps.
    """

    logits: Tensor
    offsets: Tensor
    features: Mapping[str, tuple[Tensor, ...]]


class Detection(Distillation):
    """Weighted terms between a detector, the boxes, and frozen detectors that see the same regions.

    The student proposes boxes and draws regions of them; each teacher pools these regions from its own pyramid and says
    what it sees in them. Every region is a sample of a loss of logits, the background its last class.

    Args:
        student: The detector that trains.
        teachers: None, or detectors with the student's classes and strides.
        terms: Terms of the loss.
        options: What is drawn.
        epochs: Length of the run.
        facts: What losses are built from; the classes without the background.
        precision: See `Distillation`.

    Raises:
        ValueError: The student proposes fewer boxes than are drawn, or a term's options do not fit the networks.
    """

    def __init__(
        self,
        student: nn.Module,
        teachers: Sequence[nn.Module],
        terms: Sequence[Term],
        options: DetectOptions,
        *,
        epochs: int,
        facts: Facts,
        precision: Precision = "same",
    ) -> None:
        most = cast("Detector", student).geometry.proposals
        if options.regions > most:
            raise ValueError(
                f"`detect.regions` expected at most {most}, as many as the detector proposes, got {options.regions}"
            )
        self.options, self.seed, self.classes = options, facts.seed, facts.num_classes
        with_background = replace(facts, num_classes=facts.num_classes + 1)
        super().__init__(student, teachers, terms, epochs=epochs, facts=with_background, precision=precision)

    def _look_at(self, network: nn.Module, *, teacher: bool) -> Layers:
        return RegionLayers(network, self.terms, self.options.feature_side, teacher=teacher)

    def set_epoch(self, epoch: int) -> None:
        """Set the weights of the terms, and the draws, for an epoch, counted from 1."""
        super().set_epoch(epoch)
        self.epoch = epoch

    def forward(self, batch: Batch) -> RegionOutcome:
        """Return the loss of a batch, its parts, and what student and teachers say of the regions that were drawn."""
        detector, truth = cast("Detector", self.student), batch.labels
        proposed = detector.propose(detector.look(batch.images), sizes_of(batch))
        chance = Chance(self.seed, self.epoch, batch.indices)
        drawn = draw_regions(proposed.boxes, truth, self.options.regions, self.classes, chance)
        said = cast("RegionLayers", self.layers).say(proposed.maps, drawn)
        targets = self._taught(batch, drawn)
        known = {
            "logits": said.logits,
            "labels": drawn.labels,
            "offsets": said.offsets,
            "proposals": drawn.boxes.flatten(0, 1),
            "anchors": self._anchors(proposed, truth, chance),
            "regions": _regions(said, drawn),
        }
        if any("near_objects" in term.inputs for term in self.terms.values()):
            shapes = [(each.shape[2], each.shape[3]) for each in proposed.maps]
            known["near_objects"] = near_objects(proposed.anchors, truth, shapes)
        parts = {name: self._part(name, known, said, targets) for name in self.terms}
        logits = tuple(target.logits for target in targets)
        return RegionOutcome(self._total(parts), said.logits, parts, logits, labels=drawn.labels)

    def _taught(self, batch: Batch, drawn: Regions) -> tuple[Said, ...]:
        if not self.taught:
            return ()
        said = []
        with arithmetic(batch.images.device.type, self.precision), torch.no_grad():
            for layers in self.teacher_layers:
                of_regions = cast("RegionLayers", layers).say(cast("Detector", layers.model).look(batch.images), drawn)
                said.append(Said(*(_full(each) for each in of_regions)))
        return tuple(said)

    def _anchors(self, proposed: Proposed, truth: Tensor, chance: Chance) -> Matched:
        labels, boxes = match_anchors(proposed.anchors, truth)
        labels = draw_anchors(labels, self.options.anchors, chance)
        wanted = offsets_to(proposed.anchors, boxes.float())
        return Matched(proposed.scores, labels, proposed.offsets, wanted, len(truth) * self.options.anchors)

    def _part(self, name: str, known: Mapping[str, Any], said: Said, targets: Sequence[Said]) -> Tensor:
        known = {**known, "features": said.features.get(name)}
        inputs = self.terms[name].inputs
        if name not in self.taught:
            return cast("Tensor", self.losses[name](*(known[what] for what in inputs)))
        values = []
        for loss, target in zip(self._per_teacher(name), targets, strict=True):
            theirs = {"target_logits": target.logits, "target_offsets": target.offsets}
            theirs["target_features"] = target.features.get(name)  # type: ignore[assignment]
            shared = shared_normalizer(loss, target.logits, known["labels"], self.facts)
            values.append(loss(*((known | theirs)[what] for what in inputs), **shared))
        return values[0] if len(values) == 1 else torch.stack(values).mean()

    def score(self, batch: Batch, outcome: Outcome) -> Tensor:
        """Return the share of the regions whose class is right, the background's too."""
        labels = cast("RegionOutcome", outcome).labels
        return (outcome.logits.detach().argmax(dim=-1) == labels).float().mean()

    def after_step(self, batch: Batch, outcome: Outcome) -> None:
        """Let every loss observe what its teacher said of the regions, by their classes."""
        for name in self.taught:
            for loss, target in zip(self._per_teacher(name), outcome.target_logits, strict=True):
                loss.observe(target, cast("RegionOutcome", outcome).labels)


class RegionLayers(Layers):
    """A detector, and which of its maps each term looks at: those of the regions, or the levels of the pyramid.

    Args:
        model: The detector.
        terms: The objective's, by name.
        side: Of the maps of regions that terms see; None for the box head's.
        teacher: Whether it is a teacher, whose maps are the terms' `target_features`.
    """

    def __init__(self, model: nn.Module, terms: Mapping[str, Term], side: int | None, *, teacher: bool) -> None:
        super().__init__(model, {}, teacher=teacher)
        self.side = side
        levels = [f"{PYRAMID}.{level}" for level in range(len(cast("Detector", model).geometry.strides))]
        for name, term in terms.items():
            if isinstance(term, FeatureTerm):
                named = (term.target_features if teacher else None) or term.features
                self.paths[name] = [path for word in named for path in (levels if word == PYRAMID else [word])]

    def say(self, maps: tuple[Tensor, ...], regions: Regions) -> Said:
        """Return what the detector says of regions, given its pyramid's levels."""
        detector = cast("Detector", self.model)
        pooled = detector.pool(maps, regions.boxes)
        logits, offsets = detector.classify(pooled)
        seen = {f"{PYRAMID}.{level}": each for level, each in enumerate(maps)}
        if any(REGIONS in paths for paths in self.paths.values()):
            own = self.side in (None, detector.geometry.side)
            seen[REGIONS] = pooled if own else detector.pool(maps, regions.boxes, self.side)
        of_class = regions.labels.clamp(max=offsets.shape[1] - 1)
        chosen = offsets.gather(1, of_class.view(-1, 1, 1).expand(-1, 1, 4)).squeeze(1)
        features = {name: tuple(seen[path] for path in paths) for name, paths in self.paths.items()}
        return Said(logits, chosen, features)

    def shapes(self, name: str, example: Tensor) -> list[tuple[int, ...]]:
        """Return the shapes of a term's maps, of one region or one image."""
        detector = cast("Detector", self.model)
        modes = [(part, part.training) for part in detector.modules()]
        detector.eval()
        with torch.no_grad():
            maps = detector.look(example)
        for part, training in modes:
            part.training = training
        side = self.side or detector.geometry.side
        known = {f"{PYRAMID}.{level}": tuple(each.shape[1:]) for level, each in enumerate(maps)}
        known[REGIONS] = (detector.channels, side, side)
        return [known[path] for path in self.paths[name]]


def sizes_of(batch: Batch) -> Tensor:
    """Return the heights and widths of a batch's images `(N, 2)`: its first view where they are padded."""
    if batch.views:
        return batch.views[0]
    return whole_sizes(batch.images)


def _regions(said: Said, drawn: Regions) -> Matched:
    wanted = offsets_to(drawn.boxes, drawn.wanted.to(drawn.boxes.dtype), REGION_SCALE).flatten(0, 1)
    return Matched(said.logits, drawn.labels, said.offsets, wanted, len(drawn.labels))


def _full(said: Any) -> Any:
    """Return tensors, and dictionaries of tuples of them, in float32 at least."""
    if isinstance(said, dict):
        return {name: tuple(map(_full, maps)) for name, maps in said.items()}
    return said.to(torch.promote_types(said.dtype, torch.float32))
