r"""GKL from hidden states and output embeddings: the logits are never built.

    logits = cap(logit_scale * (hidden head^T + bias)),  cap(x) = softcap * tanh(x / softcap)

Both sides have their own hidden states, `head` (the output embeddings), bias, scale and cap; the classes are the same.
The value is that of the function of logits of the same name, and so are the gradients, but neither the logits of all
tokens nor their gradients ever exist: a tile of some tokens and some classes does.
"""

from __future__ import annotations

import torch
from torch import Tensor

from limbeck.functional._check import Reduction, full_precision, widest
from limbeck.functional._linear_check import (
    check_given,
    check_side,
    check_temperature,
    check_tile,
    check_tokens,
    check_weighting,
    evaluate,
)
from limbeck.functional._linear_terms import GKL
from limbeck.functional._linear_tiles import default_tile, log_masses
from limbeck.functional._pairs import Normalizer
from limbeck.functional._rows import check_normalizer


@full_precision
def linear_gkl(
    hidden: Tensor,
    head: Tensor,
    target_hidden: Tensor,
    target_head: Tensor,
    prior: Tensor | None = None,
    *,
    labels: Tensor | None = None,
    mask: Tensor | None = None,
    ignore_index: int = -100,
    bias: Tensor | None = None,
    target_bias: Tensor | None = None,
    logit_scale: float | Tensor = 1.0,
    target_logit_scale: float | Tensor = 1.0,
    softcap: float | None = None,
    target_softcap: float | None = None,
    mse_weight: float = 1.0,
    ce_weight: float = 1.0,
    weight_power: float = 1.0,
    temperature: float = 1.0,
    prior_temperature: float = 1.0,
    normalizer: Normalizer | Tensor = "weights",
    tile: tuple[int, int] | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""`gkl_divergence` from hidden states. Temperature acts on the soft cross-entropy only, without T squared.

    .. math:: \frac{\sum_b \tfrac14 \sum_{jk} w_{bj} w_{bk} ((t_{bj} - t_{bk}) - (s_{bj} - s_{bk}))^2}{\sum_b S_b^2}
              - \frac1N \sum_b \sum_j sg(p_t[b, j]) \log p_s[b, j]

    with s = cap(logit_scale * (hidden head^T + bias)), t likewise, w = prior ** weight_power and S_b the sum of w over
    classes. The normaliser is that of the whole batch, not of a tile. The forward pass multiplies each hidden state
    with both heads once, the backward pass once more and each side's gradients with head and hidden states.

    Args:
        hidden: (*, D), any floating dtype; the student's, before the output layer.
        head: (C, D), its output embeddings, `nn.Linear.weight` of the output layer.
        target_hidden: (*, E), the target's; a width of its own.
        target_head: (C, E).
        prior: `None` is the sample-wise form, the target's own softmax(t / prior_temperature). (C,): one vector of
            class weights, not yet powered, for all tokens, for instance the target's mean prediction. (C, C): the
            table whose row y is the mean prediction over class y, read by `labels`; at most 1 GiB.
        labels: integers (*) in [0, C); tokens with `ignore_index` take no part.
        mask: (*) bool, True where the token takes part.
        ignore_index: the label of tokens that are left out. What is left out may be NaN.
        bias: (C,); a class at -inf on both sides is absent.
        target_bias: (C,).
        logit_scale: factor above 0, a float or a 0-d tensor, which receives a gradient.
        target_logit_scale: likewise of the target.
        softcap: bound of the logits, softcap * tanh(x / softcap) after the scale, as Gemma 2 has it; `None` is none.
        target_softcap: likewise of the target.
        mse_weight: factor of the first part, the quarter inside.
        ce_weight: factor of the second part.
        weight_power: gamma >= 0; 1 is IKL, 0 weights all classes alike.
        temperature: T > 0 of the soft cross-entropy.
        prior_temperature: tau > 0 of the sample-wise weights.
        normalizer: as in `gkl_divergence`: "weights", exact over all tokens that take part; "row", each token by its
            own; "samples"; or a 0-d tensor, `linear_gkl_normalizer` summed over ranks or micro-batches times
            this call's share of all tokens.
        tile: tokens and classes whose logits are held at a time; `None` is (512, 2048) on a CPU and (2048, 8192), 64
            MiB in float32, on a device.
        reduction: "none" (*), "mean" over the tokens that take part (0 if none does), or "sum".

    Returns:
        In [0, inf]; float32 (float64 for float64 inputs).

    Raises:
        TypeError: not tensors, or not floating; labels or mask of a wrong dtype.
        ValueError: shapes do not fit or are empty; numbers of classes differ; a table too large; labels out of range
            (CPU; asserted on a device); an option out of range; unknown word.

    Gradient:
        To both hidden states, heads, biases and tensor scales, each in its input's dtype, summed in at least float32;
        the target's from the first part alone. Weights and the cross-entropy's target are detached. First order only.

    Example:
        >>> import torch
        >>> from limbeck.functional import gkl_divergence
        >>> h, w, g, v = torch.randn(6, 4), torch.randn(9, 4), torch.randn(6, 5), torch.randn(9, 5)
        >>> torch.allclose(linear_gkl(h, w, g, v), gkl_divergence(h @ w.T, g @ v.T), rtol=1e-4)
        True

    Reference:
        Cui et al., "Generalized Kullback-Leibler Divergence Loss", arXiv 2503.08038, Eq. 12-13; the cap: "Gemma 2",
        arXiv 2408.00118, section 2.
    """
    check_normalizer(normalizer, weight_power)
    student = (hidden, head, bias, logit_scale, softcap)
    target = (target_hidden, target_head, target_bias, target_logit_scale, target_softcap)
    given = check_given(student, target, labels, mask, ignore_index, tile)
    weighting = check_weighting(prior, given.labels, len(head), weight_power, prior_temperature)
    if prior is not None:
        given = given._replace(dtype=torch.promote_types(given.dtype, prior.dtype))
    check_temperature(temperature)
    divergence = GKL(weighting, normalizer, mse_weight, ce_weight, temperature, given.careful)
    return evaluate(given, divergence, reduction)


@full_precision
@torch.no_grad()
def linear_gkl_normalizer(
    target_hidden: Tensor,
    target_head: Tensor,
    prior: Tensor | None = None,
    *,
    labels: Tensor | None = None,
    mask: Tensor | None = None,
    ignore_index: int = -100,
    target_bias: Tensor | None = None,
    target_logit_scale: float | Tensor = 1.0,
    target_softcap: float | None = None,
    weight_power: float = 1.0,
    prior_temperature: float = 1.0,
    tile: tuple[int, int] | None = None,
) -> Tensor:
    r"""Denominator of `linear_gkl`'s weighted MSE, sum_b S_b^2, to be summed over ranks or micro-batches.

    Args:
        target_hidden: as in `linear_gkl`.
        target_head: as in `linear_gkl`.
        prior: as in `linear_gkl`.
        labels: as in `linear_gkl`.
        mask: as in `linear_gkl`.
        ignore_index: as in `linear_gkl`.
        target_bias: as in `linear_gkl`; a class at -inf, absent on both sides there, weighs nothing.
        target_logit_scale: as in `linear_gkl`.
        target_softcap: as in `linear_gkl`.
        weight_power: as in `linear_gkl`.
        prior_temperature: as in `linear_gkl`.
        tile: as in `linear_gkl`.

    Returns:
        0-d, float32 (float64 for float64 inputs).

    Raises:
        TypeError: as `linear_gkl`.
        ValueError: as `linear_gkl`.

    Gradient:
        None.

    Example:
        Two micro-batches; each passes the sum times its share of the tokens, and their values times their shares add
        up to the value of the whole batch:

        >>> import torch
        >>> h, w, g, v = torch.randn(6, 4), torch.randn(9, 4), torch.randn(6, 5), torch.randn(9, 5)
        >>> whole = linear_gkl_normalizer(g, v, weight_power=0.3)
        >>> parts = [linear_gkl(h[i], w, g[i], v, weight_power=0.3, normalizer=whole * share) * share
        ...          for i, share in ((slice(0, 2), 1 / 3), (slice(2, 6), 2 / 3))]
        >>> torch.allclose(sum(parts), linear_gkl(h, w, g, v, weight_power=0.3), rtol=1e-4)
        True

    Reference:
        The public code of arXiv 2503.08038.
    """
    fields = (target_hidden, target_head, target_bias, target_logit_scale, target_softcap)
    side = check_side(fields, "target_")
    labels, mask = check_tokens(labels, mask, target_hidden.shape[:-1], len(target_head), ignore_index)
    weighting = check_weighting(prior, labels, len(target_head), weight_power, prior_temperature)
    dtype = widest(*(x for x in (*side[:4], prior) if isinstance(x, Tensor)))
    size = default_tile(target_hidden) if tile is None else check_tile(tile)
    squares = (2 * log_masses(side, weighting, dtype, size)).exp().squeeze(-1)
    return (squares if mask is None else squares.masked_fill(~mask, 0.0)).sum()
