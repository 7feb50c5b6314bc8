"""LAMB against a float64 twin written tensor by tensor, what its ratio does, and its place in a run."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from limbeck.config import OptimizerOptions
from limbeck.engine.lamb import LAMB
from limbeck.engine.optimizer import build_optimizer

RATE, BETAS, EPS = 0.02, (0.9, 0.99), 1e-6


def network(dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).to(dtype)
    with torch.no_grad():
        net[2].bias.zero_()  # a tensor of length 0 begins with a ratio of 1
    return net


def gradients(net: nn.Module, step: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    shapes = [parameter.shape for parameter in net.parameters()]
    return [torch.randn(shape, generator=generator, dtype=torch.float64) * 10.0 ** (step % 3) for shape in shapes]


def length(values: torch.Tensor) -> float:
    return math.sqrt(sum(value * value for value in values.flatten().tolist()))


class Twin:
    """Algorithm 2 for one tensor, in float64."""

    def __init__(self, weights: torch.Tensor, decay: float) -> None:
        self.weights, self.decay, self.count = weights.detach().double().clone(), decay, 0
        self.mean, self.square = torch.zeros_like(self.weights), torch.zeros_like(self.weights)

    def step(self, gradient: torch.Tensor, rate: float) -> None:
        self.count += 1
        self.mean = BETAS[0] * self.mean + (1 - BETAS[0]) * gradient
        self.square = BETAS[1] * self.square + (1 - BETAS[1]) * gradient * gradient
        mean, square = self.mean / (1 - BETAS[0] ** self.count), self.square / (1 - BETAS[1] ** self.count)
        update = mean / (square.sqrt() + EPS) + self.decay * self.weights
        own, far = length(self.weights), length(update)
        ratio = own / far if self.decay and own and far else 1.0
        self.weights = self.weights - rate * ratio * update


def train(optimizer: torch.optim.Optimizer, net: nn.Module, steps: range, twins: list[Twin] | None = None) -> None:
    for step in steps:
        optimizer.param_groups[0]["lr"] = RATE / step  # as a schedule does
        for parameter, gradient in zip(net.parameters(), gradients(net, step), strict=True):
            parameter.grad = gradient.to(parameter.dtype)
        optimizer.step()
        for twin, gradient in zip(twins or [], gradients(net, step), strict=bool(twins)):
            twin.step(gradient, RATE / step)


@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
def test_lamb_equals_the_twin_of_its_algorithm(decay, dtype, tolerance):
    net = network(dtype)
    twins = [Twin(parameter, decay) for parameter in net.parameters()]
    optimizer = LAMB(net.parameters(), lr=RATE, betas=BETAS, weight_decay=decay)
    train(optimizer, net, range(1, 8), twins)
    for parameter, twin in zip(net.parameters(), twins, strict=True):
        torch.testing.assert_close(parameter.double(), twin.weights, rtol=tolerance, atol=tolerance)


def test_step_is_as_long_as_the_rate_says_of_the_weights_whatever_the_gradients_scale():
    net = network()
    before = [parameter.detach().clone() for parameter in net.parameters()]
    optimizer = LAMB(net.parameters(), lr=0.01, weight_decay=0.1)
    for power, parameter in enumerate(net.parameters()):
        parameter.grad = torch.randn_like(parameter) * 1000.0**power
    optimizer.step()
    for old, new in list(zip(before, net.parameters(), strict=True))[:3]:  # the last one has length 0
        assert length(new - old) == pytest.approx(0.01 * length(old))


def test_norms_and_biases_without_decay_take_adams_step():
    net, theirs = network(), network()
    options = OptimizerOptions(name="lamb", learning_rate=0.01, weight_decay=0.2, decay_norms_and_biases=False)
    ours, adam = build_optimizer(net, options), torch.optim.Adam(theirs.parameters(), lr=0.01, eps=EPS)
    for step in range(1, 4):
        for model in (net, theirs):
            for parameter, gradient in zip(model.parameters(), gradients(model, step), strict=True):
                parameter.grad = gradient
        ours.step()
        adam.step()
    for name, parameter in net.named_parameters():
        same = torch.allclose(parameter, theirs.get_parameter(name), rtol=1e-9, atol=1e-12)
        assert same == name.endswith("bias"), name


def test_a_parameter_without_a_gradient_stays():
    net = network()
    first, *others = net.parameters()
    before = first.detach().clone()
    for parameter in others:
        parameter.grad = torch.ones_like(parameter)
    LAMB(net.parameters(), lr=0.1, weight_decay=0.1).step()
    assert torch.equal(first, before)


def test_resumed_from_its_state_goes_on_as_if_unbroken(tmp_path):
    whole, broken = network(), network()
    options = {"lr": RATE, "betas": BETAS, "weight_decay": 0.1}
    train(LAMB(whole.parameters(), **options), whole, range(1, 7))
    first = LAMB(broken.parameters(), **options)
    train(first, broken, range(1, 4))
    torch.save(first.state_dict(), tmp_path / "state.pt")
    again = copy.deepcopy(broken)
    second = LAMB(again.parameters(), **options)
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    train(second, again, range(4, 7))
    for parameter, expected in zip(again.parameters(), whole.parameters(), strict=True):
        assert torch.equal(parameter, expected)


def test_options_reach_lamb():
    optimizer = build_optimizer(network(), OptimizerOptions(name="lamb", momentum=0.8, beta2=0.95, weight_decay=0.02))
    assert isinstance(optimizer, LAMB)
    (group,) = optimizer.param_groups
    assert (group["betas"], group["weight_decay"], group["eps"]) == ((0.8, 0.95), 0.02, 1e-6)
