"""The recipes of ImageNet and ImageNet-LT, and all their rows' losses, take two steps on a generated folder."""

from __future__ import annotations

import multiprocessing
import shutil
from typing import TYPE_CHECKING, Any

import pytest
import torch
from folders import WNIDS, write_class, write_imagenet
from recipe_steps import (
    SHORT,
    changes_of_losses,
    flat,
    settle,
    take_two_steps,
    take_two_steps_with_all_losses,
    terms_of,
)
from safetensors.torch import save_file

from limbeck.config import ModelOptions
from limbeck.config_files import load_recipe, recipe_names
from limbeck.data import build_data
from limbeck.engine.fit import plan_teachers
from limbeck.functional.interrelations import cost_from_interrelations, uniform_interrelations
from limbeck.models import build_model
from limbeck.objectives.build import Facts
from limbeck.objectives.distill import Distillation
from limbeck.objectives.supervised import Supervised

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from limbeck.config import Recipe

CLASSES = 4  # of the made images, one of each in each split
SIDE = 64
LARGE = [name for name in recipe_names() if name.split("/")[1] in ("imagenet", "imagenet-lt")]
COMPARED = [name for name in LARGE if load_recipe(name).compare.contenders]
AT_224 = [name for name in COMPARED if name.split("/")[1] == "imagenet"]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like ImageNet's, with ImageNet-LT's lists, and folders like ImageNet-R and -Sketch in it."""
    classes = WNIDS[:CLASSES]
    root: Path = write_imagenet(tmp_path_factory.mktemp("imagenet"), train=1, val=1, classes=classes)
    for split, name in (("train", "train"), ("val", "test")):
        lines = [f"{split}/{wnid}/{wnid}_0.JPEG {label}\n" for label, wnid in enumerate(classes)]
        (root / f"ImageNet_LT_{name}.txt").write_text("".join(lines))
    for test in ("imagenet_r", "imagenet_sketch"):
        for label, wnid in enumerate(classes):
            write_class(root / test / wnid, label, 1, seed=label)
    return root


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Path]]:
    """Return a function from a network's name to a file of its weights for the made images."""
    folder = tmp_path_factory.mktemp("weights")

    def write(name: str) -> Path:
        path: Path = folder / f"{name}.safetensors"
        if not path.is_file():
            save_file(settle(network(name, SIDE, seed=1), SIDE).state_dict(), path)
        return path

    yield write
    shutil.rmtree(folder)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Path]:
    """A folder of a run that is taken away again: a checkpoint has hundreds of megabytes."""
    yield tmp_path / "run"
    shutil.rmtree(tmp_path)


def network(name: str, side: int, seed: int) -> torch.nn.Module:
    return build_model(ModelOptions(name=name), image_shape=(3, side, side), num_classes=CLASSES, seed=seed)


def teacher_of(recipe: Recipe) -> str:
    """The network that teaches; one of ours in the place of another library's."""
    (teacher,) = recipe.teachers
    name = teacher.model.name if teacher.model else load_recipe(str(teacher.recipe)).model.name
    return "resnet34" if ":" in name else name


def small(name: str, images: Path, weights: Callable[[str], Path]) -> dict[str, Any]:
    """What makes a recipe two steps of four small images."""
    recipe = load_recipe(name)
    changes = SHORT | {
        "data.folder": images,
        "data.workers": 0,
        "data.image_size": SIDE,
        "data.test_resize": 72,
        "train.batch_size": CLASSES - CLASSES % recipe.data.repeats,
    }
    for path, folder in flat(recipe.data.shifted_tests.model_dump(), "data.shifted_tests").items():
        if folder is not None:
            changes[path] = images / path.rsplit(".", 1)[1]
    if recipe.teachers:
        changes["teachers.0.weights"] = weights(teacher_of(recipe))
        if recipe.teachers[0].model and ":" in recipe.teachers[0].model.name:
            changes["teachers.0.model.name"] = teacher_of(recipe)
    return changes | changes_of_losses(recipe.losses)


@pytest.mark.parametrize("name", LARGE)
def test_recipe_takes_two_steps(name, images, weights, run):
    results = take_two_steps(name, small(name, images, weights), run)
    assert (results["steps"], results["protocol"], results["num_classes"]) == (2, "paper", CLASSES)
    assert results["image_shape"] == [3, SIDE, SIDE]


@pytest.mark.parametrize("name", COMPARED)
def test_the_losses_of_all_rows_take_two_steps(name, images, weights, run):
    take_two_steps_with_all_losses(name, small(name, images, weights), run)


@pytest.mark.parametrize("name", AT_224)
def test_the_losses_of_all_rows_fit_the_maps_of_224_pixels(name):
    recipe = load_recipe(name)
    student = network(recipe.model.name, 224, seed=2)
    facts = Facts(CLASSES, torch.zeros(1, 3, 224, 224), torch.arange(40) % CLASSES, costs=uniform_cost)
    if recipe.teachers:
        built = Distillation(student, [network(teacher_of(recipe), 224, seed=1)], terms_of(name), epochs=1, facts=facts)
    else:
        built = Supervised(student, terms_of(name), epochs=1, facts=facts)
    assert len(built.terms) == len(terms_of(name))


def uniform_cost(position: int, term: Any) -> torch.Tensor:
    return cost_from_interrelations(uniform_interrelations(CLASSES).float(), sharpness=term.sharpness)


# --- what the commands make of them ---


def test_a_teacher_is_trained_on_the_images_that_its_student_was_given(images):
    given = {"data.folder": images, "data.image_size": SIDE, "data.test_resize": 72, "data.workers": 1}
    given |= {"data.train_list": "mine.txt", "train.device": "cpu"}
    recipe = load_recipe("distill/imagenet-lt/resnext101_32x4d-resnet18", [f"{k}={v}" for k, v in given.items()])
    ((source, teacher),) = plan_teachers(recipe)
    assert source is None
    assert teacher.model.name == "resnext101_32x4d"
    assert teacher.data == recipe.data


def test_runs_side_by_side_decode_in_their_own_processes(images):
    """A comparison's worker is a daemon, and a daemon may have no children."""
    source = build_data(
        load_recipe(LARGE[0], [f"data.folder={images}", "data.workers=2", "data.shifted_tests={}"]).data
    )
    process = multiprocessing.get_context("fork").Process(target=read_once, args=(source.test,), daemon=True)
    process.start()
    process.join(60)
    assert process.exitcode == 0


def read_once(source: Any) -> None:
    torch.set_num_threads(1)
    assert len(next(source.batches(CLASSES))) == CLASSES
