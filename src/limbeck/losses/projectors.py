"""Projectors: small trained networks that bring a student's features to the shape of the teacher's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from torch import Tensor, nn

from limbeck.functional._check import Reduction
from limbeck.losses.feature import FeatureLoss, Features, Shapes, channels_of, check_shapes

Projector = Literal["conv1x1", "conv3x3", "bottleneck", "linear", "none"]
BOTTLENECK_WIDTH = 256  # of the published code


def build_projector(
    kind: Projector, shape: Sequence[int], target_shape: Sequence[int], *, activation: bool = True
) -> nn.Module:
    """Return a module that maps features of one shape to another; shapes are those of one sample.

    conv1x1: one convolution, batch normalisation, ReLU ("ConvReg"). Maps of one size take a 1 x 1 kernel; a map twice
    as large a 3 x 3 of stride 2; one half as large a transposed 4 x 4 of stride 2; any other larger one a kernel of
    1 + the difference.
    conv3x3: the same with a 3 x 3 kernel between maps of one size, as published for detectors without the ReLU.
    bottleneck: convolutions 1 x 1 to 256 channels, 3 x 3, and 1 x 1 to the target's, nothing between them, then batch
    normalisation and ReLU; the middle one matches the size, by the same rule.
    linear: one affine map of the channels at each position, for tokens, vectors and maps.
    none: the identity.

    Args:
        kind: "conv1x1", "conv3x3", "bottleneck", "linear" or "none".
        shape: (D, H, W) of a map, (L, D) of tokens or (D,) of a vector; the student's.
        target_shape: the teacher's, as many axes.
        activation: end in the ReLU. Without it a target before its activation, which is signed, can be reached. It
            concerns convolutions.

    Returns:
        A module from (N, *shape) to (N, *target_shape), initialised as torch does.

    Raises:
        ValueError: an unknown kind, or shapes that it cannot match.

    Example:
        >>> import torch
        >>> projector = build_projector("conv1x1", (16, 8, 8), (32, 4, 4))
        >>> projector(torch.zeros(2, 16, 8, 8)).shape
        torch.Size([2, 32, 4, 4])

    Reference:
        Romero et al., "FitNets", arXiv 1412.6550; megvii-research/mdistiller, `distillers/_common.py` (sizes);
        Lv, Yang, Li, arXiv 2412.08139 (bottleneck), whose public code cannot enlarge a map.
    """
    shape, target_shape = tuple(shape), tuple(target_shape)
    match kind:
        case "conv1x1" | "conv3x3":
            channels, target_channels = _map_channels(kind, shape, target_shape)
            kernel = 1 if kind == "conv1x1" else 3
            layers = [_resize(channels, target_channels, shape, target_shape, kernel=kernel)]
        case "bottleneck":
            channels, target_channels = _map_channels(kind, shape, target_shape)
            layers = [
                nn.Conv2d(channels, BOTTLENECK_WIDTH, 1),
                _resize(BOTTLENECK_WIDTH, BOTTLENECK_WIDTH, shape, target_shape, kernel=3),
                nn.Conv2d(BOTTLENECK_WIDTH, target_channels, 1),
            ]
        case "linear":
            return _linear(shape, target_shape)
        case "none":
            if shape != target_shape:
                raise _refused(kind, "one shape", shape, target_shape, "'conv1x1' and 'linear' change it")
            return nn.Identity()
        case _:
            words = ", ".join(repr(word) for word in get_args(Projector))
            raise ValueError(f"`projector` expected one of {words}, got {kind!r}")
    return nn.Sequential(*layers, nn.BatchNorm2d(target_channels), *([nn.ReLU()] if activation else []))


class ProjectedLoss(FeatureLoss):
    """A loss of features with a projector per layer, trained with the student; the targets are detached.

    In training mode `forward` moves the running statistics of the projectors' batch normalisation, and nothing else.

    Args:
        shapes: of the student's features of one sample, one per layer.
        target_shapes: of the teacher's.
        projector: the kind; see `build_projector`.
        activation: end the projector in a ReLU.
        same_positions: bring the features to the target's height and width too. Distances between distributions over
            positions can do without: then "linear" and "none" match the channels alone, and a map may be drawn to
            tokens.
        reduction: "none", "mean" or "sum".
    """

    projectors: nn.ModuleList
    projected_shapes: list[tuple[int, ...]]

    def __init__(
        self,
        shapes: Shapes,
        target_shapes: Shapes,
        *,
        projector: Projector,
        activation: bool = True,
        same_positions: bool = True,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(reduction)
        check_shapes(shapes, target_shapes)
        kept = not same_positions and projector in ("linear", "none")
        self.projected_shapes = [
            with_channels(shape, channels_of(target)) if kept else tuple(target)
            for shape, target in zip(shapes, target_shapes, strict=True)
        ]
        self.projector, self.activation = projector, activation
        self.projectors = nn.ModuleList(
            build_projector(projector, shape, projected, activation=activation)
            for shape, projected in zip(shapes, self.projected_shapes, strict=True)
        )

    def projected(self, features: Features, target_features: Features) -> list[tuple[Tensor, Tensor]]:
        """Return the layers' pairs of projected features and detached targets.

        Raises:
            TypeError: Something is not a tensor.
            ValueError: The numbers of layers differ from each other or from the projectors', or those of samples.
        """
        pairs = self.pairs(features, target_features, len(self.projectors))
        return [
            (_project(projector, feature), target.detach())
            for projector, (feature, target) in zip(self.projectors, pairs, strict=True)
        ]


def with_channels(shape: Sequence[int], channels: int) -> tuple[int, ...]:
    """Return the shape with another D."""
    return (channels, *shape[1:]) if len(shape) == 3 else (*shape[:-1], channels)


def _project(projector: nn.Module, features: Tensor) -> Tensor:
    """In the projector's dtype, or in autocast's."""
    weight = next(projector.parameters(), None)
    projected: Tensor = projector(features if weight is None else features.to(weight.dtype))
    return projected


def _map_channels(kind: str, shape: tuple[int, ...], target_shape: tuple[int, ...]) -> tuple[int, int]:
    if len(shape) != 3 or len(target_shape) != 3:
        raise _refused(kind, "maps (D, H, W)", shape, target_shape, "tokens and vectors take 'linear'")
    return shape[0], target_shape[0]


def _resize(
    channels: int, target_channels: int, shape: tuple[int, ...], target_shape: tuple[int, ...], kernel: int
) -> nn.Module:
    """One convolution from a size to another; `kernel` is that between equal sizes."""
    size, target_size = shape[1:], target_shape[1:]
    if all(s == 2 * t for s, t in zip(size, target_size, strict=True)):
        return nn.Conv2d(channels, target_channels, 3, stride=2, padding=1)
    if all(2 * s == t for s, t in zip(size, target_size, strict=True)):
        return nn.ConvTranspose2d(channels, target_channels, 4, stride=2, padding=1)
    if any(s < t for s, t in zip(size, target_size, strict=True)):
        raise ValueError(
            "`target_shapes` expected maps at most as large as the student's, or exactly twice as large, got "
            f"{target_size[0]} x {target_size[1]} for {size[0]} x {size[1]}; pair layers of other sizes"
        )
    height, width = (kernel + s - t for s, t in zip(size, target_size, strict=True))
    return nn.Conv2d(channels, target_channels, (height, width), padding=kernel // 2)


def _linear(shape: tuple[int, ...], target_shape: tuple[int, ...]) -> nn.Module:
    if shape != with_channels(target_shape, channels_of(shape)) or len(shape) > 3:
        raise _refused("linear", "shapes that differ in D alone", shape, target_shape, "maps may take 'conv1x1'")
    channels, target_channels = channels_of(shape), channels_of(target_shape)
    return nn.Conv2d(channels, target_channels, 1) if len(shape) == 3 else nn.Linear(channels, target_channels)


def _refused(kind: str, wanted: str, shape: tuple[int, ...], target_shape: tuple[int, ...], way: str) -> ValueError:
    return ValueError(f"`projector` {kind!r} expected {wanted}, got {shape} for the target's {target_shape}; {way}")
