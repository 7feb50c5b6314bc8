"""The divergence of all pairs of classes, by torch or by the kernel."""

from __future__ import annotations

from torch import Tensor

from limbeck.functional._check import check_integer_labels, check_label_shape
from limbeck.functional._engine import Impl, takes_kernel
from limbeck.functional._pairs import pair_divergence
from limbeck.functional._rows import check_table, class_rows, without_left_out
from limbeck.functional._terms import Terms, Weights

__all__ = ["Weights", "weighted_pairs"]


def weighted_pairs(
    logits: Tensor, target_logits: Tensor, weights: Weights, mask: Tensor | None, terms: Terms, impl: Impl
) -> Tensor:
    """The pair divergence with these weights."""
    if _takes_kernel(logits, target_logits, weights, mask, terms, impl):
        return _by_kernel(logits, target_logits, weights, mask, terms)
    if mask is not None:
        weights = weights._replace(labels=without_left_out(weights.labels, mask))
    return pair_divergence(logits, target_logits, weights, mask, terms)


def _takes_kernel(
    logits: Tensor, target_logits: Tensor, weights: Weights, mask: Tensor | None, terms: Terms, impl: Impl
) -> bool:
    temperatures = terms.mse_temperature, terms.ce_temperature, weights.temperature
    return takes_kernel("gkl", impl, logits, target_logits, weights.prior, weights.labels, mask, *temperatures)


def _by_kernel(logits: Tensor, target_logits: Tensor, weights: Weights, mask: Tensor | None, terms: Terms) -> Tensor:
    from limbeck.kernels.gkl import gkl
    from limbeck.kernels.gkl_launch import Options

    prior, labels, power, temperature = weights
    if not power >= 0:
        raise ValueError(f"`weight_power` expected a number of at least 0, got {power}")
    if prior is not None and (labels is None or labels.is_floating_point()):
        prior, labels = class_rows(prior, without_left_out(labels, mask), logits).detach(), None
    elif prior is not None and labels is not None:
        check_table(prior, logits.shape[-1])
        check_label_shape(labels, logits.shape[:-1])
        if not labels.is_cuda:  # on a device the kernel looks at them
            kept = labels if mask is None else labels.masked_fill(~mask, 0)
            check_integer_labels(kept, logits.shape[:-1], logits.shape[-1])
        prior = prior.detach()
    given = terms.normalizer.detach().to(logits.device) if isinstance(terms.normalizer, Tensor) else None
    options = Options(
        "gkl",
        power,
        float(terms.ce_temperature),
        float(temperature),
        terms.mse_weight / float(terms.mse_temperature) ** 2,
        terms.ce_weight,
        terms.mse_reaches_logits,
        "given" if isinstance(terms.normalizer, Tensor) else terms.normalizer,
        terms.reduction,
    )
    return gkl(logits, target_logits, prior, labels, mask, given, options)
