"""Losses that draw a prediction to another of the same sample where no label is known. Imports no torch."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from limbeck.config_terms import Input, LogitTerm, Positive, TermOptions


class PseudoLabelTerm(LogitTerm):
    """Cross-entropy with the class, or the distribution, that the other network or view says."""

    formula: ClassVar[str] = "−log p_s[argmax p_t], or −Σ p_t log p_s"
    paper: ClassVar[str] = "FixMatch, arXiv 2001.07685; with a teacher: DeiT, arXiv 2012.12877"
    name: Literal["pseudo_label"] = "pseudo_label"
    targets: Literal["hard", "soft"] = Field(
        "hard", description="The class of the largest target logit, or the target's softmax."
    )
    target_temperature: Positive = Field(1.0, description="Of a soft target only; below 1 sharpens it.")


class ProbabilityMSETerm(LogitTerm):
    """Mean squared difference of probabilities (Mean-Teacher)."""

    formula: ClassVar[str] = "1/C Σ (p_s − p_t)²"
    paper: ClassVar[str] = "Mean-Teacher, arXiv 1703.01780"
    name: Literal["probability_mse"] = "probability_mse"


class MultiJSTerm(TermOptions):
    """Jensen-Shannon divergence of all views of an image, the clean one among them (task consistency)."""

    formula: ClassVar[str] = "1/V Σ_v KL(p_v ‖ m),  m = 1/V Σ_v p_v"
    paper: ClassVar[str] = "AugMix, arXiv 1912.02781"
    cost: ClassVar[str] = "V·N·C"
    inputs: ClassVar[tuple[Input, ...]] = ("view_logits",)
    name: Literal["multi_js"] = "multi_js"
    temperature: Positive = Field(1.0, description="Divides the logits of all views.")


CONSISTENCY_TERMS: dict[str, type[TermOptions]] = {
    "pseudo_label": PseudoLabelTerm,
    "probability_mse": ProbabilityMSETerm,
    "multi_js": MultiJSTerm,
}
