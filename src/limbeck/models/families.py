"""Where networks of timm, torchvision and transformers have their stages: paths of modules for `FeatureTaps`.

A stage ends before the map gets smaller, and the stem is none. A plain transformer, all of whose blocks have the same
tokens, is cut in four quarters.
"""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from limbeck.models.taps import INPUT, MAP

QUARTERS = 4

# torchvision, by class: the stages' paths, and whether what they return has to be made a map.
TORCHVISION: dict[str, tuple[tuple[str, ...], str]] = {
    "ResNet": (("layer1", "layer2", "layer3", "layer4"), ""),
    "RegNet": (tuple(f"trunk_output.block{stage}" for stage in (1, 2, 3, 4)), ""),
    "DenseNet": (tuple(f"features.denseblock{stage}" for stage in (1, 2, 3, 4)), ""),
    "ShuffleNetV2": (("stage2", "stage3", "stage4"), ""),
    "MobileNetV2": (("features.3", "features.6", "features.13", "features.17"), ""),
    "EfficientNet": (("features.2", "features.3", "features.5", "features.7"), ""),
    "ConvNeXt": (("features.1", "features.3", "features.5", "features.7"), ""),
    "SwinTransformer": (("features.1", "features.3", "features.5", "features.7"), MAP),
}
# timm and transformers name the parts of a family alike. What lists the stages or blocks, and what one of them is.
_STAGES = re.compile(r"(\w+\.)?encoder\.stages\.\d+")  # ResNet, ConvNeXt
_SWIN = re.compile(r"(\w+\.)?encoder\.layers\.\d+\.blocks\.\d+")
_BLOCKS = re.compile(r"(encoder\.layers\.encoder_layer_\d+|(\w+\.)?(layers|encoder\.layer|encoder\.layers)\.\d+)")


def stage_paths(network: nn.Module) -> list[str]:
    """Return the paths of a network's stages, in order.

    Raises:
        ValueError: The family is unknown.
    """
    information = getattr(network, "feature_info", None)
    if information is not None:
        return _of_timm(network, getattr(information, "info", information))
    paths, form = TORCHVISION.get(type(network).__name__, ((), ""))
    children = {path for path, _ in network.named_modules()}
    if paths and children.issuperset(paths):
        return [path + form for path in paths]
    if stages := [path for path in children if _STAGES.fullmatch(path)]:
        return _in_order(stages)
    if blocks := _in_order([path for path in children if _SWIN.fullmatch(path)]):
        last = {path.rsplit(".", 2)[0]: path for path in blocks}  # of each stage; the stage itself merges its tokens
        return [path + MAP for path in last.values()]
    blocks = _in_order([path for path in children if _BLOCKS.fullmatch(path)])
    if len({type(network.get_submodule(path)) for path in blocks}) == 1:  # other networks have a list of mixed layers
        return [path + _form(network) for path in _quarters(blocks)]
    raise ValueError(
        f"the stages of {type(network).__name__} are not known; name modules by their paths, such as "
        f"{', '.join(path for path, _ in network.named_children())}"
    )


def pooled_path(network: nn.Module) -> str:
    """Return the path of what goes into a network's last linear layer, one vector per image.

    Raises:
        ValueError: There is no linear layer.
    """
    linear: list[str] = [path for path, part in network.named_modules() if isinstance(part, nn.Linear)]
    if not linear:
        raise ValueError(f"'pooled' expected a linear layer at the end of {type(network).__name__}; name a module")
    return linear[-1] + INPUT


def _of_timm(network: nn.Module, information: Any) -> list[str]:
    """Read timm's own list: the name, channels and reduction of each place where features may be taken."""
    reductions = {part["reduction"] for part in information}
    if len(reductions) == 1 and len(information) > 1:
        return [path + _form(network) for path in _quarters([part["module"] for part in information])]
    form = MAP if getattr(network, "output_fmt", "NCHW") == "NHWC" else ""
    return [part["module"] + form for part in information if part["reduction"] >= QUARTERS]


def _form(network: nn.Module) -> str:
    """Tokens of a square grid are made maps; those of another one stay tokens, since their number does not tell it."""
    grid = getattr(getattr(network, "patch_embed", None), "grid_size", (1, 1))
    return MAP if grid is None or len(set(grid)) == 1 else ""


def _quarters(blocks: list[str]) -> list[str]:
    """Return the last block of each quarter."""
    return [blocks[len(blocks) * quarter // QUARTERS - 1] for quarter in range(1, QUARTERS + 1)]


def _in_order(paths: list[str]) -> list[str]:
    return sorted(paths, key=lambda path: [int(number) for number in re.findall(r"\d+", path)])
