"""Files of weights: public ones by their names for the weights, ours, and everything that can be wrong with either."""

from __future__ import annotations

import argparse
import collections
import hashlib
import io
import os
import pickle
import re
import tracemalloc
import zipfile
from functools import partial

import numpy as np
import public_networks
import pytest
import torch
from public_networks import FAMILIES, IMAGENET, Twin, public_logits, public_state, swish_logits, swish_state
from safetensors.torch import save_file
from torch import nn

from limbeck.errors import UserError
from limbeck.models import MODELS
from limbeck.models.names_to_public import public_name
from limbeck.models.public_names import our_name
from limbeck.models.resnet import Bottleneck, resnet_imagenet
from limbeck.models.torch_files import LeftOut, Unreadable, read_torch_file
from limbeck.models.weights import load_weights
from limbeck.models.wide_resnet import wide_resnet_swish

FORMATS = {"zip": True, "legacy": False}


def build(name, classes=100, channels=3):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return MODELS[name]((channels, 32, 32), classes).eval()


def images(side, seed=0):
    return torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(seed))


def save(path, saved, format="zip"):
    torch.save(saved, path, _use_new_zipfile_serialization=FORMATS[format])
    return path


def content(saved, format="zip"):
    file = io.BytesIO()
    torch.save(saved, file, _use_new_zipfile_serialization=FORMATS[format])
    return file.getvalue()


def check_same(logits, expected):
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


@pytest.fixture
def state():
    return public_state("resnet8")


def check_loaded(path, state):
    model = build("resnet8")
    load_weights(path, model, "resnet8")
    check_same(model(images(16)), public_logits("resnet8", state, images(16)))


# --- public names ---------------------------------------------------------------------------------------------

SMALL = ["resnet8", "resnet20", "resnet8x4", "wrn_16_1", "wrn_16_2", "vgg8", "vgg13", "mobilenet_v2"]
SMALL += ["shufflenet_v1", "shufflenet_v2", "resnet18_cifar", "preact_resnet18", "mobilenet_v1", "resnet18"]


@pytest.mark.parametrize("name", SMALL)
@torch.no_grad()
def test_a_network_with_public_weights_has_the_logits_of_their_network(name, tmp_path):
    side = 64 if name in IMAGENET else 32
    state = public_state(name)
    model = build(name)
    load_weights(save(tmp_path / "public.pth", state), model, name)
    logits = model(images(side))
    check_same(logits, public_logits(name, state, images(side)))
    assert logits.std(0).mean() > 0.02  # so that the images make a difference


@torch.no_grad()
def test_a_silu_network_with_public_weights_has_the_logits_of_their_network(tmp_path):
    """At depth 16 and width 1: the published sizes would take a second each."""
    state = swish_state("wrn_16_1", 100)
    model = wide_resnet_swish((3, 32, 32), 100, depth=16, widen=1).eval()
    load_weights(save(tmp_path / "public.pth", state), model, "wrn_28_10_swish")
    check_same(model(images(32)), swish_logits(Twin("wrn_16_1", state), images(32)))


@pytest.mark.parametrize("name", ["resnet50", "resnext101_32x4d"])
@torch.no_grad()
def test_bottlenecks_with_public_weights_have_the_logits_of_their_network(name, tmp_path, monkeypatch):
    """With one block a stage and few channels."""
    channels, blocks = (16, 64, 128, 128, 192), (1, 2, 1, 1)
    kind = public_networks.RESNETS[name][2]
    monkeypatch.setitem(public_networks.RESNETS, name, (blocks, channels, kind))
    block = {"bottleneck": Bottleneck, "32x4d": partial(Bottleneck, reduction=2, groups=32)}[kind]
    state = public_state(name)
    model = resnet_imagenet((3, 64, 64), 100, blocks=blocks, channels=channels, block=block).eval()
    load_weights(save(tmp_path / "public.pth", state), model, name)
    check_same(model(images(64)), public_logits(name, state, images(64)))


@pytest.mark.parametrize("name", FAMILIES)
def test_every_public_name_has_one_of_ours_with_the_same_shape(name):
    with torch.device("meta"):
        public, ours = public_state(name), MODELS[name]((3, 32, 32), 100).state_dict()
    assert {our_name(key, name): value.shape for key, value in public.items()} == {k: v.shape for k, v in ours.items()}


