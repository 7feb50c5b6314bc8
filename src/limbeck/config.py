"""What a run is made of: frozen models of every option. Imports no torch, so that help and errors answer at once.

YAML and the command line are read in `config_files.py`, the terms of a loss are in `config_terms.py`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from limbeck.config_terms import (
    TERMS,
    CrossEntropyTerm,
    DivergenceTerm,
    DKLTerm,
    Fraction,
    GKLTerm,
    IKLTerm,
    JSTerm,
    KLTerm,
    NonNegative,
    Options,
    Positive,
    ReverseKLTerm,
    Term,
    TermOptions,
    did_you_mean,
)

__all__ = [
    "OWN_TEST",
    "SIZED_MODELS",
    "TERMS",
    "AugmentOptions",
    "CompareOptions",
    "Contender",
    "CrossEntropyTerm",
    "DKLTerm",
    "DataOptions",
    "DivergenceTerm",
    "Fraction",
    "GKLTerm",
    "IKLTerm",
    "JSTerm",
    "KLTerm",
    "ModelOptions",
    "NonNegative",
    "OptimizerOptions",
    "Options",
    "Positive",
    "PublishedColumn",
    "Recipe",
    "ReverseKLTerm",
    "SaveOptions",
    "ScheduleOptions",
    "TeacherOptions",
    "Term",
    "TermOptions",
    "TrainOptions",
    "did_you_mean",
]

Fraction100 = Annotated[float, Field(ge=0, le=100)]  # in percent
RowName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]  # rows become folders and parts of --set paths


# --- data -------------------------------------------------------------------------------------------------


class AugmentOptions(Options):
    """Batched augmentations, in this order; each draw is a function of (seed, epoch, sample, name of the draw)."""

    resized_crop: tuple[Positive, Positive] | None = Field(
        None, description="Smallest and largest share of the area that a random crop, resized to the whole, may have."
    )
    crop_padding: Annotated[int, Field(ge=0)] = Field(
        0, description="Random crop after zero padding by so many pixels."
    )
    flip: bool = Field(False, description="Horizontal flip with probability 1/2.")
    auto_augment: bool = Field(False, description="One of the 25 sub-policies of CIFAR-10's AutoAugment per image.")
    rand_augment_operations: Annotated[int, Field(ge=0)] = Field(
        0, description="Operations of RandAugment per image; 0 is off."
    )
    rand_augment_magnitude: Annotated[int, Field(ge=0, le=30)] = Field(9, description="Strength of RandAugment, of 30.")
    cutout: Annotated[int, Field(ge=0)] = Field(0, description="Side in pixels of a square set to the mean; 0 is off.")
    mixup: NonNegative = Field(0.0, description="Alpha of mixup's Beta distribution; 0 is off.")
    cutmix: NonNegative = Field(0.0, description="Alpha of cutmix's Beta distribution; 0 is off.")

    @model_validator(mode="after")
    def _areas(self) -> AugmentOptions:
        if self.resized_crop and not self.resized_crop[0] <= self.resized_crop[1] <= 1:
            raise ValueError(f"`resized_crop` expected shares that rise, at most 1, got {list(self.resized_crop)}")
        if self.resized_crop and self.crop_padding:
            raise ValueError("expected one of `resized_crop` and `crop_padding`, got both")
        return self


OWN_TEST = ("cifar10", "cifar100")  # data sets that come with test images
DEFAULT_TEST = 0.3


class DataOptions(Options):
    """Which images, and how they are split. Nothing here is drawn from the run's seed: see `split_seed`."""

    name: Literal["digits", "mnist5k", "cifar10", "cifar100", "custom"] = Field(
        "digits",
        description="Data set; digits and mnist5k need no download, custom is what `limbeck.fit` was given.",
    )
    folder: str | None = Field(
        None, description="Where the archives of cifar10 and cifar100 lie; null is $LIMBECK_DATA, or ./data."
    )
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
    test: Annotated[float, Field(gt=0, lt=0.9)] | None = Field(
        None, description="Fraction kept for testing where the data set has no test images of its own; null is 0.3."
    )
    split_seed: Annotated[int, Field(ge=0)] = Field(
        0, description="Seed of the split, the same for all runs of a comparison."
    )
    augment: AugmentOptions = AugmentOptions()

    @property
    def test_share(self) -> float:
        """The fraction of the images that is kept for testing; 0 where the test images are others."""
        return 0.0 if self.name in OWN_TEST else DEFAULT_TEST if self.test is None else self.test

    @model_validator(mode="after")
    def _own_test_images(self) -> DataOptions:
        if self.test is not None and self.name in OWN_TEST:
            raise ValueError(f"`{self.name}` has test images of its own; `test` expected null, got {self.test}")
        return self


