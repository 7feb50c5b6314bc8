"""What a run is made of: frozen models of every option. Imports no torch, so that help and errors answer at once.

The terms of a loss are in `config_losses.py`, images in `config_data.py`, networks in `config_models.py`, adversaries
in `config_adversary.py`, the rows of comparisons in `config_compare.py`; all are names of this module too. YAML and the
command line are read in `config_files.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from limbeck.config_adversary import AdversaryOptions, check_terms
from limbeck.config_augment import AugmentOptions
from limbeck.config_compare import CompareOptions, Contender, PublishedColumn
from limbeck.config_data import OWN_TEST, DataOptions, ShiftedTests
from limbeck.config_data_unlabelled import UnlabelledOptions
from limbeck.config_incremental import IncrementalOptions, PhaseOptions, check_incremental
from limbeck.config_losses import TERMS, Term, loss_options
from limbeck.config_models import SIZED_MODELS, STANDARDISING_MODELS, ModelOptions, TeacherOptions
from limbeck.config_terms import (
    CrossEntropyTerm,
    DKLTerm,
    FeatureTerm,
    Fraction,
    GKLTerm,
    IKLTerm,
    Input,
    JSTerm,
    KLTerm,
    LogitMSETerm,
    LogitTerm,
    MARTTerm,
    NonNegative,
    Options,
    Positive,
    ReverseKLTerm,
    TermOptions,
    did_you_mean,
)
from limbeck.config_terms_consistency import ProbabilityMSETerm, PseudoLabelTerm
from limbeck.config_terms_detection import BoxRegressionTerm, DetectionTerm, FGFITerm
from limbeck.config_terms_logit import AKLTerm, CTKDTerm, DISTTerm, DKDTerm, MLKDTerm, NKDTerm, OFATerm, TTMTerm
from limbeck.config_terms_maps import ATTerm, CATTerm, FitNetTerm, ICKDTerm, NSTTerm, OFDTerm, ReviewKDTerm, VIDTerm
from limbeck.config_terms_moments import FeatureDistributionTerm, WKDFeatureTerm
from limbeck.config_terms_relations import CCTerm, CRDTerm, EMDTerm, PKTTerm, RKDTerm, SPTerm
from limbeck.config_terms_self import TfKDTerm, USKDTerm, ZipfTerm
from limbeck.config_terms_transport import WKDLogitTerm

__all__ = [
    "OWN_TEST",
    "SIZED_MODELS",
    "TERMS",
    "AKLTerm",
    "ATTerm",
    "AdversaryOptions",
    "AugmentOptions",
    "BoxRegressionTerm",
    "CATTerm",
    "CCTerm",
    "CRDTerm",
    "CTKDTerm",
    "CompareOptions",
    "Contender",
    "CrossEntropyTerm",
    "DISTTerm",
    "DKDTerm",
    "DKLTerm",
    "DataOptions",
    "DetectionTerm",
    "EMDTerm",
    "FGFITerm",
    "FeatureDistributionTerm",
    "FeatureTerm",
    "FitNetTerm",
    "Fraction",
    "GKLTerm",
    "ICKDTerm",
    "IKLTerm",
    "IncrementalOptions",
    "Input",
    "JSTerm",
    "KLTerm",
    "LogitMSETerm",
    "LogitTerm",
    "MARTTerm",
    "MLKDTerm",
    "ModelOptions",
    "NKDTerm",
    "NSTTerm",
    "NonNegative",
    "OFATerm",
    "OFDTerm",
    "OptimizerOptions",
    "Options",
    "PKTTerm",
    "PhaseOptions",
    "Positive",
    "ProbabilityMSETerm",
    "PseudoLabelTerm",
    "PublishedColumn",
    "RKDTerm",
    "Recipe",
    "ReverseKLTerm",
    "ReviewKDTerm",
    "SPTerm",
    "SaveOptions",
    "ScheduleOptions",
    "ShiftedTests",
    "TTMTerm",
    "TeacherOptions",
    "Term",
    "TermOptions",
    "TfKDTerm",
    "TrainOptions",
    "USKDTerm",
    "UnlabelledOptions",
    "VIDTerm",
    "WKDFeatureTerm",
    "WKDLogitTerm",
    "ZipfTerm",
    "did_you_mean",
    "loss_options",
]

if TYPE_CHECKING:
    from collections.abc import Sequence


# --- optimisation -----------------------------------------------------------------------------------------


class OptimizerOptions(Options):
    """SGD, AdamW or LAMB."""

    name: Literal["sgd", "adamw", "lamb"] = Field("sgd", description="Optimizer; lamb is arXiv 1904.00962.")
    learning_rate: Positive = Field(0.05, description="Peak learning rate.")
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(0.9, description="SGD's momentum, else beta1.")
    beta2: Annotated[float, Field(ge=0, lt=1)] = Field(0.999, description="Of AdamW and LAMB.")
    nesterov: bool = Field(True, description="Nesterov momentum (SGD).")
    weight_decay: NonNegative = Field(
        5e-4, description="Decoupled for AdamW; LAMB's is part of the step whose length the weights set."
    )
    decay_norms_and_biases: bool = Field(
        True, description="Whether weight decay reaches norms and biases; without it, LAMB gives them AdamW's step."
    )
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
    channels_last: bool = Field(False, description="Memory format of images and convolutions, the teachers' too.")
    compile: bool = Field(False, description="Run the student's training steps through torch.compile.")
    teacher_precision: Literal["same", "fp32", "bf16"] = Field(
        "same", description="Of the teachers alone: same as `precision`, or another; their logits come out in fp32."
    )
    teacher_compile: bool = Field(False, description="Run the teachers through torch.compile.")
    device: str = Field("cpu", description="Such as cpu or cuda.")
    threads: Annotated[int, Field(ge=1)] | None = Field(None, description="CPU threads; null keeps torch's choice.")
    batch_norm: Literal["local", "synchronised"] = Field(
        "local", description="Whether a BatchNorm sees the images of its own rank, as published, or those of all ranks."
    )
    ghost_batch: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="BatchNorm normalises so many images at a time (1705.08741), on any number of ranks; null is all.",
    )
    gather: bool = Field(
        False,
        description="Losses that relate the samples of a batch see those of all ranks, at the cost of a copy on each.",
    )
    ema_decay: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        None, description="Decay of an averaged copy of the weights; null keeps none."
    )
    ema_every: Literal["step", "epoch"] = Field(
        "step", description="When the average takes in the weights: each step, or each epoch's end."
    )
    ema_warmup_epochs: NonNegative = Field(0.0, description="So long the average is the weights themselves.")
    refresh_every: Literal["epoch"] | Annotated[int, Field(ge=1)] = Field(
        "epoch",
        description="When class priors take in what they observed: each epoch, or every so many steps.",
    )

    @model_validator(mode="after")
    def _one_batch_norm(self) -> TrainOptions:
        if self.ghost_batch is not None and self.batch_norm == "synchronised":
            raise ValueError("expected one of `ghost_batch` and `batch_norm: synchronised`, got both")
        return self


class SaveOptions(Options):
    """When a checkpoint is written, besides the end of each epoch, and how often a line is logged."""

    every_steps: Annotated[int, Field(ge=1)] | None = Field(None, description="Also after so many optimizer steps.")
    every_seconds: Positive | None = Field(300.0, description="Also when so many seconds have passed.")
    every_epochs: Annotated[int, Field(ge=1)] = Field(
        1, description="Epochs between two checkpoints at an epoch's end."
    )
    log_every: Annotated[int, Field(ge=1)] = Field(20, description="Optimizer steps between two lines of metrics.")
    tensorboard: bool = Field(True, description="Write TensorBoard events when the package is installed.")


LOGITS_AND_LABELS = frozenset(("logits", "target_logits", "labels"))

# --- a run ----------------------------------------------------------------------------------


class Recipe(Options):
    """A whole run. `losses` is what `limbeck train` uses; `compare` holds the rows of `limbeck compare`."""

    title: str = Field("", description="One line for listings.")
    task: Literal["supervised", "distill", "adversarial"] = Field("supervised", description="What one batch means.")
    protocol: Literal["holdout", "paper"] = Field(
        "holdout",
        description="holdout chooses on a validation split; paper trains on all images, as published tables do, "
        "reports the last epoch, and shows the best on test only as optimistic.",
    )
    seed: Annotated[int, Field(ge=0)] = Field(0, description="Of the student's weights and of every draw.")
    data: DataOptions = DataOptions()
    model: ModelOptions = ModelOptions()
    teachers: tuple[TeacherOptions, ...] = Field((), description="One or several; a divergence is averaged over them.")
    losses: tuple[Term, ...] = Field((CrossEntropyTerm(),), min_length=1, description="Terms of the objective.")
    adversary: AdversaryOptions = AdversaryOptions()
    incremental: IncrementalOptions | None = Field(
        None, description="Task distill: classes come in phases, each with the network before it for a teacher."
    )
    optimizer: OptimizerOptions = OptimizerOptions()
    schedule: ScheduleOptions = ScheduleOptions()
    train: TrainOptions = TrainOptions()
    save: SaveOptions = SaveOptions()
    compare: CompareOptions = CompareOptions()

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        if self.task == "distill" and not self.teachers and self.incremental is None:
            raise ValueError("task `distill` expected at least one entry in `teachers`, got none")
        settings = (setting for row in self.compare.contenders.values() for setting in row.settings)
        terms = [term for setting in (self.losses, *settings) for term in setting]
        if self.task == "adversarial":
            self._check_adversarial()
        else:
            self._refuse_adversarial_options(terms)
        self._check_inputs(terms)
        check_incremental(self, terms)
        if self.train.batch_size % self.train.accumulate:
            raise ValueError(
                "`train.batch_size` expected a multiple of `train.accumulate`, "
                f"got {self.train.batch_size} and {self.train.accumulate}"
            )
        ramps = any(isinstance(term, (IKLTerm, GKLTerm)) and term.ramp_epochs for term in terms)
        if ramps and self.train.refresh_every != "epoch":
            raise ValueError("`ramp_epochs` counts refreshes, so it expected `train.refresh_every: epoch`")
        if self.protocol == "paper":
            self._check_paper_protocol()
        self._refuse_standardising_twice()
        self._refuse_idle_throughput()
        return self

    def _check_inputs(self, terms: Sequence[Term]) -> None:
        """Raise ValueError for a loss that looks at what there is not in the task."""
        for term in terms:
            asked = {what for what in term.inputs if what.startswith("target_")}
            if self.task == "supervised" and asked:
                raise ValueError(
                    f"the loss `{term.name}` draws to another network, got task `supervised`; set `task: distill` and "
                    "`teachers`, or `task: adversarial`"
                )
            if self.task == "adversarial" and not LOGITS_AND_LABELS.issuperset(term.inputs):
                raise ValueError(
                    f"task `adversarial` expected losses of logits, got `{term.name}`, which sees features"
                )
            mixed = self.data.augment.mixup or self.data.augment.cutmix
            if self.task == "adversarial" and not asked and term.name != "cross_entropy":
                raise ValueError(
                    f"task `adversarial` expected cross_entropy and losses between two sets of logits, got "
                    f"`{term.name}`, which makes its own target"
                )
            if term.hard_labels and mixed:
                raise ValueError(
                    f"the loss `{term.name}` needs each image's one class, so `data.augment.mixup` and `cutmix` "
                    "expected 0"
                )

    def _check_adversarial(self) -> None:
        if self.teachers:
            raise ValueError("task `adversarial` has no teachers; its second network is `adversary.guide`")
        if self.data.standardise:
            raise ValueError(
                "task `adversarial` moves pixels in [0, 1], so `data.standardise` expected false, got true"
            )
        if self.data.augment.mixup or self.data.augment.cutmix:
            raise ValueError("task `adversarial` expected 0 for `data.augment.mixup` and `cutmix`")
        check_terms(self.adversary, self.losses)
        for name, row in self.compare.contenders.items():
            for setting in row.settings:
                check_terms(self.adversary_of(name), setting)

    def adversary_of(self, row: str) -> AdversaryOptions:
        """Return the adversary of a row of the comparison."""
        changes = self.compare.contenders[row].adversary
        return AdversaryOptions.model_validate({**self.adversary.model_dump(), **changes})

    def _refuse_adversarial_options(self, terms: Sequence[Term]) -> None:
        """Raise ValueError for what would be ignored."""
        if self.data.second_view is not None:
            raise ValueError(f"`data.second_view` belongs to task `adversarial`, got task `{self.task}`")
        for term in terms:
            if term.on != "clean" or term.name == "mart":
                what = "the loss `mart`" if term.name == "mart" else f"`on: {term.on}`"
                raise ValueError(f"{what} belongs to task `adversarial`, got task `{self.task}`")

    def _refuse_standardising_twice(self) -> None:
        """Raise ValueError for a network that standardises pixels itself on images that are standardised already."""
        networks = [self.model, *(teacher.model for teacher in self.teachers if teacher.model)]
        twice = [network.name for network in networks if network.name in STANDARDISING_MODELS]
        if twice and self.data.standardise and self.data.name != "custom":
            raise ValueError(f"`{twice[0]}` standardises pixels itself, so `data.standardise` expected false, got true")

    def _refuse_idle_throughput(self) -> None:
        """Raise ValueError for ways to run networks that the task does not have."""
        train = self.train
        if self.task == "adversarial" and train.compile:
            raise ValueError(
                "task `adversarial` attacks the student in modes that would each be compiled, so `train.compile` "
                "expected false, got true"
            )
        if self.task != "distill" and (train.teacher_compile or train.teacher_precision != "same"):
            option = "teacher_compile" if train.teacher_compile else "teacher_precision"
            raise ValueError(f"`train.{option}` belongs to task `distill`, got task `{self.task}`")

    def _check_paper_protocol(self) -> None:
        if self.data.validation:
            raise ValueError(
                "protocol `paper` trains on all images, so `data.validation` expected 0, "
                f"got {self.data.validation:g}; set it to 0, or `protocol: holdout`"
            )
        for row, contender in self.compare.contenders.items():
            if len(contender.settings) > 1:
                raise ValueError(
                    f"protocol `paper` has no validation split to choose a setting on, so `compare.contenders.{row}` "
                    f"expected one, got {len(contender.settings)}"
                )
