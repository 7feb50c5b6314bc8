"""Divergences between the similarities of images and texts, as student and teacher of CLIP's kind see them.

Not to be confused with `contrastive_nce` (CRD), nor with the contrastive divergence that trains Boltzmann machines.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize as to_unit_length

from limbeck.functional._check import (
    Reduction,
    check_positive,
    check_range,
    check_reduction,
    full_precision,
    reduce,
    widest,
)
from limbeck.functional._similarity_tiles import RowDivergence, RowOptions, Similarities, row_divergences

Negatives = tuple[Tensor, Tensor]
_WORDS = ("kl", "js", "gkl", "sigmoid_kl")


@full_precision
def contrastive_divergence(
    image_features: Tensor,
    text_features: Tensor,
    target_image_features: Tensor,
    target_text_features: Tensor,
    *,
    logit_scale: float | Tensor,
    target_logit_scale: float | Tensor,
    logit_bias: float | Tensor = 0.0,
    target_logit_bias: float | Tensor = 0.0,
    divergence: RowDivergence = "kl",
    temperature: float = 1.0,
    scale_by_t2: bool = False,
    weight_power: float = 1.0,
    mse_weight: float = 1.0,
    ce_weight: float = 1.0,
    normalize: bool = False,
    tile: int | None = None,
    negatives: Negatives | None = None,
    target_negatives: Negatives | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Divergence between a teacher's and a student's image-text similarities, in memory linear in the batch by tiles.

    .. math:: \tfrac12 \, D(t_{i \cdot}, s_{i \cdot}) + \tfrac12 \, D(t_{\cdot i}, s_{\cdot i}),
              \quad s_{ij} = a \, x_i \cdot y_j + b

    per pair i: D compares its image's similarities to all texts, and its text's to all images. The two sides may have
    features of different widths. GKL is sample-wise: its weights are the powers of the teacher's own softmax over the
    row, and each row is divided by its own squared sum of weights, so that no row depends on the others of the batch.

    Args:
        image_features: (N, D), any floating dtype; what trains. Of unit length, or see `normalize`.
        text_features: (N, D), of the pairs' texts, in the same order.
        target_image_features: (N, D'), of the teacher.
        target_text_features: (N, D').
        logit_scale: a, the student's, a float or a tensor of one number (CLIP learns its logarithm: pass the
            exponential).
        target_logit_scale: the teacher's.
        logit_bias: b, the student's. Without effect (a gradient of 0) but for "sigmoid_kl".
        target_logit_bias: the teacher's.
        divergence: "kl" is KL(p_t || p_s) of the rows' softmaxes, "js" their Jensen-Shannon divergence, "gkl" as in
            `gkl_divergence` with `normalizer="row"`. "sigmoid_kl" is for losses of SigLIP's kind: the KL between the
            Bernoulli distributions sigmoid(t_ij) and sigmoid(s_ij), summed over the row.
        temperature: T > 0; divides both similarities, but for "gkl", where it acts on the soft cross-entropy only.
        scale_by_t2: multiply by T squared; not for "gkl".
        weight_power: gamma >= 0 of GKL's weights. Within a row a temperature tau of the weights acts as gamma / tau.
        mse_weight: factor of GKL's weighted MSE, the quarter inside.
        ce_weight: factor of GKL's soft cross-entropy.
        normalize: give all features unit length first.
        tile: side of the square tiles, for instance 1024: then no larger piece of the N x M matrices is ever made,
            forward or backward, for a little more arithmetic. `None` makes whole matrices by plain operations.
        negatives: features of images and of texts, (K, D) each, that rows are compared with besides the batch's own:
            those of other ranks, or of the other parts of a large batch. With `reduction="sum"` the values of all
            parts, each beside the features of the others, add up to the value of the whole, and so do the gradients
            where the negatives receive theirs.
        target_negatives: the teacher's features of the same K images and texts, (K, D').
        reduction: "none" (N,), "mean" over the pairs, or "sum".

    Returns:
        Nats (for GKL also squared logits), in [0, inf); float32 (float64 for float64 inputs).

    Raises:
        TypeError: not tensors, or not floating.
        ValueError: shapes that do not fit; negatives on one side only; an option out of range; unknown word.
        RuntimeError: second derivatives with `tile`.

    Gradient:
        To features, negatives, scale and bias of the student; to the teacher's too where they require it ("gkl": from
        the weighted MSE, weights and the cross-entropy's target are detached). First derivatives only with `tile`; all
        orders without.

    Example:
        >>> import torch
        >>> image, text, target_image, target_text = torch.eye(2), torch.eye(2), torch.eye(2, 5), torch.eye(2, 5)
        >>> features = image, text, target_image, target_text
        >>> contrastive_divergence(*features, logit_scale=3.0, target_logit_scale=3.0)
        tensor(0.)
        >>> contrastive_divergence(*features, logit_scale=0.0, target_logit_scale=100.0, tile=1)  # ln 2
        tensor(0.6931)

    Reference:
        arXiv 2503.08038, Eq. 12 and Tables VII-VIII (CLIP); Radford et al., "Learning Transferable Visual Models From
        Natural Language Supervision", arXiv 2103.00020; Zhai et al., "Sigmoid Loss for Language Image Pre-Training",
        arXiv 2303.15343, for the sigmoid form. Milakov and Gimelshein, arXiv 1805.02867, for the running softmax.
    """
    options = row_options(divergence, temperature, scale_by_t2, weight_power, mse_weight, ce_weight, tile)
    check_reduction(reduction)
    check_features(image_features, text_features, "image_features", "text_features")
    check_features(target_image_features, target_text_features, "target_image_features", "target_text_features")
    if len(image_features) != len(target_image_features):
        raise ValueError(
            "`image_features` and `target_image_features` expected the same N pairs, got "
            f"{len(image_features)} and {len(target_image_features)}"
        )
    _check_negatives(negatives, target_negatives, image_features, target_image_features)
    check_scalars(
        logit_scale=logit_scale,
        target_logit_scale=target_logit_scale,
        logit_bias=logit_bias,
        target_logit_bias=target_logit_bias,
    )
    own, targets = (image_features, text_features), (target_image_features, target_text_features)
    dtype = widest(*own, *targets, *(negatives or ()), *(target_negatives or ()))
    student = _directions(own, negatives, logit_scale, logit_bias, normalize, dtype)
    target = _directions(targets, target_negatives, target_logit_scale, target_logit_bias, normalize, dtype)
    first, second = (row_divergences(s, t, options, tile) for s, t in zip(student, target, strict=True))
    values = 0.5 * (first + second)
    return reduce(values * temperature**2 if scale_by_t2 else values, reduction)


