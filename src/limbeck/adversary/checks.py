"""What an evaluation looks at before it starts, and the signs that its figures cannot be trusted."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from limbeck.adversary.attack_losses import cross_entropy
from limbeck.adversary.modes import Model

SAME_OUTPUT = 1e-4  # two outputs differ by more than this, of the largest: random
SQUARE_GAIN = 0.002  # AutoAttack's own threshold: Square breaks so many more than the attacks that see gradients


def check_inputs(images: Tensor, labels: Tensor, epsilons: Sequence[float], norm: str) -> None:
    """Refuse what no evaluation can use, before any network is called.

    Args:
        images: `(N, C, H, W)`, floating, in [0, 1].
        labels: int64 `(N,)`.
        epsilons: Radii, in units of the pixels.
        norm: "linf" or "l2".

    Raises:
        TypeError: `images` are not floating or `labels` not integers.
        ValueError: A shape or a value is out of range, or there is nothing to attack.

    Example:
        >>> check_inputs(torch.zeros(2, 1, 8, 8), torch.tensor([0, 1]), [0.1], "linf")
    """
    if not images.is_floating_point():
        raise TypeError(f"`images` expected floating pixels in [0, 1], got {images.dtype}; divide bytes by 255")
    if images.dim() != 4:
        raise ValueError(f"`images` expected shape (N, C, H, W), got {tuple(images.shape)}")
    if not len(images):
        raise ValueError("`images` expected at least one sample, got none")
    if labels.dtype != torch.int64:
        raise TypeError(f"`labels` expected int64 class numbers, got {labels.dtype}")
    if labels.shape != images.shape[:1]:
        raise ValueError(f"`labels` expected shape ({len(images)},), got {tuple(labels.shape)}")
    low, high = (bound.item() for bound in images.aminmax())
    if not (low >= 0 and high <= 1):  # NaN too
        raise ValueError(
            f"`images` expected pixels in [0, 1], got {low:.4g} to {high:.4g}; move the normalisation into the network"
        )
    if not epsilons:
        raise ValueError("`epsilons` expected at least one radius, got none")
    for epsilon in epsilons:
        if not (0 < epsilon < math.inf):
            raise ValueError(f"`epsilons` expected numbers above 0, got {epsilon}")
    if norm not in ("linf", "l2"):
        raise ValueError(f"`norm` expected 'linf' or 'l2', got {norm!r}")


def check_logits(logits: Tensor, labels: Tensor) -> None:
    """Refuse outputs of a network that cannot be its logits for some labels.

    Args:
        logits: What the network returned for all images.
        labels: int64 `(N,)`.

    Raises:
        ValueError: `logits` are not `(N, C)` with at least two classes, not finite, or a label is not a class.

    Example:
        >>> check_logits(torch.zeros(2, 10), torch.tensor([0, 9]))
    """
    if logits.dim() != 2 or len(logits) != len(labels) or logits.shape[1] < 2:
        raise ValueError(
            f"`model` expected logits ({len(labels)}, C) with at least 2 classes, got shape {tuple(logits.shape)}"
        )
    if not logits.isfinite().all():
        raise ValueError("`model` expected finite logits, got NaN or infinity")
    low, high = (int(bound) for bound in labels.aminmax())
    if low < 0 or high >= logits.shape[1]:
        raise ValueError(
            f"`labels` expected values from 0 to {logits.shape[1] - 1}, as the network has {logits.shape[1]} outputs, "
            f"got {low if low < 0 else high}"
        )


def network_warnings(network: Model, images: Tensor, labels: Tensor) -> list[str]:
    """Return what is wrong with a network for attacks by gradient, in sentences; nothing for most networks.

    Three signs: outputs that are probabilities, two forward passes that differ, and gradients of the cross-entropy
    that are exactly zero. It costs two forward passes and a backward pass.

    Args:
        network: From images to logits, in evaluation mode.
        images: `(N, ...)`, some of those that will be attacked.
        labels: int64 `(N,)`.

    Returns:
        Sentences, one per sign.

    Raises:
        ValueError: The logits carry no gradient to the images at all.

    Example:
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3), torch.nn.Softmax(-1))
        >>> network_warnings(network, torch.rand(8, 1, 2, 2), torch.zeros(8, dtype=torch.int64))[0][:46]
        'the outputs look like probabilities, not logit'
    """
    images = images.detach().requires_grad_()
    with torch.enable_grad():
        logits = network(images)
        if not logits.requires_grad:
            raise ValueError(
                "`model` expected logits that carry a gradient to the images, got none (a `detach`, `argmax` or "
                "`no_grad` inside?)"
            )
        # No path to the images, as behind a look-up, is a gradient of zero.
        (gradient,) = torch.autograd.grad(cross_entropy(labels)(logits).sum(), images, allow_unused=True)
    logits = logits.detach()
    with torch.no_grad():
        again = network(images.detach())
    signs = []
    if (logits >= 0).all() and (logits <= 1).all() and ((logits.sum(-1) - 1).abs() < 1e-4).all():
        signs.append("the outputs look like probabilities, not logits: attacks saturate on them; remove the softmax")
    if ((logits - again).abs().max() > SAME_OUTPUT * logits.abs().max()).item():
        signs.append(
            "two forward passes differ: the network is random in evaluation mode, and attacks have to average over "
            "its randomness (EOT), which these do not"
        )
    zeros = len(images) if gradient is None else int((gradient.flatten(1) == 0).all(1).sum())
    if zeros:
        signs.append(
            f"the gradient of the cross-entropy is zero on {zeros} of {len(images)} images: saturated, quantised or "
            "masked outputs hide it from PGD; look at the margin attacks (cw20) and at AutoAttack's Square"
        )
    return signs


def square_warning(robust: Mapping[str, float], epsilon: float) -> str | None:
    """Return a sentence if Square, which sees no gradient, breaks what the attacks by gradient did not.

    Args:
        robust: Attack of AutoAttack -> accuracy after it, in order.
        epsilon: Radius, for the sentence.

    Returns:
        The sentence, or None where there is no such sign.

    Raises:
        Nothing.

    Example:
        >>> square_warning({"clean": 0.9, "apgd-ce": 0.9, "square": 0.4}, 0.1)[:56]
        'at epsilon 0.1 Square breaks 50.0 % of the images more t'
    """
    gain = min(accuracy for attack, accuracy in robust.items() if attack != "square") - robust["square"]
    if gain <= SQUARE_GAIN:
        return None
    return (
        f"at epsilon {epsilon:g} Square breaks {100 * gain:.1f} % of the images more than the attacks by gradient: "
        "gradients are masked, and a stronger or adaptive attack may break still more"
    )
