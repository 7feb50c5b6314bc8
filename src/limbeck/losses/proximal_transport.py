"""Transport between a batch's features of two networks (EMD by IPOT) as a module."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from limbeck.functional.proximal_transport import Metric, check_metric, check_steps, ipot_transport
from limbeck.losses._linear import of_flat, width
from limbeck.losses.feature import FeatureLoss, Features, Shapes, check_shapes


class EMDLoss(FeatureLoss):
    """Transport from the student's features, linearly projected to the teacher's width, to the teacher's.

    It couples the batch, so it has no `reduction`. Several layers, each with its projection, are summed. The projection
    has no bias; give this module's parameters to the optimizer.

    Args:
        shapes: of the student's features, one per layer, without N; usually pooled.
        target_shapes: of the teacher's.
        metric: "cosine", or "squared_euclidean", the mean over the features.
        beta: length of a proximal step is 1 / beta; above 0, in the cost's unit.
        iterations: number of steps, at least 1.

    Gradient:
        To `features` and the projection, through the cost and not the plan; none to `target_features`.

    Example:
        >>> import torch
        >>> EMDLoss([(8,)], [(16,)])(torch.randn(4, 8), torch.randn(4, 16)) > 0
        tensor(True)

    Reference:
        arXiv 2012.03907 (WACV 2022), arXiv 1802.04307; see `limbeck.functional.ipot_transport`.
    """

    def __init__(
        self,
        shapes: Shapes,
        target_shapes: Shapes,
        *,
        metric: Metric = "cosine",
        beta: float = 1.0,
        iterations: int = 50,
    ) -> None:
        super().__init__()
        check_shapes(shapes, target_shapes)
        check_metric(metric)
        check_steps(beta, iterations)
        self.metric, self.beta, self.iterations = metric, beta, iterations
        self.projections = nn.ModuleList(
            nn.Linear(width(shape), width(target), bias=False)
            for shape, target in zip(shapes, target_shapes, strict=True)
        )

    def forward(self, features: Features, target_features: Features) -> Tensor:
        """(N, D) or (N, D, H, W) of each layer, as many layers as the constructor was told."""
        pairs = self.pairs(features, target_features, len(self.projections))
        return torch.stack(
            [
                ipot_transport(
                    of_flat(projection, feature, "features"),
                    target,
                    metric=self.metric,
                    beta=self.beta,
                    iterations=self.iterations,
                )
                for (feature, target), projection in zip(pairs, self.projections, strict=True)
            ]
        ).sum()

    def extra_repr(self) -> str:
        """Return the options for `repr`."""
        return f"metric={self.metric!r}, beta={self.beta}, iterations={self.iterations}"
