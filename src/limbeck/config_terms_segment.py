"""The terms of the task `segment` alone. Imports no torch."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from limbeck.config_terms import FeatureTerm, Input, NonNegative, Positive, TermOptions, feature_names


class CWDTerm(TermOptions):
    """Channel-wise distillation (ICCV 2021): where in the image each class is, as a softmax over positions."""

    formula: ClassVar[str] = "T²/C Σ_c KL(φ(t_c/T) ‖ φ(s_c/T)),  φ: softmax over the positions of channel c"
    paper: ClassVar[str] = "arXiv 2011.13256, ICCV 2021"
    cost: ClassVar[str] = "N·C·H·W"
    name: Literal["cwd"] = "cwd"
    temperature: Positive = Field(4.0, description="Divides both logits.")
    scale_by_t2: bool = Field(True, description="Multiply by the temperature's square.")


class APDTerm(FeatureTerm):
    """Adaptive perspective distillation (TPAMI 2023): each image's own class centres, without the KL of logits."""

    formula: ClassVar[str] = "km_weight · KL(softmax(k f_t·c_t) ‖ softmax(k f_s·c_s)) + proto_weight · ½(1 − c_s·c_t)"
    paper: ClassVar[str] = "Tian et al., TPAMI 2023"
    cost: ClassVar[str] = "N·H·W·D·width; two 1x1 convolutions per network"
    inputs: ClassVar[tuple[Input, ...]] = ("features", "target_features", "labels")
    memory: ClassVar[str] = "the teacher's adapter, with an Adam of its own"
    name: Literal["apd"] = "apd"
    features: tuple[str, ...] = feature_names("decoder")
    km_weight: NonNegative = Field(10.0, description="Factor of the KL of the pixels' likeness to the centres.")
    proto_weight: NonNegative = Field(10.0, description="Factor of the centres' distance.")
    concentration: Positive = Field(10.0, description="k, which multiplies cosines before each softmax.")
    width: Annotated[int, Field(ge=1)] = Field(512, description="Channels of the adapters.")
    adapter_learning_rate: Positive = Field(1e-5, description="Of the Adam that trains the teacher's adapter.")


SEGMENT_TERMS: dict[str, type[TermOptions]] = {"cwd": CWDTerm, "apd": APDTerm}
