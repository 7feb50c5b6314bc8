"""What a set of logits is worth: accuracy, likelihood, calibration, agreement with a teacher."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F

from limbeck.engine.ranks import Ranks
from limbeck.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

    from limbeck.data import Samples

BINS = 15  # of the calibration error, as in Guo et al. (2017)
EVALUATION_BATCH = 256  # a constant, so that logits do not depend on the batch size of the training
ALONE = Ranks()
ROWS = 4096  # samples whose probabilities, in float64, are in memory at a time
TOP5_FROM = 10  # classes from which a top-5 accuracy says something

Metrics = dict[str, Any]


class NotFiniteLogits(UserError):
    """A network's logits are not finite, which finite weights can still cause."""


@torch.no_grad()
def predict(model: nn.Module, source: Samples, place: Ranks = ALONE) -> Tensor:
    """Return the logits of a model in eval mode, float32 `(N, C)` on the CPU; its mode is as before afterwards.

    Several ranks share the images, and all get all of the logits.

    Raises:
        NotFiniteLogits: Those of at least one image are not finite.
    """
    training = model.training
    model.eval()
    batches = source.batches(EVALUATION_BATCH, place.rank, place.world)
    logits = torch.cat(place.in_turns([model(images).float().cpu() for images in batches]))
    model.train(training)
    if not logits.isfinite().all():
        raise NotFiniteLogits("the network's logits are not finite in evaluation: lower `optimizer.learning_rate`")
    return logits


def measure(
    logits: Tensor,
    labels: Tensor,
    teacher_logits: Tensor | None = None,
    groups: Mapping[str, Tensor] | None = None,
) -> Metrics:
    """Return the metrics of logits.

    Args:
        logits: `(N, C)`, finite; N is at least 1.
        labels: `(N,)` integers.
        teacher_logits: `(N, C)`, for the agreement.
        groups: Classes of each group, as `limbeck.data.class_groups` returns them.

    Returns:
        `top1`, `top5` (from ten classes on), `nll` in nats, `ece` (15 equal-width bins), `agreement` (the share of
        samples in which the largest logit is the teacher's; only with a teacher), `samples`, and with groups
        `groups`: for each the mean over its classes of their top-1, as `top1` is the mean over all samples.

    >>> logits = torch.tensor([[9.0, 0.0], [0.0, 9.0], [9.0, 0.0], [0.0, 9.0]])
    >>> measure(logits, torch.tensor([0, 1, 0, 0]))["top1"]
    0.75
    """
    labels = labels.to(logits.device)
    parts = zip(torch.split(logits, ROWS), torch.split(labels, ROWS), strict=True)
    nll, confidence, predicted, among5 = map(torch.cat, zip(*(_by_sample(*part) for part in parts), strict=True))
    correct = predicted == labels
    metrics: Metrics = {"top1": _mean(correct)}
    if logits.shape[-1] >= TOP5_FROM:
        metrics["top5"] = _mean(among5)
    metrics["nll"] = nll.mean().item()
    metrics["ece"] = _calibration_error(confidence, correct)
    if teacher_logits is not None:
        metrics["agreement"] = _mean(predicted == teacher_logits.to(logits.device).argmax(dim=-1))
    metrics["samples"] = len(labels)
    if groups:
        metrics["groups"] = _accuracy_by_group(correct, labels, groups, logits.shape[-1])
    return metrics


def _by_sample(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return, of each sample: -log p[label] and the largest p, float64; its class; whether the label is among five."""
    log_probabilities = F.log_softmax(logits.double(), dim=-1)
    largest, predicted = log_probabilities.max(dim=-1)
    nearest = logits.topk(min(5, logits.shape[-1])).indices
    nll = F.nll_loss(log_probabilities, labels, reduction="none")
    return nll, largest.exp(), predicted, (nearest == labels.unsqueeze(-1)).any(dim=-1)


def _mean(flags: Tensor) -> float:
    return flags.double().mean().item()


def _accuracy_by_group(correct: Tensor, labels: Tensor, groups: Mapping[str, Tensor], classes: int) -> dict[str, float]:
    """Return each group's mean of its classes' accuracies; those without a sample do not count."""
    samples = labels.bincount(minlength=classes).cpu()
    right = labels[correct].bincount(minlength=classes).cpu()
    seen = {name: members[samples[members] > 0] for name, members in groups.items()}
    return {
        name: (right[members].double() / samples[members]).mean().item()
        for name, members in seen.items()
        if len(members)
    }


def _calibration_error(confidence: Tensor, correct: Tensor) -> float:
    """Return the mean over samples of |accuracy - confidence| of their bin; bins are (0, 1/15], (1/15, 2/15], ..."""
    bins = (confidence * BINS).ceil().long().clamp(1, BINS) - 1
    gap = torch.zeros(BINS, dtype=torch.float64, device=bins.device).index_add_(0, bins, correct.double() - confidence)
    return gap.abs().sum().item() / len(confidence)


def accuracy_by_teacher_score(logits: Tensor, labels: Tensor, teacher_logits: Tensor) -> list[float]:
    """Return top-1 in the quarters of the samples by the teacher's probability of the true class, lowest first.

    The quarters are those of `torch.tensor_split`; with fewer than four samples the list is empty.
    """
    if len(labels) < 4:
        return []
    scores = teacher_logits.double().softmax(dim=-1).gather(1, labels.unsqueeze(1)).squeeze(1)
    order = scores.argsort(stable=True)
    correct = logits.argmax(dim=-1) == labels
    return [_mean(quarter) for quarter in correct[order].tensor_split(4)]
