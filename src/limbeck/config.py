"""What a run is made of: frozen models of every option. Imports no torch, so that help and errors answer at once.

YAML and the command line are read in `config_files.py`. A loss's options are declared once, here; a test asserts
that its constructor has the same names, order and defaults.
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
RowName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]  # rows become folders and parts of --set paths


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return the way out of a misspelling: the nearest known word, or all of them when none is near.

    >>> did_you_mean("temprature", ["name", "temperature"])
    'did you mean `temperature`?'
    >>> did_you_mean("lr", ["name", "momentum"])
    'expected one of `name`, `momentum`'
    """
    spellings = {option.lower(): option for option in known}
    nearest = difflib.get_close_matches(word.lower(), spellings, n=1, cutoff=0.55)
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


# --- losses -----------------------------------------------------------------------------------------------


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


DivergenceTerm = KLTerm | ReverseKLTerm | JSTerm | DKLTerm | IKLTerm | GKLTerm
Term = Annotated[CrossEntropyTerm | DivergenceTerm, Field(discriminator="name")]

TERMS: dict[str, type[TermOptions]] = {
    "cross_entropy": CrossEntropyTerm,
    "kl": KLTerm,
    "reverse_kl": ReverseKLTerm,
    "js": JSTerm,
    "dkl": DKLTerm,
    "ikl": IKLTerm,
    "gkl": GKLTerm,
}


# --- data -------------------------------------------------------------------------------------------------


class AugmentOptions(Options):
    """Batched augmentations; each draw is a function of (seed, epoch, sample, name of the draw)."""

    crop_padding: Annotated[int, Field(ge=0)] = Field(
        0, description="Random crop after zero padding by so many pixels."
    )
    flip: bool = Field(False, description="Horizontal flip with probability 1/2.")
    cutout: Annotated[int, Field(ge=0)] = Field(0, description="Side in pixels of a square set to the mean; 0 is off.")
    mixup: NonNegative = Field(0.0, description="Alpha of mixup's Beta distribution; 0 is off.")
    cutmix: NonNegative = Field(0.0, description="Alpha of cutmix's Beta distribution; 0 is off.")


class DataOptions(Options):
    """Which images, and how they are split. Nothing here is drawn from the run's seed: see `split_seed`."""

    name: Literal["digits", "mnist5k"] = Field("digits", description="Data set; neither needs a download.")
    imbalance: Annotated[float, Field(ge=1)] = Field(
        1.0,
        description="Images of the largest class over those of the smallest, training split only; 1 is balanced.",
    )
    labels_per_class: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Keep so many training images of the largest class; null keeps all."
    )
    validation: Annotated[float, Field(ge=0, lt=0.9)] = Field(
        0.2, description="Fraction held out of the training part."
    )
    test: Annotated[float, Field(gt=0, lt=0.9)] = Field(0.3, description="Fraction of all images kept for testing.")
    split_seed: Annotated[int, Field(ge=0)] = Field(
        0, description="Seed of the split, the same for all runs of a comparison."
    )
    augment: AugmentOptions = AugmentOptions()


# --- networks ---------------------------------------------------------------------------------------------


class ModelOptions(Options):
    """A network by name."""

    name: Literal["mlp", "convnet"] = Field("convnet", description="Architecture.")
    width: Annotated[int, Field(ge=1)] = Field(
        16, description="Hidden units (mlp) or channels of the first stage (convnet)."
    )
    depth: Annotated[int, Field(ge=1)] = Field(2, description="Hidden layers (mlp) or stages (convnet).")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="Before the last layer.")


class TeacherOptions(Options):
    """A frozen teacher: exactly one of the two. It always sees what the student sees, in eval mode."""

    run: str | None = Field(None, description="Folder of a finished run.")
    recipe: str | None = Field(None, description="Recipe that trains it; the run is kept and used again.")

    @model_validator(mode="after")
    def _exactly_one(self) -> TeacherOptions:
        if (self.run is None) == (self.recipe is None):
            raise ValueError("expected exactly one of `run` and `recipe`; set the other to null")
        return self


# --- optimisation -----------------------------------------------------------------------------------------


class OptimizerOptions(Options):
    """SGD or AdamW."""

    name: Literal["sgd", "adamw"] = Field("sgd", description="Optimizer.")
    learning_rate: Positive = Field(0.05, description="Peak learning rate.")
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(0.9, description="SGD's momentum, AdamW's beta1.")
    beta2: Annotated[float, Field(ge=0, lt=1)] = Field(0.999, description="AdamW's beta2.")
    nesterov: bool = Field(True, description="Nesterov momentum (SGD).")
    weight_decay: NonNegative = Field(5e-4, description="Decoupled for AdamW.")
    decay_norms_and_biases: bool = Field(True, description="Whether weight decay reaches norms and biases.")
    clip_norm: Positive | None = Field(None, description="Clip the gradient's global norm to this.")


class ScheduleOptions(Options):
    """Learning rate over the run, as a factor of the peak; stepped every batch but for multistep."""

    name: Literal["constant", "multistep", "cosine", "onecycle"] = Field("cosine", description="Shape.")
    milestones: tuple[Positive, ...] = Field((), description="Epochs after which multistep decays.")
    decay_factor: Annotated[float, Field(gt=0, le=1)] = Field(0.1, description="Factor of multistep's decay.")
    warmup_epochs: NonNegative = Field(0.0, description="Linear warm-up (constant, multistep, cosine).")
    warmup_fraction: Fraction = Field(0.3, description="Share of the run in which onecycle rises.")
    final_factor: Fraction = Field(0.0, description="Where cosine and onecycle end, as a factor of the peak.")

    @model_validator(mode="after")
    def _milestones(self) -> ScheduleOptions:
        if self.name == "multistep" and not self.milestones:
            raise ValueError("the schedule `multistep` expected epochs in `milestones`, got none")
        return self


