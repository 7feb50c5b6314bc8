r"""KL, the soft cross-entropy and Jensen-Shannon from hidden states and output embeddings: the logits are never built.

The arguments are those of `linear_gkl`, the values and gradients those of the functions of logits.
"""

from __future__ import annotations

from torch import Tensor

from limbeck.functional._check import Reduction, check_range, full_precision
from limbeck.functional._linear_check import check_given, check_temperature, evaluate
from limbeck.functional._linear_terms import JS, KL, Swapped


@full_precision
def linear_kl(
    hidden: Tensor,
    head: Tensor,
    target_hidden: Tensor,
    target_head: Tensor,
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
    temperature: float = 1.0,
    scale_by_t2: bool = False,
    tile: tuple[int, int] | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""`kl_divergence` from hidden states: KL(p_t || p_s) of each token.

    .. math:: \sum_j p_t[j] \, (\log p_t[j] - \log p_s[j]), \quad p = \mathrm{softmax}(\text{logits} / T)

    Args:
        hidden: as in `linear_gkl`.
        head: as in `linear_gkl`.
        target_hidden: as in `linear_gkl`.
        target_head: as in `linear_gkl`.
        labels: integers (*) in [0, C) or `ignore_index`, for which alone they are read.
        mask: as in `linear_gkl`.
        ignore_index: as in `linear_gkl`.
        bias: as in `linear_gkl`.
        target_bias: as in `linear_gkl`.
        logit_scale: as in `linear_gkl`.
        target_logit_scale: as in `linear_gkl`.
        softcap: as in `linear_gkl`.
        target_softcap: as in `linear_gkl`.
        temperature: T > 0, divides both logits.
        scale_by_t2: multiply by T squared.
        tile: as in `linear_gkl`.
        reduction: "none" (*), "mean" over the tokens that take part (0 if none does), or "sum".

    Returns:
        Nats, in [0, inf]; float32 (float64 for float64 inputs).

    Raises:
        TypeError: as `linear_gkl`.
        ValueError: as `linear_gkl`.

    Gradient:
        To both hidden states, heads, biases and tensor scales; first order only.

    Example:
        >>> import torch
        >>> from limbeck.functional import kl_divergence
        >>> h, w, g, v = torch.randn(6, 4), torch.randn(9, 4), torch.randn(6, 5), torch.randn(9, 5)
        >>> torch.allclose(linear_kl(h, w, g, v), kl_divergence(h @ w.T, g @ v.T), rtol=1e-4)
        True

    Reference:
        Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", arXiv 1503.02531, section 2.
    """
    student = (hidden, head, bias, logit_scale, softcap)
    target = (target_hidden, target_head, target_bias, target_logit_scale, target_softcap)
    given = check_given(student, target, labels, mask, ignore_index, tile)
    return evaluate(given, KL(*_tempered(temperature, scale_by_t2), True, given.careful), reduction)


@full_precision
def linear_soft_cross_entropy(
    hidden: Tensor,
    head: Tensor,
    target_hidden: Tensor,
    target_head: Tensor,
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
    temperature: float = 1.0,
    scale_by_t2: bool = False,
    tile: tuple[int, int] | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""`soft_cross_entropy` from hidden states: the cross-entropy of each token with the target's probabilities.

    .. math:: -\sum_j p_t[j] \log p_s[j]

    Args:
        hidden: as in `linear_gkl`.
        head: as in `linear_gkl`.
        target_hidden: as in `linear_gkl`.
        target_head: as in `linear_gkl`.
        labels: integers (*) in [0, C) or `ignore_index`, for which alone they are read.
        mask: as in `linear_gkl`.
        ignore_index: as in `linear_gkl`.
        bias: as in `linear_gkl`.
        target_bias: as in `linear_gkl`.
        logit_scale: as in `linear_gkl`.
        target_logit_scale: as in `linear_gkl`.
        softcap: as in `linear_gkl`.
        target_softcap: as in `linear_gkl`.
        temperature: T > 0, divides both logits.
        scale_by_t2: multiply by T squared.
        tile: as in `linear_gkl`.
        reduction: "none" (*), "mean" over the tokens that take part (0 if none does), or "sum".

    Returns:
        Nats, in [0, inf]; float32 (float64 for float64 inputs).

    Raises:
        TypeError: as `linear_gkl`.
        ValueError: as `linear_gkl`.

    Gradient:
        To both hidden states, heads, biases and tensor scales; first order only. The target's is not that of
        `linear_kl` (detach the target for distillation).

    Example:
        >>> import torch
        >>> h, w = torch.zeros(2, 3), torch.ones(4, 3)
        >>> linear_soft_cross_entropy(h, w, h, w)  # ln 4
        tensor(1.3863)

    Reference:
        The second part of arXiv 2305.13948, Eq. 5.
    """
    student = (hidden, head, bias, logit_scale, softcap)
    target = (target_hidden, target_head, target_bias, target_logit_scale, target_softcap)
    given = check_given(student, target, labels, mask, ignore_index, tile)
    return evaluate(given, KL(*_tempered(temperature, scale_by_t2), False, given.careful), reduction)


@full_precision
def linear_js(
    hidden: Tensor,
    head: Tensor,
    target_hidden: Tensor,
    target_head: Tensor,
    *,
    beta: float = 0.5,
    labels: Tensor | None = None,
    mask: Tensor | None = None,
    ignore_index: int = -100,
    bias: Tensor | None = None,
    target_bias: Tensor | None = None,
    logit_scale: float | Tensor = 1.0,
    target_logit_scale: float | Tensor = 1.0,
    softcap: float | None = None,
    target_softcap: float | None = None,
    temperature: float = 1.0,
    scale_by_t2: bool = False,
    tile: tuple[int, int] | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    r"""`js_divergence` from hidden states: the generalised Jensen-Shannon divergence of each token.

    .. math:: \beta \, KL(p_t \| m) + (1 - \beta) \, KL(p_s \| m), \quad m = \beta p_t + (1 - \beta) p_s

    At the ends it is KL(p_t || p_s) (`beta=0`) and KL(p_s || p_t) (`beta=1`), as `js_divergence`. Inside, the mixture
    needs both log-partition functions first: the forward pass multiplies hidden states and heads twice.

    Args:
        hidden: as in `linear_gkl`.
        head: as in `linear_gkl`.
        target_hidden: as in `linear_gkl`.
        target_head: as in `linear_gkl`.
        beta: share of the target in the mixture, in [0, 1].
        labels: integers (*) in [0, C) or `ignore_index`, for which alone they are read.
        mask: as in `linear_gkl`.
        ignore_index: as in `linear_gkl`.
        bias: as in `linear_gkl`.
        target_bias: as in `linear_gkl`.
        logit_scale: as in `linear_gkl`.
        target_logit_scale: as in `linear_gkl`.
        softcap: as in `linear_gkl`.
        target_softcap: as in `linear_gkl`.
        temperature: T > 0, divides both logits.
        scale_by_t2: multiply by T squared.
        tile: as in `linear_gkl`.
        reduction: "none" (*), "mean" over the tokens that take part (0 if none does), or "sum".

    Returns:
        Nats; float32 (float64 for float64 inputs). In [0, ln 2] at beta = 0.5, always finite inside (0, 1).

    Raises:
        TypeError: as `linear_gkl`.
        ValueError: as `linear_gkl`; `beta` out of range.

    Gradient:
        To both hidden states, heads, biases and tensor scales; first order only.

    Example:
        >>> import torch
        >>> h, w = torch.tensor([[50.0]]), torch.tensor([[1.0], [-1.0]])
        >>> linear_js(h, w, -h, w)  # ln 2
        tensor(0.6931)

    Reference:
        Agarwal et al., "On-Policy Distillation of Language Models" (GKD), arXiv 2306.13649, Eq. 1.
    """
    check_range("beta", beta, 0.0, 1.0)
    student = (hidden, head, bias, logit_scale, softcap)
    target = (target_hidden, target_head, target_bias, target_logit_scale, target_softcap)
    given = check_given(student, target, labels, mask, ignore_index, tile)
    numbers = _tempered(temperature, scale_by_t2)
    if beta in (0, 1):
        kl = KL(*numbers, True, given.careful)
        return evaluate(given, Swapped(kl) if beta == 1 else kl, reduction)
    return evaluate(given, JS(*numbers, beta, given.careful), reduction)


def _tempered(temperature: float, scale_by_t2: bool) -> tuple[float, float]:
    """Temperature, and the factor that goes with it."""
    check_temperature(temperature)
    return temperature, temperature**2 if scale_by_t2 else 1.0
