"""The memory of class-wise losses: mean predicted probabilities per class, a C x C table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from limbeck.functional._check import check_integer_labels, check_positive
from limbeck.functional._dense_tiles import check_pixels, class_last, tiles

# float32 prior, its powers that GKL keeps, float64 pending sums, and with ranks their increment
BYTES_PER_ENTRY = 4 + 4 + 8 + 8


class PriorStatus(NamedTuple):
    """What a `ClassPrior` has seen."""

    classes_seen: int
    num_classes: int
    refreshes: int


class ClassPrior(nn.Module):
    r"""Mean softmax of the target's logits per class, gathered over an epoch and used during the next.

    Row y of `prior` is the mean of softmax(target_logits / temperature) over the samples of class y; uniform until the
    first `refresh()`. Sums are kept in float64 whatever the logits' dtype, and whatever dtype the module is converted
    to. Buffers, the same on all ranks: `prior`, `pending`, `counts`, `refreshes`, `seen`. Where torch.distributed runs,
    `observe` adds to a local increment that is no buffer, which `synchronize()` (collective) sums over the ranks into
    `pending`. So a checkpoint written after `synchronize()` is whole, and a broadcast of rank 0's buffers does no harm.

    Args:
        num_classes: C >= 1. The tables take up to 24 C^2 bytes, checked against the free memory before they are made.
        temperature: tau > 0 of the softmax ("T2", "T" or "tau" in the papers and their code).
        momentum: in (0, 1]; a refreshed row is momentum * new + (1 - momentum) * old.
        process_group: of the sum over ranks; the default group if torch.distributed runs.

    Raises:
        ValueError: an option out of range, or the tables do not fit.

    Gradient:
        None.

    Example:
        >>> import torch
        >>> prior = ClassPrior(2)
        >>> prior.observe(torch.tensor([[2.0, 0.0], [0.0, 0.0]]), torch.tensor([0, 0]))
        >>> prior.refresh()
        >>> prior.prior  # class 1 was never seen and keeps its uniform row
        tensor([[0.6904, 0.3096],
                [0.5000, 0.5000]])
        >>> prior.status()
        PriorStatus(classes_seen=1, num_classes=2, refreshes=1)

    Reference:
        arXiv 2305.13948, section 3.3: the class-wise weights.
    """

    prior: Tensor
    pending: Tensor
    counts: Tensor
    seen: Tensor
    refreshes: Tensor

    def __init__(
        self,
        num_classes: int,
        *,
        temperature: float = 1.0,
        momentum: float = 1.0,
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"`num_classes` expected at least 1, got {num_classes}")
        check_positive("temperature", temperature)
        if not 0 < momentum <= 1:
            raise ValueError(f"`momentum` expected a number in (0, 1], got {momentum}")
        _check_memory(num_classes)
        self.num_classes = num_classes
        self.temperature = temperature
        self.momentum = momentum
        self.process_group = process_group
        self.register_buffer("prior", torch.full((num_classes, num_classes), 1.0 / num_classes))
        self.register_buffer("pending", torch.zeros(num_classes, num_classes, dtype=torch.float64))
        self.register_buffer("counts", torch.zeros(num_classes, dtype=torch.float64))
        self.register_buffer("seen", torch.zeros(num_classes, dtype=torch.bool))
        self.register_buffer("refreshes", torch.zeros((), dtype=torch.int64))
        self._increment: tuple[Tensor, Tensor] | None = None
        self.revision = 0  # changes with the table, so that what is derived from it can be kept

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ClassPrior:
        """Follow the module to another device, but to no other dtype: half sums would lose their small addends."""
        self.revision += 1
        before = dict(self._buffers)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, buffer in before.items():
            moved = self._buffers[name]
            if buffer is not None and moved is not None and moved.dtype != buffer.dtype:
                self._buffers[name] = buffer.to(moved.device)
        return self

    @torch.no_grad()
    def observe(self, logits: Tensor, labels: Tensor) -> None:
        """Add softmax(logits / temperature) to the sums of the labels' classes.

        A sample whose logits are not finite (NaN, +inf) is left out: it would spoil its class for good.

        Args:
            logits: (N, C), any floating dtype.
            labels: integers (N,), or soft labels (N, C), as mixup gives, which spread a sample over classes.
        """
        if logits.dim() != 2 or logits.shape[1] != self.num_classes:
            raise ValueError(f"`logits` expected the shape (N, {self.num_classes}), got {tuple(logits.shape)}")
        with torch.autocast(logits.device.type, enabled=False):
            probabilities = torch.softmax(logits.double() / self.temperature, -1).to(self.pending.device)
            usable = probabilities.isfinite().all(-1)
            probabilities.masked_fill_(~usable.unsqueeze(-1), 0.0)
            sums, counts = self._accumulators()
            if labels.is_floating_point():
                if labels.shape != logits.shape:
                    expected = tuple(logits.shape)
                    raise ValueError(f"soft `labels` expected the shape {expected}, got {tuple(labels.shape)}")
                soft = labels.double().to(sums.device)
                sums.addmm_(soft.t(), probabilities)
                counts += (soft * usable.unsqueeze(-1)).sum(0)
            else:
                check_integer_labels(labels, logits.shape[:1], self.num_classes)
                labels = labels.to(sums.device, torch.int64)
                sums.index_add_(0, labels, probabilities)
                counts.index_add_(0, labels, usable.double())

    def observe_dense(
        self, logits: Tensor, labels: Tensor, *, ignore_index: int = -100, mask: Tensor | None = None
    ) -> None:
        """Add each pixel's softmax(logits / temperature) to the sums of its label's class, some pixels at a time.

        Args:
            logits: (N, C, *space), any floating dtype.
            labels: integers (N, *space).
            ignore_index: label of the pixels that are left out.
            mask: (N, *space) bool, True where the pixel takes part.
        """
        pixels = check_pixels(logits, logits, labels, mask, ignore_index)
        for index in tiles(logits):
            part, kept = pixels.tile(index)
            if part is None or kept is None:
                continue
            rows = class_last(logits[index].detach(), kept)
            self.observe(rows.masked_fill_(~kept.unsqueeze(-1), torch.nan), part)  # not finite: left out

    def _accumulators(self) -> tuple[Tensor, Tensor]:
        """Return what `observe` adds to: a local increment where there are ranks, else `pending` itself."""
        if not _has_ranks():
            return self.pending, self.counts
        if self._increment is None:
            self._increment = (torch.zeros_like(self.pending), torch.zeros_like(self.counts))
        return self._increment

    @torch.no_grad()
    def synchronize(self) -> None:
        """Move the increments of all ranks into `pending`. Collective: all ranks of the group call it, or none."""
        if not _has_ranks():
            return
        for total, increment in zip((self.pending, self.counts), self._accumulators(), strict=True):
            dist.all_reduce(increment, group=self.process_group)
            total += increment
        self._increment = None

    @torch.no_grad()
    def refresh(self) -> None:
        """Make the pending means the prior, and start anew. Collective. A class without samples keeps its row."""
        self.synchronize()
        observed = (self.counts > 0).unsqueeze(-1)
        means = self.pending.div_(self.counts.clamp_min(torch.finfo(torch.float64).tiny).unsqueeze(-1))
        if self.momentum != 1:
            means.mul_(self.momentum).add_(self.prior, alpha=1 - self.momentum)
        # In place, since another table of this size may not fit: 0 + mean where observed, row + 0 elsewhere.
        self.prior.mul_(~observed).add_(means.mul_(observed))
        self.seen |= observed.squeeze(-1)
        self.refreshes += 1
        self.revision += 1
        self.pending.zero_()
        self.counts.zero_()

    @torch.no_grad()
    def reset(self) -> None:
        """Forget everything: uniform rows, nothing pending."""
        self.prior.fill_(1.0 / self.num_classes)
        for buffer in (self.pending, self.counts, self.seen, self.refreshes):
            buffer.zero_()
        self._increment = None
        self.revision += 1

    def _load_from_state_dict(self, *args: Any) -> None:
        self.revision += 1
        super()._load_from_state_dict(*args)

    def status(self) -> PriorStatus:
        """Return classes ever taken into the prior, the number of classes, and refreshes done (waits for a device)."""
        return PriorStatus(int(self.seen.sum()), self.num_classes, int(self.refreshes))

    def extra_repr(self) -> str:
        """Return the options for `repr`."""
        return f"{self.num_classes}, temperature={self.temperature}, momentum={self.momentum}"


def _has_ranks() -> bool:
    return dist.is_available() and dist.is_initialized()


def _check_memory(num_classes: int) -> None:
    needed = BYTES_PER_ENTRY * num_classes**2
    free = _free_memory()
    if free is not None and needed > free:
        raise ValueError(
            f"`num_classes` {num_classes} needs {needed / 2**30:.1f} GiB for its (C, C) tables, {free / 2**30:.1f} GiB "
            'are free; the sample-wise form (`prior="sample"`) has no table'
        )


def _free_memory() -> int | None:
    """Bytes that can be had, page cache included; None where the system does not tell."""
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        return None
