"""The terms of self-distillation: no second network. Imports no torch."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from limbeck.config_terms import FeatureTerm, Input, NonNegative, Positive, TermOptions, feature_names


class TfKDTerm(TermOptions):
    """Tf-KD, teacher-free: KL to a virtual teacher that gives the label most of the mass."""

    formula: ClassVar[str] = "KL(softmax(u / T) ‖ p_s),  u[y] = correct, else (1 − correct) / (C − 1)"
    paper: ClassVar[str] = "arXiv 1909.11723, CVPR 2020"
    inputs: ClassVar[tuple[Input, ...]] = ("logits", "labels")
    hard_labels: ClassVar[bool] = True
    name: Literal["tf_kd"] = "tf_kd"
    correct: Annotated[float, Field(gt=0, lt=1)] = Field(0.99, description="The virtual teacher's mass of the label.")
    temperature: Positive = Field(20.0, description="Of the virtual teacher, and of the student in mode paper.")
    mode: Literal["code", "paper"] = Field(
        "code",
        description="code takes the softmax of probabilities and leaves the student at temperature 1; paper softens "
        "both. The public code's factor is alpha · multiplier / classes here.",
    )


class ZipfTerm(FeatureTerm):
    """Zipf's label smoothing: the classes but the label's follow the law of their ranks."""

    formula: ClassVar[str] = "KL(q ‖ p̂_s) over k ≠ y,  q[k] ∝ 1 / rank of k by the positions' votes"
    paper: ClassVar[str] = "arXiv 2207.12980, ECCV 2022"
    cost: ClassVar[str] = "N·H·W·D·C; N·H·W·C"
    inputs: ClassVar[tuple[Input, ...]] = ("logits", "labels", "features", "head")
    hard_labels: ClassVar[bool] = True
    name: Literal["zipf"] = "zipf"
    features: tuple[str, ...] = feature_names("last")
    dense: bool = Field(True, description="Rank by the votes of the map's positions; false ranks by the logits.")
    upsample: Annotated[int, Field(ge=1)] = Field(
        1, description="Enlarge the map so many times a side before the vote; published 2 on CIFAR-100."
    )


class USKDTerm(FeatureTerm):
    """USKD, universal self-distillation: soft labels of the student's own making, and a weak classifier."""

    formula: ClassVar[str] = "−target_weight · P log s[y] − rest_weight Σ_{k≠y} q log ŝ + weak_weight · CE(w)"
    paper: ClassVar[str] = "arXiv 2303.13005, ICCV 2023"
    cost: ClassVar[str] = "N·C·log C; linear layer D·C, trainable"
    inputs: ClassVar[tuple[Input, ...]] = ("logits", "labels", "features")
    hard_labels: ClassVar[bool] = True
    relates_samples: ClassVar[bool] = True
    name: Literal["uskd"] = "uskd"
    features: tuple[str, ...] = feature_names("hint")
    target_weight: NonNegative = Field(1.0, description="The paper's alpha; published 1 on ImageNet, 0.1 on CIFAR-100.")
    rest_weight: NonNegative = Field(0.1, description="The paper's beta: factor of the part among the other classes.")
    weak_weight: NonNegative = Field(
        0.005, description="The paper's mu: factor of the weak classifier; published 0.005 and, on CIFAR-100, 0.1."
    )
    mode: Literal["code", "paper"] = Field(
        "code", description="Rank the other classes by log-probabilities (code) or by probabilities (paper)."
    )


SELF_TERMS: dict[str, type[TermOptions]] = {
    "tf_kd": TfKDTerm,
    "zipf": ZipfTerm,
    "uskd": USKDTerm,
}
