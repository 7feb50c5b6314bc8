"""Multi-level logit distillation (MLKD): each sample's KL, and the correlations of classes and of samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from limbeck.functional._check import check_pair, check_positive, check_range, full_precision, widest
from limbeck.functional.kl import kl_divergence, tempered

Mask = Literal["code", "paper", "none"]


@full_precision
def class_correlation_loss(
    logits: Tensor, target_logits: Tensor, *, temperature: float | Tensor = 1.0, keep: Tensor | None = None
) -> Tensor:
    r"""Distance of the classes' correlations over the batch.

    .. math:: \frac1C \sum_{j \in K} \sum_c \bigl( (P_s^\top P_s - P_t^\top P_t)_{jc} \bigr)^2

    P is (N, C), the rows softmax(logits / T). It couples the batch, so there is no `reduction`: all leading axes are
    flattened into N, and under data parallelism each rank relates its own samples. It is a sum over the batch squared,
    and so grows with N squared: a weight does not carry over to another batch size. No T squared. With fewer samples
    than classes it is computed by N x N products; no C x C matrix is built then.

    Args:
        logits: (*, C), any floating dtype; what trains.
        target_logits: (*, C); what it is drawn to.
        temperature: T > 0, a float or a 0-d tensor; divides both logits.
        keep: (C,) bool, the rows K of the matrix that count; all by default.

    Returns:
        0-d, at least 0 up to rounding; float32 (float64 for float64 inputs).

    Raises:
        TypeError: logits not floating; `keep` not bool.
        ValueError: shapes differ or are empty; `temperature` not above 0; `keep` of another shape.

    Gradient:
        To `logits`, and to a tensor `temperature` on their side, all orders; the target is detached.

    Example:
        >>> import torch
        >>> certain, even = torch.tensor([[99.0, 0.0]]), torch.zeros(1, 2)
        >>> class_correlation_loss(even, certain)  # (1, 0; 0, 0) against quarters
        tensor(0.3750)

    Reference:
        Jin, Wang, Lin, "Multi-Level Logit Distillation", CVPR 2023, Eq. 7-8.
    """
    q, p = _probabilities(logits, target_logits, temperature)
    return _correlation_loss(q.T, p.T, keep)


@full_precision
def batch_correlation_loss(
    logits: Tensor, target_logits: Tensor, *, temperature: float | Tensor = 1.0, keep: Tensor | None = None
) -> Tensor:
    r"""Distance of the samples' correlations over the classes.

    .. math:: \frac1N \sum_{n \in K} \sum_m \bigl( (P_s P_s^\top - P_t P_t^\top)_{nm} \bigr)^2

    P is (N, C), the rows softmax(logits / T). It couples the batch, so there is no `reduction`: all leading axes are
    flattened into N, and under data parallelism each rank relates its own samples. It grows with N: a weight does not
    carry over to another batch size. No T squared.

    Args:
        logits: (*, C), any floating dtype; what trains.
        target_logits: (*, C); what it is drawn to.
        temperature: T > 0, a float or a 0-d tensor; divides both logits.
        keep: (N,) bool, the rows K of the matrix that count; all by default.

    Returns:
        0-d, at least 0 up to rounding; float32 (float64 for float64 inputs).

    Raises:
        TypeError: logits not floating; `keep` not bool.
        ValueError: shapes differ or are empty; `temperature` not above 0; `keep` of another shape.

    Gradient:
        To `logits`, and to a tensor `temperature` on their side, all orders; the target is detached.

    Example:
        >>> import torch
        >>> certain, even = torch.tensor([[99.0, 0.0]]), torch.zeros(1, 2)
        >>> batch_correlation_loss(even, certain)  # (1) against (1/2)
        tensor(0.2500)

    Reference:
        Jin, Wang, Lin, "Multi-Level Logit Distillation", CVPR 2023, Eq. 5-6.
    """
    return _correlation_loss(*_probabilities(logits, target_logits, temperature), keep)


@full_precision
def mlkd_loss(
    logits: Tensor,
    target_logits: Tensor,
    *,
    temperatures: Sequence[float] = (4.0, 2.0, 3.0, 5.0, 6.0),
    instance_weight: float = 1.0,
    class_weight: float = 1.0,
    batch_weight: float = 1.0,
    mask: Mask = "code",
    scale_by_t2: bool = True,
) -> Tensor:
    r"""Multi-level distillation of one view: KL, class and batch correlations, summed over several temperatures.

    .. math:: \sum_T \bigl( w_i T^2 \, KL(p_t^T \| p_s^T) + w_c \, \mathrm{class}(T) + w_b \, \mathrm{batch}(T) \bigr)

    The method leaves out the samples that the target is sure of (its largest probability at T = 1 above the batch's
    median) and the classes that have much of its mass (above the median): `mask="paper"`, where what is left out is 0
    in the mean over all samples and in the sums over rows. The public code multiplies the reduced numbers by the mask
    and so by the kept share, about a half: `mask="code"`, the default, which produced the published numbers.
    `mask="none"` counts all; the published second view (RandAugment and Cutout) has no mask on its KL and no
    correlations. The two views are a way to train, not a loss: call it per view. It couples the batch, so there is no
    `reduction`; under data parallelism each rank relates its own samples.

    Args:
        logits: (*, C), any floating dtype; what trains.
        target_logits: (*, C); what it is drawn to.
        temperatures: each above 0; published 4 (CIFAR-100) or 1 (ImageNet), and 2, 3, 5, 6.
        instance_weight: at least 0; factor of the KL. Published 0.9 on all three, CIFAR-100.
        class_weight: at least 0; factor of `class_correlation_loss`, which grows with N squared; published with N = 64.
        batch_weight: at least 0; factor of `batch_correlation_loss`, which grows with N.
        mask: "code", "paper" or "none".
        scale_by_t2: multiply the KL by T squared, as published; never the correlations.

    Returns:
        0-d, at least 0 up to rounding; float32 (float64 for float64 inputs).

    Raises:
        TypeError: logits not floating.
        ValueError: shapes differ or are empty; no temperature, or one not above 0; a weight below 0; unknown `mask`.

    Gradient:
        To `logits`, all orders; the target and the masks are detached.

    Example:
        >>> import torch
        >>> bool(mlkd_loss(torch.zeros(4, 3), torch.zeros(4, 3)).abs() < 1e-6)
        True

    Reference:
        Jin, Wang, Lin, "Multi-Level Logit Distillation", CVPR 2023; Jin-Ying/Multi-Level-Logit-Distillation,
        `mdistiller/distillers/KD_ours.py`.
    """
    check_pair(logits, target_logits)
    check_mlkd(temperatures, instance_weight, class_weight, batch_weight, mask)
    dtype, classes = widest(logits, target_logits), logits.shape[-1]
    s, t = (x.to(dtype).reshape(-1, classes) for x in (logits, target_logits.detach()))
    rows, columns = _unsure(t)
    kept = (rows, columns) if mask == "paper" else (None, None)
    weights = (instance_weight, class_weight, batch_weight)
    levels = [_level(s, t, temperature, scale_by_t2, weights, *kept) for temperature in temperatures]
    instance, by_class, by_batch = (torch.stack(values).sum() for values in zip(*levels, strict=True))
    if mask == "code":
        return rows.to(dtype).mean() * (instance + by_batch) + columns.to(dtype).mean() * by_class
    return instance + by_class + by_batch


def check_mlkd(
    temperatures: Sequence[float], instance_weight: float, class_weight: float, batch_weight: float, mask: str
) -> None:
    """Check the options of the whole loss."""
    if not isinstance(temperatures, Sequence) or not temperatures:
        raise ValueError(f"`temperatures` expected a sequence of numbers above 0, got {temperatures!r}")
    for temperature in temperatures:
        check_positive("temperatures", temperature)
    check_range("instance_weight", instance_weight, 0.0, float("inf"))
    check_range("class_weight", class_weight, 0.0, float("inf"))
    check_range("batch_weight", batch_weight, 0.0, float("inf"))
    if mask not in ("code", "paper", "none"):
        raise ValueError(f"`mask` expected 'code' (what ran), 'paper' (what was meant) or 'none', got {mask!r}")


def _level(
    s: Tensor,
    t: Tensor,
    temperature: float,
    scale_by_t2: bool,
    weights: tuple[float, float, float],
    rows: Tensor | None,
    columns: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The three parts at one temperature, weighted; a part of weight 0 is not computed."""
    zero = s.new_zeros(())
    instance = by_class = by_batch = zero
    if weights[0]:
        kl = kl_divergence(s, t, temperature=temperature, scale_by_t2=scale_by_t2, reduction="none")
        instance = weights[0] * (kl if rows is None else kl.masked_fill(~rows, 0.0)).mean()
    if weights[1]:
        by_class = weights[1] * class_correlation_loss(s, t, temperature=temperature, keep=columns)
    if weights[2]:
        by_batch = weights[2] * batch_correlation_loss(s, t, temperature=temperature, keep=rows)
    return instance, by_class, by_batch


