"""Small networks on digits to attack, and AutoAttack with fewer steps, so that tests stay quick."""

from __future__ import annotations

from functools import cache

import pyautoattack
import torch
from torch import nn

from limbeck.adversary import cross_entropy, pgd
from limbeck.data import digits


@cache
def _trained() -> dict[str, torch.Tensor]:
    images, labels = samples(1000)
    model = untrained()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    for epoch in range(6):
        for indices in torch.arange(1000).split(50):
            climb = cross_entropy(labels[indices])
            attacked = pgd(model, images[indices], climb, epsilon=0.1, steps=1, step_size=0.1, epoch=epoch)
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(attacked), labels[indices]).backward()
            optimizer.step()
    return {name: value.clone() for name, value in model.state_dict().items()}


def untrained(classes: int = 10) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(256, classes),
        )


def network() -> nn.Sequential:
    """A convolution, a norm and a linear layer, trained on digits against one step of .1, in evaluation mode."""
    model = untrained()
    model.load_state_dict(_trained())
    return model.eval()


@cache
def _digits() -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = digits.load()
    return images.float() / 16, labels


def samples(count: int, first: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Digits in [0, 1] and their labels; the network was trained on the first 1000."""
    images, labels = _digits()
    return images[first : first + count], labels[first : first + count]


class Rounded(nn.Module):
    """Quantises its input to 8 levels, so that no gradient passes: the simplest masked-gradient defence."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        return self.model((images * 8).round() / 8)


class Scaled(nn.Module):
    """Saturates the softmax, so that the cross-entropy has no gradient."""

    def __init__(self, model, factor):
        super().__init__()
        self.model, self.factor = model, factor

    def forward(self, images):
        return self.factor * self.model(images)


class QuickAutoAttack(pyautoattack.AutoAttack):
    """The same attacks with few steps."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.apgd.n_iter = self.apgd_targeted.n_iter = self.fab.n_iter = 4
        self.square.n_queries = 100