class TrainOptions(Options):
    """The loop."""

    epochs: Annotated[int, Field(ge=1)] = Field(30, description="Passes over the training split.")
    batch_size: Annotated[int, Field(ge=1)] = Field(
        64, description="Samples of one optimizer step, over all ranks and micro-batches."
    )
    accumulate: Annotated[int, Field(ge=1)] = Field(1, description="Micro-batches that one optimizer step is made of.")
    drop_last: bool = Field(False, description="Leave out the last incomplete batch of an epoch.")
    precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="bf16 uses autocast; losses and statistics stay in fp32."
    )
    channels_last: bool = Field(False, description="Memory format of images and convolutions.")
    device: str = Field("cpu", description="Such as cpu or cuda.")
    threads: Annotated[int, Field(ge=1)] | None = Field(None, description="CPU threads; null keeps torch's choice.")
    ema_decay: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        None, description="Decay per step of an averaged copy of the weights."
    )
    refresh_every: Literal["epoch"] | Annotated[int, Field(ge=1)] = Field(
        "epoch",
        description="When class priors take in what they observed: each epoch, or every so many steps.",
    )


class SaveOptions(Options):
    """When a checkpoint is written, besides the end of each epoch, and how often a line is logged."""

    every_steps: Annotated[int, Field(ge=1)] | None = Field(None, description="Also after so many optimizer steps.")
    every_seconds: Positive | None = Field(300.0, description="Also when so many seconds have passed.")
    every_epochs: Annotated[int, Field(ge=1)] = Field(
        1, description="Epochs between two checkpoints at an epoch's end."
    )
    log_every: Annotated[int, Field(ge=1)] = Field(20, description="Optimizer steps between two lines of metrics.")
    tensorboard: bool = Field(True, description="Write TensorBoard events when the package is installed.")


# --- a run, a comparison ----------------------------------------------------------------------------------


class Contender(Options):
    """One row of a comparison: what joins the common losses. The best of its settings on validation is reported."""

    settings: tuple[tuple[Term, ...], ...] = Field(
        min_length=1, description="Settings to choose from; each is the whole list of loss terms."
    )


class CompareOptions(Options):
    """The rows of `limbeck compare`."""

    contenders: dict[RowName, Contender] = Field(default_factory=dict, description="Row name -> settings.")
    baseline: str = Field("kl", description="Row that the paired differences are taken to.")
    vary_split: bool = Field(
        False,
        description="Each seed draws its own split and trains its own teachers, so that intervals cover both.",
    )
    equal_by_theory: tuple[tuple[str, str], ...] = Field((), description="Pairs printed as A/A controls.")

    @model_validator(mode="after")
    def _known_rows(self) -> CompareOptions:
        if self.contenders:
            for row in (self.baseline, *(row for pair in self.equal_by_theory for row in pair)):
                if row not in self.contenders:
                    hint = did_you_mean(row, self.contenders)
                    raise ValueError(
                        f"`baseline` and `equal_by_theory` name rows of `contenders`; no row `{row}`, {hint}"
                    )
        return self


class Recipe(Options):
    """A whole run. `losses` is what `limbeck train` uses; `compare` holds the rows of `limbeck compare`."""

    title: str = Field("", description="One line for listings.")
    task: Literal["supervised", "distill"] = Field("supervised", description="What one batch means.")
    seed: Annotated[int, Field(ge=0)] = Field(0, description="Of the student's weights and of every draw.")
    data: DataOptions = DataOptions()
    model: ModelOptions = ModelOptions()
    teachers: tuple[TeacherOptions, ...] = Field((), description="One or several; a divergence is averaged over them.")
    losses: tuple[Term, ...] = Field((CrossEntropyTerm(),), min_length=1, description="Terms of the objective.")
    optimizer: OptimizerOptions = OptimizerOptions()
    schedule: ScheduleOptions = ScheduleOptions()
    train: TrainOptions = TrainOptions()
    save: SaveOptions = SaveOptions()
    compare: CompareOptions = CompareOptions()

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        if self.task == "distill" and not self.teachers:
            raise ValueError("task `distill` expected at least one entry in `teachers`, got none")
        settings = (setting for row in self.compare.contenders.values() for setting in row.settings)
        terms = [term for setting in (self.losses, *settings) for term in setting]
        if self.task == "supervised" and any(term.name != "cross_entropy" for term in terms):
            raise ValueError(
                "task `supervised` knows the loss `cross_entropy` only; set `task: distill` and `teachers`"
            )
        if self.train.batch_size % self.train.accumulate:
            raise ValueError(
                "`train.batch_size` expected a multiple of `train.accumulate`, "
                f"got {self.train.batch_size} and {self.train.accumulate}"
            )
        ramps = any(isinstance(term, (IKLTerm, GKLTerm)) and term.ramp_epochs for term in terms)
        if ramps and self.train.refresh_every != "epoch":
            raise ValueError("`ramp_epochs` counts refreshes, so it expected `train.refresh_every: epoch`")
        return self
