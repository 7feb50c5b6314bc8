"""Words for layers: `stages`, `last`, `hint`, `pooled` and stages' names, as paths of modules for `FeatureTaps`.

They are known of the networks of this library, and of the families of other libraries in `families`. Of other
networks, layers have to be named by their modules' paths.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from torch import nn

from limbeck.models.families import pooled_path, stage_paths
from limbeck.models.network import Network
from limbeck.models.prefixed import PrefixedNetwork
from limbeck.models.public_names import INNER
from limbeck.models.taps import INPUT, MAP, TOKENS, WRAPPERS
from limbeck.models.wide_resnet import PreactivationBlock

PREACTIVATION = ":preactivation"
WORDS = ("stages", "last", "hint", "pooled")


class Preactivation(NamedTuple):
    """Where a stage's map is seen before its activation.

    Attributes:
        path: For `FeatureTaps`.
        norm: The norm that makes the map; in a residual block that of the branch, which the shortcut is added to.
    """

    path: str
    norm: nn.BatchNorm2d


def layer_paths(model: nn.Module, names: Sequence[str]) -> list[str]:
    """Return the paths that layers' names stand for.

    Args:
        model: The network, which may be wrapped.
        names: Words and names of stages, which `:preactivation` may follow; other names are returned as they are.

    Raises:
        ValueError: A word needs a network that a name builds, or the network has no such stage or activation.

    Example:
        >>> from limbeck.config import ModelOptions
        >>> from limbeck.models import build_model
        >>> net = build_model(ModelOptions(name="resnet8"), image_shape=(3, 8, 8), num_classes=10, seed=0)
        >>> layer_paths(net, ["hint", "last:preactivation", "head:input"])
        ['features.stage2', 'features.stage3.0.relu:input', 'head:input']
    """
    return [path for name in names for path in _paths(model, name)]


def _paths(model: nn.Module, name: str) -> list[str]:
    word = name.removesuffix(PREACTIVATION)
    network = unwrapped(model)
    if isinstance(network, PrefixedNetwork):
        return _paths_in_library(network, name)
    if not isinstance(network, Network):
        if word in WORDS or name != word:
            children = ", ".join(path for path, _ in network.named_children())
            raise ValueError(
                f"{name!r} is known of networks of this library alone; name modules of the "
                f"{type(network).__name__} by their paths, such as {children}"
            )
        return [name]
    stages = _stages(network, word)
    if stages is None:
        return [name]
    return [before_activation(network, stage).path if name != word else f"features.{stage}" for stage in stages]


def _paths_in_library(model: PrefixedNetwork, name: str) -> list[str]:
    """Return the paths that a name stands for in a network of another library, whose maps before activations differ."""
    word = name.removesuffix(TOKENS)
    stage = re.fullmatch(r"stage(\d+)", word)
    if word.endswith(PREACTIVATION):
        raise ValueError(f"{name!r} is known of networks of this library alone; name a module's path")
    if word == "pooled":
        return [f"{INNER}{pooled_path(model.network)}"]
    if word not in WORDS and not stage:
        return [name]
    paths = [f"{INNER}{path}" for path in stage_paths(model.network)]
    if stage and not 0 < int(stage[1]) <= len(paths):
        raise ValueError(f"{name!r} expected a stage from stage1 to stage{len(paths)}; name one of them")
    if name != word:
        if not paths[0].endswith(MAP):
            raise ValueError(f"{name!r} expected a network of tokens, got one of maps; leave `{TOKENS}` out")
        paths = [path.removesuffix(MAP) + TOKENS for path in paths]
    if stage:
        return [paths[int(stage[1]) - 1]]
    return {"stages": paths, "last": paths[-1:], "hint": paths[:2][-1:]}[word]


def layer_norms(model: nn.Module, names: Sequence[str]) -> list[nn.BatchNorm2d]:
    """Return the norms that make the maps before the activations which names with `:preactivation` stand for.

    Raises:
        ValueError: A name stands for something else, or the network is none of this library.
    """
    network = unwrapped(model)
    norms = []
    for name in names:
        stages = _stages(network, name.removesuffix(PREACTIVATION)) if isinstance(network, Network) else None
        if not name.endswith(PREACTIVATION) or stages is None or not isinstance(network, Network):
            raise ValueError(
                f"`target_features` expected maps before the activation, whose norm is known, such as "
                f"`stages{PREACTIVATION}` of a network of this library, got {name!r}"
            )
        norms += [before_activation(network, stage).norm for stage in stages]
    return norms


def _stages(network: Network, word: str) -> list[str] | None:
    """The names of the stages that a word stands for; None if it is no word and no stage."""
    names = [name for name, _ in network.features.named_children()]
    stages = [name for name in names if name.startswith("stage")]
    if word in ("stages", "last", "hint") and not stages:
        raise ValueError(
            f"{word!r} expected a network with stages beside its stem, got {', '.join(names)}; name a module's path"
        )
    match word:
        case "stages":
            return stages
        case "last":
            return stages[-1:]
        case "hint":
            return stages[:2][-1:]
    return [word] if word in names else None


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the network inside of wrappers such as DistributedDataParallel and `torch.compile`'s."""
    while not isinstance(model, Network | PrefixedNetwork):
        inner = next((child for name, child in model.named_children() if name in WRAPPERS), None)
        if inner is None or len(list(model.children())) > 1:
            break
        model = inner
    return model


def before_activation(network: Network, stage: str) -> Preactivation:
    """Return where a stage's map is seen before its activation: the input of its last one, or of the next block's.

    A stage that ends without an activation, as MobileNetV2's, is seen as it is.

    Raises:
        ValueError: The stage has no such place.
    """
    names = [name for name, _ in network.features.named_children()]
    children = dict(network.features.named_children())
    path, module = f"features.{stage}", children[stage]
    while isinstance(module, nn.Sequential) and len(module):
        name, module = list(module.named_children())[-1]
        path = f"{path}.{name}"
    if isinstance(module, PreactivationBlock):
        following = names[names.index(stage) + 1]
        if following == "neck":
            return Preactivation(f"features.neck.activation{INPUT}", _norm(children["neck"], "bn"))
        first = children[following].get_submodule("0")
        return Preactivation(f"features.{following}.0.activation1{INPUT}", _norm(first, "bn1"))
    if isinstance(module, nn.ReLU):
        norms = [part for part in children[stage].modules() if isinstance(part, nn.BatchNorm2d)]
        if norms:
            return Preactivation(path + INPUT, norms[-1])
    if isinstance(module, nn.BatchNorm2d):
        return Preactivation(path, module)
    if isinstance(getattr(module, "relu", None), nn.ReLU):
        last = "bn3" if hasattr(module, "bn3") else "bn2"
        return Preactivation(f"{path}.relu{INPUT}", _norm(module, last))
    project = getattr(module, "project", None)
    if isinstance(project, nn.Sequential):
        return Preactivation(f"features.{stage}", _norm(project, "bn"))
    raise ValueError(
        f"'{stage}{PREACTIVATION}' expected a stage that ends with one activation of a norm's maps, got "
        f"one that ends with {type(module).__name__}; name a module's path"
    )


def _norm(module: nn.Module, name: str) -> nn.BatchNorm2d:
    norm = module.get_submodule(name)
    if not isinstance(norm, nn.BatchNorm2d):
        raise ValueError(f"expected a BatchNorm2d before the activation, got {type(norm).__name__}")
    return norm
