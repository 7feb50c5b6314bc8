"""Which training samples a contrastive loss tells apart: pure functions of (seed, epoch, index), on the device."""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from limbeck import draws

Positive = Literal["exact", "relax"]


class _Order(NamedTuple):
    """An epoch's order of all samples, and where in it those of each class lie."""

    samples: Tensor  # (M,)
    before: Tensor  # (M,) class by class, class * M + how many samples of other classes lie before each of its own


class ContrastSampler(nn.Module):
    """For each sample one that belongs to it, and others of other classes, without repetition.

    An epoch has one random order of all training samples; a sample's negatives are the next `negatives` samples of
    other classes behind a random place of its own in it. So each set is drawn uniformly, without replacement, as in the
    public code (sets of an epoch overlap as windows of one order do), and all is a function of (seed, epoch, index): no
    random state, the same whatever the batch, the workers or the ranks. Where other classes have fewer than `negatives`
    samples, the window goes round: each is taken as often as any other, give or take one (the public code then draws
    with replacement).

    Args:
        train_labels: (M,) integers, of all training samples; at least two classes.
        negatives: K, at least 1.
        positive: "exact", the sample itself, or "relax", a random one of its class.
        seed: of the draws.

    Raises:
        TypeError: labels are not integers.
        ValueError: labels of another shape or of one class; an option out of range.
    """

    labels: Tensor
    counts: Tensor
    starts: Tensor
    by_class: Tensor

    def __init__(self, train_labels: Tensor, negatives: int, positive: Positive, seed: int) -> None:
        super().__init__()
        if not isinstance(train_labels, Tensor) or train_labels.is_floating_point() or train_labels.is_complex():
            got = train_labels.dtype if isinstance(train_labels, Tensor) else type(train_labels).__name__
            raise TypeError(f"`train_labels` expected an integer tensor (M,), got {got}")
        if train_labels.dim() != 1:
            raise ValueError(f"`train_labels` expected the shape (M,), got {tuple(train_labels.shape)}")
        if not isinstance(negatives, int) or negatives < 1:
            raise ValueError(f"`negatives` expected a whole number of at least 1, got {negatives!r}")
        if positive not in get_args(Positive):
            raise ValueError(f"`positive` expected 'exact' or 'relax', got {positive!r}")
        classes, labels = torch.unique(train_labels, return_inverse=True)
        if len(classes) < 2:
            raise ValueError(
                f"`train_labels` expected at least two classes, got {len(classes)}; negatives need another"
            )
        counts = torch.bincount(labels)
        self.negatives, self.positive, self.seed = negatives, positive, seed
        for name, value in (
            ("labels", labels),
            ("counts", counts),
            ("starts", counts.cumsum(0) - counts),
            ("by_class", labels.argsort(stable=True)),
        ):
            self.register_buffer(name, value, persistent=False)
        self.epoch = 0
        self._order: _Order | None = None

    def set_epoch(self, epoch: int) -> None:
        """Draw anew: the order is made at the next call."""
        if epoch != self.epoch:
            self.epoch, self._order = epoch, None

    @torch.no_grad()
    def forward(self, indices: Tensor) -> Tensor:
        """Return (N, 1 + K) places in the training split: the positive, then the negatives.

        Args:
            indices: (N,) int64 places of the batch's samples.
        """
        order = self._order_of_epoch(indices.device)
        labels, count = self.labels[indices], len(self.labels)
        others = (count - self.counts[labels]).unsqueeze(1)
        window = self._below(others.squeeze(1), indices, "contrast window").unsqueeze(1)
        window = (window + torch.arange(self.negatives, device=indices.device)).remainder_(others)
        wanted = window + (labels * count).unsqueeze(1)
        own = torch.searchsorted(order.before, wanted, right=True).sub_(self.starts[labels].unsqueeze(1))
        negatives = order.samples[window.add_(own)]
        return torch.cat((self._positives(indices, labels).unsqueeze(1), negatives), 1)

    def _positives(self, indices: Tensor, labels: Tensor) -> Tensor:
        if self.positive == "exact":
            return indices
        return self.by_class[self.starts[labels] + self._below(self.counts[labels], indices, "contrast positive")]

    def _below(self, high: Tensor, indices: Tensor, name: str) -> Tensor:
        """Uniform integers from 0 to `high` - 1, `high` (N,) a bound for each sample."""
        return (draws.uniform(self.seed, self.epoch, indices, name) * high).long()

    def _order_of_epoch(self, device: torch.device) -> _Order:
        if self._order is None or self._order.samples.device != device:
            count = len(self.labels)
            samples = draws.permutation(self.seed, self.epoch, count, "contrast order").to(device, non_blocking=True)
            ranks = torch.arange(count, device=device)
            places = torch.empty_like(samples)
            places[samples] = ranks
            keys = (self.labels * count + places).sort().values
            self._order = _Order(samples, keys - (ranks - self.starts[self.labels[self.by_class]]))
        return self._order

    def extra_repr(self) -> str:
        """Return the options for `repr`."""
        return f"{len(self.labels)}, negatives={self.negatives}, positive={self.positive!r}, seed={self.seed}"
