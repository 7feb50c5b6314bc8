"""The terms between logits that the papers' tables compare with. Imports no torch."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from limbeck.config_terms import FeatureTerm, Fraction, Input, LogitTerm, NonNegative, Positive, TermOptions


class DKDTerm(LogitTerm):
    """DKD, decoupled distillation: the label's class against the rest, and the rest among themselves."""

    formula: ClassVar[str] = "T² (target_weight · KL(b_t ‖ b_s) + rest_weight · KL(p̂_t ‖ p̂_s)),  b = (p[y], 1 − p[y])"
    paper: ClassVar[str] = "arXiv 2203.08679, CVPR 2022"
    inputs: ClassVar[tuple[Input, ...]] = ("logits", "target_logits", "labels")
    hard_labels: ClassVar[bool] = True
    name: Literal["dkd"] = "dkd"
    target_weight: NonNegative = Field(1.0, description="The paper's alpha: factor of the label against the rest.")
    rest_weight: NonNegative = Field(
        8.0, description="The paper's beta: factor of the rest among themselves; published from 0.5 to 8, by pair."
    )
    temperature: Positive = Field(4.0, description="Divides both logits.")
    scale_by_t2: bool = Field(True, description="Multiply by the squared temperature.")


class NKDTerm(LogitTerm):
    """NKD, normalised distillation: the label's likelihood by the teacher's belief in it, and the rest renormalised."""

    formula: ClassVar[str] = "−target_weight · p_t[y] log p_s[y] − rest_weight · T² Σ_{k≠y} p̂_t log p̂_s"
    paper: ClassVar[str] = "arXiv 2303.13005, ICCV 2023"
    inputs: ClassVar[tuple[Input, ...]] = ("logits", "target_logits", "labels")
    hard_labels: ClassVar[bool] = True
    name: Literal["nkd"] = "nkd"
    target_weight: NonNegative = Field(1.0, description="Factor of the label's likelihood, at temperature 1.")
    rest_weight: NonNegative = Field(1.5, description="The paper's gamma: factor of the part among the other classes.")
    temperature: Positive = Field(1.0, description="Divides both logits in the part among the other classes.")
    scale_by_t2: bool = Field(True, description="Multiply that part by the squared temperature.")
    subtract_entropy: bool = Field(
        False, description="KL in place of the cross-entropy in that part: another value, the same gradient."
    )


class TTMTerm(LogitTerm):
    """TTM, transformed teacher matching: a temperature on the teacher alone; WTTM if `weighted`."""

    formula: ClassVar[str] = "U · KL(p_t^g / Σ p_t^g ‖ p_s),  U = 1, or Σ p_t^g if weighted"
    paper: ClassVar[str] = "arXiv 2402.11148, ICLR 2024"
    inputs: ClassVar[tuple[Input, ...]] = ("logits", "target_logits")
    name: Literal["ttm"] = "ttm"
    power: Positive = Field(0.1, description="The paper's g: one over the teacher's temperature; no squared factor.")
    weighted: bool = Field(False, description="WTTM: multiply each sample by the sum of the teacher's powers.")


class DISTTerm(LogitTerm):
    """DIST: Pearson distance of the probabilities, over the classes and over the batch."""

    formula: ClassVar[str] = "T² (inter_weight (1 − r(rows)) + intra_weight (1 − r(columns))),  r: Pearson of p_s, p_t"
    paper: ClassVar[str] = "arXiv 2205.10536, NeurIPS 2022"
    inputs: ClassVar[tuple[Input, ...]] = ("logits", "target_logits")
    relates_samples: ClassVar[bool] = True
    name: Literal["dist"] = "dist"
    inter_weight: NonNegative = Field(1.0, description="Factor of the distance over the classes of a sample.")
    intra_weight: NonNegative = Field(
        1.0, description="Factor of the distance over the batch, of each class; 0 for no coupling of samples."
    )
    temperature: Positive = Field(1.0, description="Divides both logits.")
    scale_by_t2: bool = Field(True, description="Multiply by the squared temperature, as the public code does.")


