"""ReviewKD as a module: fusion blocks from deep to shallow, and the hierarchical context loss behind each."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.functional._check import Reduction
from limbeck.functional.review import hierarchical_context_loss
from limbeck.losses.connected import check_channels, check_dimensions, total
from limbeck.losses.feature import FeatureLoss, Features, Shapes, check_shapes


class ReviewKDLoss(FeatureLoss):
    """ReviewKD: each of the student's maps, fused with all deeper ones, is drawn to the teacher's of its stage.

    From the deepest layer to the shallowest one, a block fuses the student's map with the fused deeper one by two
    attention maps and brings the result to the teacher's channels and size; the hierarchical context loss of each
    level is summed. The deepest layer is the pooled vector, a map of one position. The public code compares with the
    teacher's maps before the activation and takes the student's behind it (before it on ImageNet); it multiplies the
    loss by min(epoch / 20, 1) on CIFAR-100 (epochs from 1), which is the term's warm-up. Sizes follow from the shapes;
    the public code has them as constants. In training too, a vector of a batch of one is normalised by the running
    statistics, where the public code raises.

    Args:
        shapes: (D, H, W) of the student's maps of one sample, or (D,) of its vector; shallow first.
        target_shapes: of the teacher's.
        max_mid_channels: the fused maps have this many channels, or as many as the deepest layer of the student if that
            is fewer; published 512, and 256 for MobileNet (mdistiller reads that setting and does not use it).
        reduction: "none", "mean" or "sum".

    Gradient:
        To the student's features and the blocks; the target's features are detached.

    Example:
        >>> import torch
        >>> loss = ReviewKDLoss([(16, 8, 8), (32, 4, 4), (32,)], [(16, 8, 8), (64, 4, 4), (64,)])
        >>> features = torch.rand(2, 16, 8, 8), torch.rand(2, 32, 4, 4), torch.rand(2, 32)
        >>> loss(features, (torch.rand(2, 16, 8, 8), torch.rand(2, 64, 4, 4), torch.rand(2, 64))).shape
        torch.Size([])

    Reference:
        arXiv 2104.09044; dvlab-research/ReviewKD; see `limbeck.functional.hierarchical_context_loss`.
    """

    def __init__(
        self,
        shapes: Shapes,
        target_shapes: Shapes,
        *,
        max_mid_channels: int = 512,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(reduction)
        check_shapes(shapes, target_shapes)
        for name, side in (("shapes", shapes), ("target_shapes", target_shapes)):
            check_dimensions(name, side, (1, 3), "maps (D, H, W) or vectors (D,)")
        if not isinstance(max_mid_channels, int) or max_mid_channels < 1:
            raise ValueError(f"`max_mid_channels` expected a whole number of at least 1, got {max_mid_channels!r}")
        self.max_mid_channels = max_mid_channels
        self.channels = [(shape[0], target[0]) for shape, target in zip(shapes, target_shapes, strict=True)]
        mid = min(max_mid_channels, shapes[-1][0])
        deepest = len(shapes) - 1
        self.blocks = nn.ModuleList(
            FusionBlock(own, mid, target, fuse=layer < deepest) for layer, (own, target) in enumerate(self.channels)
        )

    def forward(self, features: Features, target_features: Features) -> Tensor:
        """Maps (N, D, H, W) and vectors (N, D), one per layer, shallow first, as the loss was built for."""
        given = self.pairs(features, target_features, len(self.channels))
        pairs = [(_as_map(feature), _as_map(target)) for feature, target in given]
        check_channels(pairs, self.channels)
        fused: Tensor | None = None
        values = []
        for block, (feature, target) in zip(reversed(self.blocks), reversed(pairs), strict=True):
            feature = feature.to(next(block.parameters()).dtype)
            out, fused = block(feature, fused, target.shape[-2:])
            values.append(hierarchical_context_loss(out, target, reduction=self.reduction))
        return total(values)

    def extra_repr(self) -> str:
        """Return the options for `repr`."""
        return f"max_mid_channels={self.max_mid_channels}"


class FusionBlock(nn.Module):
    """A step from deep to shallow: the map and the fused deeper one, each weighted by an attention map of its own.

    Args:
        channels: of the student's map.
        mid_channels: of the fused maps.
        target_channels: of the teacher's map.
        fuse: there is a deeper map.
    """

    def __init__(self, channels: int, mid_channels: int, target_channels: int, *, fuse: bool) -> None:
        super().__init__()
        self.enter = nn.Sequential(nn.Conv2d(channels, mid_channels, 1, bias=False), _Norm(mid_channels))
        self.attend = nn.Conv2d(2 * mid_channels, 2, 1) if fuse else None
        self.leave = nn.Sequential(
            nn.Conv2d(mid_channels, target_channels, 3, padding=1, bias=False), _Norm(target_channels)
        )

    def forward(self, feature: Tensor, deeper: Tensor | None, size: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return what is compared, (N, D', *size), and the fused map, (N, mid, *size)."""
        fused = self.enter(feature)
        if self.attend is not None and deeper is not None:
            deeper = F.interpolate(deeper, fused.shape[-2:], mode="nearest")
            own, other = self.attend(torch.cat((fused, deeper), 1)).sigmoid().split(1, 1)
            fused = fused * own + deeper * other
        if fused.shape[-2:] != tuple(size):
            fused = F.interpolate(fused, tuple(size), mode="nearest")
        return self.leave(fused), fused


class _Norm(nn.BatchNorm2d):
    """Of one value per channel, a vector of a batch of one, there is no variance: the running statistics stand in."""

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, D, H, W)."""
        if self.training and x.numel() == x.shape[1]:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(x)


def _as_map(features: Tensor) -> Tensor:
    """A vector is a map of one position."""
    return features[..., None, None] if features.dim() == 2 else features
