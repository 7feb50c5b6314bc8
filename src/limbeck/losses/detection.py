"""The losses of a two-stage detector as modules: its own, and what it imitates of a teacher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.functional._check import Reduction, check_range
from limbeck.functional.detection import box_imitation, fine_grained_imitation
from limbeck.losses.base import DivergenceLoss
from limbeck.losses.connected import ConnectedLoss
from limbeck.losses.feature import Features, Shapes

NOT_DRAWN = -1  # label of an anchor that is left out
ADAPTER_DEVIATION = 1e-4  # of FGFI's adapters at the start


class Matched(NamedTuple):
    """What a stage says, and what it should.

    Attributes:
        scores: `(N, A)`, logits of "there is something", of anchors; `(R, C + 1)` of regions, the background last.
        labels: Integers `(N, A)`: 1, 0 or -1 for one that is left out; or `(R,)` from 0 to C.
        offsets: `(N, A, 4)` or `(R, 4)`.
        wanted: What the offsets should be, where there is an object; finite everywhere.
        drawn: How many anchors or regions were drawn: what the sums are divided by.
    """

    scores: Tensor
    labels: Tensor
    offsets: Tensor
    wanted: Tensor
    drawn: int


class DetectionLoss(DivergenceLoss):
    """The labels' loss of a two-stage detector: of both stages a cross-entropy and the distance of the offsets.

    Each of the four is a sum over what was drawn, divided by how many were drawn, those without an object too.

    Args:
        objectness_weight: factor of the first stage's binary cross-entropy.
        anchor_weight: factor of its offsets' absolute error.
        class_weight: factor of the second stage's cross-entropy.
        box_weight: factor of its offsets' absolute error.

    Gradient:
        To the scores and offsets of both stages.

    Example:
        >>> import torch
        >>> anchors = Matched(torch.zeros(1, 2), torch.tensor([[1, 0]]), torch.zeros(1, 2, 4), torch.ones(1, 2, 4), 2)
        >>> regions = Matched(torch.zeros(1, 3), torch.tensor([2]), torch.zeros(1, 4), torch.ones(1, 4), 1)
        >>> DetectionLoss()(anchors, regions)  # log 2 + 4 / 2 + log 3 + 0
        tensor(3.7918)

    Reference:
        Ren et al., Faster R-CNN, arXiv 1506.01497, Eq. 1, with the absolute error in place of its smooth form, as in
        Detectron2.
    """

    def __init__(
        self,
        *,
        objectness_weight: float = 1.0,
        anchor_weight: float = 1.0,
        class_weight: float = 1.0,
        box_weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.weights = (objectness_weight, anchor_weight, class_weight, box_weight)
        names = ("objectness_weight", "anchor_weight", "class_weight", "box_weight")
        for name, value in zip(names, self.weights, strict=True):
            check_range(name, value, 0.0, float("inf"))

    def forward(self, anchors: Matched, regions: Matched) -> Tensor:
        """What both stages say of a batch, and what they should."""
        seen = anchors.labels != NOT_DRAWN
        wanted = (anchors.labels == 1).to(torch.float32)
        objectness = F.binary_cross_entropy_with_logits(anchors.scores.float(), wanted, reduction="none")
        classes = F.cross_entropy(regions.scores.float(), regions.labels, reduction="sum")
        values = (
            (objectness * seen).sum() / anchors.drawn,
            _box_error(anchors, anchors.labels == 1),
            classes / regions.drawn,
            _box_error(regions, regions.labels < regions.scores.shape[-1] - 1),
        )
        parts = [weight * value for weight, value in zip(self.weights, values, strict=True)]
        return torch.stack(parts).sum()

    def extra_repr(self) -> str:
        """Return the options for `repr`."""
        names = ("objectness_weight", "anchor_weight", "class_weight", "box_weight")
        return ", ".join(f"{name}={value}" for name, value in zip(names, self.weights, strict=True))


def _box_error(matched: Matched, objects: Tensor) -> Tensor:
    error = (matched.offsets.float() - matched.wanted.float()).abs().sum(-1)
    return (error * objects).sum() / matched.drawn


class BoxRegressionLoss(DivergenceLoss):
    """Boxes of teacher and student for the student's proposals: squared difference of offsets, and Distance-IoU.

    Proposals that were matched with no object say nothing of boxes: they are 0, and count in the mean.

    Args:
        num_classes: C + 1: the last one is the background.
        iou_weight: factor of the Distance-IoU; published 20.
        reduction: "none", "mean" or "sum".

    Gradient:
        To the student's offsets; the teacher's are detached.

    Example:
        >>> import torch
        >>> proposals, labels = torch.tensor([[0.0, 0.0, 8.0, 8.0]]), torch.tensor([0])
        >>> BoxRegressionLoss(3)(torch.ones(1, 4), torch.ones(1, 4), proposals, labels)
        tensor(0.)

    Reference:
        arXiv 2412.08139, appendix E.1; see `limbeck.functional.box_imitation`.
    """

    def __init__(self, num_classes: int, *, iou_weight: float = 20.0, reduction: Reduction = "mean") -> None:
        super().__init__(reduction)
        check_range("iou_weight", iou_weight, 0.0, float("inf"))
        self.num_classes, self.iou_weight = num_classes, iou_weight

    def forward(self, offsets: Tensor, target_offsets: Tensor, proposals: Tensor, labels: Tensor) -> Tensor:
        """`(R, 4)` each, and integers `(R,)`."""
        objects = labels < self.num_classes - 1
        return box_imitation(
            offsets, target_offsets, proposals, objects, iou_weight=self.iou_weight, reduction=self.reduction
        )

    def extra_repr(self) -> str:
        """Return the options for `repr`."""
        return f"{self.num_classes}, iou_weight={self.iou_weight}"


class FGFILoss(ConnectedLoss):
    """Fine-grained feature imitation: the student's maps, adapted, follow the teacher's near objects.

    The adapter of a level is a 3 x 3 convolution and a ReLU, which starts near 0, so a target that is negative is never
    reached; `activation=False` leaves the ReLU out, for maps without one, such as a pyramid's.

    Args:
        shapes: (D, H, W) of the student's maps of one sample, one per level.
        target_shapes: of the teacher's.
        activation: end the adapters in the ReLU, as published.
        reduction: "none", "mean" or "sum".

    Gradient:
        To the student's maps and the adapters; the target's maps are detached.

    Example:
        >>> import torch
        >>> loss = FGFILoss([(4, 8, 8)], [(6, 8, 8)])
        >>> near = torch.zeros(2, 8, 8, dtype=torch.bool)
        >>> loss(torch.rand(2, 4, 8, 8), torch.rand(2, 6, 8, 8), [near])
        tensor(0., grad_fn=<DivBackward0>)

    Reference:
        arXiv 1906.03609; see `limbeck.functional.fine_grained_imitation`.
    """

    def __init__(
        self, shapes: Shapes, target_shapes: Shapes, *, activation: bool = True, reduction: Reduction = "mean"
    ) -> None:
        def adapter(channels: int, target_channels: int) -> nn.Module:
            convolution = nn.Conv2d(channels, target_channels, 3, padding=1)
            nn.init.normal_(convolution.weight, std=ADAPTER_DEVIATION)
            nn.init.zeros_(convolution.bias)  # type: ignore[arg-type]
            return nn.Sequential(convolution, nn.ReLU()) if activation else nn.Sequential(convolution)

        super().__init__(shapes, target_shapes, adapter, same_size=False, reduction=reduction)
        self.activation = activation

    def forward(self, features: Features, target_features: Features, near_objects: Sequence[Tensor]) -> Tensor:
        """Maps (N, D, H, W) and bool (N, H, W) of each level."""
        student, target = zip(*self.connected(features, target_features), strict=True)
        return fine_grained_imitation(student, target, near_objects, reduction=self.reduction)

    def extra_repr(self) -> str:
        """Return the options for `repr`."""
        return f"activation={self.activation}"
