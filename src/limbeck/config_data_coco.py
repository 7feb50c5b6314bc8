"""Images with boxes in files as COCO has them. Imports no torch."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from limbeck.config_terms import Options

Side = Annotated[int, Field(ge=16)]


class CocoOptions(Options):
    """Folders of images and their annotations, below `data.folder`; the test images are COCO's validation images."""

    train_images: str = Field("coco/train2017", description="Folder of the training images.")
    train_annotations: str = Field(
        "coco/annotations/instances_train2017.json", description="Their boxes and categories, as COCO writes them."
    )
    test_images: str = Field("coco/val2017", description="Folder of the test images.")
    test_annotations: str = Field("coco/annotations/instances_val2017.json", description="Their boxes.")
    shorter: Annotated[tuple[Side, ...], Field(min_length=1)] = Field(
        (640, 672, 704, 736, 768, 800),
        description="Shorter side that images are resized to: drawn in training, the last in testing.",
    )
    longer: Side = Field(1333, description="Most that the longer side may then have; else the image is made smaller.")

    @model_validator(mode="after")
    def _fitting(self) -> CocoOptions:
        if self.longer < max(self.shorter):
            raise ValueError(
                f"`longer` expected at least {max(self.shorter)}, the largest `shorter`, got {self.longer}"
            )
        return self