def test_every_network_of_the_zoo_has_a_public_twin():
    assert set(FAMILIES) == set(MODELS) - {"mlp", "convnet"}


def test_public_names_are_those_in_the_files():
    """A few by hand, of files as their authors wrote them."""
    public = {
        "resnet56": [
            "conv1.weight",
            "bn1.running_var",
            "layer3.8.conv2.weight",
            "layer2.0.downsample.1.bias",
            "fc.bias",
        ],
        "resnet50_cifar": ["layer4.2.bn3.weight", "layer1.0.shortcut.0.weight", "linear.weight"],
        "wrn_40_2": ["block1.layer.0.convShortcut.weight", "block3.layer.5.bn2.bias", "bn1.weight", "fc.weight"],
        "preact_resnet18": [
            "conv1.weight",
            "layer4.0.shortcut.0.weight",
            "layer1.1.bn2.bias",
            "bn.weight",
            "linear.bias",
        ],
        "wrn_28_10_swish": ["init_conv.weight", "layer.2.block.3.batchnorm_1.bias", "batchnorm.weight", "logits.bias"],
        "vgg13": ["block0.0.bias", "block4.3.weight", "block4.4.running_mean", "classifier.weight"],
        "mobilenet_v2": ["conv1.0.weight", "blocks.5.2.conv.7.weight", "conv2.1.weight", "classifier.0.bias"],
        "mobilenet_v1": ["model.0.0.weight", "model.13.4.bias", "model.7.1.running_var", "fc.weight"],
        "shufflenet_v1": ["conv1.weight", "layer2.7.bn3.weight", "linear.weight"],
        "shufflenet_v2": ["layer1.0.conv5.weight", "layer3.3.conv3.weight", "conv2.weight", "bn2.bias"],
        "resnet34": ["layer4.0.downsample.0.weight", "layer3.5.conv1.weight", "fc.weight"],
    }
    for name, keys in public.items():
        with torch.device("meta"):
            ours = MODELS[name]((3, 32, 32), 100).state_dict()
        assert {our_name(key, name) for key in keys} <= set(ours)


# --- robust networks ------------------------------------------------------------------------------------------

CONSTANTS = {  # means and standard deviations
    10: ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)),
    100: ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}


def trades(state):
    """As TRADES and AWP save it: of DataParallel, with the copy of the first stage that is never used."""
    copy = {f"sub_{key}": torch.zeros_like(value) for key, value in state.items() if key.startswith("block1.")}
    return {"state_dict": {f"module.{key}": value for key, value in {**state, **copy}.items()}, "epoch": 200}


def gkl(state):
    """As GKL and AWP save a sequence whose only weights are the network's."""
    return {f"module.0.{key}": value for key, value in state.items()}


@pytest.mark.parametrize("layout", [trades, gkl])
@torch.no_grad()
def test_a_robust_wide_network_has_the_logits_of_its_public_network(layout, tmp_path):
    state = public_state("wrn_16_2", classes=10)
    model = build("wrn_16_2", classes=10)
    load_weights(save(tmp_path / "robust.pt", layout(state)), model, "wrn_16_2")
    check_same(model(images(32)), public_logits("wrn_16_2", state, images(32)))


