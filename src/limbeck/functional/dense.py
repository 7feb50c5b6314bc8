r"""KL, Jensen-Shannon and GKL of dense predictions: logits (N, C, *space), as segmentation networks give them.

The values and gradients are those of `kl_divergence`, `js_divergence` and `gkl_divergence` with each pixel as a sample;
the class axis is 1, and no tensor of the logits' size is made but the gradients: no permuted copy, no row of weights
per pixel, no softmax of the whole.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from limbeck.functional._check import Reduction, check_positive, check_range, check_reduction, full_precision, widest
from limbeck.functional._dense_tiles import Pixels, check_pixels, class_last, per_pixel, tiles
from limbeck.functional._pairs import pair_divergence
from limbeck.functional._rows import check_normalizer, check_table, may_underflow, powered, without_common_factor
from limbeck.functional._terms import Normalizer, Terms, Weights
from limbeck.functional.kl import js_divergence, kl_divergence

IGNORED = -100  # as torch's cross-entropy


@full_precision
def dense_kl_divergence(
    logits: Tensor,
    target_logits: Tensor,
    *,
    labels: Tensor | None = None,
    ignore_index: int = IGNORED,
    mask: Tensor | None = None,
    temperature: float | Tensor = 1.0,
    scale_by_t2: bool = False,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""KL(p_t || p_s) of each pixel: `kl_divergence` with the class axis second.

    .. math:: \frac1M \sum_{m} \sum_j p_t[m, j] \, (\log p_t[m, j] - \log p_s[m, j])

    over the M pixels that take part.

    Args:
        logits: (N, C, *space), any floating dtype, any memory format; what trains.
        target_logits: (N, C, *space); what it is drawn to.
        labels: (N, *space) integers, read for `ignore_index` alone.
        ignore_index: label of the pixels that are left out.
        mask: (N, *space) bool, True where the pixel takes part. What is left out may be anything, NaN too.
        temperature: T > 0, a float or a 0-d tensor; divides both logits.
        scale_by_t2: multiply by T squared.
        reduction: "none" (N, *space), 0 where a pixel is left out; "mean" over the pixels that take part, 0 if none
            does; or "sum".

    Returns:
        Nats, in [0, inf]; float32 (float64 for float64 inputs).

    Raises:
        TypeError: not tensors, or not floating; labels or mask of a wrong dtype.
        ValueError: shapes differ or are empty; labels out of range; temperature not above 0; unknown reduction.

    Gradient:
        As `kl_divergence`, made anew in the backward pass, tile by tile. A tensor `temperature` that takes a gradient,
        second derivatives and compilation make tensors of the logits' size.

    Example:
        >>> import torch
        >>> logits, target = torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 4, 4)
        >>> target[:, 0] = 3.0
        >>> dense_kl_divergence(logits, target)
        tensor(0.5023)

    Reference:
        arXiv 1503.02531, section 2, at each pixel, as in Liu et al., arXiv 1903.04197, Eq. 1.
    """
    pixels = check_pixels(logits, target_logits, labels, mask, ignore_index)
    check_positive("temperature", temperature)
    check_reduction(reduction)
    measure = partial(_tempered_rows, kl_divergence, temperature=temperature, scale_by_t2=scale_by_t2)
    return per_pixel(logits, target_logits, measure, pixels, temperature, reduction)


