"""Networks of other libraries with random weights, the transformers ones from small configurations in a folder."""

from __future__ import annotations

import json
from pathlib import Path

from torch import nn

from limbeck.config import ModelOptions
from limbeck.models import Standardisation, build_model

CLASSES = 10
PIXELS = Standardisation((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))  # CIFAR-100's
PROCESSOR = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4], "do_normalize": True}

_PLAIN = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 64, "patch_size": 8}
_FOUR = {"hidden_sizes": [8, 16, 32, 64], "depths": [1, 1, 1, 1]}
CONFIGS = {
    "vit": {**_PLAIN, "image_size": 32, "architectures": ["ViTForImageClassification"]},
    "beit": {**_PLAIN, "image_size": 32, "architectures": ["BeitForImageClassification"]},
    "swin": {
        "embed_dim": 16,
        "depths": [1, 1, 2, 1],
        "num_heads": [1, 2, 4, 8],
        "image_size": 64,
        "window_size": 2,
        "architectures": ["SwinForImageClassification"],
    },
    "resnet": {**_FOUR, "embedding_size": 8, "layer_type": "basic", "architectures": ["ResNetForImageClassification"]},
    "convnext": {**_FOUR, "architectures": ["ConvNextForImageClassification"]},
}


def folder(kind: str, where: Path) -> str:
    """Write a configuration and an image processor as transformers keeps them; return the name for `model.name`."""
    where.mkdir(exist_ok=True)
    (where / "config.json").write_text(json.dumps({"model_type": kind, **CONFIGS[kind]}))
    (where / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    return f"hf:{where}"


def build(name: str, side: int, where: Path | None = None, *, seed: int = 0, **options: object) -> nn.Module:
    """Build a network for images of a side, as `data.image_size` sets it."""
    if where is not None and (kind := name.removeprefix("hf:")) in CONFIGS:
        name = folder(kind, where)
    model = ModelOptions.model_validate({"name": name, **options})
    return build_model(model, image_shape=(3, side, side), num_classes=CLASSES, seed=seed, data=PIXELS)
