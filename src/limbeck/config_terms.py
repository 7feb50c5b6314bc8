"""The terms of a loss, and what all models of options share. Imports no torch.

A loss's options are declared once, here; a test asserts that its constructor has the same names, order and defaults.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

if TYPE_CHECKING:
    from collections.abc import Iterable

Fraction = Annotated[float, Field(ge=0, le=1)]
NonNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return the way out of a misspelling: the nearest known word, or all of them when none is near.

    >>> did_you_mean("temprature", ["name", "temperature"])
    'did you mean `temperature`?'
    >>> did_you_mean("eps", ["steps", "epsilon"])
    'did you mean `epsilon`?'
    >>> did_you_mean("lr", ["name", "momentum"])
    'expected one of `name`, `momentum`'
    """
    spellings = {option.lower(): option for option in known}
    begun = [option for option in spellings if len(word) > 1 and option.startswith(word.lower())]
    nearest = begun[:1] or difflib.get_close_matches(word.lower(), spellings, n=1, cutoff=0.55)
    if nearest:
        return f"did you mean `{spellings[nearest[0]]}`?"
    return "expected one of " + ", ".join(f"`{option}`" for option in spellings.values())


class Options(BaseModel):
    """Base of all: frozen, and a key that it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _check_keys(cls, data: Any) -> Any:
        """Name the nearest known key, and refuse `epochs: true`: pydantic does neither (it reads true as 1)."""
        for key, value in data.items() if isinstance(data, dict) else ():
            field = cls.model_fields.get(key)
            if field is None:
                hint = did_you_mean(str(key), cls.model_fields)
                raise PydanticCustomError("unknown_key", "unknown key `{key}`; {hint}", {"key": str(key), "hint": hint})
            if isinstance(value, bool) and field.annotation is not bool:
                shown = str(value).lower()
                raise PydanticCustomError("bool", "expected no boolean, got {shown}", {"key": key, "shown": shown})
        return data


class TermOptions(Options):
    """What every term of the objective has, whatever its loss."""

    formula: ClassVar[str]  # per sample: p_t teacher, p_s student
    name: str
    weight: NonNegative = Field(1.0, description="Factor of the term.")
    warmup_epochs: NonNegative = Field(
        0.0,
        description="The factor rises to `weight` over these epochs: min(epoch / warmup_epochs, 1), epochs from 1.",
    )
    decay: Literal["none", "linear", "cosine"] = Field(
        "none", description="How the factor falls, from the end of the warm-up to 0 after the last epoch."
    )
    on: Literal["clean", "adversarial", "guide"] = Field(
        "clean",
        description="Task adversarial: logits that a cross-entropy reads, or that a divergence draws those of the "
        "adversarial images to; guide is the second network's, on clean images.",
    )


class CrossEntropyTerm(TermOptions):
    """Cross-entropy with the labels."""

    formula: ClassVar[str] = "−log p_s[y]"
    name: Literal["cross_entropy"] = "cross_entropy"
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="Mass moved to the uniform distribution."
    )


class KLTerm(TermOptions):
    """KL(teacher || student). Hinton's distillation has `scale_by_t2: true`."""

    formula: ClassVar[str] = "Σ p_t log(p_t / p_s)"
    name: Literal["kl"] = "kl"
    temperature: Positive = Field(1.0, description="Divides both logits.")
    scale_by_t2: bool = Field(False, description="Multiply by the squared temperature.")


class ReverseKLTerm(TermOptions):
    """KL(student || teacher)."""

    formula: ClassVar[str] = "Σ p_s log(p_s / p_t)"
    name: Literal["reverse_kl"] = "reverse_kl"
    temperature: Positive = Field(1.0, description="Divides both logits.")
    scale_by_t2: bool = Field(False, description="Multiply by the squared temperature.")


class JSTerm(TermOptions):
    """Generalised Jensen-Shannon divergence."""

    formula: ClassVar[str] = "β KL(p_t ‖ m) + (1 − β) KL(p_s ‖ m),  m = β p_t + (1 − β) p_s"
    name: Literal["js"] = "js"
    beta: Fraction = Field(0.5, description="Share of the teacher in the mixture; 0 is KL, 1 is reverse KL.")
    temperature: Positive = Field(1.0, description="Divides both logits.")
    scale_by_t2: bool = Field(False, description="Multiply by the squared temperature.")


