"""The controls of born-again networks: what of a teacher's prediction helps, its confidence or its other classes."""

from __future__ import annotations

import torch
from torch import Tensor

from limbeck.functional._check import check_pair, full_precision, widest
from limbeck.functional._rest import log_own, own_class


@full_precision
def confidence_weighted_cross_entropy(logits: Tensor, target_logits: Tensor, labels: Tensor) -> Tensor:
    r"""Labels' cross-entropy, each sample weighted by the teacher's confidence (CWTM): no dark knowledge at all.

    .. math:: -\sum_n \frac{w_n}{\sum_m w_m} \log p_s[y_n], \quad w_n = \max_k p_t[k]

    The weights are normalised over the batch, which couples it, so there is no `reduction`; under data parallelism each
    rank normalises over its own samples. There is no public code by the authors.

    Args:
        logits: (*, C), any floating dtype; what trains.
        target_logits: (*, C), the teacher's.
        labels: (*), integers in [0, C).

    Returns:
        0-d, nats, in [0, inf]; float32 (float64 for float64 inputs).

    Raises:
        TypeError: logits not floating; labels not integers.
        ValueError: shapes differ or are empty; a label out of range.

    Gradient:
        To `logits`; the weights are detached.

    Example:
        >>> import torch
        >>> confidence_weighted_cross_entropy(torch.zeros(2, 2), torch.randn(2, 2), torch.tensor([0, 1]))  # ln 2
        tensor(0.6931)

    Reference:
        Furlanello et al., "Born-Again Neural Networks", arXiv 1805.04770, Eq. 9.
    """
    check_pair(logits, target_logits)
    own = own_class(labels, logits, "CWTM")
    dtype = widest(logits, target_logits)
    weights = torch.softmax(target_logits.detach().to(dtype), -1).amax(-1)
    values = -log_own(torch.log_softmax(logits.to(dtype), -1), own)
    return (weights * values).sum() / weights.sum()


def permute_other_classes(target_logits: Tensor, keys: Tensor | None = None) -> Tensor:
    """Teacher's logits, all but the largest shuffled within their sample (DKPP): its confidences without their classes.

    Hand the result to any loss in place of the teacher's logits: `kl_divergence(logits, permute_other_classes(target))`
    is the control of the paper. Permuting logits permutes the probabilities alike, at any temperature.

    Args:
        target_logits: (*, C), any dtype.
        keys: (*, C), finite floats whose order is the permutation; drawn from torch's generator by default.

    Returns:
        (*, C), in the dtype given. The largest logit (the first of equals) stays where it is.

    Raises:
        ValueError: `keys` of another shape.

    Gradient:
        To `target_logits`, permuted.

    Example:
        >>> import torch
        >>> permute_other_classes(torch.tensor([1.0, 9.0, 2.0, 3.0]), torch.tensor([0.7, 0.1, 0.9, 0.2]))
        tensor([3., 9., 1., 2.])

    Reference:
        Furlanello et al., "Born-Again Neural Networks", arXiv 1805.04770, Eq. 10.
    """
    if keys is None:
        keys = torch.rand(target_logits.shape, device=target_logits.device)
    if keys.shape != target_logits.shape:
        raise ValueError(f"`keys` expected the shape {tuple(target_logits.shape)}, got {tuple(keys.shape)}")
    classes = target_logits.shape[-1]
    places = torch.arange(classes, device=target_logits.device)
    largest = places == target_logits.argmax(-1, keepdim=True)
    # The largest comes last in both orders, so that it meets itself.
    shuffled = keys.masked_fill(largest, torch.inf).argsort(-1)
    ordered = places.expand_as(largest).masked_fill(largest, classes).argsort(-1)
    return torch.empty_like(target_logits).scatter(-1, ordered, target_logits.gather(-1, shuffled))
