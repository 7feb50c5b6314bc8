"""How the weight of a loss changes over the epochs of a run. Plain arithmetic on epochs, which count from 1."""

from __future__ import annotations

import math


def cosine_decay(epoch: int, epochs: int, *, after: int = 0) -> float:
    r"""Factor of a loss's weight that falls from 1 along half a cosine and is exactly 0 in the last epoch.

    .. math:: \tfrac12 \left(1 + \cos\left(\pi \, \frac{\text{epoch} - \text{after}}{\text{epochs} - \text{after}}
        \right)\right), \quad 1 \text{ while } \text{epoch} \le \text{after}

    The public code of Wasserstein distillation fades the transport and the feature term with it, `after` 150 of 240
    epochs on CIFAR and from the start on ImageNet, and leaves the cross-entropy and the target term alone; the paper
    does not mention it. The last epoch trains without what decays, so a run of one epoch does not see it at all.

    Args:
        epoch: the epoch that begins, in [1, `epochs`].
        epochs: length of the run, at least 1.
        after: epochs at full weight, in [0, `epochs`]; with `epochs` nothing decays.

    Returns:
        A factor in [0, 1].

    Raises:
        TypeError: an argument is not a whole number.
        ValueError: an argument is out of range.

    Gradient:
        None: the factor is a plain number.

    Example:
        >>> [round(cosine_decay(epoch, 4), 4) for epoch in (1, 2, 3, 4)]
        [0.8536, 0.5, 0.1464, 0.0]
        >>> [cosine_decay(epoch, 4, after=2) for epoch in (1, 2, 3, 4)]
        [1.0, 1.0, 0.5, 0.0]

    Reference:
        The public code of arXiv 2412.08139 (NeurIPS 2024).
    """
    for name, value in (("epoch", epoch), ("epochs", epochs), ("after", after)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"`{name}` expected a whole number of epochs, got {value!r}")
    if epochs < 1:
        raise ValueError(f"`epochs` expected at least 1, got {epochs}")
    if not 1 <= epoch <= epochs:
        raise ValueError(f"`epoch` expected a number in [1, {epochs}], got {epoch}; epochs count from 1")
    if not 0 <= after <= epochs:
        raise ValueError(
            f"`after` expected a number in [0, {epochs}], got {after}; {epochs} leaves the weight as it is"
        )
    if epoch <= after:
        return 1.0
    if epoch == epochs:
        return 0.0  # whatever the cosine rounds to
    return 0.5 * (1.0 + math.cos(math.pi * ((epoch - after) / (epochs - after))))
