"""What image-text models learn from pairs alone: the contrastive losses of CLIP and SigLIP."""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from limbeck.functional._check import Reduction, check_reduction, full_precision, reduce, widest
from limbeck.functional.image_text import Negatives, check_features, check_scalars

PairLoss = Literal["softmax", "sigmoid"]


@full_precision
def contrastive_cross_entropy(
    image_features: Tensor,
    text_features: Tensor,
    *,
    logit_scale: float | Tensor,
    logit_bias: float | Tensor = 0.0,
    form: PairLoss = "softmax",
    tile: int | None = None,
    negatives: Negatives | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Cross-entropy of images with their texts among all texts, and of texts with their images among all images.

    .. math:: -\tfrac12 \log \frac{e^{s_{ii}}}{\sum_j e^{s_{ij}}} - \tfrac12 \log \frac{e^{s_{ii}}}{\sum_j e^{s_{ji}}},
              \qquad s_{ij} = a \, x_i \cdot y_j + b

    per pair i, as CLIP has it. The sigmoid form is SigLIP's: a logistic regression for each of the pairs (i, j), which
    says whether they belong together, summed over the row and over the column, half of each.

    Args:
        image_features: (N, D), any floating dtype, of unit length as a rule.
        text_features: (N, D), of the pairs' texts, in the same order.
        logit_scale: a, a float or a tensor of one number.
        logit_bias: b; without effect on the softmax form.
        form: "softmax" or "sigmoid".
        tile: rows of the (N, M) matrices that are made at a time, forward and backward; `None` makes them whole.
        negatives: features of images and of texts, (K, D) each, that the pairs are told from besides the batch's own.
        reduction: "none" (N,), "mean" over the pairs, or "sum".

    Returns:
        Nats, in [0, inf); float32 (float64 for float64 inputs).

    Raises:
        TypeError: not tensors, or not floating.
        ValueError: shapes that do not fit, or an unknown word.

    Gradient:
        To features, negatives, scale and bias.

    Example:
        >>> import torch
        >>> contrastive_cross_entropy(torch.eye(2), torch.eye(2), logit_scale=0.0)  # ln 2
        tensor(0.6931)

    Reference:
        Radford et al., arXiv 2103.00020; Zhai et al., "Sigmoid Loss for Language Image Pre-Training", arXiv 2303.15343.
    """
    check_reduction(reduction)
    check_features(image_features, text_features, "image_features", "text_features")
    check_scalars(logit_scale=logit_scale, logit_bias=logit_bias)
    if form not in ("softmax", "sigmoid"):
        raise ValueError(f"`form` expected 'softmax' or 'sigmoid', got {form!r}")
    if tile is not None and (not isinstance(tile, int) or tile < 1):
        raise ValueError(f"`tile` expected a whole number of at least 1 or None, got {tile!r}")
    if negatives is not None:
        check_features(*negatives, "negatives[0]", "negatives[1]")
    dtype = widest(image_features, text_features, *(negatives or ()))
    rows = [image_features.to(dtype), text_features.to(dtype)]
    columns = rows if negatives is None else [torch.cat([x, y.to(dtype)]) for x, y in zip(rows, negatives, strict=True)]
    of_rows = partial(_rows, columns=(columns[1], columns[0]), scale=logit_scale, bias=logit_bias, form=form)
    if tile is None:
        return reduce(of_rows(*rows, first=0), reduction)
    starts = range(0, len(rows[0]), tile)
    parts = [_again(of_rows, rows[0][start : start + tile], rows[1][start : start + tile], start) for start in starts]
    return reduce(torch.cat(parts), reduction)


def _again(of_rows: partial[Tensor], images: Tensor, texts: Tensor, first: int) -> Tensor:
    """Compute some rows, and once more in the backward pass."""
    values: Tensor = checkpoint(
        of_rows, images, texts, first=first, use_reentrant=False, preserve_rng_state=False, determinism_check="none"
    )
    return values


def _rows(
    images: Tensor,
    texts: Tensor,
    *,
    first: int,
    columns: tuple[Tensor, Tensor],
    scale: float | Tensor,
    bias: float | Tensor,
    form: PairLoss,
) -> Tensor:
    """Values of the pairs from `first` on; the pair of row i is column `first` + i."""
    pairs = torch.arange(first, first + len(images), device=images.device)
    both = [scale * (own @ others.T) + bias for own, others in zip((images, texts), columns, strict=True)]
    if form == "softmax":
        halves = [F.cross_entropy(s, pairs, reduction="none") for s in both]
    else:
        halves = [-F.logsigmoid(s * (2 * F.one_hot(pairs, s.shape[1]) - 1)).sum(-1) for s in both]
    return 0.5 * (halves[0] + halves[1])
