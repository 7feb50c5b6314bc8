"""Learning rates that fall from a network's head to its stem."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from limbeck.errors import UserError
from limbeck.models import Network

if TYPE_CHECKING:
    from collections.abc import Sequence


def depths(network: nn.Module) -> tuple[list[int], int]:
    """Return how deep each parameter of a network lies, and the depth of its head.

    Depth 0 is what comes before the blocks, i the i-th block, and the head's what comes behind them. Blocks are the
    stages of a network of this library, else the list of like modules with the most parameters, as transformers
    have it.

    Args:
        network: A network.

    Raises:
        UserError: It has no such list.
    """
    blocks = _blocks(network)
    places = {id(parameter): number for number, block in enumerate(blocks, 1) for parameter in block.parameters()}
    found, behind = [], False
    for parameter in network.parameters():
        place = places.get(id(parameter))
        behind = behind or place is not None
        found.append(place if place is not None else len(blocks) + 1 if behind else 0)
    return found, len(blocks) + 1


def factors(network: nn.Module, decay: float) -> dict[int, float]:
    """Return the factor of the learning rate of each parameter, by its `id`: decay to the blocks that lie behind it.

    Args:
        network: A network.
        decay: From a block to the one before it.

    Raises:
        UserError: The network has no list of blocks.
    """
    found, head = depths(network)
    return {
        id(parameter): decay ** (head - depth) for parameter, depth in zip(network.parameters(), found, strict=True)
    }


def _blocks(network: nn.Module) -> Sequence[nn.Module]:
    for part in network.modules():
        if isinstance(part, Network):
            return [stage for name, stage in part.features.named_children() if name.startswith("stage")]
    lists = [part for part in network.modules() if isinstance(part, nn.ModuleList | nn.Sequential) and _alike(part)]
    if not lists:
        raise UserError(
            f"`optimizer.layer_decay` expected a network with a list of blocks, got {type(network).__name__} without "
            "one; set it to 1"
        )
    return list(max(lists, key=_size).children())


def _alike(part: nn.Module) -> bool:
    children = list(part.children())
    return len(children) > 1 and len({type(child) for child in children}) == 1


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
