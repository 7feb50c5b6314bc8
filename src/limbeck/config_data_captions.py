"""Captions of images, and what classes are called. Imports no torch."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from limbeck.config_terms import Options

Texts = Annotated[tuple[str, ...], Field(min_length=1)]


class CaptionOptions(Options):
    """How captions become tokens; what zero-shot classification asks."""

    tokenizer: str = Field(
        "words",
        description="words, a hash of each, needs no file; hf:NAME and open_clip:NAME take that library's, where NAME "
        "may be the folder of a tokenizer or a model.",
    )
    length: Annotated[int, Field(ge=2)] = Field(16, description="Tokens of a caption; 77 in CLIP, 64 in SigLIP.")
    templates: Texts = Field(
        ("{}",),
        description="Training: one is drawn for each image and epoch; {} is its caption, {group} the name of its class "
        "where the data set has classes.",
    )
    prompts: Texts = Field(
        ("{}",),
        description="Zero-shot classification: the features of a class are the mean over these; {} is its name.",
    )
    class_names: str | None = Field(
        None,
        description="Captioned shards: file with the names of the classes of the test images, a line each, in the "
        "order of their folders; it starts at the data folder.",
    )

    @model_validator(mode="after")
    def _texts_have_a_place(self) -> CaptionOptions:
        for name, texts in (("templates", self.templates), ("prompts", self.prompts)):
            for text in texts:
                try:
                    filled = text.format("", group="")
                except (KeyError, IndexError, ValueError):
                    filled = text
                if filled == text or (name == "prompts" and "{group}" in text):
                    raise ValueError(f"`{name}` expected texts with {{}} where the name goes, got {text!r}")
        return self