def of_its_own(state, classes=100):
    """As RobustBench's network saved it once: its constants beside the weights."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in CONSTANTS[classes])
    return {"model_state_dict": {f"module.{key}": value for key, value in {"mean": mean, "std": std, **state}.items()}}


@torch.no_grad()
def test_the_constants_of_a_silu_network_may_stand_in_its_file(tmp_path):
    state = swish_state("wrn_16_1", 100)
    model = wide_resnet_swish((3, 32, 32), 100, depth=16, widen=1).eval()
    load_weights(save(tmp_path / "robust.pt", of_its_own(state)), model, "wrn_28_10_swish")
    check_same(model(images(32)), swish_logits(Twin("wrn_16_1", state), images(32)))


def test_other_constants_in_the_file_of_a_silu_network_are_an_error(tmp_path):
    path = save(tmp_path / "robust.pt", of_its_own(swish_state("wrn_16_1", 100), classes=10))
    model = wide_resnet_swish((3, 32, 32), 100, depth=16, widen=1)
    with pytest.raises(UserError) as caught:
        load_weights(path, model, "wrn_28_10_swish")
    assert str(caught.value) == (
        f"{path}: expected pixels standardised by `module.mean` (0.5071, 0.4865, 0.4409), as `wrn_28_10_swish` of this "
        "data does, got (0.4914, 0.4822, 0.4465); these are weights for other images"
    )


def test_constants_of_another_number_of_channels_are_an_error(tmp_path):
    path = save(tmp_path / "robust.pt", swish_state("wrn_16_1", 100) | {"std": torch.ones(1)})
    with pytest.raises(UserError, match=r"standardised by `std` \(0.2673, 0.2564, 0.2762\), .*, got \(1.0000\);"):
        load_weights(path, wide_resnet_swish((3, 32, 32), 100, depth=16, widen=1), "wrn_28_10_swish")


def test_constants_in_the_file_of_a_network_that_has_none_are_an_error(tmp_path):
    """It would see pixels that are not standardised."""
    state = public_state("wrn_16_1") | {"mean": torch.zeros(3, 1, 1)}
    assert error_of(save(tmp_path / "robust.pt", state), "wrn_16_1") == (
        "expected weights of `wrn_16_1`, got 1 unexpected (mean); no network here has such weights"
    )


def test_the_file_of_a_silu_network_is_told_from_one_with_relu(tmp_path):
    with torch.device("meta"):
        state = swish_state("wrn_28_10", 100)
    path = tmp_path / "robust.pt"
    tensors = {f"module.{key}": torch.zeros(()).expand(value.shape) for key, value in state.items()}
    save(path, of_its_own({})["model_state_dict"] | tensors)
    assert error_of(path, "wrn_16_1").endswith("these look like weights of `wrn_28_10_swish`")


# --- layouts --------------------------------------------------------------------------------------------------


def mdistiller(state):
    return {
        "epoch": 240,
        "model": state,
        "optimizer": {"state": {0: {"momentum_buffer": torch.ones(3)}}},
        "best_acc": 72.3,
    }


def repdistiller(state):
    options = argparse.Namespace(model="resnet8", learning_rate=0.05, lr_decay_epochs=[150, 180, 210])
    return {"opt": options, "model": state, "accuracy": np.float64(72.3), "epoch": np.array([240]), "best": {1, 2}}


LAYOUTS = {
    "bare": lambda state: state,
    "ordered": collections.OrderedDict,
    "mdistiller": mdistiller,
    "repdistiller": repdistiller,
    "data parallel": lambda state: {"state_dict": {f"module.{key}": value for key, value in state.items()}},
    "pytorch-cifar": lambda state: {"net": {f"module.{key}": value for key, value in state.items()}, "acc": 95.4},
    "normalised": lambda state: {"model_state_dict": {f"module.0.{key}": value for key, value in state.items()}},
    "parameters": lambda state: {
        key: nn.Parameter(value) if value.is_floating_point() else value for key, value in state.items()
    },
}


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_weights_are_found_in_every_layout(layout, format, state, tmp_path):
    check_loaded(save(tmp_path / "ckpt_epoch_240.pth", LAYOUTS[layout](state), format), state)


def test_what_is_no_tensor_is_left_out_of_a_state(state, tmp_path):
    check_loaded(save(tmp_path / "public.pth", state | {"mean": np.zeros(3), "name": "resnet8", 5: None}), state)


def test_the_counters_of_batchnorm_may_be_absent(state, tmp_path):
    old = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    check_loaded(save(tmp_path / "old.pth", old, "legacy"), state)


def test_the_unused_copy_of_a_stage_is_dropped(tmp_path):
    state = public_state("wrn_16_1")
    copy = {key.replace("block1.", "sub_block1."): value for key, value in state.items() if key.startswith("block1.")}
    load_weights(save(tmp_path / "trades.pt", state | copy), build("wrn_16_1"), "wrn_16_1")


def test_our_own_files_load_and_the_digest_is_the_files(tmp_path):
    path = tmp_path / "weights.safetensors"
    saved, model = public_state("resnet8"), build("resnet8")
    source = build("resnet8")
    load_weights(save(tmp_path / "public.pth", saved), source, "resnet8")
    save_file(source.state_dict(), path)
    assert load_weights(path, model, "resnet8").fingerprint == hashlib.sha256(path.read_bytes()).hexdigest()
    assert all(torch.equal(value, source.state_dict()[key]) for key, value in model.state_dict().items())


# --- nothing runs ---------------------------------------------------------------------------------------------


class Harmful:
    """Makes a folder when it is unpickled the usual way."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


