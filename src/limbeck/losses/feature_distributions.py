"""WKD-F's rivals as one module: other distributions over the positions of features."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal, get_args

from torch import Tensor

from limbeck.functional._check import Reduction
from limbeck.functional.feature_distributions import (
    exponential_kl,
    gaussian_embedding_distance,
    gaussian_kl,
    laplace_kl,
    moment_distance,
    pmf_transport,
)
from limbeck.functional.gaussian import check_cells
from limbeck.losses.feature import Features, Shapes
from limbeck.losses.projectors import ProjectedLoss, Projector

Kind = Literal[
    "gaussian_kl",
    "gaussian_symmetric_kl",
    "gaussian_embedding",
    "laplace_kl",
    "exponential_kl",
    "pmf_transport",
    "channel_first",
    "channel_second",
    "spatial_first",
    "spatial_second",
]
DISTANCES: dict[str, Callable[..., Tensor]] = {
    "gaussian_kl": gaussian_kl,
    "gaussian_symmetric_kl": partial(gaussian_kl, symmetric=True),
    "gaussian_embedding": gaussian_embedding_distance,
    "laplace_kl": laplace_kl,
    "exponential_kl": exponential_kl,
    "pmf_transport": pmf_transport,
    "channel_first": partial(moment_distance, axis="channel", order=1),
    "channel_second": partial(moment_distance, axis="channel", order=2),
    "spatial_first": partial(moment_distance, axis="spatial", order=1),
    "spatial_second": partial(moment_distance, axis="spatial", order=2),
}


class FeatureDistributionLoss(ProjectedLoss):
    """A distance between distributions of projected and target features over positions, summed over the layers.

    The distances differ in unit and size, so each needs a weight of its own. In the paper's ablation (ResNet-34 to
    ResNet-18 on ImageNet, top-1) WKD-F has 72.50, gaussian_symmetric_kl 71.93, gaussian_kl 71.75, pmf_transport 71.57,
    laplace_kl 71.38 and exponential_kl 70.14.

    Args:
        shapes: of the student's features of one sample, one per layer: (D, H, W), or tokens (L, D).
        target_shapes: of the teacher's.
        kind: the distance; channel_first to spatial_second are moments of that axis and order, exponential_kl is for
            features that are not negative. See `limbeck.functional.feature_distributions`.
        projector: "conv1x1", "bottleneck", "linear" or "none"; see `limbeck.losses.projectors.build_projector`. The
            last two leave the positions, which all kinds but the spatial moments allow.
        activation: end conv1x1 and bottleneck in a ReLU; `False` for a target before its activation.
        reduction: "none", "mean" or "sum".

    Gradient:
        To the features and the projectors; the targets are detached.

    Example:
        >>> import torch
        >>> features = torch.rand(2, 16, 4, 4)
        >>> FeatureDistributionLoss([(16, 4, 4)], [(16, 4, 4)], kind="laplace_kl", projector="none")(features, features)
        tensor(0.)

    Reference:
        arXiv 2412.08139, appendix A.2.
    """

    def __init__(
        self,
        shapes: Shapes,
        target_shapes: Shapes,
        *,
        kind: Kind = "gaussian_kl",
        projector: Projector = "conv1x1",
        activation: bool = True,
        reduction: Reduction = "mean",
    ) -> None:
        if kind not in DISTANCES:
            words = ", ".join(repr(word) for word in get_args(Kind))
            raise ValueError(f"`kind` expected one of {words}, got {kind!r}")
        super().__init__(
            shapes,
            target_shapes,
            projector=projector,
            activation=activation,
            same_positions=kind.startswith("spatial"),
            reduction=reduction,
        )
        for shape, target in zip(self.projected_shapes, target_shapes, strict=True):
            check_cells("shapes", shape, 1)
            check_cells("target_shapes", target, 1)
        self.kind = kind

    def forward(self, features: Features, target_features: Features) -> Tensor:
        """One tensor or a sequence of either network: maps (N, D, H, W) or tokens (N, L, D)."""
        distance = DISTANCES[self.kind]
        values = [
            distance(feature, target, reduction=self.reduction)
            for feature, target in self.projected(features, target_features)
        ]
        return sum(values[1:], start=values[0])

    def extra_repr(self) -> str:
        """Return the options for `repr`."""
        return f"kind={self.kind!r}, projector={self.projector!r}, activation={self.activation}"
