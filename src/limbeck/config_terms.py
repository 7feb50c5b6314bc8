"""What all models of options share, what all terms of a loss share, and the Kullback-Leibler family. No torch.

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


# What a loss is called with. `indices`: the samples' places in the training split; `head`: the linear classifier.
# Of a detector: what its two stages say of anchors and regions; the regions' boxes; the positions near objects.
Input = (
    Literal["logits", "target_logits", "labels", "features", "target_features", "indices", "head", "target_head"]
    | Literal["anchors", "regions", "offsets", "target_offsets", "proposals", "near_objects"]
    | Literal["view_logits"]  # of several views of each image
)


class TermOptions(Options):
    """What every term of the objective has, whatever its loss."""

    formula: ClassVar[str]  # per sample: p_t teacher, p_s student
    paper: ClassVar[str]  # where it comes from
    cost: ClassVar[str] = "N·C"  # arithmetic, and memory if it is more, beside the forward passes
    inputs: ClassVar[tuple[Input, ...]] = ("logits", "target_logits")
    memory: ClassVar[str] = ""  # what it remembers from batch to batch
    hard_labels: ClassVar[bool] = False  # whether a mixture of labels has no meaning for it
    relates_samples: ClassVar[bool] = False  # whether a sample's value hangs on the others of its batch
    name: str
    weight: NonNegative = Field(1.0, description="Factor of the term.")
    warmup_epochs: NonNegative = Field(
        0.0,
        description="The factor rises to `weight` over these epochs: min(epoch / warmup_epochs, 1), epochs from 1.",
    )
    decay: Literal["none", "linear", "cosine"] = Field(
        "none", description="How the factor falls, from the end of the warm-up to 0 after the last epoch."
    )
    decay_after_epoch: Annotated[int, Field(ge=0)] | None = Field(
        None, description="The factor falls after this epoch instead, and is 0 in the last one, as in WKD's code."
    )
    on: Literal["clean", "adversarial", "guide"] = Field(
        "clean",
        description="Task adversarial: logits that a cross-entropy reads, or that a divergence draws those of the "
        "adversarial images to; guide is the second network's, on clean images.",
    )


def feature_names(*names: str) -> Any:
    """Return the field `features` of a term whose method usually looks at these layers."""
    return Field(
        names,
        min_length=1,
        description="Layers of the student: stages (all but the stem), last, hint (the second stage), pooled, the name "
        "of a stage such as stage2, or a module's dotted path; `:input` behind it is what goes into the module, "
        "`:preactivation` behind stages, last or a stage its map before the activation; `:map` and `:tokens` make one "
        "of a transformer's other. Task detect: regions, the maps inside of boxes, and pyramid, the levels.",
    )


class FeatureTerm(TermOptions):
    """What every term between features has."""

    inputs: ClassVar[tuple[Input, ...]] = ("features", "target_features")
    features: tuple[str, ...] = feature_names("stages")
    target_features: Annotated[tuple[str, ...], Field(min_length=1)] | None = Field(
        None, description="Layers of the teacher, paired with the student's in order; by default the same names."
    )

    @model_validator(mode="after")
    def _looks_at_the_teacher(self) -> FeatureTerm:
        if self.target_features is not None and "target_features" not in self.inputs:
            raise ValueError(f"`{self.name}` looks at no layer of the teacher, so `target_features` expected null")
        return self


class LogitTerm(TermOptions):
    """What every term between two networks' logits has."""

    standardize: bool = Field(
        False, description="Let the loss see standardised logits: of a sample, mean 0 and deviation 1 (2403.01427)."
    )


class CrossEntropyTerm(TermOptions):
    """Cross-entropy with the labels."""

    formula: ClassVar[str] = "−log p_s[y]"
    inputs: ClassVar[tuple[Input, ...]] = ("logits", "labels")
    paper: ClassVar[str] = "Good 1952; label smoothing: arXiv 1512.00567; binary: arXiv 2110.00476"
    name: Literal["cross_entropy"] = "cross_entropy"
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="Mass moved to the uniform distribution."
    )
    binary: bool = Field(
        False, description="A yes or no for each class in place of one softmax, the mean over samples and classes."
    )
    target_threshold: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        None, description="Binary: a class whose target is above this counts as whole, any other as absent."
    )

    @model_validator(mode="after")
    def _thresholds_of_binary_targets(self) -> CrossEntropyTerm:
        if self.target_threshold is not None and not self.binary:
            raise ValueError("`target_threshold` belongs to `binary: true`; set it to null")
        return self


Impl = Literal["auto", "torch", "triton"]


def impl_field() -> Any:
    """Return the field `impl` of a loss that has a kernel."""
    return Field("auto", description="What computes it: torch's operations, a Triton kernel, or auto, what can.")


