"""What the losses of maps share whose student's maps pass a small trained network first."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from limbeck.functional._check import Reduction
from limbeck.functional._maps import check_maps, to_smaller
from limbeck.losses.feature import FeatureLoss, Features, Shapes, check_shapes


class ConnectedLoss(FeatureLoss):
    """A loss of maps with a trained connector per layer, from the student's channels to the teacher's.

    Args:
        shapes: (D, H, W) of the student's maps of one sample, one per layer.
        target_shapes: of the teacher's.
        connector: makes the network of a layer from the two numbers of channels.
        same_size: average-pool the larger map of a pair to the smaller one's size, before the connector.
        reduction: "none", "mean" or "sum".
    """

    connectors: nn.ModuleList

    def __init__(
        self,
        shapes: Shapes,
        target_shapes: Shapes,
        connector: Callable[[int, int], nn.Module],
        *,
        same_size: bool,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(reduction)
        check_shapes(shapes, target_shapes)
        for name, side in (("shapes", shapes), ("target_shapes", target_shapes)):
            check_dimensions(name, side, (3,), "maps (D, H, W)")
        self.same_size = same_size
        self.channels = [(shape[0], target[0]) for shape, target in zip(shapes, target_shapes, strict=True)]
        self.connectors = nn.ModuleList(connector(*channels) for channels in self.channels)

    def connected(self, features: Features, target_features: Features) -> list[tuple[Tensor, Tensor]]:
        """Return the layers' pairs of connected maps and detached targets.

        Raises:
            TypeError: Something is not a tensor, or not floating.
            ValueError: The layers are not those of `shapes` and `target_shapes`.
        """
        connected = []
        pairs = self.pairs(features, target_features, len(self.channels))
        check_channels(pairs, self.channels)
        for connector, (feature, target) in zip(self.connectors, pairs, strict=True):
            target = target.detach()
            if self.same_size:
                feature, target = to_smaller(feature, target)
            connected.append((run(connector, feature), target))
        return connected


def connector(channels: int, target_channels: int) -> nn.Module:
    """Return a 1 x 1 convolution without bias and a batch normalisation."""
    return nn.Sequential(nn.Conv2d(channels, target_channels, 1, bias=False), nn.BatchNorm2d(target_channels))


def run(module: nn.Module, features: Tensor) -> Tensor:
    """Apply the module in the dtype of its parameters, or in autocast's."""
    return cast("Tensor", module(features.to(next(module.parameters()).dtype)))


def total(values: Iterable[Tensor]) -> Tensor:
    """Sum over the layers."""
    return torch.stack(list(values)).sum(0)


def check_dimensions(name: str, shapes: Shapes, dimensions: Sequence[int], wanted: str) -> None:
    """Raise ValueError unless each shape has one of these numbers of axes."""
    for shape in shapes:
        if len(shape) not in dimensions:
            raise ValueError(f"`{name}` expected shapes of {wanted}, got {tuple(shape)}; name layers that have them")


def check_channels(pairs: Sequence[tuple[Tensor, Tensor]], channels: Sequence[tuple[int, int]]) -> None:
    """Raise unless the layers' maps are (N, D, H, W) with the channels that the loss was built for."""
    for pair, expected in zip(pairs, channels, strict=True):
        check_maps(*pair)
        for name, shapes, value, size in zip(
            ("features", "target_features"), ("shapes", "target_shapes"), pair, expected, strict=True
        ):
            if value.shape[1] != size:
                raise ValueError(f"`{name}` expected {size} channels, as `{shapes}` has, got {tuple(value.shape)}")