def _unsure(target_logits: Tensor) -> tuple[Tensor, Tensor]:
    """(N,) and (C,) bool: the target's confidence, and the classes' mass, at most the median."""
    p = torch.softmax(target_logits, -1)
    confidence, mass = p.amax(-1), p.sum(0)
    return confidence <= torch.quantile(confidence, 0.5), mass <= torch.quantile(mass, 0.5)


def _probabilities(logits: Tensor, target_logits: Tensor, temperature: float | Tensor) -> tuple[Tensor, Tensor]:
    """Both (N, C), the target's detached."""
    check_pair(logits, target_logits)
    check_positive("temperature", temperature)
    dtype, classes = widest(logits, target_logits), logits.shape[-1]
    q, p = (torch.softmax(tempered(x.to(dtype), temperature), -1) for x in (logits, target_logits))
    return q.reshape(-1, classes), p.detach().reshape(-1, classes)


def _correlation_loss(q: Tensor, p: Tensor, keep: Tensor | None) -> Tensor:
    """Sum over the kept rows of (q q' - p p')^2, over the number of all rows; q, p (R, M)."""
    rows = _row_gaps(q, p)
    if keep is not None:
        if not isinstance(keep, Tensor) or keep.dtype != torch.bool:
            raise TypeError(f"`keep` expected a bool tensor, got {getattr(keep, 'dtype', type(keep).__name__)}")
        if keep.shape != rows.shape:
            raise ValueError(f"`keep` expected the shape {tuple(rows.shape)}, got {tuple(keep.shape)}")
        rows = rows.masked_fill(~keep, 0.0)
    return rows.mean()


def _row_gaps(q: Tensor, p: Tensor) -> Tensor:
    """Squared norm of each row of q q' - p p', (R,), by the smaller of R x R and M x M products."""
    if q.shape[0] <= q.shape[1]:
        return (q @ q.T - p @ p.T).square().sum(1)
    # q q' - p p' = (d s' + s d') / 2 with difference d and sum s: nothing large cancels as q nears p.
    d, s = q - p, q + p
    return (d @ (s.T @ s) * d + 2 * (d @ (s.T @ d)) * s + s @ (d.T @ d) * s).sum(1) / 4
