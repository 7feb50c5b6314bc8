"""Published settings of GKL, in our names. See docs/choosing-the-weights.md for what each knob does."""

from __future__ import annotations

from typing import Any, Literal

PresetName = Literal["cifar-distillation", "imagenet", "long-tailed", "adversarial", "consistency"]

PRESETS: dict[str, dict[str, Any]] = {
    # Public code of arXiv 2503.08038, CIFAR-100, resnet32x4 -> resnet8x4 (ALPHA 1, BETA 16, GAMMA .05, T 4, T2 4, GI).
    # Other pairs: mse_weight 4 to 20, ce_weight 1 to 4, weight_power 0 to 0.3.
    "cifar-distillation": {
        "prior": "class",
        "mse_weight": 16.0,
        "ce_weight": 1.0,
        "weight_power": 0.05,
        "temperature": 4.0,
        "prior_temperature": 4.0,
        "ramp_epochs": 20,
    },
    # Same, ImageNet, ResNet-34 -> ResNet-18 (ALPHA 1, BETA .5, GAMMA .6, T 1, T2 1, WARMUP 5).
    "imagenet": {
        "prior": "class",
        "mse_weight": 0.5,
        "ce_weight": 1.0,
        "weight_power": 0.6,
        "ramp_epochs": 5,
    },
    # Same, ImageNet-LT, ResNeXt-101 -> ResNet-18 (alpha 4, beta 4, gamma .3, T2 1).
    "long-tailed": {
        "prior": "class",
        "mse_weight": 4.0,
        "ce_weight": 4.0,
        "weight_power": 0.3,
    },
    # arXiv 2503.08038, Tables X-XII, CIFAR-100: alpha/4 = 5, beta = 5, tau = 4.
    "adversarial": {
        "prior": "class",
        "mse_weight": 20.0,
        "ce_weight": 5.0,
        "prior_temperature": 4.0,
    },
    # Public code of arXiv 2305.13948, FixMatch on CIFAR-100 with 200 labels (alpha 1, beta .1, T2 1).
    "consistency": {
        "prior": "sample",
        "mse_weight": 0.1,
        "ce_weight": 1.0,
    },
}


def preset_options(name: str) -> dict[str, Any]:
    """Return the options of `GKLLoss` that a preset stands for.

    Args:
        name: one of "cifar-distillation", "imagenet", "long-tailed", "adversarial", "consistency".

    Raises:
        ValueError: unknown name.

    Example:
        >>> preset_options("long-tailed")
        {'prior': 'class', 'mse_weight': 4.0, 'ce_weight': 4.0, 'weight_power': 0.3}
    """
    if name not in PRESETS:
        raise ValueError(f"`name` expected one of {', '.join(PRESETS)}, got {name!r}")
    return dict(PRESETS[name])
