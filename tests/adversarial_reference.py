"""One step of adversarial training in plain float64, from the formulas of the papers; the package has no part in it.

Nothing is clever here: the clean images pass through the network at each step of the attack, all pairs of classes are
written out, adversarial weight perturbation trains a copy of the network, and SGD is its two lines.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

import torch
import twins
from torch import Tensor, nn

Logits = tuple[Tensor, Tensor, Tensor]  # adversarial, clean, and clean of LBGAT's second network


def one_hot(labels: Tensor, classes: int) -> Tensor:
    return (labels.unsqueeze(1) == torch.arange(classes)).double()


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return -(one_hot(labels, logits.shape[1]) * twins.softmax(logits).log()).sum(1).mean()


def kl(logits: Tensor, target_logits: Tensor) -> Tensor:
    return twins.kl(twins.softmax(target_logits), twins.softmax(logits)).mean()


def mart(adversarial: Tensor, clean: Tensor, labels: Tensor, weight: float) -> Tensor:
    """BCE(p_adv, y) + weight * KL(p_nat || p_adv) (1 - p_nat[y])."""
    p_adv, p_nat, label = twins.softmax(adversarial), twins.softmax(clean), one_hot(labels, clean.shape[1])
    largest_wrong = torch.where(label > 0, 0.0, p_adv).max(1).values
    boosted = -(label * p_adv).sum(1).log() - (1 - largest_wrong).log()
    return (boosted + weight * twins.kl(p_nat, p_adv) * (1 - (label * p_nat).sum(1))).mean()


@dataclass
class Settings:
    """Numbers of the papers, in our names."""

    epsilon: float = 8 / 255
    steps: int = 3
    step_size: float = 2 / 255
    beta: float = 6.0  # of TRADES' and LBGAT's KL, and of MART's
    mse_weight: float = 20.0
    ce_weight: float = 5.0
    weight_power: float = 0.4  # of GKL; IKL has 1
    prior_temperature: float = 4.0
    both_parts: bool = False  # the attack climbs GKL, both factors 1, in place of its cross-entropy part
    awp: float = 0.0
    proxy_learning_rate: float = 0.01
    second_view_weight: float = 0.5
    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4


@dataclass
class Step:
    """What trains, and what one step changes."""

    method: str
    model: nn.Module
    settings: Settings
    classes: int
    guide: nn.Module | None = None
    momenta: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.prior = torch.full((self.classes, self.classes), 1 / self.classes, dtype=torch.float64)
        self.seen: list[tuple[Tensor, int]] = []

    def __call__(self, images: Tensor, labels: Tensor, start: Tensor, views: int = 1) -> Tensor:
        """Take the step, and return the adversarial images. With two views, `images` are the first and the second."""
        s, networks = self.settings, [each for each in (self.model, self.guide) if each is not None]
        adversarial = self.attack(images, labels.repeat(views), start)
        perturbation = self.perturb(adversarial, images, labels, views) if s.awp else {}
        for network in networks:
            network.zero_grad()
        logits = self.forward(networks, adversarial, images)
        self.loss(logits, labels, views, s.second_view_weight).backward()
        for number, network in enumerate(networks):
            self.sgd(network, number)
        with torch.no_grad():
            for name, delta in perturbation.items():
                self.model.get_parameter(name).sub_(delta)
        probabilities = twins.softmax(logits[1].detach()[: len(labels)], s.prior_temperature)
        self.seen += zip(probabilities, labels.tolist(), strict=True)
        return adversarial

    # --- the attack -------------------------------------------------------------------------------------------

    def attack(self, images: Tensor, labels: Tensor, start: Tensor) -> Tensor:
        """PGD: x <- clip(project(x + step * sign(gradient))), in evaluation mode."""
        s, x = self.settings, start
        self.model.eval()
        for _ in range(s.steps):
            x = x.detach().requires_grad_()
            gradient = torch.autograd.grad(self.climbed(x, images, labels), x)[0]
            x = x.detach() + s.step_size * gradient.sign()
            x = torch.max(torch.min(x, images + s.epsilon), images - s.epsilon).clamp(0, 1)
        self.model.train()
        return x

    def climbed(self, x: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        logits = self.model(x)
        if self.method in ("pgd", "mart"):
            return cross_entropy(logits, labels)
        clean = self.model(images)
        if self.settings.both_parts:
            return twins.gkl(logits, clean, self.prior[labels])
        return kl(logits, clean)

    # --- the loss ---------------------------------------------------------------------------------------------

    def forward(self, networks: list[nn.Module], adversarial: Tensor, images: Tensor) -> Logits:
        """BatchNorm's running statistics see the adversarial images first."""
        if self.method == "pgd":
            logits = networks[0](adversarial)
            return logits, logits, logits
        return networks[0](adversarial), networks[0](images), networks[-1](images) if self.guide is not None else images

    def loss(self, logits: Logits, labels: Tensor, views: int, second_view_weight: float) -> Tensor:
        """The labels' part is a mean over all views; the second view's robust part has a factor of its own."""
        adversarial, clean, guide = logits
        s, all_labels = self.settings, labels.repeat(views)
        match self.method:
            case "pgd":
                return cross_entropy(adversarial, all_labels)
            case "mart":
                return mart(adversarial, clean, all_labels, s.beta)
            case "lbgat":
                squares = (adversarial - guide).square().mean()
                return squares + cross_entropy(guide, all_labels) + s.beta * kl(adversarial, clean)
        if views == 1:
            return cross_entropy(clean, labels) + self.robust(adversarial, clean, labels)
        half = len(labels)
        first = self.robust(adversarial[:half], clean[:half], labels)
        second = self.robust(adversarial[half:], clean[half:], labels)
        return cross_entropy(clean, all_labels) + first + second_view_weight * second

    def robust(self, adversarial: Tensor, clean: Tensor, labels: Tensor) -> Tensor:
        s = self.settings
        match self.method:
            case "trades":
                return s.beta * kl(adversarial, clean)
            case "dkl":
                return twins.dkl(adversarial, clean, mse_weight=s.mse_weight, ce_weight=s.ce_weight)
            case _:
                return twins.gkl(
                    adversarial,
                    clean,
                    self.prior[labels],
                    mse_weight=s.mse_weight,
                    ce_weight=s.ce_weight,
                    weight_power=1.0 if self.method == "ikl" else s.weight_power,
                    normalizer="samples" if self.method == "ikl" else "weights",
                )

    # --- the weights ------------------------------------------------------------------------------------------

    def perturb(self, adversarial: Tensor, images: Tensor, labels: Tensor, views: int) -> dict[str, Tensor]:
        """Adversarial weight perturbation: one step of ascent on a copy, rescaled to a share of each weight's norm."""
        networks = [copy.deepcopy(each) for each in (self.model, self.guide) if each is not None]
        logits = self.forward(networks, adversarial, images)
        loss = self.loss(logits, labels.repeat(views), 1, 1.0)  # two views are one batch here
        parameters = dict(networks[0].named_parameters())
        gradients = torch.autograd.grad(loss, list(parameters.values()))
        moved = {}
        with torch.no_grad():
            for (name, weight), gradient in zip(parameters.items(), gradients, strict=True):
                if "weight" not in name or weight.dim() < 2:
                    continue
                difference = (weight + self.settings.proxy_learning_rate * gradient) - weight
                moved[name] = self.settings.awp * weight.norm() / (difference.norm() + 1e-20) * difference
                self.model.get_parameter(name).add_(moved[name])
        return moved

    def sgd(self, network: nn.Module, number: int) -> None:
        """v <- momentum v + (g + weight_decay w); w <- w - learning_rate v."""
        s = self.settings
        with torch.no_grad():
            for name, weight in network.named_parameters():
                gradient = weight.grad + s.weight_decay * weight
                velocity = s.momentum * self.momenta.get(f"{number}.{name}", 0.0) + gradient
                self.momenta[f"{number}.{name}"] = velocity
                weight -= s.learning_rate * velocity

    def refresh(self) -> None:
        """The mean prediction over each class's samples becomes its row; a class that was not seen keeps its row."""
        for label in range(self.classes):
            rows = [probabilities for probabilities, of in self.seen if of == label]
            if rows:
                self.prior[label] = torch.stack(rows).mean(0)
        self.seen = []
