"""Training images whose labels are not looked at. Imports no torch."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from limbeck.config_augment import AugmentOptions
from limbeck.config_terms import Options


class UnlabelledOptions(Options):
    """The pool: all training images, those with a label too, as in USB. Each is seen weakly and strongly augmented.

    The weak view is made as `data.augment` says, with draws of its own. An epoch is a pass over the pool; the labelled
    images come as often as its steps need them, with another view each time.
    """

    ratio: Annotated[int, Field(ge=1)] = Field(
        7, description="Unlabelled images of a step for each labelled one, of which there are `train.batch_size`."
    )
    strong: AugmentOptions = Field(
        AugmentOptions(), description="Augmentations of the strong view, in place of `data.augment`."
    )
    steps_per_epoch: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Steps of an epoch, which then is no pass: the pool comes again, or in part; null is a pass."
    )

    @model_validator(mode="after")
    def _images_alone(self) -> UnlabelledOptions:
        if self.strong.mixup or self.strong.cutmix:
            raise ValueError("`strong.mixup` and `strong.cutmix` expected 0: no label is there to be mixed")
        return self
