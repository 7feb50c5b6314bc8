"""What an attack climbs: functions from the logits of a point to one value per sample."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from limbeck.adversary.modes import BatchNormMode, Model, attack_mode

AttackLoss = Callable[[Tensor], Tensor]  # (N, C) -> (N,), or a sum over the samples


def cross_entropy(labels: Tensor) -> AttackLoss:
    """Build the loss of PGD: cross-entropy with the labels.

    Args:
        labels: Integers `(N,)`, or soft labels, floating `(N, C)`.

    Returns:
        A function from logits `(N, C)` to nats `(N,)`. It raises ValueError where a label is not a class.

    Raises:
        TypeError: `labels` is neither integer nor floating.

    Example:
        >>> cross_entropy(torch.tensor([1]))(torch.zeros(1, 2))
        tensor([0.6931])
    """
    _check_dtype(labels)

    def climb(logits: Tensor) -> Tensor:
        logits = _at_least_float32(logits)
        if labels.is_floating_point() and labels.shape != logits.shape:
            raise ValueError(f"soft `labels` expected shape {tuple(logits.shape)}, got {tuple(labels.shape)}")
        target = labels if labels.is_floating_point() else _classes(labels, logits)
        return torch.nn.functional.cross_entropy(logits, target, reduction="none")

    return climb


def margin(labels: Tensor) -> AttackLoss:
    r"""Build the loss of Carlini and Wagner's attack: by how much the best wrong class beats the label.

    .. math:: \max_{k \ne y} z_k - z_y

    Args:
        labels: Integers `(N,)`.

    Returns:
        A function from logits `(N, C)` with at least 2 classes to `(N,)`; positive where the sample is misclassified.
        It raises ValueError where a label is not a class.

    Raises:
        TypeError: `labels` is not integer.

    Example:
        >>> margin(torch.tensor([0]))(torch.tensor([[3.0, 1.0, 2.0]]))
        tensor([-1.])

    Reference:
        Carlini, Wagner, "Towards Evaluating the Robustness of Neural Networks", arXiv 1608.04644, function f6 without
        its bound at 0.
    """
    _check_dtype(labels)
    if labels.is_floating_point():
        raise TypeError(f"`labels` expected integers (N,), got {labels.dtype}; of soft labels take `argmax(-1)`")

    def climb(logits: Tensor) -> Tensor:
        if logits.shape[-1] < 2:
            raise ValueError(f"`logits` expected at least 2 classes for a margin, got {logits.shape[-1]}")
        logits = _at_least_float32(logits)
        classes = _classes(labels, logits).unsqueeze(-1)
        wrong = logits.scatter(-1, classes, -torch.inf).max(-1).values
        return wrong - logits.gather(-1, classes).squeeze(-1)

    return climb


@dataclass(frozen=True, eq=False)
class ToClean:
    """The loss of TRADES' attack: how far the logits of a point are from the clean image's.

    It is 0 at the image, and its gradient there is rounding noise: `pgd` refuses it with `start="none"`.

    Args:
        divergence: Function of logits and clean logits, both `(N, C)`, to `(N,)` or to a sum over the samples.
        clean_logits: What `clean_logits` returned, `(N, C)`.

    Example:
        >>> squares = ToClean(lambda logits, clean: (logits - clean).square().sum(-1), torch.zeros(1, 2))
        >>> squares(torch.tensor([[3.0, 4.0]]))
        tensor([25.])

    Reference:
        Zhang et al., "Theoretically Principled Trade-off between Robustness and Accuracy", arXiv 1901.08573,
        algorithm 1.
    """

    divergence: Callable[[Tensor, Tensor], Tensor]
    clean_logits: Tensor

    def __call__(self, logits: Tensor) -> Tensor:
        """Return the divergence of logits `(N, C)` from the clean ones."""
        return self.divergence(logits, self.clean_logits)


def clean_logits(model: Model, images: Tensor, bn_mode: BatchNormMode = "eval") -> Tensor:
    """Return the logits of the images themselves, as the attack's own forwards see them.

    They are computed once for all steps of an attack, without a graph.

    Args:
        model: From images to logits.
        images: `(N, ...)`.
        bn_mode: That of the attack.

    Returns:
        `(N, C)`, without a graph.

    Raises:
        ValueError: Unknown `bn_mode`.

    Example:
        >>> clean_logits(torch.nn.Linear(4, 3), torch.rand(2, 4)).requires_grad
        False
    """
    with attack_mode(model, bn_mode), torch.no_grad():
        logits = model(images)
    # Older releases of torch keep the copies that autocast makes of the weights here, without a graph, for the training
    # forward in the same region: the weights would then receive no gradient.
    torch.clear_autocast_cache()
    return logits


def _check_dtype(labels: Tensor) -> None:
    if labels.dtype == torch.bool or labels.is_complex():
        raise TypeError(f"`labels` expected integers (N,) or soft labels (N, C), got {labels.dtype}")


def _classes(labels: Tensor, logits: Tensor) -> Tensor:
    """Return labels as int64 after a look at their shape and values: on the CPU, else asserted on the device."""
    if labels.shape != logits.shape[:-1]:
        raise ValueError(f"`labels` expected shape {tuple(logits.shape[:-1])}, got {tuple(labels.shape)}")
    num_classes = logits.shape[-1]
    inside = ((labels >= 0) & (labels < num_classes)).all()
    if labels.device.type != "cpu":
        torch._assert_async(inside, f"`labels` expected values in [0, {num_classes - 1}]")
    elif not inside:
        low, high = (int(bound) for bound in labels.aminmax())
        raise ValueError(f"`labels` expected values in [0, {num_classes - 1}], got {low} to {high}")
    return labels.long()


def _at_least_float32(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
