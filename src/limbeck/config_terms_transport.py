"""The term of logit distillation by transport. Imports no torch."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from limbeck.config_terms import Input, NonNegative, Positive, TermOptions


class WKDLogitTerm(TermOptions):
    """WKD-L: transport between the classes but the label's, at a cost that knows which are alike (arXiv 2412.08139).

    Where the transport decays and the target term does not, as published, there are two such terms: one with
    `target_weight: 0` and `decay: cosine`, one with `transport_weight: 0`, which makes no sweep.
    """

    formula: ClassVar[str] = "−target_weight · p_t[y] log p_s[y] + transport_weight · Σ_jk Q_jk c_jk,  Q: p_s∖y → p_t∖y"
    paper: ClassVar[str] = "Lv et al., arXiv 2412.08139, NeurIPS 2024"
    cost: ClassVar[str] = "4·iterations·N·C²; memory 2·iterations·N·C"
    inputs: ClassVar[tuple[Input, ...]] = ("logits", "target_logits", "labels")
    hard_labels: ClassVar[bool] = True
    name: Literal["wkd_logit"] = "wkd_logit"
    interrelations: str = Field(
        "classifier",
        min_length=1,
        description="Where the cost comes from: a file that `limbeck interrelations` wrote, or a kind (cka, rbf, "
        "polynomial, centroid, classifier, covariance, uniform) computed from the teacher before the training.",
    )
    sharpness: NonNegative = Field(
        1.0, description="kappa in the paper: cost = 1 − exp(−kappa (1 − IR)); 0 leaves 1 − IR. 1 or 2 published."
    )
    temperature: Positive = Field(
        4.0, description="Divides both logits in the transport: 2 to 8 published. There is no squared factor."
    )
    reg: Positive = Field(0.05, description="Entropic regularisation, at least 1/80 of the largest cost.")
    iterations: Annotated[int, Field(ge=1)] = Field(
        10, description="Sweeps; part of the loss: with another number the weight has to be tuned again."
    )
    separate_target: bool = Field(
        True, description="Set the label's class apart; false transports all classes, without a target term."
    )
    mode: Literal["log", "published"] = Field(
        "log", description="Stable down to a small reg, or with the floors of 1e-8 of the paper's code."
    )
    gradient: Literal["unrolled", "implicit"] = Field(
        "unrolled", description="Through all sweeps, or that of the limit: implicit needs many sweeps, another weight."
    )
    target_weight: NonNegative = Field(1.0, description="Factor of the target term; 0 leaves it out.")
    transport_weight: NonNegative = Field(
        1.0, description="Factor of the transport, lambda in the paper: 10 to 800 published; 0 leaves it out."
    )


TRANSPORT_TERMS: dict[str, type[TermOptions]] = {"wkd_logit": WKDLogitTerm}