def _directions(
    own: tuple[Tensor, Tensor],
    others: Negatives | None,
    scale: float | Tensor,
    bias: float | Tensor,
    normalize: bool,
    dtype: torch.dtype,
) -> tuple[Similarities, Similarities]:
    """Images against all texts, and texts against all images."""
    rows = [x.to(dtype) for x in own]
    columns = rows if others is None else [torch.cat([x, y.to(dtype)]) for x, y in zip(rows, others, strict=True)]
    if normalize:
        columns = [to_unit_length(x, dim=-1) for x in columns]
        rows = [x[: len(y)] for x, y in zip(columns, own, strict=True)]
    a, b = (
        x.to(rows[0]).reshape(()) if isinstance(x, Tensor) else torch.full((), x, dtype=dtype, device=own[0].device)
        for x in (scale, bias)
    )
    return Similarities(rows[0], columns[1], a, b), Similarities(rows[1], columns[0], a, b)


def row_options(
    divergence: RowDivergence,
    temperature: float,
    scale_by_t2: bool,
    weight_power: float,
    mse_weight: float,
    ce_weight: float,
    tile: int | None,
) -> RowOptions:
    """Check the options that belong to no tensor, for function and module."""
    if divergence not in _WORDS:
        raise ValueError(f"`divergence` expected one of {', '.join(map(repr, _WORDS))}, got {divergence!r}")
    check_range("temperature", temperature, 0.0, float("inf"))
    check_positive("temperature", temperature)
    for name, value in (("weight_power", weight_power), ("mse_weight", mse_weight), ("ce_weight", ce_weight)):
        check_range(name, value, 0.0, float("inf"))
    if scale_by_t2 and divergence == "gkl":
        raise ValueError("`scale_by_t2` expected False for 'gkl', whose weighted MSE has no temperature, got True")
    if tile is not None and (not isinstance(tile, int) or tile < 1):
        raise ValueError(f"`tile` expected a whole number of at least 1 or None, got {tile!r}")
    return RowOptions(divergence, temperature, weight_power, mse_weight, ce_weight)


def check_features(images: Tensor, texts: Tensor, *names: str) -> None:
    """Two tensors of one non-empty shape (N, D), floating."""
    for name, value in zip(names, (images, texts), strict=True):
        if not isinstance(value, Tensor):
            raise TypeError(f"`{name}` expected a tensor, got {type(value).__name__}")
        if not value.is_floating_point():
            raise TypeError(f"`{name}` expected a floating dtype, got {value.dtype}; convert it with `.float()`")
    if images.shape != texts.shape or images.dim() != 2 or images.numel() == 0:
        raise ValueError(
            f"`{names[0]}` and `{names[1]}` expected one non-empty shape (N, D), got {tuple(images.shape)} and "
            f"{tuple(texts.shape)}"
        )


def check_scalars(**values: float | Tensor) -> None:
    """Numbers or floating tensors of one number, by the names of their arguments."""
    for name, value in values.items():
        if isinstance(value, Tensor) and (value.numel() != 1 or not value.is_floating_point()):
            raise ValueError(
                f"`{name}` expected a number or a floating tensor of one, got the shape {tuple(value.shape)} of "
                f"{value.dtype}"
            )


def _check_negatives(ours: Negatives | None, theirs: Negatives | None, own: Tensor, targets: Tensor) -> None:
    if ours is None and theirs is None:
        return
    if ours is None or theirs is None:
        raise ValueError("`negatives` and `target_negatives` expected both or neither, got one of them")
    for name, pair, like in (("negatives", ours, own), ("target_negatives", theirs, targets)):
        if len(pair) != 2:
            raise ValueError(f"`{name}` expected a pair (images, texts), got {len(pair)} tensors")
        check_features(*pair, f"{name}[0]", f"{name}[1]")
        if pair[0].shape[1] != like.shape[1]:
            raise ValueError(f"`{name}` expected features of width {like.shape[1]}, got {pair[0].shape[1]}")
    if len(ours[0]) != len(theirs[0]):
        raise ValueError(
            f"`negatives` and `target_negatives` expected equal numbers, got {len(ours[0])}, {len(theirs[0])}"
        )
