"""Robust accuracy by a short attack, quick enough for every epoch. What is published is measured in `robustness.py`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from limbeck.adversary.attack_losses import cross_entropy, margin
from limbeck.adversary.modes import attack_mode
from limbeck.adversary.pgd import pgd
from limbeck.engine.metrics import ALONE, EVALUATION_BATCH

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

    from limbeck.config import AdversaryOptions
    from limbeck.data import Samples
    from limbeck.engine.ranks import Ranks

STEP_RATIO = 0.25  # of the radius: 2/255 at 8/255
SEED = 0  # the same starts each epoch, so that epochs differ by their weights alone


def robust_accuracy(model: nn.Module, source: Samples, options: AdversaryOptions, place: Ranks = ALONE) -> float:
    """Return the share of the samples that a network in eval mode gets right after an attack.

    Args:
        model: The network; its modes are as before afterwards.
        source: Images with pixels in [0, 1].
        options: `norm`, `epsilon` and `validation_attack` are read. The start is uniform, the last iterate counts.
        place: Several ranks share the batches, and all get the same share.
    """
    climb, steps = _attack(options.validation_attack)
    correct, first = [], place.rank * EVALUATION_BATCH
    with attack_mode(model, "eval"):
        for images in source.batches(EVALUATION_BATCH, place.rank, place.world):
            there = slice(first, first + len(images))
            # A user's own batches have sizes of their own, but are not shared among ranks.
            first += len(images) if place.world == 1 else place.world * EVALUATION_BATCH
            labels = source.labels[there].to(images.device)
            adversarial = pgd(
                model,
                images,
                climb(labels),
                epsilon=options.epsilon,
                steps=steps,
                step_size=STEP_RATIO * options.epsilon,
                norm=options.norm,
                seed=SEED,
                indices=torch.arange(there.start, there.stop, device=images.device),
            )
            with torch.no_grad():
                correct.append((model(adversarial).argmax(dim=1) == labels).cpu())
    return torch.cat(place.in_turns(correct)).double().mean().item()


def _attack(name: str) -> tuple[Callable[[Tensor], Callable[[Tensor], Tensor]], int]:
    """Return what an attack of a name such as pgd10 or cw10 climbs, given the labels, and its steps."""
    if name.startswith("cw"):
        return margin, int(name[2:])
    return cross_entropy, int(name[3:])
