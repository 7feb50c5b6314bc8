"""Scenes that are composed of emoji and photographs, for segmentation and detection. Imports no torch."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from limbeck.config_terms import Options

Size = Annotated[float, Field(gt=0, le=1)]
Objects = Annotated[int, Field(ge=1, le=16)]


class ScenesOptions(Options):
    """Emoji with their alpha mattes on photographs. Training, validation and test parts share no emoji and no photo."""

    side: Annotated[int, Field(ge=16, le=256)] = Field(48, description="Side of an image in pixels.")
    train: Annotated[int, Field(ge=1)] = Field(1000, description="Training images.")
    validation: Annotated[int, Field(ge=0)] = Field(300, description="Validation images.")
    test: Annotated[int, Field(ge=1)] = Field(500, description="Test images.")
    objects: tuple[Objects, Objects] = Field((1, 4), description="Fewest and most emoji of an image.")
    scale: tuple[Size, Size] = Field((0.25, 0.6), description="Smallest and largest side of an emoji over the image's.")

    @model_validator(mode="after")
    def _rising(self) -> ScenesOptions:
        for name in ("objects", "scale"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"`{name}` expected two numbers that do not fall, got {[low, high]}")
        return self