class KLTerm(LogitTerm):
    """KL(teacher || student). Hinton's distillation has `scale_by_t2: true`."""

    formula: ClassVar[str] = "Σ p_t log(p_t / p_s)"
    paper: ClassVar[str] = "Hinton et al., arXiv 1503.02531"
    name: Literal["kl"] = "kl"
    temperature: Positive = Field(1.0, description="Divides both logits.")
    scale_by_t2: bool = Field(False, description="Multiply by the squared temperature.")
    impl: Impl = impl_field()


class ReverseKLTerm(LogitTerm):
    """KL(student || teacher)."""

    formula: ClassVar[str] = "Σ p_s log(p_s / p_t)"
    paper: ClassVar[str] = "Kullback, Leibler 1951; MiniLLM, arXiv 2306.08543"
    name: Literal["reverse_kl"] = "reverse_kl"
    temperature: Positive = Field(1.0, description="Divides both logits.")
    scale_by_t2: bool = Field(False, description="Multiply by the squared temperature.")
    impl: Impl = impl_field()


class JSTerm(LogitTerm):
    """Generalised Jensen-Shannon divergence."""

    formula: ClassVar[str] = "β KL(p_t ‖ m) + (1 − β) KL(p_s ‖ m),  m = β p_t + (1 − β) p_s"
    paper: ClassVar[str] = "Lin 1991; GKD, arXiv 2306.13649"
    name: Literal["js"] = "js"
    beta: Fraction = Field(0.5, description="Share of the teacher in the mixture; 0 is KL, 1 is reverse KL.")
    temperature: Positive = Field(1.0, description="Divides both logits.")
    scale_by_t2: bool = Field(False, description="Multiply by the squared temperature.")
    impl: Impl = impl_field()


class DKLTerm(LogitTerm):
    """Decoupled KL: the gradients of KL, in two parts with a weight each."""

    formula: ClassVar[str] = "mse_weight · ¼ ΣΣ w_i w_j (Δt_ij − Δs_ij)² − ce_weight · Σ p_t log p_s"
    paper: ClassVar[str] = "arXiv 2305.13948"
    inputs: ClassVar[tuple[Input, ...]] = ("logits", "target_logits", "labels")
    memory: ClassVar[str] = "class means, with `prior: class`"
    name: Literal["dkl"] = "dkl"
    prior: Literal["class", "sample"] = Field(
        "sample", description="Weights of the MSE: class means, or the sample's own softmax."
    )
    symmetric: bool = Field(False, description="Let the weighted MSE reach the student (break the asymmetry).")
    mse_weight: NonNegative = Field(1.0, description="Factor of the weighted MSE, the quarter inside.")
    ce_weight: NonNegative = Field(1.0, description="Factor of the soft cross-entropy.")
    temperature: Positive = Field(1.0, description="Divides both logits in both parts.")
    scale_by_t2: bool = Field(False, description="Multiply by the squared temperature.")
    impl: Impl = impl_field()


class IKLTerm(TermOptions):
    """Improved KL (arXiv 2305.13948)."""

    formula: ClassVar[str] = "mse_weight · ¼ ΣΣ w_i w_j (Δt_ij − Δs_ij)² − ce_weight · Σ p_t log p_s"
    paper: ClassVar[str] = "arXiv 2305.13948, NeurIPS 2024"
    inputs: ClassVar[tuple[Input, ...]] = ("logits", "target_logits", "labels")
    memory: ClassVar[str] = "class means"
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
    impl: Impl = impl_field()


class GKLTerm(TermOptions):
    """Generalised KL (arXiv 2503.08038)."""

    formula: ClassVar[str] = "mse_weight · ¼ ΣΣ (w_i w_j)^weight_power (Δt_ij − Δs_ij)² − ce_weight · Σ p_t log p_s"
    paper: ClassVar[str] = "arXiv 2503.08038"
    inputs: ClassVar[tuple[Input, ...]] = ("logits", "target_logits", "labels")
    memory: ClassVar[str] = "class means"
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
    impl: Impl = impl_field()


class MARTTerm(TermOptions):
    """MART (ICLR 2020): boosted cross-entropy, and KL weighted by the misclassification of the clean image."""

    formula: ClassVar[str] = "−log p_s[y] − log(1 − max p_s[k≠y]) + kl_weight · (1 − p_t[y]) Σ p_t log(p_t / p_s)"
    paper: ClassVar[str] = "Wang et al., ICLR 2020"
    inputs: ClassVar[tuple[Input, ...]] = ("logits", "target_logits", "labels")
    hard_labels: ClassVar[bool] = True
    name: Literal["mart"] = "mart"
    kl_weight: NonNegative = Field(5.0, description="Factor of the weighted KL; 5 or 6 in the paper's code.")


class LogitMSETerm(LogitTerm):
    """Mean squared difference of logits."""

    formula: ClassVar[str] = "1/C Σ (z_s − z_t)²"
    paper: ClassVar[str] = "LBGAT, arXiv 2011.11164, ICCV 2021"
    name: Literal["logit_mse"] = "logit_mse"


DIVERGENCE_TERMS: dict[str, type[TermOptions]] = {
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
