"""Where the weights of the pairs of classes come from, and the call that needs them: by torch or by the kernel."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from limbeck.functional._check import widest
from limbeck.functional._engine import Impl
from limbeck.functional._pairs import Terms, pair_divergence
from limbeck.functional._rows import class_rows, may_underflow, powered, without_common_factor


class Weights(NamedTuple):
    """Rows of probabilities, not yet read or powered.

    `prior` is (*, C), or with `labels` the (C, C) table; None is the target's own softmax at `temperature`.
    """

    prior: Tensor | None
    labels: Tensor | None
    power: float
    temperature: float


def weighted_pairs(
    logits: Tensor, target_logits: Tensor, weights: Weights, mask: Tensor | None, terms: Terms, impl: Impl
) -> Tensor:
    """The pair divergence with these weights."""
    return pair_divergence(logits, target_logits, _weight(logits, target_logits, weights, mask, terms), mask, terms)


def _weight(logits: Tensor, target_logits: Tensor, weights: Weights, mask: Tensor | None, terms: Terms) -> Tensor:
    prior, labels, power, temperature = weights
    if prior is None:
        rows, power = sample_rows(target_logits, power, temperature)
    else:
        rows = class_rows(prior, labels, logits)
    rows = without_common_factor(rows, power, terms.normalizer, mask)
    return powered(rows, power, fresh=prior is None or labels is not None)


def sample_rows(target_logits: Tensor, power: float, temperature: float) -> tuple[Tensor, float]:
    """Return softmaxes of the target, detached, and the power still to be applied to them."""
    scores = target_logits.detach().to(widest(target_logits)) / temperature
    if power in (0, 1) or may_underflow(scores, power):
        return torch.softmax(scores, -1), power
    return torch.log_softmax(scores, -1).mul_(power).exp_(), 1.0  # pow() is three times slower
