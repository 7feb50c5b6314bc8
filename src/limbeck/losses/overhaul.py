"""Overhaul of feature distillation as a module, with its connectors and margins."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from limbeck.functional._check import Reduction
from limbeck.functional.overhaul import check_margin, partial_l2
from limbeck.losses.connected import ConnectedLoss, connector, total
from limbeck.losses.feature import Features, Shapes


class OFDLoss(ConnectedLoss):
    r"""Overhaul of feature distillation (OFD): partial squared distance before the ReLU, deeper layers doubled.

    .. math:: \sum_i 2^{-(L - 1 - i)} \, \mathrm{partial\_l2}(\mathrm{BN}(\mathrm{conv}(s_i)), t_i, m_i)

    over layers i = 0, ..., L - 1 from shallow to deep; the deepest has factor 1. The public code then divides by 1000
    (CIFAR) or 10000 (ImageNet): that is the term's weight. It also runs the TEACHER in training mode, so that the
    teacher's features have the batch's statistics and its running statistics drift; here the teacher is what the caller
    evaluates, as a rule a network in evaluation mode. The public code has no rule for maps of two sizes; mdistiller
    pools the teacher's; here the larger map is average-pooled to the smaller one's size.

    Args:
        shapes: (D, H, W) of the student's maps of one sample, before the activation, one per layer, shallow first.
        target_shapes: of the teacher's.
        margins: one (D,) per layer of the teacher: `limbeck.functional.overhaul.relu_margins` of the batch
            normalisation that the activation follows.
        reduction: "none", "mean" or "sum".

    Gradient:
        To the student's maps and the connectors; the target's maps and the margins are constants.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from limbeck.functional.overhaul import relu_margins
        >>> loss = OFDLoss([(16, 8, 8)], [(32, 8, 8)], [relu_margins(nn.BatchNorm2d(32))])
        >>> loss(torch.randn(2, 16, 8, 8), torch.randn(2, 32, 8, 8)).shape
        torch.Size([])

    Reference:
        arXiv 1904.01866; see `limbeck.functional.partial_l2`.
    """

    def __init__(
        self,
        shapes: Shapes,
        target_shapes: Shapes,
        margins: Sequence[Tensor],
        *,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(shapes, target_shapes, connector, same_size=True, reduction=reduction)
        if len(margins) != len(self.channels):
            raise ValueError(
                f"`margins` expected one tensor (D,) for each of {len(self.channels)} layers, got {len(margins)}"
            )
        for layer, (margin, (_, channels)) in enumerate(zip(margins, self.channels, strict=True)):
            check_margin("margins", margin, channels)
            if not bool((margin <= 0).all()):
                raise ValueError(
                    f"`margins` expected numbers of at most 0, got {float(margin.max()):g} in layer {layer}"
                )
            self.register_buffer(f"margin{layer}", margin.detach().clone())

    def forward(self, features: Features, target_features: Features) -> Tensor:
        """Maps (N, D, H, W) before the activation, one or one per layer, of the channels it was built for."""
        pairs = self.connected(features, target_features)
        return total(
            partial_l2(feature, target, self.get_buffer(f"margin{layer}"), reduction=self.reduction)
            / 2 ** (len(pairs) - 1 - layer)
            for layer, (feature, target) in enumerate(pairs)
        )
