"""Projected gradient descent: the inner attack of training, PGD-k and CW-k of an evaluation, all by one loop."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from limbeck.adversary.attack_losses import AttackLoss, ToClean
from limbeck.adversary.balls import Norm, Start, ascend, project, start_points
from limbeck.adversary.modes import BatchNormMode, Model, attack_mode


class AttackNotFinite(ValueError):
    """The gradient of an attack is not finite."""


def pgd(
    model: Model,
    images: Tensor,
    loss: AttackLoss,
    *,
    epsilon: float,
    steps: int,
    step_size: float,
    norm: Norm = "linf",
    start: Start = "uniform",
    clip: tuple[float, float] = (0.0, 1.0),
    bn_mode: BatchNormMode = "eval",
    keep: Literal["last", "strongest"] = "last",
    seed: int = 0,
    epoch: int = 0,
    indices: Tensor | None = None,
) -> Tensor:
    r"""Climb a loss within a ball around each image: projected gradient descent.

    .. math:: x_{t+1} = \mathrm{clip}\left(\Pi_\epsilon \left(x_t + \eta \, d_t\right)\right)

    where the direction d is the sign of the gradient in Linf, the gradient over its norm in L2. Each step of the attack
    costs one forward and one backward pass to the input. The model's mode and buffers, the parameters' `.grad` and
    `requires_grad`, and every random state are what they were before.

    Args:
        model: From images to logits; a module, or any function. A module is attacked in evaluation mode. Of a
            `DistributedDataParallel` pass the `.module`: an attack needs no exchange between ranks.
        images: `(N, ...)`, floating, within `clip`.
        loss: What the attack climbs: from logits `(N, C)` to `(N,)`, or to a sum over the samples; `cross_entropy`,
            `margin`, `ToClean` or a function of one's own.
        epsilon: Radius of the ball, in units of the pixels.
        steps: How many, at least 1.
        step_size: Length of a step in the norm, in units of the pixels.
        norm: "linf" or "l2".
        start: "none", the image; "uniform", anywhere in the ball, then clipped; "gaussian", the image plus
            .001 · N(0, 1), neither projected nor clipped.
        clip: Least and greatest value of a pixel; infinities leave one side open.
        bn_mode: BatchNorm in the attack: "eval", running statistics; "batch", the batch's own, not tracked.
        keep: "last", the point after the last step; "strongest", of each sample the point where the loss was largest,
            for one more forward. The start counts as one of the points, except the Gaussian one.
        seed: Seed of the start.
        epoch: Epoch, or any other counter that the start depends on.
        indices: Which samples these are, int64 `(N,)`; 0 to N - 1 if left out. A sample's start depends on its index,
            not on its batch.

    Returns:
        Adversarial images, `(N, ...)` in the images' dtype and memory format, without a graph.

    Raises:
        TypeError: `images` is no floating tensor, a number is none, or `indices` is not int64 of one dimension.
        ValueError: An option or a pixel is out of range (pixels on the CPU; on an accelerator the device asserts); not
            one index per image; a loss of the clean logits with `start="none"`; no gradient reaches the images.
        AttackNotFinite: The gradient is not finite (on the CPU, likewise).

    Gradient:
        None: the result is detached.

    Example:
        >>> from limbeck.adversary import cross_entropy
        >>> model = torch.nn.Linear(4, 3)
        >>> images, labels = torch.full((2, 4), 0.5), torch.tensor([0, 2])
        >>> attacked = pgd(model, images, cross_entropy(labels), epsilon=0.1, steps=3, step_size=0.05)
        >>> bool((attacked - images).abs().max() <= 0.1 + 1e-6)
        True

    Reference:
        Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks", arXiv 1706.06083, section 2.1.
    """
    _check_options(loss, start, keep, epsilon=epsilon, steps=steps, step_size=step_size)
    _check_images(images, clip)
    images = images.detach()
    indices = torch.arange(len(images), device=images.device) if indices is None else indices.to(images.device)
    points = start_points(images, start, epsilon=epsilon, norm=norm, seed=seed, epoch=epoch, indices=indices)
    if start == "uniform":
        points = points.clamp(*clip)
    strongest = _Strongest(points) if keep == "strongest" else None
    with attack_mode(model, bn_mode), torch.enable_grad():
        for step in range(steps):
            values, gradient = _climb(model, points, loss)
            if strongest is not None and (step > 0 or start != "gaussian"):
                strongest.see(points, values)
            points = project(ascend(points, gradient, step_size, norm), images, epsilon, norm).clamp(*clip)
        if strongest is not None:
            with torch.no_grad():
                strongest.see(points, loss(model(points)))
            points = strongest.points
    return points


def _climb(model: Model, points: Tensor, loss: AttackLoss) -> tuple[Tensor, Tensor]:
    """Return the loss at some points, without a graph, and its gradient there."""
    points = points.detach().requires_grad_()
    values = loss(model(points))
    # Of the points alone: no gradient of a weight is computed, and no `.grad` is written.
    gradient = torch.autograd.grad(values.sum(), points, allow_unused=True)[0] if values.requires_grad else None
    if gradient is None:
        raise ValueError(
            "`loss` of `model` expected a gradient to the images, got none; look for `detach`, `no_grad` or `argmax` "
            "on the way, and leave `torch.inference_mode`"
        )
    finite = gradient.isfinite().all()
    if gradient.device.type != "cpu":
        torch._assert_async(finite, "the gradient of the attack is not finite")
    elif not finite:
        raise AttackNotFinite("the gradient of `loss` expected finite numbers, got NaN or infinity; look at the logits")
    return values.detach(), gradient


class _Strongest:
    """Of each sample the point where the loss was largest so far; of equals the first."""

    def __init__(self, points: Tensor) -> None:
        self.points = points
        self.values = torch.full((len(points),), -torch.inf, device=points.device)

    def see(self, points: Tensor, values: Tensor) -> None:
        """Take in one more point of each sample and its loss, `(N,)`."""
        if values.shape != self.values.shape:
            raise ValueError(
                f'`loss` expected one value per sample, shape ({len(points)},), with `keep="strongest"`, got '
                f"{tuple(values.shape)}"
            )
        larger = values > self.values
        self.points = torch.where(larger.view(-1, *[1] * (points.dim() - 1)), points, self.points)
        self.values = torch.where(larger, values, self.values)


def _check_options(loss: AttackLoss, start: str, keep: str, *, epsilon: float, steps: int, step_size: float) -> None:
    for name, value in (("epsilon", epsilon), ("step_size", step_size)):
        if not isinstance(value, (int, float)):
            raise TypeError(f"`{name}` expected a number above 0, got {value!r}")
        if not 0 < value < math.inf:
            raise ValueError(f"`{name}` expected a finite number above 0, got {value}")
    if not isinstance(steps, int):
        raise TypeError(f"`steps` expected an integer, got {steps!r}")
    if steps < 1:
        raise ValueError(f"`steps` expected at least 1, got {steps}")
    if keep not in ("last", "strongest"):
        raise ValueError(f"`keep` expected 'last' or 'strongest', got {keep!r}")
    if start == "none" and isinstance(loss, ToClean):
        raise ValueError(
            "`start` expected 'gaussian' or 'uniform' with a loss that leaves the clean logits, got 'none': at the "
            "image itself its gradient is rounding noise"
        )


def _check_images(images: Tensor, clip: tuple[float, float]) -> None:
    if not isinstance(images, Tensor) or not images.is_floating_point():
        got = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise TypeError(f"`images` expected a floating tensor (N, ...), got {got}")
    if images.dim() < 2 or images.numel() == 0:
        raise ValueError(f"`images` expected a non-empty shape (N, ...), got {tuple(images.shape)}")
    low, high = clip
    if not low < high:
        raise ValueError(f"`clip` expected the least and the greatest value of a pixel, got {clip}")
    if images.device.type != "cpu":
        inside = ((images >= low) & (images <= high)).all()
        torch._assert_async(inside, f"`images` expected values in [{low:g}, {high:g}]")
        return
    least, greatest = (float(bound) for bound in images.detach().aminmax())
    if not (low <= least and greatest <= high):
        raise ValueError(
            f"`images` expected values in [{low:g}, {high:g}], got {least:g} to {greatest:g}; standardise inside the "
            "model, or give the range of the pixels as `clip`"
        )
