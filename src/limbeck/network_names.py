"""The names that networks go by: those of this library, and those that ask for another one. Imports nothing."""

from __future__ import annotations

# The networks of this library, by name.
ZOO = (
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
    "resnet101",
    "resnext101_32x4d",
    "mobilenet_v1",
)
DEEP_MODELS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnext101_32x4d")  # ImageNet's ResNets
# Networks of tasks that are not the classification of images: task -> names.
TASK_NETWORKS: dict[str, tuple[str, ...]] = {
    "detect": (
        "detector",
        "faster_rcnn_mobilenet_v2",
        "faster_rcnn_resnet18",
        "faster_rcnn_resnet50",
        "faster_rcnn_resnet101",
    ),
    "segment": ("encoder_decoder", "pspnet_resnet18", "pspnet_resnet101"),
    "image_text": ("image_text", "image_text_sigmoid"),
}
# What torchvision's Faster R-CNN can be built on, named tv:fasterrcnn_BACKBONE.
DETECTOR_BACKBONES = (
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
    *("resnext50_32x4d", "resnext101_32x8d", "wide_resnet50_2", "wide_resnet101_2", "mobilenet_v2"),
)
DETECTOR_PREFIX = "tv:fasterrcnn_"
OWN = (*ZOO, *(name for names in TASK_NETWORKS.values() for name in names))
# Before the name of a network of another library.
PREFIXES = {"timm": "timm", "tv": "torchvision", "hf": "transformers", "open_clip": "open_clip"}
EXTRAS = {"timm": "timm", "tv": "vision", "hf": "hf", "open_clip": "open_clip"}  # what to install for them
PREFIXED = "timm:NAME, tv:NAME or hf:NAME"
PRETRAINED = "pretrained"  # for `weights`: the library's own


def is_prefixed(name: str) -> bool:
    """Return whether a name is that of a network of timm, torchvision or transformers.

    >>> is_prefixed("timm:vit_small_patch16_224"), is_prefixed("resnet18")
    (True, False)
    """
    prefix, colon, rest = name.partition(":")
    return bool(prefix in PREFIXES and colon and rest.strip())
