"""What a student detector imitates of its teacher's: boxes, and maps near objects."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from limbeck.functional._check import (
    Reduction,
    check_pair,
    check_range,
    check_reduction,
    full_precision,
    reduce,
    widest,
)
from limbeck.functional._maps import check_maps, in_full
from limbeck.functional.boxes import distance_iou, moved

REGION_SCALE = (10.0, 5.0)  # of a box head's offsets: centres, sides


@full_precision
def box_imitation(
    offsets: Tensor,
    target_offsets: Tensor,
    proposals: Tensor,
    mask: Tensor | None = None,
    *,
    iou_weight: float = 20.0,
    scale: tuple[float, float] = REGION_SCALE,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Distance of two detectors' boxes for the same proposals: of the offsets, and of the boxes that they lead to.

    .. math:: \| o_s - o_t \|^2 + \lambda (1 - IoU(b_s, b_t) + d^2 / c^2)

    d is the distance of the boxes' centres, c the diagonal of the smallest box around both.

    Args:
        offsets: `(R, 4)`, any floating dtype; what trains.
        target_offsets: `(R, 4)`; what they are drawn to.
        proposals: `(R, 4)`: x0, y0, x1, y1 in pixels.
        mask: bool `(R,)`: which proposals take part; all by default. The others are 0, and count in the mean.
        iou_weight: lambda, at least 0; published 20.
        scale: What the offsets of centres and of sides were multiplied by.
        reduction: "none" (R), "mean" or "sum".

    Returns:
        float32 (float64 for float64 inputs).

    Raises:
        TypeError: not floating tensors.
        ValueError: other shapes, a negative weight or an unknown reduction.

    Gradient:
        To `offsets`; the target is detached.

    Example:
        >>> import torch
        >>> box = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
        >>> box_imitation(torch.tensor([[10.0, 0.0, 0.0, 0.0]]), torch.zeros(1, 4), box)  # 100 + 20 (1 + 100 / 500)
        tensor(124.)

    Reference:
        Lv, Yang, Li, arXiv 2412.08139, appendix E.1; Zheng et al., arXiv 1911.08287 (Distance-IoU).
    """
    check_pair(offsets, target_offsets, names=("offsets", "target_offsets"))
    check_range("iou_weight", iou_weight, 0.0, float("inf"))
    check_reduction(reduction)
    if proposals.shape != offsets.shape or offsets.shape[-1] != 4:
        raise ValueError(
            f"`offsets` and `proposals` expected one shape (R, 4), got {tuple(offsets.shape)} and "
            f"{tuple(proposals.shape)}; choose the offsets of one class first"
        )
    dtype = widest(offsets, target_offsets)
    student, target = offsets.to(dtype), target_offsets.detach().to(dtype)
    boxes = [moved(proposals.detach().to(dtype), each, scale) for each in (student, target)]
    values = (student - target).square().sum(-1) + iou_weight * distance_iou(*boxes)
    return reduce(values if mask is None else torch.where(mask, values, 0.0), reduction)


@full_precision
def fine_grained_imitation(
    features: Sequence[Tensor],
    target_features: Sequence[Tensor],
    masks: Sequence[Tensor],
    *,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Squared difference of two detectors' maps at the positions near objects (FGFI).

    .. math:: \frac{1}{2 P} \sum_{lhw} m_{lhw} \| s_{lhw} - t_{lhw} \|^2

    P is the number of an image's positions near objects, over all levels, so an image counts as much as another. The
    sum over the channels makes it proportional to D; published weight 0.01.

    Args:
        features: `(N, D, H, W)` of each level, brought to the target's channels; what trains.
        target_features: `(N, D, H, W)` of each level.
        masks: bool `(N, H, W)` of each level: the positions of anchors that overlap an object by more than half as
            much as the best one does.
        reduction: "none" (N), "mean" or "sum".

    Returns:
        float32 (float64 for float64 inputs); 0 for an image without such a position.

    Raises:
        TypeError: not floating tensors.
        ValueError: other shapes or numbers of levels, or an unknown reduction.

    Gradient:
        To `features`; the target is detached.

    Example:
        >>> import torch
        >>> target, mask = torch.zeros(1, 3, 2, 2), torch.tensor([[[True, False], [False, True]]])
        >>> fine_grained_imitation([target + 2], [target], [mask])  # 3 channels · 4 / 2
        tensor(6.)

    Reference:
        Wang et al., "Distilling Object Detectors with Fine-grained Feature Imitation", arXiv 1906.03609, Eq. 2.
    """
    check_reduction(reduction)
    if not features or not len(features) == len(target_features) == len(masks):
        raise ValueError(
            "`features`, `target_features` and `masks` expected one tensor per level each, got "
            f"{len(features)}, {len(target_features)} and {len(masks)}"
        )
    total: list[Tensor] = []
    for feature, target, mask in zip(features, target_features, masks, strict=True):
        check_maps(feature, target, same="DHW")
        if mask.shape != (len(feature), *feature.shape[2:]):
            raise ValueError(f"`masks` expected (N, H, W) of {tuple(feature.shape)}, got {tuple(mask.shape)}")
        student, taught = in_full(feature, target)
        total.append(((student - taught).square().sum(1) * mask).sum((1, 2)))
    positions = torch.stack([mask.sum((1, 2)) for mask in masks]).sum(0)
    return reduce(torch.stack(total).sum(0) / (2 * positions.clamp(min=1)), reduction)