class OFATerm(FeatureTerm):
    """OFA, one for all: a soft cross-entropy that boosts the label, of the logits and of an exit head on each stage."""

    formula: ClassVar[str] = "ℓ(z_s) + Σ_i ℓ(h_i(f_i)),  ℓ(z) = −Σ_k ((p_t[k] + 1[k=y])^power − 1[k=y]) log p_z[k]"
    paper: ClassVar[str] = "arXiv 2310.19444, NeurIPS 2023"
    cost: ClassVar[str] = "layers · N·C; exit heads, trainable"
    inputs: ClassVar[tuple[Input, ...]] = ("logits", "target_logits", "labels", "features")
    hard_labels: ClassVar[bool] = True
    name: Literal["ofa"] = "ofa"
    power: Positive = Field(1.0, description="The paper's epsilon or gamma: boost of the label; published 1 and 1.5.")
    mode: Literal["code", "paper"] = Field(
        "code", description="The public code raises the other classes to the power too; the paper does not."
    )
    temperature: Positive = Field(1.0, description="Divides both logits; no squared factor.")
    logit_weight: NonNegative = Field(1.0, description="Factor of the loss of the student's logits.")
    exit_weight: NonNegative = Field(1.0, description="Factor of the loss of each exit; 0 builds no heads.")
    width: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Channels before each exit's linear layer; by default those of the last features."
    )


class CTKDTerm(LogitTerm):
    """CTKD, curriculum temperature: KL at a temperature that trains against the student."""

    formula: ClassVar[str] = "τ² KL(p_t^τ ‖ p_s^τ),  τ = min_temperature + temperature_range · sigmoid(g),  g ascends"
    paper: ClassVar[str] = "arXiv 2211.16231, AAAI 2023"
    cost: ClassVar[str] = "N·C; one number, trainable"
    inputs: ClassVar[tuple[Input, ...]] = ("logits", "target_logits")
    name: Literal["ctkd"] = "ctkd"
    min_temperature: Positive = Field(1.0, description="The temperature does not fall below it.")
    temperature_range: Positive = Field(20.0, description="The temperature stays below the sum of both.")
    ramp_epochs: NonNegative = Field(
        10.0, description="Epochs in which the reversal of the gradient reaches its whole strength; published 10 and 5."
    )
    scale_by_t2: bool = Field(True, description="Multiply by the squared temperature, which then pulls at it too.")


class MLKDTerm(LogitTerm):
    """MLKD, multi-level: KL, and the correlations of classes and of samples, summed over several temperatures."""

    formula: ClassVar[str] = "Σ_T T² KL(p_t ‖ p_s) + |P_sᵀP_s − P_tᵀP_t|² / C + |P_sP_sᵀ − P_tP_tᵀ|² / N"
    paper: ClassVar[str] = "Jin et al., CVPR 2023"
    cost: ClassVar[str] = "temperatures · N·C·(N + min(N, C)); N², and C² if C < N"
    inputs: ClassVar[tuple[Input, ...]] = ("logits", "target_logits")
    relates_samples: ClassVar[bool] = True
    name: Literal["mlkd"] = "mlkd"
    temperatures: Annotated[tuple[Positive, ...], Field(min_length=1)] = Field(
        (4.0, 2.0, 3.0, 5.0, 6.0), description="Each divides both logits once; published 1 in place of 4 on ImageNet."
    )
    instance_weight: NonNegative = Field(1.0, description="Factor of the KL.")
    class_weight: NonNegative = Field(
        1.0, description="Factor of the classes' correlations, which grow with the squared batch size."
    )
    batch_weight: NonNegative = Field(
        1.0, description="Factor of the samples' correlations, which grow with the batch size."
    )
    mask: Literal["code", "paper", "none"] = Field(
        "code",
        description="paper leaves out the samples that the teacher is sure of and the classes that are frequent; code "
        "multiplies by the share that would be kept, as the public code does.",
    )
    scale_by_t2: bool = Field(True, description="Multiply the KL by the squared temperature.")


class AKLTerm(LogitTerm):
    """AKL, adaptive: KL and reverse KL, weighted per sample by where the student is wrong."""

    formula: ClassVar[str] = "(g_h KL(p_t ‖ p_s) + g_r KL(p_s ‖ p_t)) / (g_h + g_r),  g = Σ |p_t − p_s| over head, rest"
    paper: ClassVar[str] = "arXiv 2404.02657, COLING 2025"
    cost: ClassVar[str] = "N·C·log C"
    inputs: ClassVar[tuple[Input, ...]] = ("logits", "target_logits")
    name: Literal["akl"] = "akl"
    head_mass: Fraction = Field(
        0.5, description="The teacher's most likely classes up to this mass, at least one, are the head."
    )
    temperature: Positive = Field(1.0, description="Divides both logits.")
    scale_by_t2: bool = Field(False, description="Multiply by the squared temperature.")


LOGIT_TERMS: dict[str, type[TermOptions]] = {
    "dkd": DKDTerm,
    "nkd": NKDTerm,
    "ttm": TTMTerm,
    "dist": DISTTerm,
    "ofa": OFATerm,
    "ctkd": CTKDTerm,
    "mlkd": MLKDTerm,
    "akl": AKLTerm,
}
