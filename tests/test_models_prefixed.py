"""Networks of other libraries, as far as none of these is needed: names, standardisation, weights, ways out."""

from __future__ import annotations

import copy
import hashlib
import json
import sys
from types import SimpleNamespace

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from limbeck.config import ModelOptions, TeacherOptions
from limbeck.config_files import load_recipe
from limbeck.engine.teachers import load_file
from limbeck.errors import UserError
from limbeck.listings import print_models
from limbeck.models import build_model, libraries
from limbeck.models.names_to_public import public_name
from limbeck.models.prefixed import PrefixedNetwork, Standardisation
from limbeck.models.taps import find_module
from limbeck.models.weights import load_weights, start_weights
from limbeck.network_names import ZOO, is_prefixed

CIFAR = Standardisation((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))
IMAGENET = Standardisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = Standardisation((0.5,) * 3, (0.5,) * 3)
BYTES = Standardisation((0.0,) * 3, (1.0,) * 3)


class Recording(nn.Module):
    """A network that keeps what it saw."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 10)

    def forward(self, images):
        self.seen = images
        return self.fc(images.mean((2, 3)))


def standardised(pixels, by):
    mean, std = (torch.tensor(values, dtype=torch.float64).view(-1, 1, 1) for values in by)
    return (pixels - mean) / std


def pixels():
    return torch.rand(4, 3, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


# --- what the network sees --------------------------------------------------------------------------------------


@pytest.mark.parametrize("own", [IMAGENET, HALF, BYTES])
@pytest.mark.parametrize("data", [CIFAR, IMAGENET, BYTES])
def test_a_wrapped_network_sees_pixels_less_its_mean_over_its_deviation(data, own):
    network = PrefixedNetwork(Recording(), own, data)
    network(standardised(pixels(), data).float())
    torch.testing.assert_close(network.network.seen.double(), standardised(pixels(), own), rtol=0, atol=2e-6)


def test_images_in_the_units_of_the_network_pass_untouched():
    network, images = PrefixedNetwork(Recording(), CIFAR, CIFAR), pixels().float()
    network(images)
    assert network.network.seen is images


def test_images_stay_in_channels_last():
    images = pixels().float().to(memory_format=torch.channels_last)
    seen = PrefixedNetwork(Recording(), HALF, CIFAR).rescaled(images)
    assert seen.is_contiguous(memory_format=torch.channels_last)


def test_a_file_tells_what_its_network_sees(tmp_path):
    """A student that learned from the data's pixels is no network of ImageNet's, though its name is."""
    trained, other = (PrefixedNetwork(Recording(), own, CIFAR) for own in (CIFAR, IMAGENET))
    path = tmp_path / "student.pth"
    torch.save(trained.state_dict(), path)
    load_weights(path, other, "timm:recording")
    assert not other.rescales
    images = pixels().float()
    assert torch.equal(other(images), trained(images))


def test_a_file_of_the_library_leaves_what_the_network_sees(tmp_path):
    network, path = PrefixedNetwork(Recording(), IMAGENET, CIFAR), tmp_path / "library.pth"
    torch.save(Recording().state_dict(), path)
    load_weights(path, network, "timm:recording")
    assert network.rescales
    assert torch.equal(network.mean.flatten(), torch.tensor(IMAGENET.mean))


def test_a_copy_compares_its_own_buffers():
    network = PrefixedNetwork(Recording(), IMAGENET, CIFAR)
    twin = copy.deepcopy(network)
    twin.load_state_dict(PrefixedNetwork(Recording(), CIFAR, CIFAR).state_dict())
    assert (network.rescales, twin.rescales) == (True, False)


@pytest.mark.parametrize("wrapped", [lambda net: net, lambda net: nn.ModuleDict({"module": net})])
def test_a_librarys_module_is_found_by_its_path_there_and_by_ours_in_any_wrapper(wrapped):
    network = PrefixedNetwork(Recording(), IMAGENET, CIFAR)
    for name in ("fc", "network.fc"):
        assert find_module(wrapped(network), name) is network.network.fc
    with pytest.raises(ValueError, match="the network has no module `head`"):
        find_module(wrapped(network), "head")


@pytest.fixture
def library(monkeypatch):
    """A library in the place of timm, whose weights saw pixels less a half over a half."""
    monkeypatch.setitem(libraries._LIBRARIES, "timm", lambda wanted: libraries.Opened(Recording(), HALF, None))


@pytest.mark.parametrize(
    ("options", "seen"),
    [
        ({}, CIFAR),
        ({"pixels": "data"}, CIFAR),
        ({"weights": "file.pth"}, HALF),
        ({"weights": "file.pth", "pixels": "data"}, CIFAR),
    ],
)
def test_pixels_of_a_librarys_weights_are_its_own_unless_asked_for_as_the_data_are(options, seen, library):
    options = ModelOptions(name="timm:recording", **options)
    network = build_model(options, image_shape=(3, 5, 5), num_classes=10, seed=0, data=CIFAR)
    network.eval()(standardised(pixels(), CIFAR).float())
    torch.testing.assert_close(network.network.seen.double(), standardised(pixels(), seen), rtol=0, atol=2e-6)


def test_a_teachers_file_with_other_pixels_is_another_teacher(library, tmp_path):
    """A run that goes on compares fingerprints, and recorded logits are found by them."""
    path = tmp_path / "library.pth"
    torch.save(Recording().state_dict(), path)
    data = SimpleNamespace(image_shape=(3, 5, 5), num_classes=10, train=SimpleNamespace(pixels=CIFAR))
    both = [load_file(ModelOptions(name="timm:recording", pixels=each), str(path), data) for each in ("own", "data")]
    (own, _), (as_data, _) = both
    assert (own.rescales, as_data.rescales) == (True, False)
    assert torch.equal(own.network.fc.weight, as_data.network.fc.weight)
    assert both[0][1] == hashlib.sha256(path.read_bytes()).hexdigest() != both[1][1]


# --- names ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "ending"),
    [
        ("resnet19", "got resnet19; did you mean `resnet18`?"),
        ("tim:resnet18", "got tim:resnet18; did you mean `timm:resnet18`?"),
        ("ResNet18", "got ResNet18; did you mean `resnet18`?"),
        ("zzz", "got zzz"),
    ],
)
def test_a_wrong_name_is_one_line_with_the_nearest(name, ending):
    with pytest.raises(UserError) as caught:
        load_recipe("supervised/digits/teacher", [f"model.name={name}"])
    expected = "`model.name` expected one of 33 networks, or timm:NAME, tv:NAME or hf:NAME, "
    assert str(caught.value).removeprefix(f"--set model.name={name}: ") == expected + ending


@pytest.mark.parametrize("name", ["timm:vit_small_patch16_224.augreg_in21k", "tv:swin_t", "hf:google/vit", "hf:/a/b"])
def test_a_name_with_a_prefix_is_taken_without_its_library(name):
    before = set(sys.modules)
    assert is_prefixed(name)
    assert ModelOptions(name=name).name == name
    assert not {"timm", "torchvision", "transformers"} & (sys.modules.keys() - before)


def test_the_listing_has_every_network_and_the_way_to_the_others(capsys):
    print_models()
    words = capsys.readouterr().out.replace(",", " ").split()
    assert {*ZOO, "timm:NAME", "tv:NAME", "hf:NAME"} <= set(words)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "resnet18", "weights": "pretrained"}, "`weights: pretrained` belongs to timm:NAME, "),
        ({"name": "resnet20", "stochastic_depth": 0.1}, "`stochastic_depth` expected 0 for `resnet20`, got 0.1; "),
        (
            {"name": "resnet18", "pixels": "data"},
            "`pixels: data` belongs to timm:NAME, .*; `resnet18` sees them ",
        ),
        ({"name": "timm:resnet18", "norm": "group"}, "`norm: group` belongs to networks of this library; "),
        ({"name": "timm:resnet18", "width": 4}, "`width` and `depth` belong to mlp, convnet, .*; `timm:resnet18` "),
    ],
)
def test_an_option_that_a_network_does_not_have_is_refused(options, message):
    with pytest.raises(ValidationError, match=message):
        ModelOptions(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": {"name": "resnet18"}, "weights": "pretrained"}, "expected a `model` by the name of timm:NAME, "),
        ({"recipe": "supervised/digits/teacher", "weights": "pretrained"}, "expected a `model` by the name of timm:"),
        ({"model": {"name": "tv:resnet18", "weights": "a.pth"}, "weights": "pretrained"}, "`model.weights` expected n"),
        ({"model": {"name": "tv:resnet18"}}, "`model` expected a file, or pretrained, in `weights`"),
    ],
)
def test_weights_of_a_teacher_stand_beside_its_model(options, message):
    with pytest.raises(ValidationError, match=message):
        TeacherOptions(**options)


@pytest.mark.parametrize(("name", "package"), [("timm:resnet18", "timm"), ("hf:vit", "transformers")])
def test_a_missing_library_names_its_extra(name, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf'^`model.name` {name} needs `{package}`: pip install "limbeck\['):
        build_model(ModelOptions(name=name), image_shape=(3, 32, 32), num_classes=10, seed=0)


@pytest.mark.parametrize(
    ("content", "absent"),
    [({}, "no image_mean and no image_std"), ({"image_mean": [0.5], "image_std": None}, "no image_std")],
)
def test_an_image_processor_without_mean_or_deviation_is_one_line(content, absent, tmp_path, monkeypatch):
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps(content))
    hub = SimpleNamespace(cached_file=lambda name, file: str(tmp_path / file))
    monkeypatch.setitem(sys.modules, "transformers", SimpleNamespace(utils=hub))
    monkeypatch.setitem(sys.modules, "transformers.utils", hub)
    with pytest.raises(UserError) as caught:
        libraries.processor("vit")
    assert str(caught.value) == (
        "`model.name` hf:vit: expected image_mean and image_std in its preprocessor_config.json, got "
        f"{absent}; write what its weights were trained with into a copy of its folder, and name that, hf:FOLDER"
    )


# --- weights to start from ------------------------------------------------------------------------------------


def resnet(classes, seed, **options):
    options = ModelOptions(name="resnet8", **options)
    return build_model(options, image_shape=(3, 8, 8), num_classes=classes, seed=seed), options


def test_a_student_starts_from_a_file_but_for_a_head_of_other_classes(tmp_path):
    path = tmp_path / "hundred.pth"
    torch.save(resnet(100, 1)[0].state_dict(), path)
    (model, options), before = resnet(10, 2, weights=str(path)), resnet(10, 2)[0].state_dict()
    assert start_weights(model, options, any_head=True).other_classes == 100
    saved = torch.load(path)
    for key, value in model.state_dict().items():
        assert torch.equal(value, (before if key.startswith("head.") else saved)[key]), key


def test_a_teachers_head_is_never_replaced(tmp_path):
    path = tmp_path / "hundred.pth"
    torch.save(resnet(100, 1)[0].state_dict(), path)
    model, options = resnet(10, 2, weights=str(path))
    with pytest.raises(UserError, match="expected weights of `resnet8` for 10 classes, got them for 100; take "):
        start_weights(model, options, any_head=False)


def test_weights_of_another_network_are_no_other_head(tmp_path):
    path = tmp_path / "wide.pth"
    wide = build_model(ModelOptions(name="resnet8x4"), image_shape=(3, 8, 8), num_classes=10, seed=0)
    torch.save(wide.state_dict(), path)
    model, options = resnet(10, 2, weights=str(path))
    with pytest.raises(UserError, match="these look like weights of `resnet8x4`"):
        start_weights(model, options, any_head=True)


def test_public_names_of_a_library_lose_the_level_that_we_add():
    assert public_name("network.layer1.0.conv1.weight", "tv:resnet18") == "layer1.0.conv1.weight"
