"""BatchNorm of parts of a batch, and what can be put in the place of which BatchNorm."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from limbeck.models.batch_norm import GhostBatchNorm, synchronise, use_ghost_batches


def brute(images: torch.Tensor, part: int, eps: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Each part's normalised images; the parts' mean of means, and of unbiased variances; in float64."""
    outputs, means, variances = [], [], []
    for start in range(0, len(images), part):
        piece = images[start : start + part].double()
        mean, biased = piece.mean((0, 2, 3)), piece.var((0, 2, 3), unbiased=False)
        outputs.append((piece - mean.view(-1, 1, 1)) / (biased + eps).sqrt().view(-1, 1, 1))
        means.append(mean)
        variances.append(piece.var((0, 2, 3)))
    return torch.cat(outputs), torch.stack(means).mean(0), torch.stack(variances).mean(0)


def test_a_ghost_batch_is_normalised_on_its_own():
    torch.manual_seed(0)
    images = 3 * torch.randn(10, 4, 5, 5) + torch.arange(10).view(-1, 1, 1, 1)
    norm = GhostBatchNorm(4, part=4)
    expected, mean, variance = brute(images, 4, norm.eps)
    torch.testing.assert_close(norm(images).double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(norm.running_mean.double(), 0.1 * mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(norm.running_var.double(), 0.9 + 0.1 * variance, rtol=1e-5, atol=1e-6)


def test_a_ghost_batch_of_the_whole_batch_is_batch_norm_with_its_gradient():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 2))
    other = use_ghost_batches(copy.deepcopy(network), 8)
    images = torch.randn(8, 3, 5, 5)
    for model in (network, other):
        model(images).square().sum().backward()
    for (name, ours), theirs in zip(other.named_parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, msg=name)
    for (name, ours), theirs in zip(other.state_dict().items(), network.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, theirs, msg=name)


def test_evaluation_does_not_see_parts():
    network = nn.BatchNorm2d(3)
    network(torch.randn(16, 3, 4, 4))
    images = torch.randn(7, 3, 4, 4)
    ghost = use_ghost_batches(copy.deepcopy(network), 2)
    assert torch.equal(ghost.eval()(images), network.eval()(images))


def test_a_batch_norm_that_does_more_is_refused_before_anything_is_replaced():
    class WithActivation(nn.BatchNorm2d):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return super().forward(input).relu()

    network = nn.Sequential(nn.BatchNorm2d(3), WithActivation(3))
    with pytest.raises(ValueError, match="got WithActivation; leave"):
        use_ghost_batches(network, 2)
    assert type(network[0]) is nn.BatchNorm2d


def test_to_synchronise_needs_ranks():
    with pytest.raises(RuntimeError, match=r"torch\.distributed"):
        synchronise(nn.BatchNorm2d(3))