class HarmfulState(dict):
    def __init__(self, state, marker):
        super().__init__(state)
        self.marker = str(marker)

    def __reduce__(self):
        return eval, (f"__import__('os').mkdir({self.marker!r})",), None, None, iter(self.items())


@pytest.mark.parametrize("format", FORMATS)
def test_no_code_of_a_file_runs_and_its_weights_load(format, state, tmp_path):
    marker = tmp_path / "marker"
    path = save(tmp_path / "public.pth", {"opt": Harmful(marker), "model": state | {"extra": Harmful(marker)}}, format)
    check_loaded(path, state)
    assert not marker.exists()
    with pytest.raises(FileExistsError):  # it holds two, so the file is as harmful as it is meant to be
        torch.load(path, weights_only=False)
    assert marker.exists()


@pytest.mark.parametrize("format", FORMATS)
def test_a_state_that_only_code_can_make_has_no_tensors(format, state, tmp_path):
    marker = tmp_path / "marker"
    path = save(tmp_path / "public.pth", {"model": HarmfulState(state, marker)}, format)
    with pytest.raises(UserError, match="got no tensors"):
        load_weights(path, build("resnet8"), "resnet8")
    assert not marker.exists()


@pytest.mark.parametrize(
    "pickled",
    [
        b"cos\nmkdir\n(S'{marker}'\ntR.",
        b"\x80\x04\x8c\x02os\x8c\x05mkdir\x93\x8c\x64{marker}\x85R.",
        b"(S'{marker}'\nios\nmkdir\n.",
        b"cbuiltins\ngetattr\n(cos\n__dict__\nS'mkdir'\ntR(S'{marker}'\ntR.",
        b"cfunctools\npartial\n(cos\nmkdir\nS'{marker}'\ntR)R.",
        b"ctorch._utils\n_import_dotted_name\n(S'os.mkdir'\ntR(S'{marker}'\ntR.",
        b"ctorch.serialization\n_load\n(S'{marker}'\ntR.",
    ],
    ids=["global", "stack global", "inst", "getattr", "partial", "torch", "loader"],
)
def test_no_opcode_reaches_a_function(pickled, tmp_path):
    marker = tmp_path / "marker"
    name = str(marker).encode()
    pickled = pickled.replace(b"\x8c\x64", b"\x8c" + bytes([len(name)])).replace(b"{marker}", name)
    legacy = content({}, "legacy")
    empty = pickle.dumps({}, protocol=2)
    start = legacy.rindex(empty + pickle.dumps([], protocol=2))  # the pickle of {}, then that of no storages
    found = read_torch_file(legacy[:start] + pickled + legacy[start + len(empty) :])
    assert isinstance(found, LeftOut)
    assert not marker.exists()


def test_objects_of_any_shape_are_left_out():
    saved = {
        "counter": collections.Counter("aab"),
        "default": collections.defaultdict(list, {1: [2]}),
        "queue": collections.deque([1, 2]),
        "set": {argparse.Namespace: 1, (1, 2): {3}},
        "module": nn.Sequential(nn.Linear(2, 2)),
        "dtype": torch.float32,
        "random": np.random.default_rng(0),
        "error": ValueError("x"),
        "pattern": re.compile("x"),
    }
    for format in FORMATS:
        found = read_torch_file(content(saved, format))
        assert list(found) == list(saved)
        assert all(isinstance(found[key], LeftOut) for key in ("counter", "default", "queue", "module", "random"))


