"""One step of adversarial training is the papers' formulas, and costs the fewest passes through the network."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from adversarial_reference import Settings, Step
from torch import Tensor, nn

from limbeck.adversary import start_points
from limbeck.config import TERMS, AdversaryOptions
from limbeck.data import Batch
from limbeck.losses import ClassPrior
from limbeck.objectives.adversarial import OTHER_DRAWS, Adversarial, AttackedBatch
from limbeck.objectives.build import Facts

SAMPLES, SIDE, SEED = 12, 6, 3
BETA = Settings.beta
CLASS_WISE = {
    "mse_weight": Settings.mse_weight,
    "ce_weight": Settings.ce_weight,
    "prior_temperature": Settings.prior_temperature,
}
METHODS: dict[str, list[dict[str, Any]]] = {
    "pgd": [{"name": "cross_entropy", "on": "adversarial"}],
    "trades": [{"name": "cross_entropy"}, {"name": "kl", "weight": BETA}],
    "mart": [{"name": "mart", "kl_weight": BETA}],
    "lbgat": [
        {"name": "cross_entropy", "on": "guide"},
        {"name": "logit_mse", "on": "guide"},
        {"name": "kl", "weight": BETA},
    ],
    "dkl": [
        {"name": "cross_entropy"},
        {"name": "dkl", "mse_weight": Settings.mse_weight, "ce_weight": Settings.ce_weight},
    ],
    "ikl": [{"name": "cross_entropy"}, {"name": "ikl", **CLASS_WISE}],
    "gkl": [{"name": "cross_entropy"}, {"name": "gkl", **CLASS_WISE, "weight_power": Settings.weight_power}],
}


class Counted(nn.Conv2d):
    """A convolution that counts its passes, in batches of `SAMPLES` images: forward, gradient of input, of weight.

    A backward pass that is asked for the gradient of the images alone makes no gradient of a weight, and no hook runs.
    """

    passes = 0.0

    def forward(self, images: Tensor) -> Tensor:
        self.count(images)
        weight = self.weight
        if torch.is_grad_enabled():
            weight, images = weight.view_as(weight), images.view_as(images)  # of this pass alone
            for tensor in (weight, images):
                tensor.register_hook(lambda _: self.count(images))
        return self._conv_forward(images, weight, self.bias)

    def count(self, images: Tensor) -> None:
        self.passes += len(images) / SAMPLES


def network(classes: int, seed: int) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = nn.Sequential(
            nn.Conv2d(2, 6, 3, padding=1),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            Counted(6, 8, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(8 * (SIDE // 2) ** 2, classes),
        )
    return layers.double()


def batches(classes: int, count: int, *, second: bool = False) -> list[Batch]:
    generator = torch.Generator().manual_seed(SEED)
    views = torch.rand(2, count, SAMPLES, 2, SIDE, SIDE, generator=generator, dtype=torch.float64)
    labels = torch.randint(classes, (count, SAMPLES), generator=generator)
    return [
        Batch(views[0, i], labels[i], torch.arange(SAMPLES) + i * SAMPLES, i, (views[1, i],) if second else ())
        for i in range(count)
    ]


class Run:
    """An objective and its optimizer, driven as the engine drives them, and the reference beside it."""

    def __init__(self, method: str, classes: int, *, attack: str = "auto", **settings: Any) -> None:
        s = Settings(**settings)
        self.start = "uniform" if method == "pgd" else "gaussian"
        options = AdversaryOptions(
            epsilon=s.epsilon, steps=s.steps, start=self.start, loss=attack, awp=s.awp,
            second_view_weight=s.second_view_weight,
        )  # fmt: skip
        terms = [TERMS[term["name"]].model_validate(term) for term in METHODS[method]]
        guide = network(classes, seed=1) if method == "lbgat" else None
        self.reference = Step(method, network(classes, seed=0), s, classes, copy.deepcopy(guide))
        self.objective = Adversarial(
            network(classes, seed=0), terms, options, epochs=4, facts=Facts(classes, seed=SEED), guide=guide
        )
        for module in self.objective.modules():
            if isinstance(module, ClassPrior):
                module.prior = module.prior.new_full(module.prior.shape, 1 / classes, dtype=torch.float64)
        self.optimizer = torch.optim.SGD(
            self.objective.parameters(), lr=s.learning_rate, momentum=s.momentum, weight_decay=s.weight_decay
        )

    def step(self, batch: Batch) -> AttackedBatch:
        attacked = self.objective.prepare(batch)

        def accumulate_gradient() -> Any:
            outcome = self.objective(attacked)
            outcome.loss.backward()
            return outcome

        with self.objective.around_step(accumulate_gradient):
            self.optimizer.zero_grad()
            outcome = accumulate_gradient()
            self.optimizer.step()
        self.objective.after_step(attacked, outcome)
        return attacked

    def both(self, batch: Batch) -> None:
        """Take a step on both sides and compare them."""
        views = [(batch.images, batch.indices)]
        views += [(second, batch.indices + OTHER_DRAWS) for second in batch.views]
        images, indices = (torch.cat(parts) for parts in zip(*views, strict=True))
        where = {"epsilon": self.reference.settings.epsilon, "norm": "linf", "seed": SEED, "epoch": 1}
        start = start_points(images, self.start, **where, indices=indices)
        start = start.clamp(0, 1) if self.start == "uniform" else start
        expected = self.reference(images, batch.labels, start, views=len(views))
        assert torch.equal(self.step(batch).adversarial, expected)
        self.compare()

    def compare(self) -> None:
        pairs = [(self.objective.student, self.reference.model), (self.objective.guide, self.reference.guide)]
        for ours, theirs in pairs:
            state = {} if theirs is None else theirs.state_dict()
            for name, value in state.items():
                assert (ours.state_dict()[name] - value).abs().max() < 1e-12, name
        prior = self.objective.class_prior()
        if prior is not None:
            assert (prior - self.reference.prior).abs().max() < 1e-12

    def passes(self) -> float:
        networks = [self.objective.student, self.objective.guide]
        return sum(each.passes for net in networks if net is not None for each in net if isinstance(each, Counted))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("steps", [1, 3, 5])
@pytest.mark.parametrize("awp", [0.0, 0.005])
@pytest.mark.parametrize("classes", [10, 100])
def test_a_step_equals_the_papers_formulas(method: str, steps: int, awp: float, classes: int) -> None:
    """Adversarial images are identical; weights and BatchNorm's buffers agree to 1e-12."""
    Run(method, classes, steps=steps, awp=awp).both(batches(classes, 1)[0])


