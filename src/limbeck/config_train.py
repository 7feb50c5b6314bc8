"""How a run is optimised, how long it is, and when it is saved. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from limbeck.config_terms import Fraction, NonNegative, Options, Positive


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
    layer_decay: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0,
        description="Factor of the learning rate from a block to the one before it: the head has the whole, the last "
        "block this, the stem the least (2003.10555). Of transformers by their blocks, here by stages; 1 is off.",
    )
    clip_norm: Positive | None = Field(None, description="Clip the gradient's global norm to this.")


class ScheduleOptions(Options):
    """Learning rate over the run, as a factor of the peak; stepped every batch but for multistep."""

    name: Literal["constant", "multistep", "cosine", "onecycle", "fixmatch", "poly"] = Field(
        "cosine",
        description="Shape; fixmatch is cos(7/16 pi t), which ends at 0.195 of the peak; poly is (1 - t)^power.",
    )
    milestones: tuple[Positive, ...] = Field((), description="Epochs after which multistep decays.")
    decay_factor: Annotated[float, Field(gt=0, le=1)] = Field(0.1, description="Factor of multistep's decay.")
    warmup_epochs: NonNegative = Field(0.0, description="Linear warm-up (not of onecycle).")
    warmup_fraction: Fraction = Field(0.3, description="Share of the run in which onecycle rises.")
    power: Positive = Field(0.9, description="Of poly, as public code of segmentation has it.")
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
