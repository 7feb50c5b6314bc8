"""Attacked and perturbed, a network moves no statistic and comes back exactly as it was."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from limbeck.adversary import attack_mode
from limbeck.adversary.modes import frozen_statistics


def network():
    """A network of mixed modes, one BatchNorm with a cumulative average and one without buffers."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.Sequential(nn.BatchNorm2d(4, momentum=None), nn.Dropout(0.5)),
        nn.BatchNorm2d(4, track_running_stats=False),
        nn.Flatten(),
    )
    net(torch.rand(8, 1, 5, 5))
    net[1].eval()
    net[2].eval()
    net[2][0].train()
    return net


def images():
    return torch.rand(8, 1, 5, 5, generator=torch.Generator().manual_seed(1))


def state(net):
    return [(module.training, getattr(module, "track_running_stats", None)) for module in net.modules()]


def buffers(net):
    return {name: buffer.clone() for name, buffer in net.named_buffers()}


def same(some, others):
    return some.keys() == others.keys() and all(torch.equal(some[name], others[name]) for name in some)


@pytest.mark.parametrize("bn_mode", ["eval", "batch"])
def test_the_mode_of_each_submodule_comes_back(bn_mode):
    net = network()
    modes, statistics = state(net), buffers(net)
    with attack_mode(net, bn_mode):
        net(images())
    assert state(net) == modes
    assert same(buffers(net), statistics)


@pytest.mark.parametrize("around", [attack_mode, frozen_statistics])
def test_the_mode_comes_back_after_an_exception(around):
    net = network()
    modes = state(net)

    def fail():
        with around(net):
            raise KeyError("inside")

    with pytest.raises(KeyError):
        fail()
    assert state(net) == modes


def test_attacked_in_eval_mode_a_network_is_what_eval_makes_it():
    net = network()
    twin = copy.deepcopy(net).eval()
    with attack_mode(net, "eval"):
        assert torch.equal(net(images()), twin(images()))


def test_attacked_with_the_batchs_statistics_only_batch_norm_trains():
    net = network()
    twin = copy.deepcopy(net).train()
    twin[2][1].eval()
    with attack_mode(net, "batch"):
        assert torch.equal(net(images()), twin(images()))
        assert not net[2][1].training


def test_frozen_statistics_change_no_output_and_no_buffer():
    net = network()
    twin, statistics = copy.deepcopy(net), buffers(net)
    with frozen_statistics(net):
        assert torch.equal(net(images()), twin(images()))
        assert [training for training, _ in state(net)] == [training for training, _ in state(twin)]
    assert same(buffers(net), statistics)
    assert not same(buffers(twin), statistics)


def test_a_train_of_the_users_own_is_not_called():
    """It may merge weights or keep layers frozen: what it did could not be undone."""

    class Own(nn.Linear):
        calls = 0

        def train(self, mode=True):
            self.calls += 1
            return super().train(mode)

    net = nn.Sequential(Own(2, 2), nn.Dropout())
    with attack_mode(net):
        assert not any(module.training for module in net.modules())
    assert net[0].calls == 0


@pytest.mark.slow
def test_a_compiled_network_is_set_through_its_wrapper():
    net = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    compiled = torch.compile(net, backend="eager")
    with attack_mode(compiled):
        assert not net.training
        assert not net[1].training
    assert compiled.training
    assert net[1].training


def test_a_function_has_no_mode():
    with attack_mode(torch.sin), frozen_statistics(torch.sin):
        pass


def test_an_unknown_mode_is_an_error():
    with (
        pytest.raises(ValueError, match="`bn_mode` expected 'eval' or 'batch', got 'train'"),
        attack_mode(network(), "train"),
    ):
        pass
