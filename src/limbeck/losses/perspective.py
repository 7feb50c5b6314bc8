"""Adaptive perspective distillation: centres of each image's own classes, seen through adapters."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck import functional
from limbeck.functional._check import Reduction, check_positive, check_range
from limbeck.losses.dense import IGNORED
from limbeck.losses.feature import FeatureLoss, Features, Shapes, check_shapes

BETAS, EPSILON = (0.9, 0.999), 1e-8  # of Adam


class Perspective(NamedTuple):
    """What a network's adapted map makes of the classes of a batch.

    Attributes:
        centres: (K, D) of the K classes that are there, of length 1.
        scores: (P, K): cosines of each position with each centre, times the concentration.
        labels: (P,) places of the positions' classes among the K; 255 of none.
    """

    centres: Tensor
    scores: Tensor
    labels: Tensor


class APDLoss(FeatureLoss):
    r"""Adaptive perspective distillation, less its KL of logits, which is a term of its own.

    Each network's map passes two 1x1 convolutions and is scaled to length 1 at each position. The centre of a class is
    the mean over the positions that its label has in the batch, of length 1 again. Positions are compared with all
    centres that are there (`km_weight`), and the student's centres with the teacher's (`proto_weight`):

    .. math:: w_{km} \, \frac{1}{P K} \sum_p KL(softmax(k f_t C_t^T) \| softmax(k f_s C_s^T))
              + w_{proto} \, \frac{1}{2 K} \sum_y (1 - c_s[y] \cdot c_t[y])

    The division by K is that of the published code. The student's adapter trains with the student; the teacher's by
    `adapt`, to tell the classes apart by its own centres, with an Adam of its own. Named deviations: labels are
    brought to the maps' size by the nearest pixel, and `adapt` follows the student's step instead of going before its
    backward pass, which gives the same numbers, since neither reads what the other changes.

    Args:
        shapes: (D, H, W) of the student's map of one sample, in a list.
        target_shapes: of the teacher's.
        km_weight: factor of the first part.
        proto_weight: factor of the second part.
        concentration: k > 0, multiplies the cosines.
        width: channels of the adapters.
        adapter_learning_rate: of the teacher's adapter.
        reduction: "mean"; centres belong to the whole batch.

    Raises:
        ValueError: an option out of range; not one map; another reduction.

    Gradient:
        To the student's map and its adapter; the teacher's side is detached.

    Example:
        >>> import torch
        >>> loss = APDLoss([(4, 8, 8)], [(6, 8, 8)], width=16)
        >>> labels = torch.zeros(2, 16, 16, dtype=torch.int64)
        >>> maps, target = torch.rand(2, 4, 8, 8), torch.rand(2, 6, 8, 8)
        >>> loss(maps, target, labels).shape
        torch.Size([])
        >>> loss.adapt(target, labels)  # after each step

    Reference:
        Tian et al., Adaptive Perspective Distillation for Semantic Segmentation, TPAMI 2023.
    """

    def __init__(
        self,
        shapes: Shapes,
        target_shapes: Shapes,
        *,
        km_weight: float = 10.0,
        proto_weight: float = 10.0,
        concentration: float = 10.0,
        width: int = 512,
        adapter_learning_rate: float = 1e-5,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(reduction)
        check_shapes(shapes, target_shapes)
        check_range("km_weight", km_weight, 0.0, float("inf"))
        check_range("proto_weight", proto_weight, 0.0, float("inf"))
        check_positive("concentration", concentration)
        check_positive("adapter_learning_rate", adapter_learning_rate)
        if len(shapes) != 1 or reduction != "mean":
            raise ValueError(f"expected one map and `reduction` 'mean', got {len(shapes)} and {reduction!r}")
        self.km_weight, self.proto_weight, self.concentration = km_weight, proto_weight, concentration
        self.adapter_learning_rate = adapter_learning_rate
        self.adapter = _adapter(shapes[0][0], width)
        self.target_adapter = _adapter(target_shapes[0][0], width).requires_grad_(False)
        self.steps: Tensor
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        for name, parameter in self.target_adapter.named_parameters():
            for moment in ("first", "second"):
                self.register_buffer(_buffer(moment, name), torch.zeros_like(parameter))

    def forward(self, features: Features, target_features: Features, labels: Tensor) -> Tensor:
        """Maps (N, D, h, w), one of each network; `labels` (N, H, W) integers, 255 left out."""
        ((maps, target),) = self.pairs(features, target_features, 1)
        student = self._perspective(self.adapter(maps), labels)
        if not len(student.centres):
            return student.scores.sum() * 0  # no pixel has a class
        with torch.no_grad():
            adapted = self.target_adapter(target)
            if adapted.shape[2:] != maps.shape[2:]:
                adapted = F.interpolate(adapted, maps.shape[2:], mode="bilinear")
            teacher = self._perspective(adapted, labels)
        likeness = functional.kl_divergence(student.scores, teacher.scores) / len(student.centres)
        distance = 0.5 * (1 - (student.centres * teacher.centres).sum(dim=1)).mean()
        return self.km_weight * likeness + self.proto_weight * distance

    def _perspective(self, adapted: Tensor, labels: Tensor) -> Perspective:
        maps = F.normalize(adapted.to(torch.promote_types(adapted.dtype, torch.float32)), dim=1)
        small = F.interpolate(labels[:, None].to(maps.dtype), maps.shape[2:], mode="nearest-exact")[:, 0].long()
        rows, flat = maps.movedim(1, -1).flatten(0, -2), small.flatten()
        kept = flat != IGNORED
        present, places = torch.unique(flat[kept], return_inverse=True)
        sums = rows.new_zeros(len(present), rows.shape[1]).index_add(0, places, rows[kept])
        centres = F.normalize(sums, dim=1)
        return Perspective(
            centres, self.concentration * rows @ centres.T, torch.full_like(flat, IGNORED).masked_scatter(kept, places)
        )

    def adapt(
        self, target_features: Features, labels: Tensor, sum_over_ranks: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        """Let the teacher's adapter tell the classes of a batch apart: one step of Adam on its cross-entropy.

        Args:
            target_features: As `forward` takes them.
            labels: As `forward` takes them.
            sum_over_ranks: Sums a tensor in place over the ranks, whose gradients are averaged (a collective).
        """
        target = (target_features if isinstance(target_features, Tensor) else target_features[0]).detach()
        names = [name for name, _ in self.target_adapter.named_parameters()]
        with torch.enable_grad():
            weights = {name: p.detach().requires_grad_() for name, p in self.target_adapter.named_parameters()}
            adapted = torch.func.functional_call(self.target_adapter, weights, (target,))
            found = self._perspective(adapted, labels)
            scores = found.scores if len(found.centres) else found.scores.new_zeros(len(found.labels), 1)
            kept = (found.labels != IGNORED).sum().clamp_min(1)
            loss = F.cross_entropy(scores, found.labels, ignore_index=IGNORED, reduction="sum") / kept
            gradients = torch.autograd.grad(loss + 0 * adapted.sum(), [weights[name] for name in names])
        if sum_over_ranks is not None:
            whole = sum_over_ranks(torch.cat([*(g.flatten() for g in gradients), gradients[0].new_ones(1)]))
            parts = torch.split(whole[:-1], [g.numel() for g in gradients])
            gradients = tuple(part.view_as(g) / whole[-1] for part, g in zip(parts, gradients, strict=True))
        self._step(dict(zip(names, gradients, strict=True)))

    @torch.no_grad()
    def _step(self, gradients: dict[str, Tensor]) -> None:
        """One step of Adam (arXiv 1412.6980), whose moments are buffers."""
        self.steps += 1
        steps = int(self.steps)
        for name, parameter in self.target_adapter.named_parameters():
            moments = [self.get_buffer(_buffer(moment, name)) for moment in ("first", "second")]
            for moment, beta, value in zip(moments, BETAS, (gradients[name], gradients[name] ** 2), strict=True):
                moment.lerp_(value, 1 - beta)
            mean, square = (m / (1 - beta**steps) for m, beta in zip(moments, BETAS, strict=True))
            parameter.sub_(self.adapter_learning_rate * mean / (square.sqrt() + EPSILON))

    def extra_repr(self) -> str:
        """Return the options for `repr`."""
        return (
            f"km_weight={self.km_weight}, proto_weight={self.proto_weight}, concentration={self.concentration}, "
            f"adapter_learning_rate={self.adapter_learning_rate}"
        )


def _adapter(channels: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, width, 1), nn.ReLU(), nn.Conv2d(width, width, 1))


def _buffer(moment: str, name: str) -> str:
    return f"{moment}_{name.replace('.', '_')}"
