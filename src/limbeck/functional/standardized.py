"""Logit standardisation: each sample's logits to mean 0 and deviation 1, before any loss."""

from __future__ import annotations

import torch
from torch import Tensor

from limbeck.functional._check import full_precision, widest

FLOOR = 1e-7  # the public code's, beside the deviation; part of the published numbers


@full_precision
def standardize_logits(logits: Tensor) -> Tensor:
    r"""Logits less their mean, over their deviation: a transform of both sides, usable with any loss.

    .. math:: Z(z)_j = \frac{z_j - \bar z}{10^{-7} + \sigma(z)}, \quad
        \sigma(z)^2 = \frac{1}{C - 1} \sum_j (z_j - \bar z)^2

    A loss of standardised logits sees no shift and no scale: the student need not match the range of its target. With
    KL it is `kl_divergence(standardize_logits(s), standardize_logits(t), temperature=2.0, scale_by_t2=True)`, published
    with weight 9. The deviation divides by C - 1, as in the public code.

    Args:
        logits: (*, C), any floating dtype.

    Returns:
        (*, C), float32 (float64 for float64 inputs), each row of mean 0 and deviation 1. A row whose logits are equal,
        or that has one class, becomes 0. A class at -inf stays there and counts for neither mean nor deviation.

    Raises:
        TypeError: not a tensor, or not floating.
        ValueError: an empty shape.

    Gradient:
        Through mean and deviation, as published: it is orthogonal to both. Of a row whose logits are equal it is the
        centred one times 1e7, as in the public code. Second derivatives exist where the logits differ.

    Example:
        >>> import torch
        >>> standardize_logits(torch.tensor([[1.0, 3.0, 5.0], [10.0, 30.0, 50.0]]))
        tensor([[-1.,  0.,  1.],
                [-1.,  0.,  1.]])

    Reference:
        Sun et al., "Logit Standardization in Knowledge Distillation", arXiv 2403.01427;
        sunshangquan/logit-standardization-KD, `mdistiller/distillers/KD.py`.
    """
    if not isinstance(logits, Tensor):
        raise TypeError(f"`logits` expected a tensor, got {type(logits).__name__}")
    if not logits.is_floating_point():
        raise TypeError(f"`logits` expected a floating dtype, got {logits.dtype}; convert it with `.float()`")
    if logits.dim() == 0 or logits.numel() == 0:
        raise ValueError(f"`logits` expected a non-empty shape (*, C), got {tuple(logits.shape)}")
    absent = torch.isneginf(logits)
    present = logits.to(widest(logits)).masked_fill(absent, 0.0)
    count = (~absent).sum(-1, keepdim=True)
    centred = (present - present.sum(-1, keepdim=True) / count.clamp_min(1)).masked_fill(absent, 0.0)
    freedom = (count - 1).clamp_min(1).to(centred.dtype)
    deviation: Tensor = torch.linalg.vector_norm(centred, dim=-1, keepdim=True) / freedom.sqrt()
    return (centred / (deviation + FLOOR)).masked_fill(absent, -torch.inf)
