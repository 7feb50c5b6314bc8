"""The terms between feature maps. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from limbeck.config_terms import FeatureTerm, Input, Positive, TermOptions, feature_names


class FitNetTerm(FeatureTerm):
    """Hint of FitNet (ICLR 2015): squared difference between a regressor of a middle map and the teacher's."""

    formula: ClassVar[str] = "1/(D·H·W) Σ (reg(F_s) − F_t)²"
    paper: ClassVar[str] = "FitNets, arXiv 1412.6550, ICLR 2015"
    cost: ClassVar[str] = "N·H·W·D; one convolution"
    name: Literal["fitnet"] = "fitnet"
    features: tuple[str, ...] = feature_names("hint")
    activation: bool = Field(True, description="End the regressor in a ReLU; not for maps before their activation.")
    mode: Literal["code", "paper"] = Field(
        "code", description="code: the mean over all entries; paper: half the sum over the channels."
    )


class ATTerm(FeatureTerm):
    """Attention transfer (ICLR 2017): where the maps are active, channels averaged away."""

    formula: ClassVar[str] = "1/(H·W) ‖Q_s/‖Q_s‖ − Q_t/‖Q_t‖‖²,  Q = Σ_d |F_d|^power"
    paper: ClassVar[str] = "arXiv 1612.03928, ICLR 2017"
    cost: ClassVar[str] = "N·H·W·D"
    name: Literal["at"] = "at"
    power: Positive = Field(2.0, description="Of the entries in an attention map.")
    mode: Literal["code", "paper"] = Field(
        "code", description="code: the squared mean over the positions; paper: half the norm, not squared."
    )


class NSTTerm(FeatureTerm):
    """Neuron selectivity transfer (2017): discrepancy between the channels of two maps."""

    formula: ClassVar[str] = "‖Sᵀ S / D_s − Tᵀ T / D_t‖²,  channels of length 1 in the rows of S, T"
    paper: ClassVar[str] = "arXiv 1707.01219"
    cost: ClassVar[str] = "N·H·W·D·min(H·W, D)"
    name: Literal["nst"] = "nst"


class ICKDTerm(FeatureTerm):
    """Inter-channel correlation, ICKD-C (ICCV 2021): the Gram matrix of the last map's channels."""

    formula: ClassVar[str] = "1/D ‖G_s − G_t‖²,  G = F Fᵀ with rows of length 1, F_s through conv1x1 and BN"
    paper: ClassVar[str] = "Liu et al., ICCV 2021"
    cost: ClassVar[str] = "N·H·W·D·min(H·W, D); conv1x1"
    name: Literal["ickd"] = "ickd"
    features: tuple[str, ...] = feature_names("last")


class CATTerm(FeatureTerm):
    """Class attention transfer, CAT-KD (CVPR 2023): the classifier's maps of each class, pooled."""

    formula: ClassVar[str] = "1/(C·pool²) Σ (A_s − A_t)²,  A = W · pooled(F)"
    paper: ClassVar[str] = "Guo et al., CVPR 2023"
    cost: ClassVar[str] = "N·H·W·D + N·C·D·pool²"
    inputs: ClassVar[tuple[Input, ...]] = ("features", "target_features", "head", "target_head")
    name: Literal["cat"] = "cat"
    features: tuple[str, ...] = feature_names("features.pooled:input")  # MobileNetV2 has a layer behind its last stage
    pool: Annotated[int, Field(ge=1)] = Field(
        2, description="Positions along an axis after pooling; published 4 with ShuffleNets."
    )
    normalize: bool = Field(
        False, description="Bring each class map to length 1; published for pairs of different architectures."
    )


class VIDTerm(FeatureTerm):
    """Variational information distillation (CVPR 2019): likelihood of the teacher's maps under a regressor."""

    formula: ClassVar[str] = "1/(D·H·W) Σ ½ ((reg(F_s) − F_t)² / σ_d² + log σ_d²),  σ_d² trained"
    paper: ClassVar[str] = "arXiv 1904.05835, CVPR 2019"
    cost: ClassVar[str] = "N·H·W·D; three conv1x1"
    name: Literal["vid"] = "vid"
    initial_variance: Annotated[float, Field(gt=1e-5)] = Field(
        5.0, description="σ_d² of every channel before the first step, in squared units of the features."
    )


class ReviewKDTerm(FeatureTerm):
    """ReviewKD (CVPR 2021): each map, fused with all deeper ones, is drawn to the teacher's at several scales."""

    formula: ClassVar[str] = "Σ_l 2^−l mse(pooled_l(fused), pooled_l(F_t)) / Σ_l 2^−l"
    paper: ClassVar[str] = "arXiv 2104.09044, CVPR 2021"
    cost: ClassVar[str] = "N·H·W·D; conv1x1 and conv3x3 per layer"
    name: Literal["review_kd"] = "review_kd"
    features: tuple[str, ...] = feature_names("stages", "pooled")
    target_features: Annotated[tuple[str, ...], Field(min_length=1)] | None = Field(
        ("stages:preactivation", "pooled"),
        description="Layers of the teacher, paired with the student's in order, shallow first.",
    )

    @model_validator(mode="before")
    @classmethod
    def _follow_the_student(cls, data: Any) -> Any:
        """Layers that are named for the student stand for the teacher's too, as in every other term."""
        if isinstance(data, dict) and "features" in data and "target_features" not in data:
            return {**data, "target_features": None}
        return data

    max_mid_channels: Annotated[int, Field(ge=1)] = Field(
        512, description="Channels of the fused maps, if the student's deepest layer has not fewer; 256 for MobileNet."
    )


class OFDTerm(FeatureTerm):
    """Overhaul of feature distillation, OFD (ICCV 2019): partial distance before the ReLU; published weight 0.001."""

    formula: ClassVar[str] = "Σ_i 2^−(L−1−i) Σ (s − t′)² [s > t′ or t′ > 0],  s = BN(conv(F_s)), t′ = max(F_t, margin)"
    paper: ClassVar[str] = "arXiv 1904.01866, ICCV 2019"
    cost: ClassVar[str] = "N·H·W·D; conv1x1"
    name: Literal["ofd"] = "ofd"
    features: tuple[str, ...] = feature_names("stages:preactivation")


MAPS_TERMS: dict[str, type[TermOptions]] = {
    "fitnet": FitNetTerm,
    "at": ATTerm,
    "nst": NSTTerm,
    "ickd": ICKDTerm,
    "cat": CATTerm,
    "vid": VIDTerm,
    "review_kd": ReviewKDTerm,
    "ofd": OFDTerm,
}
