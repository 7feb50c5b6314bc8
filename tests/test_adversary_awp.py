"""Adversarial weight perturbation: the published proxy's weights without a proxy, and no trace of it afterwards."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from limbeck.adversary import awp

LABELS = torch.arange(8) % 3
MOVED = {"0.weight", "5.weight"}


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.LayerNorm([4, 2, 2]), nn.Flatten(), nn.Linear(16, 3)
    ).double()


def images():
    return torch.rand(8, 1, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def loss(net):
    return nn.functional.cross_entropy(net(images()), LABELS)


def values(net):
    return {name: value.detach().clone() for name, value in net.state_dict().items()}


def changed(net, before):
    return {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}


def proxys(net, size, learning_rate):
    """What to add to each weight, literally: one ascent step of SGD on a copy, rescaled to the weight's norm."""
    proxy = copy.deepcopy(net)
    optimizer = torch.optim.SGD(proxy.parameters(), lr=learning_rate)
    (-loss(proxy)).backward()
    optimizer.step()
    added = {}
    for (name, weight), (_, moved) in zip(net.named_parameters(), proxy.named_parameters(), strict=True):
        if name in MOVED:
            difference = moved.detach() - weight.detach()
            added[name] = size * difference * weight.detach().norm() / (difference.norm() + 1e-20)
    return added


@pytest.mark.parametrize("learning_rate", [0.01, 1.0])
@pytest.mark.parametrize("size", [0.005, 0.1])
def test_the_weights_are_moved_as_by_the_published_proxy_whatever_its_learning_rate(size, learning_rate):
    net = network()
    before, added = values(net), proxys(net, size, learning_rate)
    with awp(net, lambda: loss(net).backward(), size=size):
        assert changed(net, before) == MOVED
        for name in MOVED:
            moved = net.state_dict()[name] - before[name]
            torch.testing.assert_close(moved, added[name], atol=1e-12, rtol=0)
            torch.testing.assert_close(moved.norm(), size * before[name].norm())


def test_a_step_is_taken_at_the_moved_weights_and_the_perturbation_subtracted_afterwards():
    net = network()
    before = values(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.3)
    with awp(net, lambda: loss(net).backward()):
        moved = values(net)
        loss(net).backward()
        gradients = {name: weight.grad.clone() for name, weight in net.named_parameters()}
        optimizer.step()
    for name, weight in net.named_parameters():
        expected = moved[name] - 0.3 * gradients[name] - (moved[name] - before[name])
        torch.testing.assert_close(weight.detach(), expected, atol=1e-14, rtol=0)
    assert not torch.equal(gradients["0.weight"], torch.zeros_like(gradients["0.weight"]))


def in_place_of_the_data(net):
    """A step of SGD as older optimizers write it, which leaves the version of the tensors alone."""
    for weight in net.parameters():
        weight.data.add_(weight.grad, alpha=-0.3)


def test_a_step_through_data_is_a_step():
    net, twin = network(), network()
    with awp(net, lambda: loss(net).backward()):
        loss(net).backward()
        in_place_of_the_data(net)
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.3)
    with awp(twin, lambda: loss(twin).backward()):
        loss(twin).backward()
        optimizer.step()
    for weight, other in zip(net.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(weight, other, atol=1e-14, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_without_a_step_the_weights_come_back_bit_for_bit(dtype):
    net, x = network().to(dtype), images().to(dtype)
    before = values(net)
    with awp(net, lambda: net(x).square().sum().backward(), size=0.3):
        assert changed(net, before) == MOVED
    assert changed(net, before) == set()


def test_after_an_exception_the_weights_come_back_bit_for_bit():
    net = network()
    before = values(net)

    def fail():
        with awp(net, lambda: loss(net).backward()):
            raise KeyError("inside")

    with pytest.raises(KeyError):
        fail()
    assert changed(net, before) == set()


def test_an_exception_in_the_gradient_leaves_no_trace():
    net = network()
    before = values(net)

    def fail():
        loss(net).backward()
        raise KeyError("inside")

    with pytest.raises(KeyError), awp(net, fail):
        pass
    assert changed(net, before) == set()
    assert all(weight.grad is None for weight in net.parameters())
    assert net[1].track_running_stats


def test_the_gradient_is_the_sum_over_the_micro_batches():
    """Without BatchNorm, which sees each micro-batch on its own."""
    torch.manual_seed(0)
    whole = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).double()
    parts = copy.deepcopy(whole)

    def accumulate():
        for x, labels in zip(images().split(3), LABELS.split(3), strict=True):
            (nn.functional.cross_entropy(parts(x), labels, reduction="sum") / 8).backward()

    with awp(whole, lambda: loss(whole).backward()), awp(parts, accumulate):
        torch.testing.assert_close(parts[1].weight, whole[1].weight, atol=1e-15, rtol=0)


def test_gradients_of_before_count_nowhere_and_none_is_left():
    net, fresh = network(), network()
    for weight in net.parameters():
        weight.grad = torch.full_like(weight, 7)
    with awp(net, lambda: loss(net).backward()), awp(fresh, lambda: loss(fresh).backward()):
        assert torch.equal(net[0].weight, fresh[0].weight)
        assert all(weight.grad is None for weight in net.parameters())


def test_the_gradient_is_of_training_mode_and_moves_no_buffer():
    net = network()
    before, modes = values(net), []

    def accumulate():
        modes.append([module.training for module in net.modules()])
        loss(net).backward()

    with awp(net, accumulate):
        assert modes == [[True] * 7]
        assert changed(net, before) == MOVED
        loss(net)
        assert changed(net, before) - MOVED == {"1.running_mean", "1.running_var", "1.num_batches_tracked"}


def test_frozen_and_unused_weights_stay():
    net = network()
    net[0].weight.requires_grad_(False)
    net.add_module("unused", nn.Linear(2, 2).double())
    net.forward = lambda x: nn.Sequential(*list(net)[:6])(x)
    before = values(net)
    with awp(net, lambda: loss(net).backward()):
        assert changed(net, before) == {"5.weight"}


def test_a_tied_weight_is_moved_once_by_the_gradient_of_all_its_uses():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 16)).double()
    net[2].weight = net[0].weight
    x = images().flatten(1)
    (gradient,) = torch.autograd.grad(net(x).square().sum(), net[0].weight)
    before = net[0].weight.detach().clone()
    with awp(net, lambda: net(x).square().sum().backward(), size=0.1):
        expected = 0.1 * before.norm() / gradient.norm() * gradient
        torch.testing.assert_close(net[0].weight - before, expected, atol=1e-12, rtol=0)
    assert torch.equal(net[0].weight, before)


