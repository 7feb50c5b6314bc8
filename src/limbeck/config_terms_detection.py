"""The terms of a two-stage detector: the labels', and what it imitates of its teacher. Imports no torch."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from limbeck.config_terms import FeatureTerm, Input, NonNegative, TermOptions, feature_names

REGIONS, PYRAMID = "regions", "pyramid"  # what `features` may name in the task `detect`


class DetectionTerm(TermOptions):
    """The labels' loss of a two-stage detector (task detect): cross-entropies and box offsets of both stages."""

    formula: ClassVar[str] = "bce(anchors) + |o − o*|₁ (anchors) − log p[y] (regions) + |o − o*|₁ (regions)"
    paper: ClassVar[str] = "Faster R-CNN, arXiv 1506.01497"
    cost: ClassVar[str] = "N·A + R·C"
    inputs: ClassVar[tuple[Input, ...]] = ("anchors", "regions")
    name: Literal["detection"] = "detection"
    objectness_weight: NonNegative = Field(1.0, description="Factor of the first stage's binary cross-entropy.")
    anchor_weight: NonNegative = Field(1.0, description="Factor of the first stage's box offsets.")
    class_weight: NonNegative = Field(1.0, description="Factor of the second stage's cross-entropy.")
    box_weight: NonNegative = Field(1.0, description="Factor of the second stage's box offsets.")


class FGFITerm(FeatureTerm):
    """Fine-grained feature imitation (CVPR 2019): the teacher's maps at the positions near objects."""

    formula: ClassVar[str] = "1/(2P) Σ [near an object] ‖adapter(F_s) − F_t‖²,  P: positions near objects"
    paper: ClassVar[str] = "arXiv 1906.03609, CVPR 2019"
    cost: ClassVar[str] = "N·H·W·D; conv3x3 per level"
    inputs: ClassVar[tuple[Input, ...]] = ("features", "target_features", "near_objects")
    name: Literal["fgfi"] = "fgfi"
    features: tuple[str, ...] = feature_names(PYRAMID)
    activation: bool = Field(
        True, description="End the adapters in a ReLU, as published; false for maps that have negative entries."
    )


class BoxRegressionTerm(TermOptions):
    """The teacher's boxes for the student's proposals: squared difference of offsets, and Distance-IoU."""

    formula: ClassVar[str] = "‖o_s − o_t‖² + iou_weight · (1 − IoU(b_s, b_t) + d²/c²)"
    paper: ClassVar[str] = "arXiv 2412.08139, appendix E.1; Distance-IoU: arXiv 1911.08287"
    cost: ClassVar[str] = "R"
    inputs: ClassVar[tuple[Input, ...]] = ("offsets", "target_offsets", "proposals", "labels")
    name: Literal["box_regression"] = "box_regression"
    iou_weight: NonNegative = Field(20.0, description="Factor of the Distance-IoU.")


DETECTION_TERMS: dict[str, type[TermOptions]] = {
    "detection": DetectionTerm,
    "fgfi": FGFITerm,
    "box_regression": BoxRegressionTerm,
}