@pytest.mark.parametrize("format", FORMATS)
def test_tensors_are_those_of_torch_load(format):
    base = torch.arange(24.0).reshape(4, 6)
    saved = {
        "view": base[1:, 2:5],
        "transposed": base.t(),
        "scalar": torch.tensor(3),
        "empty": torch.empty(0, 3),
        "channels last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        "parameter": nn.Parameter(torch.ones(2)),
        "expanded": torch.ones(1, 3).expand(5, 3),
        "plain": [1, 2.5, "text", None, (True, 2**70)],
    }
    dtypes = [torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8]
    saved |= {str(dtype): torch.arange(5).to(dtype) for dtype in [*dtypes, torch.uint8, torch.bool]}
    found = read_torch_file(content(saved, format))
    expected = torch.load(io.BytesIO(content(saved, format)), weights_only=False)
    assert found.keys() == expected.keys()
    for key, value in found.items():
        if key == "plain":
            assert value == saved[key]
        else:
            assert value.dtype == expected[key].dtype
            assert torch.equal(value, expected[key])


# --- errors ---------------------------------------------------------------------------------------------------


def error_of(path, name="resnet8", **sizes):
    """Return the one line that loading raises, less the path, having checked that the network is as before."""
    model = build(name, **sizes)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(UserError) as caught:
        load_weights(path, model, name)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{path}: ")
    return message.removeprefix(f"{path}: ")


def test_a_missing_file_is_an_error(tmp_path):
    assert error_of(tmp_path / "none.pth") == "expected a file of weights; no such file or directory"
    assert error_of(tmp_path) == "expected a file of weights; is a directory"


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("kept", [0, 1, 3, 100, 0.5, 0.9, -1])
def test_a_truncated_file_is_an_error(kept, format, state, tmp_path):
    path = save(tmp_path / "public.pth", mdistiller(state), format)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole)) if isinstance(kept, float) else kept])
    assert error_of(path) == "expected a file of torch.save or .safetensors, got a truncated, damaged or foreign one"


def test_a_flipped_bit_is_an_error(state, tmp_path):
    path = save(tmp_path / "public.pth", state)
    damaged = bytearray(path.read_bytes())
    value = state["layer3.0.conv1.weight"].numpy().tobytes()
    damaged[damaged.index(value) + 1000] ^= 1
    path.write_bytes(damaged)
    assert "damaged" in error_of(path)


@pytest.mark.parametrize("foreign", [b"", b"not weights", b"PK\x03\x04", pickle.dumps({"a": 1}), b"\x80\x02." * 9])
def test_a_foreign_file_is_an_error(foreign, tmp_path):
    path = tmp_path / "public.pth"
    path.write_bytes(foreign)
    assert "foreign" in error_of(path)