def test_of_a_parametrised_weight_the_direction_is_moved():
    """The published rule: "weight" is in the name, and there is more than one dimension."""
    net = nn.Sequential(weight_norm(nn.Linear(4, 3)))
    before = values(net)
    with awp(net, lambda: net(torch.rand(2, 4)).square().sum().backward()):
        assert "0.parametrizations.weight.original1" in changed(net, before)
        assert "0.bias" not in changed(net, before)


def test_a_parameter_that_is_no_weight_stays():
    net = network()
    net.register_parameter("position", nn.Parameter(torch.ones(1, 3).double()))
    before = values(net)
    with awp(net, lambda: (loss(net) + (net(images()) * net.position).sum()).backward()):
        assert changed(net, before) == MOVED


def test_a_gradient_of_0_moves_nothing():
    net = network()
    before = values(net)
    with awp(net, lambda: (0 * loss(net)).backward()):
        assert changed(net, before) == set()


def test_an_autocast_around_it_sees_the_moved_and_the_restored_weights():
    net, x = nn.Linear(4, 3), torch.rand(2, 4)
    with torch.autocast("cpu", torch.bfloat16):
        outside = net(x)
        with awp(net, lambda: net(x).float().square().sum().backward(), size=0.5):
            assert not torch.equal(net(x), outside)
        assert torch.equal(net(x), outside)


def test_under_distributed_training_the_perturbation_outlives_the_next_backward(tmp_path):
    """The wrapper may keep `.grad` as views of its buckets, which the next backward pass overwrites."""
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1
    )
    try:
        net, alone = network(), network()
        wrapped = nn.parallel.DistributedDataParallel(net, gradient_as_bucket_view=True)
        for model, called in ((net, wrapped), (alone, alone)):
            optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
            for _ in range(3):  # the wrapper lays its buckets out anew after the first
                with awp(model, lambda called=called: loss(called).backward()):
                    optimizer.zero_grad()
                    loss(called).backward()
                    optimizer.step()
        for weight, other in zip(net.parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(weight, other, atol=1e-12, rtol=0)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("size", [0.0, -0.005, float("inf"), float("nan")])
def test_a_size_out_of_range_is_an_error(size):
    with (
        pytest.raises(ValueError, match=rf"`size` expected a finite number above 0, got {size}"),
        awp(network(), lambda: None, size=size),
    ):
        pass


def test_a_size_of_another_kind_is_an_error():
    with (
        pytest.raises(TypeError, match=r"`size` expected a number above 0, got '0.005'"),
        awp(network(), lambda: None, size="0.005"),
    ):
        pass


def test_a_network_without_weights_is_an_error():
    with (
        pytest.raises(ValueError, match="`model` expected parameters of more than one dimension"),
        awp(nn.BatchNorm2d(4), lambda: None),
    ):
        pass


def test_a_gradient_that_is_not_taken_is_an_error():
    net = network()
    with pytest.raises(ValueError, match="`accumulate_gradient` expected to call `backward`"), awp(net, lambda: None):
        pass
    assert net[1].track_running_stats