@full_precision
def dense_js_divergence(
    logits: Tensor,
    target_logits: Tensor,
    *,
    labels: Tensor | None = None,
    ignore_index: int = IGNORED,
    mask: Tensor | None = None,
    beta: float = 0.5,
    temperature: float | Tensor = 1.0,
    scale_by_t2: bool = False,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Generalised Jensen-Shannon divergence of each pixel: `js_divergence` with the class axis second.

    .. math:: \beta \, KL(p_t \| m) + (1 - \beta) \, KL(p_s \| m), \quad m = \beta p_t + (1 - \beta) p_s

    Args:
        logits: (N, C, *space), any floating dtype, any memory format; what trains.
        target_logits: (N, C, *space); what it is drawn to.
        labels: (N, *space) integers, read for `ignore_index` alone.
        ignore_index: label of the pixels that are left out.
        mask: (N, *space) bool, True where the pixel takes part.
        beta: share of the target in the mixture, in [0, 1]; 0 is KL, 1 reverse KL.
        temperature: T > 0, a float or a 0-d tensor; divides both logits.
        scale_by_t2: multiply by T squared.
        reduction: "none" (N, *space), "mean" over the pixels that take part, or "sum".

    Returns:
        Nats; float32 (float64 for float64 inputs); in [0, ln 2] at beta = 0.5.

    Raises:
        TypeError: as `dense_kl_divergence`.
        ValueError: as `dense_kl_divergence`; `beta` out of range.

    Gradient:
        As `js_divergence`, made anew in the backward pass, tile by tile.

    Example:
        >>> import torch
        >>> a, b = torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 2, 2)
        >>> a[:, 0], b[:, 1] = 90.0, 90.0
        >>> dense_js_divergence(a, b)  # ln 2
        tensor(0.6931)

    Reference:
        arXiv 2306.13649, Eq. 1; compared with GKL in arXiv 2503.08038, Eq. 15-18.
    """
    pixels = check_pixels(logits, target_logits, labels, mask, ignore_index)
    check_positive("temperature", temperature)
    check_reduction(reduction)
    check_range("beta", beta, 0.0, 1.0)
    measure = partial(_tempered_rows, js_divergence, beta=beta, temperature=temperature, scale_by_t2=scale_by_t2)
    return per_pixel(logits, target_logits, measure, pixels, temperature, reduction)


@full_precision
def dense_gkl_divergence(
    logits: Tensor,
    target_logits: Tensor,
    prior: Tensor | None = None,
    *,
    labels: Tensor | None = None,
    ignore_index: int = IGNORED,
    mask: Tensor | None = None,
    mse_weight: float = 1.0,
    ce_weight: float = 1.0,
    weight_power: float = 1.0,
    temperature: float | Tensor = 1.0,
    prior_temperature: float = 1.0,
    normalizer: Normalizer | Tensor = "weights",
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Generalised KL of each pixel. Temperature acts on the soft cross-entropy only, without T squared.

    .. math:: \frac{\sum_m \tfrac14 \sum_{jk} w_{mj} w_{mk} ((t_{mj} - t_{mk}) - (s_{mj} - s_{mk}))^2}{\sum_m S_m^2}
              - \frac1M \sum_m \sum_j sg(p_t[m, j]) \log p_s[m, j]

    over the M pixels that take part, in O(M C): `gkl_divergence` with the class axis second. Rows of the prior are read
    by label, tile by tile.

    Args:
        logits: (N, C, *space), any floating dtype, any memory format; what trains.
        target_logits: (N, C, *space); what it is drawn to.
        prior: (C, C), row y the mean prediction over the pixels of class y; `None` weighs each pixel by its own
            softmax(target_logits / prior_temperature).
        labels: (N, *space) integers, needed for a `prior`; without one, read for `ignore_index` alone.
        ignore_index: label of the pixels that are left out.
        mask: (N, *space) bool, True where the pixel takes part. What is left out may be anything, NaN too.
        mse_weight: factor of the first part, the quarter inside.
        ce_weight: factor of the second part.
        weight_power: gamma >= 0; 1 is IKL, 0 weights all classes alike.
        temperature: T > 0 of the soft cross-entropy, a float or a 0-d tensor.
        prior_temperature: tau > 0 of the sample-wise weights; a `prior` has its own.
        normalizer: "weights", "row", "samples" or a 0-d tensor, as in `gkl_divergence`; the whole's denominator is
            `dense_gkl_normalizer`.
        reduction: "none" (N, *space) with a mean over the pixels that take part equal to "mean"; "mean"; or "sum".

    Returns:
        In [0, inf]; float32 (float64 for float64 inputs).

    Raises:
        TypeError: not tensors, or not floating; labels or mask of a wrong dtype.
        ValueError: shapes differ or are empty; labels missing or out of range; an option out of range.

    Gradient:
        As `gkl_divergence`: `logits` from both parts, `target_logits` from the first; weights and the cross-entropy's
        target are detached. Made anew in the backward pass, tile by tile; second derivatives and compilation make
        tensors of the logits' size.

    Example:
        >>> import torch
        >>> s, t = torch.tensor([[[1.0, 0.0], [0.0, 3.0]]]).mT, torch.zeros(1, 2, 2)  # one image of two pixels
        >>> prior, y = torch.tensor([[0.9, 0.1], [0.2, 0.8]]), torch.tensor([[0, 1]])
        >>> dense_gkl_divergence(s, t, prior, labels=y, ce_weight=0.0)
        tensor(0.3825)
        >>> dense_gkl_divergence(s, t, prior, labels=torch.tensor([[0, 255]]), ignore_index=255, ce_weight=0.0)
        tensor(0.0450)

    Reference:
        arXiv 2503.08038, Eq. 12-13, and Table XXI for segmentation.
    """
    check_positive("temperature", temperature)
    check_reduction(reduction)
    check_normalizer(normalizer, weight_power)
    pixels = _weighed(logits, target_logits, prior, labels, mask, ignore_index, prior_temperature)
    if prior is not None:
        present = _present(pixels, len(prior)) if may_underflow(prior, weight_power) else None
        rows = without_common_factor(prior.detach(), weight_power, normalizer, present)
        prior = powered(rows, weight_power, fresh=False).detach()
    shift = None
    if prior is None and isinstance(normalizer, str) and normalizer == "weights":
        shift = _shift(target_logits, pixels, weight_power, prior_temperature)
    by_row = isinstance(normalizer, str) and normalizer == "row"
    rows_of = partial(_rows_of, power=weight_power, temperature=prior_temperature, per_row=by_row)
    share = None
    if isinstance(normalizer, Tensor):
        share = normalizer.detach() / pixels.taking_part(logits)
    elif normalizer == "weights":
        total = _denominator(logits, target_logits, pixels._replace(shared=(prior, shift)), rows_of)
        share = total.clamp_min(torch.finfo(total.dtype).tiny) / pixels.taking_part(logits)
    measure = partial(
        _gkl_rows, rows_of, terms=Terms(mse_weight, ce_weight, 1.0, temperature, True, normalizer, "none")
    )
    pixels = pixels._replace(shared=(prior, shift, share))
    return per_pixel(logits, target_logits, measure, pixels, temperature, reduction)


