r"""Decoupled, improved and generalised KL: a weighted MSE between all pairs of classes plus a soft cross-entropy.

The two factors are `mse_weight` (of 1/4 sum_jk w_j w_k (gap_j - gap_k)^2) and `ce_weight`: the papers and their code
swap alpha and beta, so neither letter is used. `prior` holds class-mean probabilities, `weight_power` is the papers'
smooth factor gamma. "GKL" is the loss of arXiv 2503.08038, not the Bregman "generalized KL" of other libraries.
"""

from __future__ import annotations

import torch
from torch import Tensor

from limbeck.functional._check import (
    Reduction,
    check_integer_labels,
    check_pair,
    check_positive,
    check_reduction,
    full_precision,
    widest,
)
from limbeck.functional._engine import Impl
from limbeck.functional._pairs import Normalizer, Terms
from limbeck.functional._rows import (
    check_mask,
    check_normalizer,
    check_rows,
    class_rows,
    powered,
)
from limbeck.functional._weights import Weights, weighted_pairs


@full_precision
def weighted_mse(
    logits: Tensor, target_logits: Tensor, weight: Tensor, *, reduction: Reduction = "mean", impl: Impl = "auto"
) -> Tensor:
    r"""Weighted squared differences between all pairs of classes, in O(N C).

    .. math:: \tfrac14 \sum_{jk} w_j w_k \, ((t_j - t_k) - (s_j - s_k))^2 = \tfrac12 S \sum_j w_j (d_j - \mu)^2

    with d = s - t, S the sum of w and mu = sum w d / S: S squared times half a weighted variance of the logit gap.
    It is 0 exactly where the logits differ by a constant.

    Args:
        logits: (*, C), any floating dtype; what trains.
        target_logits: (*, C); what it is drawn to.
        weight: (*, C), not negative, any sum.
        reduction: "none" (*), "mean" over all leading axes, or "sum".
        impl: as in `gkl_divergence`.

    Returns:
        In [0, inf), squared logits; float32 (float64 for float64 inputs). Not normalised: see `gkl_divergence`.

    Raises:
        TypeError: not tensors, or not floating.
        ValueError: shapes differ or are empty; unknown reduction.

    Gradient:
        Equal and opposite to both logits, all orders; `weight` is detached.

    Example:
        >>> import torch
        >>> logits, target = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 0.0]])
        >>> weighted_mse(logits, target, torch.tensor([[0.5, 0.5]]))  # 2 pairs x 1/4 x 1/4 x 1
        tensor(0.1250)

    Reference:
        arXiv 2305.13948, first part of Eq. 5; the form that Algorithm 2 of arXiv 2503.08038 gives for S = 1.
    """
    check_pair(logits, target_logits)
    check_rows("weight", weight, logits)
    check_reduction(reduction)
    terms = Terms(1.0, 0.0, 1.0, 1.0, True, "samples", reduction)
    return weighted_pairs(logits, target_logits, Weights(weight, None, 1.0, 1.0), None, terms, impl)


