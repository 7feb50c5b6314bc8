"""The terms of an objective: their names in the logs, their factors over the epochs, their losses."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from limbeck.config import TermOptions
from limbeck.losses import DKLLoss, GKLLoss, IKLLoss, JSLoss, KLLoss, LogitMSELoss, MARTLoss, ReverseKLLoss

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

    from limbeck.config import CrossEntropyTerm, DivergenceTerm, Term


def part_names(terms: Sequence[Term]) -> tuple[str, ...]:
    """Return one name per term for the logs: the loss's own, numbered from its second appearance on.

    >>> from limbeck.config import CrossEntropyTerm, KLTerm
    >>> part_names([KLTerm(), CrossEntropyTerm(), KLTerm(temperature=4.0)])
    ('kl', 'cross_entropy', 'kl_2')
    """
    names: list[str] = []
    for position, term in enumerate(terms):
        earlier = sum(other.name == term.name for other in terms[:position])
        names.append(f"{term.name}_{earlier + 1}" if earlier else term.name)
    return tuple(names)


def term_weight(term: TermOptions, epoch: int, epochs: int) -> float:
    """Return the factor of a term in an epoch (from 1) of a run of `epochs`.

    It rises as `min(epoch / warmup_epochs, 1)`. From the first epoch at full weight on it falls, if it decays, so
    that it would reach 0 in the epoch after the last one.

    >>> from limbeck.config import KLTerm
    >>> [term_weight(KLTerm(weight=2.0, warmup_epochs=2, decay="linear"), epoch, 5) for epoch in (1, 2, 3, 4, 5)]
    [1.0, 2.0, 1.5, 1.0, 0.5]
    """
    rise = min(epoch / term.warmup_epochs, 1.0) if term.warmup_epochs else 1.0
    peak = max(1, math.ceil(term.warmup_epochs))
    progress = (epoch - peak) / (epochs + 1 - peak) if epoch > peak else 0.0
    match term.decay:
        case "none":
            fall = 1.0
        case "linear":
            fall = 1.0 - progress
        case "cosine":
            fall = 0.5 * (1.0 + math.cos(math.pi * progress))
    return term.weight * rise * fall


def cross_entropy(term: CrossEntropyTerm, logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy, in float32 at least, under autocast too.

    Args:
        term: Options of the term.
        logits: `(N, C)`.
        labels: Integers `(N,)`, or probabilities `(N, C)` as mixup gives them.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(logits, labels, label_smoothing=term.label_smoothing)


def build_divergence(term: DivergenceTerm, num_classes: int) -> nn.Module:
    """Return the loss module of a term, with the term's options."""
    options = term.model_dump(exclude=set(TermOptions.model_fields))
    match term.name:
        case "kl":
            return KLLoss(**options)
        case "reverse_kl":
            return ReverseKLLoss(**options)
        case "js":
            return JSLoss(**options)
        case "dkl":
            return DKLLoss(num_classes, **options)
        case "ikl":
            return IKLLoss(num_classes, **options)
        case "gkl":
            return GKLLoss(num_classes, **options)
        case "mart":
            return MARTLoss(**options)
        case "logit_mse":
            return LogitMSELoss(**options)