@full_precision
def dense_gkl_normalizer(
    target_logits: Tensor,
    prior: Tensor | None = None,
    *,
    labels: Tensor | None = None,
    ignore_index: int = IGNORED,
    mask: Tensor | None = None,
    weight_power: float = 1.0,
    prior_temperature: float = 1.0,
) -> Tensor:
    r"""Denominator of dense GKL's weighted MSE, sum_m S_m^2, to be summed over ranks or micro-batches.

    Args:
        target_logits: (N, C, *space).
        prior: as in `dense_gkl_divergence`.
        labels: as in `dense_gkl_divergence`.
        ignore_index: label of the pixels that are left out.
        mask: (N, *space) bool, True where the pixel takes part.
        weight_power: gamma >= 0.
        prior_temperature: tau > 0 of the sample-wise weights.

    Returns:
        0-d, float32 (float64 for float64 inputs).

    Raises:
        TypeError: as `dense_gkl_divergence`.
        ValueError: as `dense_gkl_divergence`.

    Gradient:
        None.

    Example:
        With the sum over all parts times this part's share of all pixels that take part:

        >>> import torch
        >>> s, t = torch.randn(4, 3, 2, 2), torch.randn(4, 3, 2, 2)
        >>> share = dense_gkl_normalizer(t, weight_power=0.3) / 2
        >>> parts = [dense_gkl_divergence(a, b, weight_power=0.3, normalizer=share)
        ...          for a, b in zip(s.split(2), t.split(2))]
        >>> torch.allclose(sum(parts) / 2, dense_gkl_divergence(s, t, weight_power=0.3))
        True

    Reference:
        The public code of arXiv 2503.08038.
    """
    target_logits = target_logits.detach()
    pixels = _weighed(target_logits, target_logits, prior, labels, mask, ignore_index, prior_temperature)
    table = None if prior is None else powered(prior.detach(), weight_power, fresh=False)
    rows_of = partial(_rows_of, power=weight_power, temperature=prior_temperature, per_row=False)
    return _denominator(None, target_logits, pixels._replace(shared=(table, None)), rows_of)