class DKLTerm(TermOptions):
    """Decoupled KL: the gradients of KL, in two parts with a weight each."""

    formula: ClassVar[str] = "mse_weight · ¼ ΣΣ w_i w_j (Δt_ij − Δs_ij)² − ce_weight · Σ p_t log p_s"
    name: Literal["dkl"] = "dkl"
    prior: Literal["class", "sample"] = Field(
        "sample", description="Weights of the MSE: class means, or the sample's own softmax."
    )
    symmetric: bool = Field(False, description="Let the weighted MSE reach the student (break the asymmetry).")
    mse_weight: NonNegative = Field(1.0, description="Factor of the weighted MSE, the quarter inside.")
    ce_weight: NonNegative = Field(1.0, description="Factor of the soft cross-entropy.")
    temperature: Positive = Field(1.0, description="Divides both logits in both parts.")
    scale_by_t2: bool = Field(False, description="Multiply by the squared temperature.")


class IKLTerm(TermOptions):
    """Improved KL (arXiv 2305.13948)."""

    formula: ClassVar[str] = "mse_weight · ¼ ΣΣ w_i w_j (Δt_ij − Δs_ij)² − ce_weight · Σ p_t log p_s"
    name: Literal["ikl"] = "ikl"
    prior: Literal["class", "sample"] = Field(
        "class", description="Weights of the MSE: class means, or the sample's own softmax."
    )
    mse_weight: NonNegative = Field(1.0, description="Factor of the weighted MSE, the quarter inside.")
    ce_weight: NonNegative = Field(1.0, description="Factor of the soft cross-entropy.")
    temperature: Positive = Field(1.0, description="Of the soft cross-entropy only; no squared factor.")
    prior_temperature: Positive = Field(1.0, description="Of the softmax that the weights are made of.")
    ramp_epochs: Annotated[int, Field(ge=0)] = Field(0, description="The loss rises over the first calls of refresh().")
    normalizer: Literal["weights", "row", "samples"] = Field(
        "samples", description="What the weighted MSE is divided by."
    )


class GKLTerm(TermOptions):
    """Generalised KL (arXiv 2503.08038)."""

    formula: ClassVar[str] = "mse_weight · ¼ ΣΣ (w_i w_j)^weight_power (Δt_ij − Δs_ij)² − ce_weight · Σ p_t log p_s"
    name: Literal["gkl"] = "gkl"
    prior: Literal["class", "sample"] = Field(
        "class", description="Weights of the MSE: class means, or the sample's own softmax."
    )
    mse_weight: NonNegative = Field(1.0, description="Factor of the weighted MSE, the quarter inside.")
    ce_weight: NonNegative = Field(1.0, description="Factor of the soft cross-entropy.")
    weight_power: NonNegative = Field(
        1.0, description="The papers' smooth factor gamma: weights are prior ** weight_power."
    )
    temperature: Positive = Field(1.0, description="Of the soft cross-entropy only; no squared factor.")
    prior_temperature: Positive = Field(1.0, description="Of the softmax that the weights are made of.")
    ramp_epochs: Annotated[int, Field(ge=0)] = Field(0, description="The loss rises over the first calls of refresh().")
    normalizer: Literal["weights", "row", "samples"] = Field(
        "weights", description="What the weighted MSE is divided by."
    )


class MARTTerm(TermOptions):
    """MART (ICLR 2020): boosted cross-entropy, and KL weighted by the misclassification of the clean image."""

    formula: ClassVar[str] = "−log p_s[y] − log(1 − max p_s[k≠y]) + kl_weight · (1 − p_t[y]) Σ p_t log(p_t / p_s)"
    name: Literal["mart"] = "mart"
    kl_weight: NonNegative = Field(5.0, description="Factor of the weighted KL; 5 or 6 in the paper's code.")


class LogitMSETerm(TermOptions):
    """Mean squared difference of logits."""

    formula: ClassVar[str] = "1/C Σ (z_s − z_t)²"
    name: Literal["logit_mse"] = "logit_mse"


DivergenceTerm = KLTerm | ReverseKLTerm | JSTerm | DKLTerm | IKLTerm | GKLTerm | MARTTerm | LogitMSETerm
Term = Annotated[CrossEntropyTerm | DivergenceTerm, Field(discriminator="name")]

TERMS: dict[str, type[TermOptions]] = {
    "cross_entropy": CrossEntropyTerm,
    "kl": KLTerm,
    "reverse_kl": ReverseKLTerm,
    "js": JSTerm,
    "dkl": DKLTerm,
    "ikl": IKLTerm,
    "gkl": GKLTerm,
    "mart": MARTTerm,
    "logit_mse": LogitMSETerm,
}
