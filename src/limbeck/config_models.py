"""Networks by name, and frozen teachers. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from limbeck.config_terms import Options

SIZED_MODELS = ("mlp", "convnet")  # those that have no fixed width and depth
STANDARDISING_MODELS = ("wrn_28_10_swish",)  # those that expect pixels in [0, 1]


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
        "preact_resnet18",
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
    norm: Literal["batch", "group"] = Field(
        "batch", description="group puts GroupNorm, 8 channels a group, in each BatchNorm's place: it knows no batch."
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
            if any(source is not None for source in sources):
                raise ValueError("expected exactly one of `run`, `recipe` and `model`; set the others to null")
            beside = "; `weights` need the network of a `recipe` or `model` beside them" if self.weights else ""
            raise ValueError(f"expected one of `run`, `recipe` and `model`, got none{beside}")
        if self.model is not None and self.weights is None:
            raise ValueError("`model` expected a file in `weights`; to train one, name its `recipe`")
        if self.weights is not None and self.recipe is None and self.model is None:
            raise ValueError("`weights` expected the network of a `recipe` or `model` beside it; a `run` has its own")
        return self