def _weighed(
    logits: Tensor,
    target_logits: Tensor,
    prior: Tensor | None,
    labels: Tensor | None,
    mask: Tensor | None,
    ignore_index: int,
    prior_temperature: float,
) -> Pixels:
    pixels = check_pixels(logits, target_logits, labels, mask, ignore_index)
    check_positive("prior_temperature", prior_temperature)
    if prior is not None:
        check_table(prior, logits.shape[1])
        if labels is None:
            raise ValueError("`labels` expected integers (N, *space) that read the `prior`, got None; or leave it out")
    return pixels


def _tempered_rows(
    divergence: Callable[..., Tensor], s: Tensor, t: Tensor, labels: Tensor | None, mask: Tensor | None, **options: Any
) -> Tensor:
    return divergence(s, t, reduction="none", **options)


def _rows_of(
    t: Tensor,
    labels: Tensor | None,
    table: Tensor | None,
    shift: Tensor | None,
    *,
    power: float,
    temperature: float,
    per_row: bool,
) -> Tensor:
    """Weights of a tile, (P, C): the powered table's rows, or powers of the target's own softmax."""
    if table is not None and labels is not None:
        return table.index_select(0, labels.long())
    scores = t.detach() / temperature
    if power in (0, 1):
        return powered(torch.softmax(scores, -1), power, fresh=True)
    exponents = torch.log_softmax(scores, -1)
    if per_row:  # this normaliser cancels a factor of each row: without it the power may underflow
        exponents -= exponents.amax(-1, keepdim=True)
    elif shift is not None:
        exponents -= shift
    return exponents.mul_(power).exp_()


def _gkl_rows(
    rows_of: Callable[..., Tensor],
    s: Tensor,
    t: Tensor,
    labels: Tensor | None,
    mask: Tensor | None,
    table: Tensor | None,
    shift: Tensor | None,
    share: Tensor | None,
    *,
    terms: Terms,
) -> Tensor:
    """`share` is the denominator over the pixels of the whole that take part."""
    if share is not None:  # pair_divergence divides by this over the pixels of the tile
        terms = terms._replace(normalizer=share * (len(s) if mask is None else mask.sum().clamp_min(1)))
    rows = Weights(rows_of(t, labels, table, shift), None, 1.0, 1.0)
    return pair_divergence(s, t, rows, mask, terms)


@torch.no_grad()
def _shift(target_logits: Tensor, pixels: Pixels, power: float, temperature: float) -> Tensor | None:
    """The largest log-probability of all, where powers may underflow: "weights" cancels a factor of the whole."""
    if not may_underflow(target_logits.movedim(1, -1), power):
        return None
    found = []
    for index in tiles(target_logits):
        mask = pixels.tile(index)[1]
        top = torch.log_softmax(class_last(target_logits[index], mask) / temperature, -1).amax(-1)
        found.append((top if mask is None else top.masked_fill(~mask, -torch.inf)).amax())
    return torch.stack(found).amax().clamp_min(torch.finfo(found[0].dtype).min)


@torch.no_grad()
def _denominator(
    logits: Tensor | None, target_logits: Tensor, pixels: Pixels, rows_of: Callable[..., Tensor]
) -> Tensor:
    """Sum of S squared over the pixels that take part; a class that both sides exclude has no weight."""
    parts = []
    for index in tiles(target_logits):
        labels, mask = pixels.tile(index)
        t = target_logits[index]
        weight = rows_of(class_last(t, mask), labels, *pixels.shared)
        if logits is not None:
            absent = torch.isneginf(logits[index]) & torch.isneginf(t)
            weight = weight.masked_fill(absent.movedim(1, -1).reshape(weight.shape), 0.0)
        mass = weight.to(widest(weight)).sum(-1)
        squares = mass * mass
        parts.append((squares if mask is None else squares.masked_fill(~mask, 0.0)).sum())
    return torch.stack(parts).sum()


def _present(pixels: Pixels, classes: int) -> Tensor | None:
    """Which rows of the table any pixel reads."""
    labels, mask = pixels.labels, pixels.mask
    if labels is None or mask is None:
        return None
    counts = torch.zeros(classes, dtype=torch.int64, device=labels.device)
    return counts.index_add_(0, labels.reshape(-1).long(), mask.reshape(-1).long()) > 0
