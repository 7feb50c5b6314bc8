"""The terms of an objective: their names in the logs, their factors over the epochs, their losses."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from limbeck.config import TermOptions
from limbeck.losses.schedules import cosine_decay

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from limbeck.config import CrossEntropyTerm, Term


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
    that it would reach 0 in the epoch after the last one; with `decay_after_epoch`, after that epoch, and it is 0 in
    the last one.

    >>> from limbeck.config import KLTerm
    >>> [term_weight(KLTerm(weight=2.0, warmup_epochs=2, decay="linear"), epoch, 5) for epoch in (1, 2, 3, 4, 5)]
    [1.0, 2.0, 1.5, 1.0, 0.5]
    """
    rise = min(epoch / term.warmup_epochs, 1.0) if term.warmup_epochs else 1.0
    return term.weight * rise * _fall(term, epoch, epochs)


def _fall(term: TermOptions, epoch: int, epochs: int) -> float:
    if term.decay == "none":
        return 1.0
    begin, end = max(1, math.ceil(term.warmup_epochs)), epochs + 1
    if term.decay_after_epoch is not None:
        begin, end = term.decay_after_epoch, epochs
    if epoch <= begin:
        return 1.0
    if term.decay == "cosine":
        return cosine_decay(epoch, end, after=begin)
    return 1.0 - (epoch - begin) / (end - begin)


def asks_teacher(term: Term) -> bool:
    """Whether a term's loss is between the student and another network."""
    return any(what.startswith("target_") for what in term.inputs)


def cross_entropy(term: CrossEntropyTerm, logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy, in float32 at least, under autocast too.

    With `binary`, of a logistic regression for each class (Wightman et al. 2021, arXiv 2110.00476): the mean over
    samples and over classes, so it is about C times smaller than the other.

    Args:
        term: Options of the term.
        logits: `(N, C)`.
        labels: Integers `(N,)`, or probabilities `(N, C)` as mixup gives them.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if not term.binary:
        return F.cross_entropy(logits, labels, label_smoothing=term.label_smoothing)
    targets = labels if labels.is_floating_point() else F.one_hot(labels, logits.shape[-1])
    targets = targets.to(logits.dtype) * (1 - term.label_smoothing) + term.label_smoothing / logits.shape[-1]
    if term.target_threshold is not None:
        targets = (targets > term.target_threshold).to(logits.dtype)
    return F.binary_cross_entropy_with_logits(logits, targets)
