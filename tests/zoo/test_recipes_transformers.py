"""The pairs of WKD's Table 6 take two steps, each on its real networks with random weights."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import pytest
import torch
from cifar_archives import write_cifar
from recipe_steps import (
    SHORT,
    changes_of_losses,
    of_another_library,
    take_two_steps,
    take_two_steps_with_all_losses,
    terms_of,
)
from safetensors.torch import save_file

from limbeck.config import ModelOptions
from limbeck.config_files import load_recipe, recipe_names
from limbeck.functional.interrelations import cost_from_interrelations, uniform_interrelations
from limbeck.models import build_model
from limbeck.objectives.build import Facts
from limbeck.objectives.distill import Distillation

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PAIRS = [name for name in recipe_names() if name.startswith("distill/cifar100/")]
PAIRS = [name for name in PAIRS if of_another_library(name)]
IMAGES = 100  # one of each class
SIDE = 64


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of CIFAR-100's form with an image of each class to train on."""
    folder: Path = tmp_path_factory.mktemp("data")
    write_cifar(folder, "cifar100", train=IMAGES, test=10)
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Path]:
    """A folder of a run that is taken away again, with a teacher's weights beside it."""
    yield tmp_path / "run"
    shutil.rmtree(tmp_path)


def network(options: ModelOptions | None, side: int, seed: int) -> torch.nn.Module:
    return build_model(options or ModelOptions(), image_shape=(3, side, side), num_classes=100, seed=seed)


def small(name: str, images: Path, run: Path) -> dict[str, Any]:
    """What makes a pair two steps of small images, its teacher's weights a file of random ones."""
    recipe = load_recipe(name)
    state = network(recipe.teachers[0].model, SIDE, seed=1).state_dict()
    file = run.parent / "teacher.safetensors"
    save_file({name: value.contiguous() for name, value in state.items()}, file)
    changes = {"data.folder": images, "data.image_size": SIDE, "teachers.0.weights": file}
    changes |= {"train.batch_size": IMAGES // 2, "train.epochs": 1, "save.every_epochs": 1}
    return SHORT | changes | changes_of_losses(recipe.losses, coarse=False)


def test_all_pairs_of_the_table_are_here():
    assert [name.rsplit("/", 1)[1] for name in PAIRS] == [
        "convnext_t-deit_t", "convnext_t-swin_p", "swin_t-resnet18", "vit_s-mobilenet_v2", "vit_s-resnet18"
    ]  # fmt: skip


@pytest.mark.parametrize("name", PAIRS)
def test_recipe_takes_two_steps(name, images, run):
    results = take_two_steps(name, small(name, images, run), run)
    assert (results["steps"], results["image_shape"], results["num_classes"]) == (2, [3, SIDE, SIDE], 100)


@pytest.mark.parametrize("name", PAIRS)
def test_the_losses_of_all_rows_take_two_steps(name, images, run):
    take_two_steps_with_all_losses(name, small(name, images, run), run, coarse=False)


@pytest.mark.parametrize("name", PAIRS)
def test_the_losses_of_all_rows_fit_the_maps_of_224_pixels(name):
    recipe = load_recipe(name)
    student, teacher = (network(model, 224, seed=2) for model in (recipe.model, recipe.teachers[0].model))
    cost = cost_from_interrelations(uniform_interrelations(100).float(), sharpness=1.0)
    facts = Facts(100, torch.zeros(1, 3, 224, 224), torch.arange(100), costs=lambda position, term: cost)
    built = Distillation(student, [teacher], terms_of(name), epochs=1, facts=facts)
    assert len(built.terms) == len(terms_of(name))


def test_the_strong_recipes_teacher_is_a_network_of_timm():
    options = load_recipe("distill/imagenet/strong-beitv2_large-resnet50").teachers[0].model
    import timm

    assert timm.is_model(options.name.removeprefix("timm:"))
    with torch.device("meta"):
        network = timm.create_model(options.name.removeprefix("timm:"))
    assert sum(parameter.numel() for parameter in network.parameters()) > 300e6