# --- networks ---------------------------------------------------------------------------------------------

SIZED_MODELS = ("mlp", "convnet")  # those that have no fixed width and depth


class ModelOptions(Options):
    """A network by name."""

    name: Literal[
        "mlp",
        "convnet",
        "resnet8",
        "resnet14",
        "resnet20",
        "resnet32",
        "resnet44",
        "resnet56",
        "resnet110",
        "resnet8x4",
        "resnet32x4",
        "wrn_16_1",
        "wrn_16_2",
        "wrn_40_1",
        "wrn_40_2",
        "vgg8",
        "vgg13",
        "mobilenet_v2",
        "shufflenet_v1",
        "shufflenet_v2",
        "resnet18_cifar",
        "resnet50_cifar",
        "wrn_28_10",
        "wrn_34_10",
        "wrn_34_20",
        "wrn_28_10_swish",
        "resnet18",
        "resnet34",
        "resnet50",
        "resnext101_32x4d",
        "mobilenet_v1",
        "custom",
    ] = Field("convnet", description="Architecture; custom is the module that `limbeck.fit` was given.")
    width: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Hidden units (mlp) or channels of the first stage (convnet); null is 16 there."
    )
    depth: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Hidden layers (mlp) or stages (convnet); null is 2 there."
    )
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="Before the last layer.")

    @model_validator(mode="after")
    def _sizes(self) -> ModelOptions:
        if self.name not in SIZED_MODELS and (self.width or self.depth):
            raise ValueError(f"`width` and `depth` belong to {' and '.join(SIZED_MODELS)}; `{self.name}` has its own")
        return self


class TeacherOptions(Options):
    """A frozen teacher, by one of `run`, `recipe` and `model`. It sees what the student sees, in eval mode."""

    run: str | None = Field(None, description="Folder of a finished run.")
    recipe: str | None = Field(
        None, description="Recipe that trains it, unless there are `weights`; the run is kept and used again."
    )
    model: ModelOptions | None = Field(None, description="Network whose `weights` are in a file.")
    weights: str | None = Field(
        None, description="File of weights for the network of `recipe` or `model`: .safetensors, or a public .pth."
    )
    module: str | None = Field(None, description="Class of the module that `limbeck.fit` was given; not for recipes.")

    @model_validator(mode="after")
    def _exactly_one(self) -> TeacherOptions:
        sources = (self.run, self.recipe, self.model, self.module)
        if sum(source is not None for source in sources) != 1:
            raise ValueError("expected exactly one of `run`, `recipe` and `model`; set the others to null")
        if self.model is not None and self.weights is None:
            raise ValueError("`model` expected a file in `weights`; to train one, name its `recipe`")
        if self.weights is not None and self.recipe is None and self.model is None:
            raise ValueError("`weights` expected the network of a `recipe` or `model` beside it; a `run` has its own")
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


class PublishedColumn(Options):
    """What a paper's table says of the rows, for `limbeck compare --table`."""

    source: str = Field(description="Paper, table and column.")
    teacher: Fraction100 | None = Field(None, description="The teacher's test top-1 in the paper, %.")
    student: Fraction100 | None = Field(None, description="Test top-1 of the student trained without one, %.")
    rows: dict[RowName, Fraction100] = Field(
        default_factory=dict, description="Row -> test top-1 in the paper, %; some rows have no contender here."
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
    published: PublishedColumn | None = Field(None, description="The paper's figures, for `--table`.")

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
        if self.protocol == "paper":
            self._check_paper_protocol()
        return self

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
