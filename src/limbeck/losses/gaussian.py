"""Transport between the features' Gaussians as a module: a projector per layer, trained with the student."""

from __future__ import annotations

from torch import Tensor

from limbeck.functional._check import Reduction, check_range
from limbeck.functional.gaussian import Covariance, check_cells, check_covariance, gaussian_wasserstein
from limbeck.losses.feature import Features, Shapes
from limbeck.losses.projectors import ProjectedLoss, Projector


class WKDFeatureLoss(ProjectedLoss):
    r"""Wasserstein distillation of features (WKD-F): projected maps to the target's, as Gaussians over positions.

    Means and deviations of each channel are compared, in squares summed over the channels and layers. The weight beside
    the cross-entropy therefore depends on the target's width: published 0.02 for 512 channels and 0.005 for 2048, 0.08
    to 0.5 on CIFAR-100. Statistics are in at least float32, whatever autocast says; the projector follows autocast.

    "linear" and "none" see to the student's D and leave its positions: a map may then be drawn to tokens, as between a
    convolutional network and a transformer, or to a map of another size.

    Args:
        shapes: of the student's features of one sample, one per layer: (D, H, W), or tokens (L, D).
        target_shapes: of the teacher's.
        mean_weight: gamma, at least 0; factor of the means' part. Published 2 on ImageNet, 2 to 8 on CIFAR-100.
        covariance: "diagonal", or "full" (an ablation of the paper).
        grid: k, at least 1; distances of k x k cells are averaged. Published 1; the public code uses 4 where its
            configuration does not say.
        unbiased: divide variances by the number of positions less 1, as the public code; the paper by the number.
        projector: "conv1x1" (published on CIFAR-100), "conv3x3" (with detectors), "bottleneck" (on ImageNet),
            "linear" (with transformers) or "none"; see `limbeck.losses.projectors.build_projector`.
        activation: end convolutions in a ReLU, as published; `False` for a target before its activation.
        reduction: "none", "mean" or "sum".

    Gradient:
        To the features and the projectors; the targets are detached.

    Example:
        >>> import torch
        >>> loss = WKDFeatureLoss([(16, 8, 8)], [(32, 8, 8)])
        >>> loss(torch.zeros(2, 16, 8, 8), torch.zeros(2, 32, 8, 8)) >= 0
        tensor(True)

    Reference:
        arXiv 2412.08139, the loss WKD-F; see `limbeck.functional.gaussian_wasserstein`.
    """

    def __init__(
        self,
        shapes: Shapes,
        target_shapes: Shapes,
        *,
        mean_weight: float = 2.0,
        covariance: Covariance = "diagonal",
        grid: int = 1,
        unbiased: bool = True,
        projector: Projector = "conv1x1",
        activation: bool = True,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(
            shapes,
            target_shapes,
            projector=projector,
            activation=activation,
            same_positions=False,
            reduction=reduction,
        )
        check_range("mean_weight", mean_weight, 0.0, float("inf"))
        check_covariance(covariance)
        for shape, target in zip(self.projected_shapes, target_shapes, strict=True):
            check_cells("shapes", shape, grid)
            check_cells("target_shapes", target, grid)
        self.mean_weight: float = mean_weight
        self.covariance: Covariance = covariance
        self.grid, self.unbiased = grid, unbiased

    def forward(self, features: Features, target_features: Features) -> Tensor:
        """One tensor or a sequence of either network: maps (N, D, H, W) or tokens (N, L, D)."""
        values = [
            gaussian_wasserstein(
                feature,
                target,
                mean_weight=self.mean_weight,
                covariance=self.covariance,
                grid=self.grid,
                unbiased=self.unbiased,
                reduction=self.reduction,
            )
            for feature, target in self.projected(features, target_features)
        ]
        return sum(values[1:], start=values[0])

    def extra_repr(self) -> str:
        """Return the options for `repr`."""
        return (
            f"mean_weight={self.mean_weight}, covariance={self.covariance!r}, grid={self.grid}, "
            f"unbiased={self.unbiased}, projector={self.projector!r}, activation={self.activation}"
        )
