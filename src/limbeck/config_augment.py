"""How images are augmented. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from limbeck.config_terms import NonNegative, Options, Positive


class AugmentOptions(Options):
    """Batched augmentations, in this order; each draw is a function of (seed, epoch, sample, name of the draw)."""

    resized_crop: tuple[Positive, Positive] | None = Field(
        None, description="Smallest and largest share of the area that a random crop, resized to the whole, may have."
    )
    crop_padding: Annotated[int, Field(ge=0)] = Field(0, description="Random crop after padding by so many pixels.")
    crop_border: Literal["black", "reflect"] = Field(
        "black", description="What a crop sees beyond the border: black, or the image mirrored at its outermost pixels."
    )
    flip: bool = Field(False, description="Horizontal flip with probability 1/2.")
    auto_augment: bool = Field(False, description="One of the 25 sub-policies of CIFAR-10's AutoAugment per image.")
    rand_augment_operations: Annotated[int, Field(ge=0)] = Field(
        0, description="Operations of RandAugment per image; 0 is off."
    )
    rand_augment_magnitude: Annotated[int, Field(ge=0, le=30)] = Field(9, description="Strength of RandAugment, of 30.")
    rand_augment_spread: NonNegative = Field(
        0.0, description="Standard deviation of that strength, which each operation of each image then draws."
    )
    rand_augment_probability: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="Chance of each operation of RandAugment to be made; 0.5 in timm's."
    )
    cutout: Annotated[int, Field(ge=0)] = Field(
        0, description="Side in pixels of a square set to 0, the mean of standardised pixels; 0 is off."
    )
    mixup: NonNegative = Field(0.0, description="Alpha of mixup's Beta distribution; 0 is off.")
    cutmix: NonNegative = Field(0.0, description="Alpha of cutmix's Beta distribution; 0 is off.")

    @model_validator(mode="after")
    def _areas(self) -> AugmentOptions:
        if self.resized_crop and not self.resized_crop[0] <= self.resized_crop[1] <= 1:
            raise ValueError(f"`resized_crop` expected shares that rise, at most 1, got {list(self.resized_crop)}")
        if self.resized_crop and self.crop_padding:
            raise ValueError("expected one of `resized_crop` and `crop_padding`, got both")
        return self
