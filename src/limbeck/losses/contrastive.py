"""Contrastive distillation (CRD) as a module: two heads, two memory banks, a sampler of negatives."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from limbeck.functional._check import Reduction, check_positive, check_range, full_precision
from limbeck.functional._samples import unit_rows
from limbeck.functional.contrastive import bank_nce, mean_score
from limbeck.losses._linear import check_width, of_flat, width
from limbeck.losses.contrast_sampler import ContrastSampler, Positive
from limbeck.losses.feature import FeatureLoss, Features, Shapes, check_shapes

MOST_WAITING = 64  # batches between two calls of `observe`


class _Seen(NamedTuple):
    """What a batch will write into the banks."""

    indices: Tensor
    embeddings: Tensor
    target_embeddings: Tensor


class CRDLoss(FeatureLoss):
    r"""Contrastive representation distillation: find a sample's teacher among others' by its student, and in reverse.

    .. math:: \mathrm{nce}(u_n; B^t, Z_t) + \mathrm{nce}(v_n; B^s, Z_s), \quad
        u = W_s f / \|W_s f\|, \; v = W_t g / \|W_t g\|

    Each side has a linear head, trained, and a bank with one row per training sample. A student's embedding is scored
    against the teacher's bank and in reverse, as published; after the optimizer's step `observe` writes the embeddings
    that `forward` has kept: B <- normalised(momentum B + (1 - momentum) u). So `forward` itself changes nothing that
    is saved, the bank is used before the batch updates it, and several batches between two steps (accumulation) are
    written in order. The normalisers are set by the first batch and then frozen. The published weight is 0.8. Give this
    module's parameters to the optimizer. Calls without gradients, or in evaluation mode, keep nothing.

    Draws are functions of (seed, epoch, index): see `ContrastSampler`; `set_epoch` draws other negatives. Under ranks
    `observe` gathers what all ranks have kept (a collective, which expects as many batches of each), so that their
    banks stay equal. At a million images of 128 dimensions the banks take 1 GB.

    Args:
        shapes: of the student's features, without N: one layer, usually pooled.
        target_shapes: of the teacher's.
        train_labels: (M,) integers, of the whole training split; `indices` are places in it.
        dim: width of the embeddings.
        negatives: K samples of other classes, scored for each sample; where there are fewer, each is taken again and
            again.
        temperature: tau > 0 of the scores.
        momentum: in [0, 1], what a row of a bank keeps at an update.
        positive: "exact", the same image, or "relax", a random one of its class.
        seed: of the draws and of the banks' first rows.
        reduction: "none", "mean" or "sum".

    Gradient:
        To `features` and both heads; none to `target_features` or the banks. First order only.

    Example:
        >>> import torch
        >>> loss = CRDLoss([(8,)], [(16,)], torch.tensor([0, 0, 1, 1, 2]), dim=4, negatives=3)
        >>> value = loss(torch.randn(2, 8), torch.randn(2, 16), torch.tensor([4, 1]))
        >>> loss.observe()

    Reference:
        arXiv 1910.10699 (ICLR 2020); HobbitLong/RepDistiller, `crd/`.
    """

    bank: Tensor
    target_bank: Tensor
    normalizers: Tensor

    def __init__(
        self,
        shapes: Shapes,
        target_shapes: Shapes,
        train_labels: Tensor,
        *,
        dim: int = 128,
        negatives: int = 16384,
        temperature: float = 0.07,
        momentum: float = 0.5,
        positive: Positive = "exact",
        seed: int = 0,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(reduction)
        check_shapes(shapes, target_shapes)
        if len(shapes) != 1:
            raise ValueError(
                f"`shapes` expected one layer, which the banks are of, got {len(shapes)}; use a loss for each"
            )
        check_width("dim", dim)
        check_positive("temperature", temperature)
        check_range("momentum", momentum, 0.0, 1.0)
        self.sampler = ContrastSampler(train_labels, negatives, positive, seed)
        self.temperature, self.momentum = temperature, momentum
        self.head, self.target_head = (nn.Linear(width(shape[0]), dim) for shape in (shapes, target_shapes))
        generator, bound = torch.Generator().manual_seed(seed), math.sqrt(3 / dim)
        for name in ("bank", "target_bank"):
            rows = torch.empty(len(train_labels), dim, dtype=torch.float32)
            self.register_buffer(name, rows.uniform_(-bound, bound, generator=generator))
        self.register_buffer("normalizers", torch.zeros(2))  # of the student's scores, of the teacher's; 0: not set
        self._normalized = False
        self._waiting: list[_Seen] = []
        self._first_normalizers: Tensor | None = None
        self.register_load_state_dict_post_hook(_read_normalizers)  # type: ignore[no-untyped-call]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> CRDLoss:
        """Follow the module to another device, but not its buffers to another dtype: half normalisers would be inf."""
        before = dict(self._buffers)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, buffer in before.items():
            moved = self._buffers[name]
            if buffer is not None and moved is not None and moved.dtype != buffer.dtype:
                self._buffers[name] = buffer.to(moved.device)
        return self

    def set_epoch(self, epoch: int) -> None:
        """Draw other negatives (and positives, if "relax")."""
        self.sampler.set_epoch(epoch)

    def forward(self, features: Features, target_features: Features, indices: Tensor) -> Tensor:
        """One layer of each network, (N, D) or (N, D, H, W); `indices` (N,), places in the training split."""
        ((feature, target_feature),) = self.pairs(features, target_features, 1)
        indices = self._checked(indices, len(feature))
        u = _unit(of_flat(self.head, feature, "features"))
        v = _unit(of_flat(self.target_head, target_feature.detach(), "target_features"))
        places = self.sampler(indices)
        keep = self.training and torch.is_grad_enabled()
        normalizers = self._normalizers_of(u, v, places, keep)
        if keep:
            self._keep(indices, u, v)
        student, target = (
            bank_nce(x, bank, places, z, temperature=self.temperature, reduction=self.reduction)
            for x, bank, z in zip((u, v), (self.target_bank, self.bank), normalizers, strict=True)
        )
        return student + target

    def _normalizers_of(self, u: Tensor, v: Tensor, places: Tensor, keep: bool) -> Tensor:
        """Return those that are set; else the first batch's, to be set by `observe`."""
        if self._normalized:
            return self.normalizers
        if self._first_normalizers is not None:
            return self._first_normalizers
        sides = ((u, self.target_bank), (v, self.bank))
        means = [mean_score(x, bank, places, temperature=self.temperature) for x, bank in sides]
        normalizers = torch.stack(means) * len(self.bank)
        if keep:
            self._first_normalizers = normalizers
        return normalizers

    def _keep(self, indices: Tensor, u: Tensor, v: Tensor) -> None:
        if len(self._waiting) >= MOST_WAITING:
            raise RuntimeError(
                f"`observe` expected after each optimizer step, got {MOST_WAITING} batches without it; call "
                "`loss.observe()`, or evaluate under `torch.no_grad()` or in `loss.eval()`"
            )
        self._waiting.append(_Seen(indices, u.detach(), v.detach()))

    @torch.no_grad()
    def observe(self, target_logits: Tensor | None = None, labels: Tensor | None = None) -> None:
        """Write the embeddings that `forward` has kept into the banks. The arguments are ignored.

        Collective where torch.distributed runs: all ranks call it, or none.
        """
        if not self._normalized and self._first_normalizers is not None:
            self.normalizers.copy_(_mean_of_ranks(self._first_normalizers))
            self._normalized, self._first_normalizers = True, None
        for seen in self._waiting:
            indices = _of_ranks(seen.indices)
            for bank, embeddings in ((self.bank, seen.embeddings), (self.target_bank, seen.target_embeddings)):
                rows = _of_ranks(embeddings).to(bank.dtype)
                bank[indices] = unit_rows(self.momentum * bank[indices] + (1 - self.momentum) * rows)
        self._waiting.clear()

    def _checked(self, indices: Tensor, samples: int) -> Tensor:
        if not isinstance(indices, Tensor) or indices.dtype not in (torch.int64, torch.int32):
            got = indices.dtype if isinstance(indices, Tensor) else type(indices).__name__
            raise TypeError(
                f"`indices` expected an int64 tensor (N,), the samples' places in the training split, got {got}"
            )
        if indices.shape != (samples,):
            raise ValueError(f"`indices` expected the shape ({samples},), got {tuple(indices.shape)}")
        if indices.device.type == "cpu":
            low, high = (int(bound) for bound in torch.aminmax(indices))
            if low < 0 or high >= len(self.bank):
                raise ValueError(
                    f"`indices` expected places in [0, {len(self.bank) - 1}], as many as `train_labels` has, got "
                    f"{low} to {high}"
                )
        return indices.to(self.bank.device, torch.int64)

    def extra_repr(self) -> str:
        """Return the options for `repr`."""
        return f"dim={self.bank.shape[1]}, temperature={self.temperature}, momentum={self.momentum}"


@full_precision
def _unit(x: Tensor) -> Tensor:
    return unit_rows(x.to(torch.promote_types(x.dtype, torch.float32)))


def _read_normalizers(module: CRDLoss, _: object) -> None:
    """After a checkpoint was loaded: what waited belongs to another run."""
    module._normalized = bool((module.normalizers > 0).all())
    module._first_normalizers = None
    module._waiting.clear()


def _has_ranks() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _mean_of_ranks(x: Tensor) -> Tensor:
    if not _has_ranks():
        return x
    total = x.clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


def _of_ranks(x: Tensor) -> Tensor:
    """The rows of all ranks, in the ranks' order; their numbers may differ."""
    if not _has_ranks():
        return x
    sizes = [torch.zeros(1, dtype=torch.int64, device=x.device) for _ in range(dist.get_world_size())]
    dist.all_gather(sizes, torch.tensor([len(x)], device=x.device))
    counts = [int(size) for size in sizes]
    padded = x.new_zeros(max(counts), *x.shape[1:])
    padded[: len(x)] = x
    gathered = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(gathered, padded)
    return torch.cat([rows[:count] for rows, count in zip(gathered, counts, strict=True)])