@full_precision
def dkl_divergence(
    logits: Tensor,
    target_logits: Tensor,
    weight: Tensor | None = None,
    *,
    symmetric: bool = False,
    mse_weight: float = 1.0,
    ce_weight: float = 1.0,
    temperature: float | Tensor = 1.0,
    scale_by_t2: bool = False,
    reduction: Reduction = "mean",
    impl: Impl = "auto",
) -> Tensor:
    r"""Decoupled KL: the gradients of KL, in two parts that can be weighted. Temperature divides both logits in both.

    .. math:: \tfrac14 \sum_{jk} w_j w_k \, ((t_j - t_k) - sg(s_j - s_k))^2 - \sum_j sg(p_t[j]) \log p_s[j]

    With the defaults (w = sg(p_t)) the first derivatives of both inputs equal those of KL(p_t || p_s), Theorem 1. The
    *values* do not (the second part contains the target's entropy), nor do second derivatives.

    Two independent switches lead from KL to GKL: `symmetric=True` breaks the asymmetry, so that the first part also
    moves the student ("BA"); `weight` replaces the sample's own softmax, for instance by class means ("GI").

    Args:
        logits: (*, C), any floating dtype; what trains.
        target_logits: (*, C); what it is drawn to.
        weight: (*, C), not negative; `None` is softmax(target_logits / temperature).
        symmetric: let the weighted MSE reach `logits` too.
        mse_weight: factor of the first part, the quarter inside.
        ce_weight: factor of the second part.
        temperature: T > 0, a float or a 0-d tensor; divides both logits in both parts.
        scale_by_t2: multiply by T squared.
        reduction: "none" (*), "mean" over all leading axes, or "sum".
        impl: as in `gkl_divergence`.

    Returns:
        In [0, inf]; float32 (float64 for float64 inputs).

    Raises:
        TypeError: not tensors, or not floating.
        ValueError: shapes differ or are empty; temperature not above 0; unknown reduction.

    Gradient:
        `target_logits` from the first part; `logits` from the second, and from the first if `symmetric`. The weight and
        the cross-entropy's target are detached. With a detached target and `symmetric=False` the first part moves
        nothing (Eq. 10 of arXiv 2503.08038).

    Example:
        >>> import torch
        >>> from limbeck.functional import kl_divergence
        >>> s, t = torch.tensor([[1.0, 0.0, 2.0]], requires_grad=True), torch.tensor([[0.5, 1.0, 0.0]])
        >>> a, = torch.autograd.grad(dkl_divergence(s, t), s)
        >>> b, = torch.autograd.grad(kl_divergence(s, t), s)
        >>> torch.allclose(a, b)
        True

    Reference:
        Cui et al., "Decoupled Kullback-Leibler Divergence Loss", arXiv 2305.13948, Theorem 1 and Eq. 5-7.
    """
    check_pair(logits, target_logits)
    check_positive("temperature", temperature)
    check_reduction(reduction)
    if weight is not None:
        check_rows("weight", weight, logits)
    factor = temperature**2 if scale_by_t2 else 1.0
    number = 1.0 if isinstance(factor, Tensor) else factor
    terms = Terms(mse_weight * number, ce_weight * number, temperature, temperature, symmetric, "samples", reduction)
    weights = Weights(weight, None, 1.0, temperature)
    value = weighted_pairs(logits, target_logits, weights, None, terms, impl)
    return value * factor if isinstance(factor, Tensor) else value


@full_precision
def ikl_divergence(
    logits: Tensor,
    target_logits: Tensor,
    prior: Tensor | None = None,
    *,
    labels: Tensor | None = None,
    mse_weight: float = 1.0,
    ce_weight: float = 1.0,
    temperature: float | Tensor = 1.0,
    prior_temperature: float = 1.0,
    normalizer: Normalizer | Tensor = "samples",
    mask: Tensor | None = None,
    reduction: Reduction = "mean",
    impl: Impl = "auto",
) -> Tensor:
    r"""Improved KL: GKL at weight power 1. Temperature acts on the soft cross-entropy only, without T squared.

    .. math:: \tfrac14 \sum_{jk} \bar p[j] \bar p[k] \, ((t_j - t_k) - (s_j - s_k))^2 - \sum_j sg(p_t[j]) \log p_s[j]

    Args:
        logits: (*, C), any floating dtype; what trains.
        target_logits: (*, C); what it is drawn to.
        prior: as in `gkl_divergence`.
        labels: as in `gkl_divergence`.
        mse_weight: factor of the first part, the quarter inside.
        ce_weight: factor of the second part.
        temperature: T > 0 of the soft cross-entropy.
        prior_temperature: as in `gkl_divergence`.
        normalizer: as in `gkl_divergence`; with rows that sum to 1 all three words agree.
        mask: (*) bool, True where the sample takes part.
        reduction: "none" (*), "mean" over the samples that take part, or "sum".
        impl: as in `gkl_divergence`.

    Returns:
        In [0, inf]; float32 (float64 for float64 inputs).

    Raises:
        TypeError: not tensors, or not floating.
        ValueError: as `gkl_divergence`.

    Gradient:
        As `gkl_divergence`.

    Example:
        >>> import torch
        >>> s, t = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 0.0]])
        >>> ikl_divergence(s, t, torch.tensor([[0.5, 0.5]]), ce_weight=0.0)
        tensor(0.1250)

    Reference:
        Cui et al., "Decoupled Kullback-Leibler Divergence Loss", arXiv 2305.13948, Eq. 9-10.
    """
    return gkl_divergence(
        logits,
        target_logits,
        prior,
        labels=labels,
        mse_weight=mse_weight,
        ce_weight=ce_weight,
        temperature=temperature,
        prior_temperature=prior_temperature,
        normalizer=normalizer,
        mask=mask,
        reduction=reduction,
        impl=impl,
    )