@pytest.mark.parametrize("method", METHODS)
def test_steps_and_a_refresh_of_the_class_prior_equal_the_papers_formulas(method: str) -> None:
    run = Run(method, 10, awp=0.005)
    for number, batch in enumerate(batches(10, 5)):
        run.both(batch)
        if number % 2:
            run.objective.refresh()
            run.reference.refresh()
            run.compare()


@pytest.mark.parametrize("awp", [0.0, 0.005])
def test_an_attack_that_climbs_both_parts_reads_the_class_prior(awp: float) -> None:
    run = Run("gkl", 10, attack="gkl", both_parts=True, awp=awp)
    for batch in batches(10, 3):
        run.both(batch)
        run.objective.refresh()
        run.reference.refresh()


@pytest.mark.parametrize("method", ["trades", "dkl", "ikl", "gkl"])
@pytest.mark.parametrize("awp", [0.0, 0.005])
def test_a_second_view_has_a_factor_but_not_in_the_perturbation(method: str, awp: float) -> None:
    run = Run(method, 10, awp=awp, second_view_weight=0.3)
    for batch in batches(10, 2, second=True):
        run.both(batch)


def test_the_copys_learning_rate_cancels() -> None:
    """So a perturbation needs no copy: twice the rate, the same weights."""
    for rate in (0.01, 0.1, 1.0):
        Run("gkl", 10, awp=0.005, proxy_learning_rate=rate).both(batches(10, 1)[0])


PASSES = {  # of k steps of the attack, without and with weight perturbation: forward, input's and weights' gradients
    "pgd": lambda k: (2 * k + 3, 2 * k + 6),
    "mart": lambda k: (2 * k + 6, 2 * k + 12),
    "trades": lambda k: (2 * k + 7, 2 * k + 13),
    "dkl": lambda k: (2 * k + 7, 2 * k + 13),
    "ikl": lambda k: (2 * k + 7, 2 * k + 13),
    "gkl": lambda k: (2 * k + 7, 2 * k + 13),
    "lbgat": lambda k: (2 * k + 10, 2 * k + 19),  # 3 or 6 of them are the guide's, which is a smaller network
}


@pytest.mark.parametrize("method", PASSES)
@pytest.mark.parametrize("steps", [1, 5, 10])
def test_a_step_makes_the_fewest_passes_that_its_formulas_allow(method: str, steps: int) -> None:
    """Of the published form's 3k + 6, or 3k + 12, the k clean forwards of the attack are one."""
    for awp, expected in zip((0.0, 0.005), PASSES[method](steps), strict=True):
        run = Run(method, 10, steps=steps, awp=awp)
        run.step(batches(10, 1)[0])
        assert run.passes() == expected


@pytest.mark.parametrize("awp", [0.0, 0.005])
def test_a_second_view_doubles_the_passes(awp: float) -> None:
    run = Run("gkl", 10, steps=5, awp=awp)
    run.step(batches(10, 1, second=True)[0])
    assert run.passes() == 2 * PASSES["gkl"](5)[bool(awp)]
