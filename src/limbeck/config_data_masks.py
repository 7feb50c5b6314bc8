"""Images with a class for each pixel. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field, model_validator

from limbeck.config_augment import AugmentOptions
from limbeck.config_terms import Options, Positive

if TYPE_CHECKING:
    from limbeck.config_data import DataOptions

MASKED = ("scenes", "ade20k", "voc2012")


class MasksOptions(Options):
    """How images and their masks are made larger or smaller. A crop has the side `data.image_size`."""

    scale: tuple[Positive, Positive] = Field(
        (1.0, 1.0), description="Training: smallest and largest factor of both sides, drawn for each view; then a crop."
    )
    test_side: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="Shorter side that the network sees validation and test images with; logits are enlarged to the "
        "mask, which is never resized. Null is the image's own.",
    )

    @model_validator(mode="after")
    def _rising(self) -> MasksOptions:
        if self.scale[0] > self.scale[1]:
            raise ValueError(f"`scale` expected two factors that do not fall, got {list(self.scale)}")
        return self


def check_masked(options: DataOptions) -> None:
    """Raise ValueError for options that images with masks do not have."""
    others = options.augment.model_dump(exclude={"flip"})
    plain = AugmentOptions().model_dump(exclude={"flip"})
    asked = [f"augment.{name}" for name, value in others.items() if value != plain[name]]
    given = {
        "labels_per_class": options.labels_per_class is not None,
        "imbalance": options.imbalance > 1,
        "groups": options.groups is not None,
        "second_view": options.second_view is not None,
        "generated": options.generated is not None,
        "unlabelled": options.unlabelled is not None,
        "shards": options.shards is not None,
    }
    asked += [name for name, there in given.items() if there]
    if asked:
        raise ValueError(
            f"`{asked[0]}` belongs to images with one class, got `{options.name}`; of masks there are "
            "`augment.flip` and `masks.scale`"
        )
