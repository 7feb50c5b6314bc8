"""BatchNorm whose batch is not what one process happens to see: that of all ranks, or parts of a fixed size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class _OtherBatchNorm(_BatchNorm):
    """A BatchNorm of any number of dimensions that takes over weights, statistics and names of another."""

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected (N, C) or (N, C, ...), got {tuple(input.shape)}")

    @property
    def _batch_decides(self) -> bool:
        return self.training or self.running_mean is None

    def _average(self, mean: Tensor, variance: Tensor) -> None:
        """Take the statistics of a batch, variance unbiased, into the running ones, as `nn.BatchNorm2d` does."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        # Cumulative without a momentum.
        share = self.momentum if self.momentum is not None else 1.0 / self.num_batches_tracked
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_(variance.to(self.running_var.dtype), share)


class GhostBatchNorm(_OtherBatchNorm):
    """BatchNorm of parts of the batch, each normalised on its own (Hoffer et al., arXiv 1705.08741).

    Parts are stretches of the batch; a last one may be smaller. The running statistics take in the mean over the parts.

    Args:
        num_features: C.
        part: Samples of a part.
        options: Of `nn.BatchNorm2d`.
    """

    def __init__(self, num_features: int, part: int, **options: Any) -> None:
        super().__init__(num_features, **options)
        self.part = part

    def forward(self, input: Tensor) -> Tensor:
        """Normalise `(N, C, ...)`."""
        if not self._batch_decides:
            return super().forward(input)
        self._check_input_dim(input)
        parts = torch.split(input, self.part)
        # With momentum 1 the kernel leaves the statistics of the part itself.
        means, variances = (torch.zeros(len(parts), self.num_features, device=input.device) for _ in range(2))
        normalised = [
            F.batch_norm(part, mean, variance, self.weight, self.bias, training=True, momentum=1.0, eps=self.eps)
            for part, mean, variance in zip(parts, means, variances, strict=True)
        ]
        self._average(means.mean(0), variances.mean(0))
        return torch.cat(normalised)

    def extra_repr(self) -> str:
        """Say the size of a part."""
        return f"{self.num_features}, part={self.part}, eps={self.eps}, momentum={self.momentum}"


class SynchronisedBatchNorm(_OtherBatchNorm):
    """BatchNorm of what all ranks see, on any device; `nn.SyncBatchNorm`, which is faster, works on accelerators alone.

    mean = Σ x / n and var = Σ (x - mean)² / n, both sums over ranks, samples and positions, in float32. Gradients go
    through the sums to all ranks. Ranks may have batches of different sizes; all of them have to call it.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise `(N, C, ...)`."""
        if not self._batch_decides:
            return super().forward(input)
        self._check_input_dim(input)
        wide = input.to(torch.promote_types(input.dtype, torch.float32))
        others = [axis for axis in range(input.dim()) if axis != 1]
        count = wide.new_full((1,), input.numel() / self.num_features)
        sums = _sum_over_ranks(torch.cat([wide.sum(others), count]))
        total = sums[-1].detach()
        column = (1, -1) + (1,) * (input.dim() - 2)
        mean = sums[:-1] / total
        centred = wide - mean.view(column)
        squares = _sum_over_ranks(centred.square().sum(others))
        self._average(mean.detach(), squares.detach() / (total - 1))
        normalised = centred * torch.rsqrt(squares / total + self.eps).view(column)
        if self.affine:
            normalised = normalised * self.weight.view(column) + self.bias.view(column)
        return normalised.to(input.dtype)


def _sum_over_ranks(tensor: Tensor) -> Tensor:
    return cast("Tensor", _Sum.apply(tensor))  # type: ignore[no-untyped-call]


class _Sum(torch.autograd.Function):
    """The sum over the ranks, of values and of gradients: each rank's outputs hang on all inputs."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        return total


def use_ghost_batches(module: nn.Module, part: int) -> nn.Module:
    """Let each BatchNorm of a module normalise so many samples at a time in training.

    Args:
        module: Its parts are replaced in place.
        part: Samples, at least 1.

    Returns:
        The module; a new one if it is itself a BatchNorm.

    Raises:
        ValueError: It has a BatchNorm that does more than that, as some of timm's do.
    """
    _refuse_unknown(module)
    return _replaced(module, lambda features, options: GhostBatchNorm(features, part, **options))


def synchronise(module: nn.Module) -> nn.Module:
    """Let each BatchNorm of a module see the batches of all ranks in training.

    Args:
        module: On its device; its parts are replaced in place.

    Returns:
        The module; a new one if it is itself a BatchNorm.

    Raises:
        RuntimeError: There are no ranks.
        ValueError: It has a BatchNorm that does more than that, as some of timm's do.
    """
    if not dist.is_initialized():
        raise RuntimeError("expected torch.distributed to be initialised")
    _refuse_unknown(module)
    if any(parameter.device.type == "cuda" for parameter in module.parameters()):
        return cast("nn.Module", nn.SyncBatchNorm.convert_sync_batchnorm(module))  # type: ignore[no-untyped-call]
    return _replaced(module, lambda features, options: SynchronisedBatchNorm(features, **options))


def _refuse_unknown(module: nn.Module) -> None:
    for part in module.modules():
        if isinstance(part, _BatchNorm) and type(part) not in PLAIN:
            raise ValueError(
                f"expected nn.BatchNorm1d, 2d or 3d, which can be put another way, got {type(part).__name__}; "
                "leave `train.batch_norm` at local and `train.ghost_batch` at null"
            )


def _replaced(module: nn.Module, build: Callable[[int, dict[str, Any]], _OtherBatchNorm]) -> nn.Module:
    if isinstance(module, _BatchNorm):
        options: dict[str, Any] = {
            "eps": module.eps,
            "momentum": module.momentum,
            "affine": module.affine,
            "track_running_stats": module.track_running_stats,
        }
        other = build(module.num_features, options)
        # The tensors themselves, so that an optimizer or a hook that has them keeps them.
        other._parameters, other._buffers = module._parameters, module._buffers
        return other.train(module.training)
    for name, child in module.named_children():
        setattr(module, name, _replaced(child, build))
    return module
