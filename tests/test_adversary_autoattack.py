"""AutoAttack through the adapter is the package's own, where that works, and works where that does not."""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
from itertools import pairwise

import pyautoattack
import pytest
import torch
from attacked_nets import QuickAutoAttack, Rounded, network, samples, untrained
from torch import nn

from limbeck import draws
from limbeck.adversary import autoattack

adapter = importlib.import_module("limbeck.adversary.autoattack")  # the package has a function of that name
EPSILON = 0.15


@pytest.fixture(autouse=True)
def quick(request, monkeypatch):
    if "slow" not in request.keywords:
        monkeypatch.setattr(pyautoattack, "AutoAttack", QuickAutoAttack)


@pytest.fixture
def eights(monkeypatch):
    monkeypatch.setattr(adapter, "CHUNK", 8)


def equal(result, other):
    return result.flags.keys() == other.flags.keys() and all(
        torch.equal(result.flags[name], other.flags[name]) for name in result.flags
    )


def images_of(calls, clean, flags):
    """Return what the attacks made of the images they broke, from the calls of `_perturb`."""
    made, names = clean.clone(), list(flags)
    for before, (attack, attacked) in zip(names, calls, strict=False):
        broken = flags[before] & ~flags[attack]
        made[broken] = attacked[~flags[attack][flags[before]]]
    return made


# --- the package's own ------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["linf", pytest.param("l2", id="l2"), pytest.param("linf", marks=pytest.mark.slow)])
def test_a_chunk_is_the_packages_own_call_to_the_bit(norm, monkeypatch):
    images, labels = samples(16, first=1000)
    epsilon = EPSILON if norm == "linf" else 0.8
    calls, perturb = [], adapter._perturb

    def recorded(attacker, attack, *arguments):
        calls.append((attack, perturb(attacker, attack, *arguments)))
        return calls[-1][1]

    monkeypatch.setattr(adapter, "_perturb", recorded)
    ours = autoattack(network(), images, labels, epsilon=epsilon, norm=norm, seed=3)
    seed = draws.key(3, 0, "autoattack") % 2**63
    own = pyautoattack.AutoAttack(network(), norm={"linf": "Linf", "l2": "L2"}[norm], eps=epsilon, seed=seed)
    expected, predicted = own.run_standard_evaluation(images, labels)
    assert torch.equal(ours.robust, predicted == labels)
    assert torch.equal(images_of(calls, images, ours.flags), expected)
    assert 0 < ours.robust.sum() < ours.flags["clean"].sum()  # otherwise this shows nothing
    assert ours.standard
    assert ours.library == "pyautoattack 0.2.0"


def test_flags_only_fall_and_begin_with_the_clean_ones():
    images, labels = samples(40, first=1000)
    flags = autoattack(network(), images, labels, epsilon=EPSILON).flags
    assert list(flags) == ["clean", "apgd-ce", "apgd-t", "fab-t", "square"]
    assert torch.equal(flags["clean"], network()(images).argmax(1) == labels)
    in_turn = list(flags.values())
    assert all((after <= before).all() for before, after in pairwise(in_turn))


def test_the_original_package_does_as_well(monkeypatch):
    seen = {}

    def original(*arguments, verbose, **options):  # its constructor prints unless it is told not to
        seen["verbose"] = verbose
        return QuickAutoAttack(*arguments, **options)

    images, labels = samples(12, first=1000)
    expected = autoattack(network(), images, labels, epsilon=EPSILON)
    monkeypatch.setitem(sys.modules, "pyautoattack", None)
    monkeypatch.setitem(sys.modules, "autoattack", type(sys)("autoattack"))
    monkeypatch.setattr(sys.modules["autoattack"], "AutoAttack", original, raising=False)
    monkeypatch.setattr(adapter, "version", {"autoattack": "0.1"}.__getitem__)
    result = autoattack(network(), images, labels, epsilon=EPSILON)
    assert equal(result, expected)
    assert result.library == "autoattack 0.1"
    assert seen == {"verbose": False}


def test_without_a_package_the_extra_is_named_before_the_network_is_called(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyautoattack", None)
    monkeypatch.setitem(sys.modules, "autoattack", None)
    model = network()
    model.register_forward_hook(lambda *_: pytest.fail("the network was called"))
    with pytest.raises(ImportError, match=r'pip install "limbeck\[autoattack\]"'):
        autoattack(model, *samples(2), epsilon=EPSILON)


# --- where the package fails ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("classes", "attacks"),
    [
        (9, adapter.STANDARD),
        (4, adapter.STANDARD),
        (3, ("apgd-ce", "fab-t", "square")),
        (2, ("apgd-ce", "fab-t", "square")),
    ],
)
def test_fewer_than_ten_classes_are_attacked_towards_all_others(classes, attacks, monkeypatch):
    made = []
    monkeypatch.setattr(
        pyautoattack,
        "AutoAttack",
        lambda *arguments, **options: made.append(QuickAutoAttack(*arguments, **options)) or made[-1],
    )
    images, labels = samples(20)
    result = autoattack(untrained(classes), images, labels % classes, epsilon=0.3)
    assert not result.standard
    assert tuple(result.flags) == ("clean", *attacks)
    assert made[0].fab.n_target_classes == made[0].apgd_targeted.n_target_classes == classes - 1
    assert result.flags["clean"].any()