@full_precision
def gkl_divergence(
    logits: Tensor,
    target_logits: Tensor,
    prior: Tensor | None = None,
    *,
    labels: Tensor | None = None,
    mse_weight: float = 1.0,
    ce_weight: float = 1.0,
    weight_power: float = 1.0,
    temperature: float | Tensor = 1.0,
    prior_temperature: float = 1.0,
    normalizer: Normalizer | Tensor = "weights",
    mask: Tensor | None = None,
    reduction: Reduction = "mean",
    impl: Impl = "auto",
) -> Tensor:
    r"""Generalised KL. Temperature acts on the soft cross-entropy only, without T squared.

    .. math:: \frac{\sum_b \tfrac14 \sum_{jk} w_{bj} w_{bk} ((t_{bj} - t_{bk}) - (s_{bj} - s_{bk}))^2}{\sum_b S_b^2}
              - \frac1N \sum_b \sum_j sg(p_t[b, j]) \log p_s[b, j]

    with w = prior row ** weight_power and S_b the sum of w over classes. The quotient is a weighted mean of half the
    weighted variance of the logit gap.

    Args:
        logits: (*, C), any floating dtype; what trains (student, adversarial branch).
        target_logits: (*, C); what it is drawn to (teacher, clean branch).
        prior: without `labels` (*, C), one row of probabilities per sample, not yet powered: the class's mean
            prediction. With `labels` the (C, C) table whose row y is the mean prediction over class y. `None` is the
            sample-wise form, the target's own softmax(target_logits / prior_temperature).
        labels: integers (*) in [0, C), which read row y of `prior`; or soft labels (*, C), which mix its rows.
        mse_weight: factor of the first part, the quarter inside.
        ce_weight: factor of the second part.
        weight_power: gamma >= 0; 1 is IKL, 0 weights all classes alike.
        temperature: T > 0 of the soft cross-entropy, a float or a 0-d tensor.
        prior_temperature: tau > 0 of the sample-wise weights; without effect if `prior` is given.
        normalizer: what the weighted MSE is divided by. "weights": sum_b S_b^2 over the batch, as the public code
            does; it couples the samples of a batch. "row": each sample by its own S_b^2, the same for any batch, shard
            or accumulation. "samples": the number of samples (IKL; with a power other than 1 the part scales by up to
            C^2). A 0-d tensor: this denominator, for instance `gkl_normalizer` summed over ranks or micro-batches
            times this call's share of all samples, so that the mean over equal shards is the value of the whole.
        mask: (*) bool, True where the sample takes part; others, whose logits and labels may be anything, are left
            out of numerator, denominator and cross-entropy. If none takes part the value is 0.
        reduction: "none" (*) with a mean equal to "mean" (over the samples that take part), "mean", or "sum".
        impl: "torch", "triton" (one kernel, on a GPU), or "auto": the kernel where `limbeck.kernels.why_not` has
            nothing to say against it.

    Returns:
        In [0, inf]; float32 (float64 for float64 inputs).

    Raises:
        TypeError: not tensors, or not floating; labels or mask of a wrong dtype.
        ValueError: shapes differ or are empty; labels out of range (CPU; asserted on a device); temperature or power
            out of range; unknown word.

    Gradient:
        `logits` from both parts, `target_logits` from the first; weights and the cross-entropy's target are detached.
        First derivatives are made in the forward pass, second ones through plain operations.

    Example:
        >>> import torch
        >>> s, t = torch.tensor([[1.0, 0.0], [0.0, 3.0]]), torch.zeros(2, 2)
        >>> prior = torch.tensor([[0.9, 0.1], [0.2, 0.8]])
        >>> gkl_divergence(s, t, prior, labels=torch.tensor([0, 1]), ce_weight=0.0)
        tensor(0.3825)
        >>> gkl_divergence(s, t, prior, labels=torch.tensor([0, 1]), ce_weight=0.0, reduction="none")
        tensor([0.0450, 0.7200])

    Reference:
        Cui et al., "Generalized Kullback-Leibler Divergence Loss", arXiv 2503.08038, Eq. 12-13; the normaliser is
        that of the public code, which the paper does not print.
    """
    check_pair(logits, target_logits)
    check_positive("temperature", temperature)
    check_reduction(reduction)
    check_normalizer(normalizer, weight_power)
    check_mask(mask, logits)
    check_positive("prior_temperature", prior_temperature)
    if prior is None and labels is not None:
        raise ValueError("`labels` read the (C, C) table `prior`, got None; leave both out for the sample-wise form")
    weights = Weights(prior, labels, weight_power, prior_temperature)
    terms = Terms(mse_weight, ce_weight, 1.0, temperature, True, normalizer, reduction)
    return weighted_pairs(logits, target_logits, weights, mask, terms, impl)


