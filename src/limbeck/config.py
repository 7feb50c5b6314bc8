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
from limbeck.config_consistency import AugMixOptions, ConsistencyOptions, check_consistency
from limbeck.config_data import OWN_TEST, DataOptions, ShiftedTests
from limbeck.config_data_captions import CaptionOptions
from limbeck.config_data_coco import CocoOptions
from limbeck.config_data_masks import MasksOptions
from limbeck.config_data_scenes import ScenesOptions
from limbeck.config_data_unlabelled import UnlabelledOptions
from limbeck.config_detect import DetectOptions, check_detect
from limbeck.config_image_text import ImageTextOptions, check_image_text_terms, check_tokenizer
from limbeck.config_incremental import IncrementalOptions, PhaseOptions, check_incremental
from limbeck.config_losses import TERMS, Term, loss_options
from limbeck.config_models import SIZED_MODELS, STANDARDISING_MODELS, ModelOptions, TeacherOptions
from limbeck.config_segment import SegmentOptions, check_segment
from limbeck.config_semi_supervised import SemiSupervisedOptions, check_semi_supervised
from limbeck.config_tasks import TAUGHT, TaskName, check_task
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
from limbeck.config_terms_consistency import MultiJSTerm, ProbabilityMSETerm, PseudoLabelTerm
from limbeck.config_terms_detection import BoxRegressionTerm, DetectionTerm, FGFITerm
from limbeck.config_terms_logit import AKLTerm, CTKDTerm, DISTTerm, DKDTerm, MLKDTerm, NKDTerm, OFATerm, TTMTerm
from limbeck.config_terms_maps import ATTerm, CATTerm, FitNetTerm, ICKDTerm, NSTTerm, OFDTerm, ReviewKDTerm, VIDTerm
from limbeck.config_terms_moments import FeatureDistributionTerm, WKDFeatureTerm
from limbeck.config_terms_relations import CCTerm, CRDTerm, EMDTerm, PKTTerm, RKDTerm, SPTerm
from limbeck.config_terms_self import TfKDTerm, USKDTerm, ZipfTerm
from limbeck.config_terms_transport import WKDLogitTerm
from limbeck.config_train import OptimizerOptions, SaveOptions, ScheduleOptions, TrainOptions

__all__ = [
    "OWN_TEST",
    "SIZED_MODELS",
    "TERMS",
    "AKLTerm",
    "ATTerm",
    "AdversaryOptions",
    "AugMixOptions",
    "AugmentOptions",
    "BoxRegressionTerm",
    "CATTerm",
    "CCTerm",
    "CRDTerm",
    "CTKDTerm",
    "CaptionOptions",
    "CocoOptions",
    "CompareOptions",
    "ConsistencyOptions",
    "Contender",
    "CrossEntropyTerm",
    "DISTTerm",
    "DKDTerm",
    "DKLTerm",
    "DataOptions",
    "DetectOptions",
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
    "ImageTextOptions",
    "IncrementalOptions",
    "Input",
    "JSTerm",
    "KLTerm",
    "LogitMSETerm",
    "LogitTerm",
    "MARTTerm",
    "MLKDTerm",
    "MasksOptions",
    "ModelOptions",
    "MultiJSTerm",
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
    "ScenesOptions",
    "ScheduleOptions",
    "SegmentOptions",
    "SemiSupervisedOptions",
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


# Groups of options that rows of a comparison may differ in.
ROW_GROUPS = ("semi_supervised", "consistency", "segment", "detect", "image_text", "incremental")
LOGITS_AND_LABELS = frozenset(("logits", "target_logits", "labels"))

# --- a run ----------------------------------------------------------------------------------


class Recipe(Options):
    """A whole run. `losses` is what `limbeck train` uses; `compare` holds the rows of `limbeck compare`."""

    title: str = Field("", description="One line for listings.")
    task: TaskName = Field("supervised", description="What one batch means.")
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
    consistency: ConsistencyOptions = ConsistencyOptions()
    incremental: IncrementalOptions | None = Field(
        None, description="Task distill: classes come in phases, each with the network before it for a teacher."
    )
    semi_supervised: SemiSupervisedOptions = SemiSupervisedOptions()
    image_text: ImageTextOptions = ImageTextOptions()
    detect: DetectOptions = DetectOptions()
    segment: SegmentOptions = SegmentOptions()
    optimizer: OptimizerOptions = OptimizerOptions()
    schedule: ScheduleOptions = ScheduleOptions()
    train: TrainOptions = TrainOptions()
    save: SaveOptions = SaveOptions()
    compare: CompareOptions = CompareOptions()

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        if self.task == "distill" and not self.teachers and self.incremental is None:
            raise ValueError("task `distill` expected at least one entry in `teachers`, got none")
        if self.task not in TAUGHT and self.task not in ("supervised", "adversarial") and self.teachers:
            raise ValueError(f"task `{self.task}` has no teachers, so `teachers` expected none")
        rows = (setting for row in self.compare.contenders.values() for setting in row.settings)
        settings = (self.losses, *rows)
        terms = [term for setting in settings for term in setting]
        if self.task == "adversarial":
            self._check_adversarial()
        else:
            self._refuse_adversarial_options(terms)
        networks = [self.model.name, *(teacher.model.name for teacher in self.teachers if teacher.model)]
        check_task(self.task, terms, self.data.name, networks)
        self._check_inputs(terms)
        check_incremental(self, terms)
        check_semi_supervised(self)
        check_consistency(self)
        if self.task == "image_text":
            check_image_text_terms(terms)
            check_tokenizer(self.data.captions.tokenizer, networks)
        check_detect(self, settings)
        check_segment(self)
        self._check_rows()
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
            if self.task in TAUGHT and asked and not self.teachers and self.incremental is None:
                raise ValueError(f"the loss `{term.name}` expected at least one entry in `teachers`, got none")
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

    def of_row(self, row: str) -> Recipe:
        """Return the recipe of a row of the comparison: its first setting, its own options of the task, no rows."""
        contender = self.compare.contenders[row]
        content = self.model_dump()
        for group, changes in contender.options.items():
            content[group] = {**(content[group] or {}), **changes}
        return Recipe.model_validate({**content, "losses": contender.settings[0], "compare": {}})

    def _check_rows(self) -> None:
        """Raise ValueError for options of a row that are none of the task's, or do not fit it."""
        for name, row in self.compare.contenders.items():
            for group in row.options:
                if group not in ROW_GROUPS or group not in Recipe.model_fields:
                    raise ValueError(
                        f"`compare.contenders.{name}.options` expected a group among {', '.join(ROW_GROUPS)}, got "
                        f"`{group}`"
                    )
            if row.options:
                self.of_row(name)

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
        if self.task not in TAUGHT and (train.teacher_compile or train.teacher_precision != "same"):
            option = "teacher_compile" if train.teacher_compile else "teacher_precision"
            raise ValueError(f"`train.{option}` belongs to tasks with teachers, got task `{self.task}`")

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