def changed_format(model):
    return model.to(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    "change",
    [
        changed_format,
        nn.Module.train,
        lambda model: model.double(),
        lambda model: torch.compile(model, backend="eager"),
    ],
    ids=["channels_last", "train", "double", "compiled"],
)
def test_memory_format_mode_and_compilation_change_nothing(change):
    images, labels = samples(12, first=1000)
    expected = autoattack(network(), images, labels, epsilon=EPSILON)
    channels_last = images.expand(-1, 1, -1, -1).contiguous(memory_format=torch.channels_last)
    assert equal(autoattack(change(network()), channels_last, labels, epsilon=EPSILON), expected)


def test_colour_images_in_channels_last_are_attacked():
    colour = samples(6)[0].repeat(1, 3, 1, 1).contiguous(memory_format=torch.channels_last)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))
    model.to(memory_format=torch.channels_last)
    result = autoattack(model, colour, model(colour).argmax(1), epsilon=0.01)
    assert result.flags["clean"].all()  # otherwise nothing is attacked


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_are_attacked(dtype):
    images, labels = samples(6, first=1000)
    result = autoattack(network().to(dtype), images, labels, epsilon=EPSILON)
    assert list(result.flags)[-1] == "square"
    assert result.flags["clean"].any()


def test_autocast_around_is_not_felt():
    images, labels = samples(12, first=1000)
    expected, model, dtypes = autoattack(network(), images, labels, epsilon=EPSILON), network(), set()
    model.register_forward_hook(lambda module, inputs, logits: dtypes.add(logits.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        assert equal(autoattack(model, images, labels, epsilon=EPSILON), expected)
    assert dtypes == {torch.float32}


def test_network_and_random_state_are_left_as_they_were():
    model = network().train()
    model[2].eval()
    model[0].weight.requires_grad_(False)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    autoattack(model, *samples(6), epsilon=EPSILON)
    assert [part.training for part in model.modules()] == [True, True, True, False, True, True]
    assert [weight.requires_grad for weight in model.parameters()] == [False, True, True, True, True, True]
    assert all(weight.grad is None for weight in model.parameters())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)


def test_a_network_comes_back_after_an_exception(monkeypatch):
    model = network().train()
    monkeypatch.setattr(adapter, "_perturb", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        autoattack(model, *samples(6), epsilon=EPSILON)
    assert model.training
    assert all(weight.requires_grad for weight in model.parameters())


def test_images_without_height_are_refused():
    with pytest.raises(ValueError, match=r"`images` expected shape \(N, C, H, W\), got \(2, 64\)"):
        autoattack(nn.Linear(64, 10), torch.rand(2, 64), torch.tensor([0, 1]), epsilon=EPSILON)


# --- chunks -----------------------------------------------------------------------------------------------


def test_batch_size_changes_nothing(eights):
    images, labels = samples(20, first=1000)
    expected = autoattack(network(), images, labels, epsilon=EPSILON)
    assert equal(autoattack(network(), images, labels, epsilon=EPSILON, batch_size=3), expected)


def test_a_part_of_a_batch_is_all_that_memory_holds():
    model, largest = network(), 0

    def look(module, inputs):
        nonlocal largest
        largest = max(largest, len(inputs[0]))

    model.register_forward_pre_hook(look)
    autoattack(model, *samples(20), epsilon=EPSILON, batch_size=3)
    assert largest == 3


def test_a_chunk_does_not_depend_on_the_others(eights):
    images, labels = samples(24, first=1000)
    whole = autoattack(network(), images, labels, epsilon=EPSILON)
    first = autoattack(network(), images[:8], labels[:8], epsilon=EPSILON)
    assert all(torch.equal(first.flags[name], flags[:8]) for name, flags in whole.flags.items())


def test_chunks_draw_differently(eights, monkeypatch):
    seeds = []
    monkeypatch.setattr(
        pyautoattack,
        "AutoAttack",
        lambda *arguments, **options: seeds.append(options["seed"]) or QuickAutoAttack(*arguments, **options),
    )
    autoattack(network(), *samples(20), epsilon=EPSILON, seed=0)
    autoattack(network(), *samples(20), epsilon=EPSILON, seed=1)
    assert len(set(seeds)) == 6


def stop_at(number, monkeypatch, stop):
    """Let the attack `number` (from 1) stop half of the way."""
    calls, perturb = [], adapter._perturb

    def wrapped(*arguments):
        calls.append(arguments[1])
        if len(calls) == number:
            stop()
        return perturb(*arguments)

    monkeypatch.setattr(adapter, "_perturb", wrapped)
    return calls


def test_an_interrupted_evaluation_goes_on_with_the_next_chunk(eights, monkeypatch, tmp_path):
    images, labels = samples(24, first=1000)
    expected = autoattack(network(), images, labels, epsilon=EPSILON)
    with monkeypatch.context() as patch:
        stop_at(7, patch, lambda: 1 / 0)  # in the second chunk
        with pytest.raises(ZeroDivisionError):
            autoattack(network(), images, labels, epsilon=EPSILON, folder=tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    told = []
    calls = stop_at(0, monkeypatch, lambda: None)
    resumed = autoattack(
        network(), images, labels, epsilon=EPSILON, folder=tmp_path, progress=lambda *numbers: told.append(numbers)
    )
    assert equal(resumed, expected)
    assert len(calls) == 8  # two chunks of four attacks
    assert told[0] == (8, 24)
    assert told[-1] == (24, 24)
    assert told == sorted(told)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a forked process")
def test_a_killed_evaluation_ends_as_one_that_nobody_touched(eights, monkeypatch, tmp_path):
    images, labels = samples(24, first=1000)
    expected = autoattack(network(), images, labels, epsilon=EPSILON)
    if (child := os.fork()) == 0:
        stop_at(7, monkeypatch, lambda: os.kill(os.getpid(), signal.SIGKILL))
        autoattack(network(), images, labels, epsilon=EPSILON, folder=tmp_path)
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 1
    calls = stop_at(0, monkeypatch, lambda: None)
    resumed = autoattack(network(), images, labels, epsilon=EPSILON, folder=tmp_path)
    assert equal(resumed, expected)
    assert len(calls) == 8
    assert resumed.seconds > 0


def other_weights(model):
    model[4].bias.data[0] += 1e-6
    return model


@pytest.mark.parametrize(
    "other",
    [
        {"model": lambda: other_weights(network())},
        {"model": lambda: nn.Sequential(*network(), nn.Identity())},
        {"epsilon": 0.2},
        {"seed": 1},
        {"norm": "l2"},
        {"images": lambda images: images.flip(0)},
        {"labels": lambda labels: labels.flip(0)},
    ],
    ids=["weights", "structure", "epsilon", "seed", "norm", "images", "labels"],
)
def test_files_of_something_else_are_left_alone(other, tmp_path, monkeypatch):
    images, labels = samples(4, first=1000)
    options = {"epsilon": EPSILON, "folder": tmp_path}
    autoattack(network(), images, labels, **options)
    (kept,) = tmp_path.iterdir()
    before = kept.read_bytes()
    model = other.get("model", network)()
    images, labels = other.get("images", torch.clone)(images), other.get("labels", torch.clone)(labels)
    options |= {key: value for key, value in other.items() if key in ("epsilon", "seed", "norm")}
    autoattack(model, images, labels, **options)
    assert len(list(tmp_path.iterdir())) == 2
    assert kept.read_bytes() == before


@pytest.mark.parametrize(
    "damage", [b"", b"{", b'{"flags": {}}', b'{"flags": {"clean": [1]}, "seconds": 1}', b"[1]", b"\xff"]
)
def test_a_damaged_file_is_made_again(damage, tmp_path):
    images, labels = samples(4, first=1000)
    expected = autoattack(network(), images, labels, epsilon=EPSILON, folder=tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_bytes(damage)
    assert equal(autoattack(network(), images, labels, epsilon=EPSILON, folder=tmp_path), expected)
    assert json.loads(path.read_text())["flags"]["clean"] == expected.flags["clean"].int().tolist()


def test_the_packages_logger_is_quiet_for_a_while(caplog):
    autoattack(Rounded(network()), *samples(4), epsilon=EPSILON)  # it would warn of zero gradients in each chunk
    assert caplog.records == []


def test_a_function_inside_a_network_has_no_address_in_its_fingerprint():
    class Applied(nn.Module):
        def __init__(self, function):
            super().__init__()
            self.function = function

        def extra_repr(self):
            return repr(self.function)

    first, second = (Applied(lambda images: images) for _ in range(2))
    assert repr(first) != repr(second)
    assert adapter.fingerprint(first) == adapter.fingerprint(second)