@pytest.mark.parametrize("cut", [10, -10])
def test_a_damaged_safetensors_file_is_an_error(cut, tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file(build("resnet8").state_dict(), path)
    path.write_bytes(path.read_bytes()[:cut])
    assert error_of(path) == "expected a .safetensors file, got a truncated, damaged or foreign one"


@pytest.mark.parametrize("format", FORMATS)
def test_a_shape_beyond_its_storage_is_damage(format):
    tensor = torch.ones(3)
    damaged = content({"a": tensor}, format).replace(b"K\x03\x85", b"K\x09\x85", 1)  # the shape (3,) becomes (9,)
    assert damaged != content({"a": tensor}, format)
    with pytest.raises(Unreadable, match=r"storage|checksum|CRC"):
        read_torch_file(damaged)


def test_a_storage_larger_than_the_file_is_damage():
    legacy = content({"a": torch.ones(3)}, "legacy")
    start = legacy.index(b"cpu")
    at = legacy.index(b"K\x03", start)
    with pytest.raises(Unreadable, match=f"storage of {4 * 2**40} bytes"):
        read_torch_file(legacy[:at] + b"\x8a\x06" + (2**40).to_bytes(6, "little") + legacy[at + 2 :])


@pytest.mark.parametrize("record", ["data/0", "data.pkl"])
def test_a_record_that_is_larger_unpacked_than_the_file_is_not_unpacked(record):
    packed = io.BytesIO()
    good = zipfile.ZipFile(io.BytesIO(content({"a": torch.ones(3)}, "zip")))
    with good, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as bomb:
        for name in good.namelist():
            bomb.writestr(name, bytes(1 << 25) if name.endswith(record) else good.read(name))
    tracemalloc.start()
    with pytest.raises(Unreadable, match=f"of {1 << 25} bytes"):
        read_torch_file(packed.getvalue())
    assert tracemalloc.get_traced_memory()[1] < 1 << 24
    tracemalloc.stop()


def test_a_pickle_of_ten_bytes_gets_no_more_memory_than_it_needs():
    memo = b"\x80\x02}r" + (1 << 26).to_bytes(4, "little") + b"."  # in C, room for 2^27 memos: a gigabyte
    tracemalloc.start()
    with pytest.raises(Unreadable, match="no magic number"):
        read_torch_file(memo)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


@pytest.mark.parametrize("saved", [{}, [], 3, {"model": {"epoch": 3}}, {"model": nn.Linear(2, 2)}, {"epoch": 240}])
def test_a_file_without_tensors_is_an_error(saved, tmp_path):
    message = error_of(save(tmp_path / "public.pth", saved))
    places = "`model`, `state_dict`, `model_state_dict`, `net`"
    assert message == f"expected a dictionary of tensors, alone or under one of {places}; got no tensors"


def test_another_number_of_classes_is_an_error(state, tmp_path):
    assert error_of(save(tmp_path / "public.pth", state), classes=10) == (
        "expected weights of `resnet8` for 10 classes, got them for 100; take the file of this data set, or its data"
    )


def test_weights_for_other_images_are_an_error(state, tmp_path):
    assert error_of(save(tmp_path / "public.pth", state), channels=1) == (
        "expected weights of `resnet8`, got 1 of another shape (features.stem.conv.weight (16, 3, 3, 3) for "
        "(16, 1, 3, 3)); these look like weights of `resnet8` for other images"
    )


@pytest.mark.parametrize(("first", "second"), [("conv1.weight", "module.conv1.weight"), ("fc.bias", "linear.bias")])
def test_two_tensors_for_one_weight_are_an_error(first, second, state, tmp_path):
    message = error_of(save(tmp_path / "public.pth", state | {second: torch.zeros_like(state[first])}))
    assert message.startswith(f"expected each weight of `resnet8` once, got both {first} and {second} for ")


def test_weights_of_another_network_are_named(tmp_path):
    path = save(tmp_path / "public.pth", mdistiller(public_state("resnet14")))
    assert error_of(path) == (
        "expected weights of `resnet8`, got 36 unexpected (layer1.1.conv1.weight, layer1.1.bn1.weight, "
        "layer1.1.bn1.bias, ...); these look like weights of `resnet14`"
    )


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("resnet8", "resnet8x4"),
        ("resnet20", "wrn_16_1"),
        ("wrn_16_1", "wrn_16_2"),
        ("mobilenet_v2", "shufflenet_v2"),
        ("resnet18", "resnet18_cifar"),
        ("resnet18_cifar", "resnet18"),
        ("vgg8", "vgg13"),
    ],
)
def test_the_network_that_weights_belong_to_is_found(name, other, tmp_path):
    path = save(tmp_path / "public.pth", public_state(other, classes=7))
    assert error_of(path, name).endswith(f"; these look like weights of `{other}`")


def test_weights_of_no_network_here_name_what_is_missing(state, tmp_path):
    del state["layer1.0.bn1.weight"]
    state["layer9.weight"] = torch.ones(2)
    assert error_of(save(tmp_path / "public.pth", state)) == (
        "expected weights of `resnet8`, got 1 missing (features.stage1.0.bn1.weight); 1 unexpected (layer9.weight); "
        "no network here has such weights"
    )


# --- the way back ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_every_name_of_ours_goes_back_to_the_public_one(name):
    with torch.device("meta"):
        public, ours = public_state(name), MODELS[name]((3, 32, 32), 100).state_dict()
    assert {public_name(key, name) for key in ours} == set(public)
    assert all(public_name(str(our_name(key, name)), name) == key for key in public)
