"""Networks by name, and frozen teachers. Imports no torch, and no library that a name may ask for."""

from __future__ import annotations

import difflib
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from limbeck.config_terms import Options
from limbeck.network_names import DEEP_MODELS, OWN, PREFIXED, PREFIXES, PRETRAINED, ZOO, is_prefixed

# Those without fixed sizes.
SIZED_MODELS = ("mlp", "convnet", "detector", "image_text", "image_text_sigmoid", "encoder_decoder")
STANDARDISING_MODELS = ("wrn_28_10_swish",)  # those that expect pixels in [0, 1]


def _known(name: str) -> str:
    """Return a name of the zoo, `custom`, or one with a prefix, whose library is asked for it later."""
    if name in (*OWN, "custom") or is_prefixed(name):
        return name
    prefix, colon, rest = name.partition(":")
    near = difflib.get_close_matches(prefix.lower(), PREFIXES if colon else OWN, n=1, cutoff=0.4 if colon else 0.55)
    hint = f"; did you mean `{near[0]}{colon}{rest or ('NAME' if colon else '')}`?" if near else ""
    raise PydanticCustomError(
        "unknown_network",
        "one of {count} networks, or {prefixed}",
        {"count": len(ZOO), "prefixed": PREFIXED, "hint": hint},
    )


NetworkName = Annotated[
    str,
    AfterValidator(_known),
    WithJsonSchema({"type": "string", "enum": [*OWN, *(f"{prefix}:NAME" for prefix in PREFIXES), "custom"]}),
]


class ModelOptions(Options):
    """A network by name."""

    name: NetworkName = Field(
        "convnet",
        description="Architecture, here or in timm, torchvision (tv) or transformers (hf: a name, or the folder of its "
        "configuration); custom is the module that `limbeck.fit` was given.",
    )
    width: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Hidden units (mlp) or channels of the first stage (others); null is 16 there."
    )
    depth: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="Hidden layers (mlp), stages (convnet, encoder_decoder), layers of a stage (detector); null is 2, "
        "of encoder_decoder 3, of detector 1.",
    )
    norm: Literal["batch", "group"] = Field(
        "batch", description="group puts GroupNorm, 8 channels a group, in each BatchNorm's place: it knows no batch."
    )
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="Before the last layer.")
    stochastic_depth: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0,
        description="Probability that a sample skips the last block in training, rising from 0 in the first one: "
        "ImageNet's ResNets here, and other libraries' networks that take it.",
    )
    weights: str | None = Field(
        None,
        description="What it starts from: a file, or pretrained for the library's own weights, which see pixels "
        "standardised as in their training; a head for other classes is replaced. Null draws from the run's seed.",
    )
    pixels: Literal["own", "data"] = Field(
        "own",
        description="Of another library's network with weights: own: standardised as the library's weights saw them; "
        "data: as the data set is, for a file that was trained so. Without weights it is always data.",
    )

    @model_validator(mode="after")
    def _sizes(self) -> ModelOptions:
        if self.name not in SIZED_MODELS and (self.width or self.depth):
            raise ValueError(f"`width` and `depth` belong to {', '.join(SIZED_MODELS)}; `{self.name}` has its own")
        return self

    @model_validator(mode="after")
    def _only_where_there_is_such(self) -> ModelOptions:
        if is_prefixed(self.name):
            if self.norm != "batch":
                raise ValueError(f"`norm: {self.norm}` belongs to networks of this library; `{self.name}` has its own")
            return self
        if self.pixels != "own":
            raise ValueError(
                f"`pixels: {self.pixels}` belongs to {PREFIXED}; `{self.name}` sees them as the data are, leave it out"
            )
        if self.stochastic_depth and self.name not in DEEP_MODELS:
            raise ValueError(
                f"`stochastic_depth` expected 0 for `{self.name}`, got {self.stochastic_depth:g}; it belongs to "
                f"{', '.join(DEEP_MODELS)} and {PREFIXED}"
            )
        if self.weights == PRETRAINED:
            raise ValueError(
                f"`weights: {PRETRAINED}` belongs to {PREFIXED}; `{self.name}` expected a file, got {PRETRAINED}"
            )
        if self.weights and self.name == "custom":
            raise ValueError("`weights` expected null for the module that `limbeck.fit` was given")
        return self


class TeacherOptions(Options):
    """A frozen teacher, by one of `run`, `recipe` and `model`. It sees what the student sees, in eval mode."""

    run: str | None = Field(None, description="Folder of a finished run.")
    recipe: str | None = Field(
        None, description="Recipe that trains it, unless there are `weights`; the run is kept and used again."
    )
    model: ModelOptions | None = Field(None, description="Network whose `weights` stand beside it.")
    weights: str | None = Field(
        None,
        description="File of weights for the network of `recipe` or `model`: .safetensors, or a public .pth; "
        "pretrained for those of timm, torchvision or transformers, which see pixels as in their training.",
    )
    module: str | None = Field(None, description="Class of the module that `limbeck.fit` was given; not for recipes.")

    @model_validator(mode="after")
    def _exactly_one(self) -> TeacherOptions:
        sources = (self.run, self.recipe, self.model, self.module)
        if sum(source is not None for source in sources) != 1:
            if any(source is not None for source in sources):
                raise ValueError("expected exactly one of `run`, `recipe` and `model`; set the others to null")
            beside = "; `weights` need the network of a `recipe` or `model` beside them" if self.weights else ""
            raise ValueError(f"expected one of `run`, `recipe` and `model`, got none{beside}")
        if self.model is not None and self.weights is None:
            raise ValueError(f"`model` expected a file, or {PRETRAINED}, in `weights`; to train one, name its `recipe`")
        if self.weights is not None and self.recipe is None and self.model is None:
            raise ValueError("`weights` expected the network of a `recipe` or `model` beside it; a `run` has its own")
        return self

    @model_validator(mode="after")
    def _weights_beside_the_model(self) -> TeacherOptions:
        if self.model is not None and self.model.weights is not None:
            raise ValueError("`model.weights` expected null; the `weights` of a teacher stand beside its `model`")
        if self.weights == PRETRAINED and (self.model is None or not is_prefixed(self.model.name)):
            raise ValueError(f"`weights: {PRETRAINED}` expected a `model` by the name of {PREFIXED}; name a file")
        return self
