"""Pairs in tar files: captions stay with their images, whoever reads them; folders beside them are to be classified."""

from __future__ import annotations

import tarfile

import pytest
import torch
from folders import WNIDS, write_captioned_shards, write_imagenet
from pydantic import ValidationError
from tiny_clip import write_network, write_tokenizer

from limbeck.config import AugmentOptions, DataOptions, ModelOptions, Recipe
from limbeck.config_files import load_recipe
from limbeck.data import build_data, open_stream
from limbeck.data.words import word_tokens
from limbeck.engine.fit import fit
from limbeck.engine.run_folder import read_results
from limbeck.errors import UserError
from limbeck.models import build_model

pytest.importorskip("webdataset")
CLASSES = WNIDS[:3]
CAPTIONS = [f"picture {number} of kind {number % 10}" for number in range(12)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("pairs")
    write_imagenet(root, train=0, val=2, classes=CLASSES)
    write_captioned_shards(root / "shards")
    (root / "class_names.txt").write_text("tench\ngoldfish\ngreat white shark\n")
    return root


def options(root, **changes):
    base = {
        "name": "captioned_shards",
        "folder": str(root),
        "shards": str(root / "shards" / "{0000..0001}.tar"),
        "samples": 12,
        "validation": 0,
        "image_size": 32,
        "test_resize": 32,
        "workers": 0,
        "captions": {"length": 8, "prompts": ["a photo of a {}", "{}"], "class_names": "class_names.txt"},
    }
    return DataOptions.model_validate({**base, **changes})


def batches(folder, *, rank=0, world=1, start=0, **changes):
    data = build_data(options(folder, **changes))
    augment = AugmentOptions(resized_crop=(0.5, 1.0))
    stream = open_stream(data, augment, batch_size=2, drop_last=True, seed=3, rank=rank, world=world)
    return list(stream.batches(1, start))


@pytest.mark.parametrize("workers", [0, 2])
def test_each_image_has_its_own_caption_once_an_epoch(workers, folder):
    found = torch.cat([batch.labels for batch in batches(folder, workers=workers)])
    expected = word_tokens(CAPTIONS, 8)
    assert sorted(found.tolist()) == sorted(expected.tolist())
    again = batches(folder, workers=0, start=1)  # resumed
    assert torch.equal(torch.cat([batch.labels for batch in again]), found[2:])


def test_ranks_read_different_pairs(folder):
    both = [batches(folder, rank=rank, world=2) for rank in (0, 1)]
    seen = [{tuple(tokens) for batch in part for tokens in batch.labels.tolist()} for part in both]
    assert not seen[0] & seen[1]
    assert all(batch.whole == 2 and len(batch.labels) == 1 for part in both for batch in part)


def test_prompts_are_the_names_of_the_classes_in_their_folders_order(folder):
    data = build_data(options(folder))
    assert data.num_classes == 3
    assert data.test.class_names == ("tench", "goldfish", "great white shark")
    assert torch.equal(data.test.prompts[2], word_tokens(["a photo of a great white shark", "great white shark"], 8))
    assert data.test.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert len(data.validation) == 0


def test_what_is_missing_is_one_line(folder, tmp_path):
    (folder / "short.txt").write_text("tench\n")
    for changes, message in (
        ({"captions": {"class_names": "short.txt"}}, "short.txt: expected 3 lines, the names of the class folders of"),
        ({"captions": {"class_names": "no.txt"}}, "`data.captions.class_names` cannot be read"),
        ({"folder": str(tmp_path)}, "expected a folder val of class folders, to be classified, got none"),
    ):
        with pytest.raises(UserError, match=message):
            build_data(options(folder, **changes))
    with tarfile.open(tmp_path / "bare.tar", "w") as tar:
        tar.add(next((folder / "val").rglob("*.JPEG")), "a.jpg")
    with pytest.raises(UserError, match=r"expected a sample with an image .* and txt, its caption"):
        batches(folder, shards=str(tmp_path / "bare.tar"))
    with pytest.raises(ValidationError, match="`captioned_shards` expected tar files in `shards`, and `samples`"):
        DataOptions(name="captioned_shards")


# --- the recipe of the paper ----------------------------------------------------------------------------------

NAME = "image_text/datacomp/vit_b_16-vit_l_14"
ROWS = tuple(load_recipe(NAME).compare.contenders)


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """A student, a wider teacher with weights of its own, and their words."""
    root = tmp_path_factory.mktemp("networks")
    sizes = {"image_size": 32}
    student, teacher = write_network(root / "student", **sizes), write_network(root / "teacher", width=24, **sizes)
    words = write_tokenizer(root / "words", ["picture", "of", "kind", "photo", "tench", "goldfish", "shark"])
    model = build_model(
        ModelOptions(name=f"hf:{teacher}"), image_shape=(3, 32, 32), num_classes=3, seed=1, task="image_text"
    )
    torch.save(model.network.state_dict(), root / "teacher.pth")
    return root, student, teacher, words


@pytest.mark.parametrize("form", ["softmax", "sigmoid"])
@pytest.mark.parametrize("row", ROWS)
def test_each_row_takes_two_steps(row, form, folder, networks, tmp_path):
    root, student, teacher, words = networks
    recipe = load_recipe(NAME)
    told = options(folder).model_dump()
    told["captions"] |= {"tokenizer": f"hf:{words}"}
    content = recipe.model_dump() | {
        "data": told | {"augment": recipe.data.augment, "samples": 8},
        "model": {"name": f"hf:{student}"},
        "teachers": [{"model": {"name": f"hf:{teacher}", "pixels": "data"}, "weights": str(root / "teacher.pth")}],
        "losses": recipe.compare.contenders[row].settings[0],
        "image_text": {"form": form, "tile": 3},
        "train": recipe.train.model_dump() | {"epochs": 1, "batch_size": 4, "accumulate": 2, "device": "cpu"},
        "save": {"tensorboard": False, "log_every": 1},
        "compare": {},
    }
    fit(Recipe.model_validate(content), tmp_path / "run")
    results = read_results(tmp_path / "run")
    assert results["steps"] == 2
    assert 0 <= results["last"]["test"]["zero_shot"] <= 1
    assert "image_to_text" not in results["last"]["test"]  # the images to classify have no captions
    assert len(results["teachers"]) == 1