@full_precision
def gkl_normalizer(
    prior: Tensor, *, labels: Tensor | None = None, weight_power: float = 1.0, mask: Tensor | None = None
) -> Tensor:
    r"""Denominator of GKL's weighted MSE, sum_b S_b^2, to be summed over ranks or micro-batches.

    Args:
        prior: (*, C) rows, or with `labels` the (C, C) table.
        labels: as in `gkl_divergence`.
        weight_power: gamma >= 0.
        mask: (*) bool, True where the sample takes part.

    Returns:
        0-d, float32 (float64 for a float64 prior).

    Raises:
        ValueError: power below 0; labels out of range.

    Gradient:
        None.

    Example:
        Two micro-batches of equal size, whose mean is the value of the whole batch:

        >>> import torch
        >>> s, t, rows = torch.randn(4, 3), torch.randn(4, 3), torch.rand(4, 3)
        >>> share = gkl_normalizer(rows, weight_power=0.3) / 2
        >>> parts = [gkl_divergence(a, b, r, weight_power=0.3, normalizer=share)
        ...          for a, b, r in zip(s.split(2), t.split(2), rows.split(2))]
        >>> torch.allclose(sum(parts) / 2, gkl_divergence(s, t, rows, weight_power=0.3))
        True

    Reference:
        The public code of arXiv 2503.08038.
    """
    with torch.no_grad():
        if labels is not None and not labels.is_floating_point():  # one sum per class, read by label
            check_integer_labels(labels, labels.shape, len(prior))
            mass = powered(prior, weight_power, fresh=False).to(widest(prior)).sum(-1)[labels.long()]
        else:
            rows = prior if labels is None else class_rows(prior, labels, labels)
            mass = powered(rows, weight_power, fresh=labels is not None).to(widest(prior)).sum(-1)
        squares = mass * mass
        return (squares if mask is None else squares.masked_fill(~mask, 0.0)).sum()
