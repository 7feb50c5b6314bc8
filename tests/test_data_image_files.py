"""Folders and lists of images: looked through once, looked through again when they change, mistakes in one line."""

from __future__ import annotations

import os
import re
import shutil
import time

import pytest
import torch
from folders import WNIDS, write_class, write_imagenet, write_imagenet_lt

from limbeck.config import DataOptions
from limbeck.data import build_data
from limbeck.data.image_files import class_folders, listed_images
from limbeck.errors import UserError

LONG_AGO = time.time() - 1000


def settle(root):
    """Let all folders have changed long ago."""
    for folder in (root, *(path for path in root.rglob("*") if path.is_dir())):
        os.utime(folder, (LONG_AGO, LONG_AGO))


def look(folder, find=class_folders, **options):
    told = []
    return find(folder, told=told.append, **options), told


@pytest.fixture
def train(tmp_path):
    write_imagenet(tmp_path, train=2, val=1)
    settle(tmp_path)
    return tmp_path / "train"


def same(one, other):
    return one.names == other.names and all(
        torch.equal(getattr(one, name), getattr(other, name)) for name in ("ends", "sizes", "labels")
    ) and one.classes == other.classes  # fmt: skip


def test_the_second_look_opens_no_folder(train, monkeypatch):
    found, told = look(train)
    assert told == [f"{train}: looking through the images; the next start is quick"]
    monkeypatch.setattr(os, "scandir", None)
    again, told = look(train)
    assert told == []
    assert same(again, found)
    assert found.path(3) == str(train / WNIDS[1] / f"{WNIDS[1]}_1.JPEG")
    assert os.path.getsize(found.path(3)) == int(found.sizes[3])


@pytest.mark.parametrize("change", ["add", "remove", "rename", "class", "nested"])
def test_a_change_of_the_folder_is_noticed(change, train):
    found, _ = look(train)
    write_class(train.parent / "more", 0, 1, seed=5)
    new = train.parent / "more" / "more_0.JPEG"
    match change:
        case "add":
            shutil.copy(new, train / WNIDS[3] / "new.JPEG")
        case "remove":
            (train / WNIDS[3] / f"{WNIDS[3]}_0.JPEG").unlink()
        case "rename":
            (train / WNIDS[3] / f"{WNIDS[3]}_0.JPEG").rename(train / WNIDS[3] / "other.JPEG")
        case "class":
            shutil.copytree(train.parent / "more", train / "n99999999")
        case "nested":
            shutil.copytree(train.parent / "more", train / WNIDS[3] / "images")
    again, told = look(train)
    assert told
    assert not same(again, found)


def test_what_changed_a_moment_ago_is_not_taken_from_the_index(tmp_path):
    """A second change in the same tick of the clock would leave the time of the folder as it is."""
    write_imagenet(tmp_path, train=1, val=0)
    for _ in range(2):
        _, told = look(tmp_path / "train")
        assert told


def test_a_damaged_index_is_looked_over(train, monkeypatch, tmp_path):
    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path / "cache"))
    found, _ = look(train)
    (index,) = (tmp_path / "cache" / "index").iterdir()
    index.write_bytes(index.read_bytes()[:100])
    again, told = look(train)
    assert told
    assert same(again, found)


def test_without_a_place_for_the_index_every_look_is_the_first(train, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LIMBECK_CACHE", str(tmp_path / "file"))
    for _ in range(2):
        _, told = look(train)
        assert told


def test_hidden_files_and_files_that_are_no_images_are_passed_over(train):
    for name in ("._a.JPEG", "notes.txt"):
        (train / WNIDS[0] / name).write_text("x")
    (train / ".cache").mkdir()
    found, _ = look(train)
    assert (len(found), len(found.classes)) == (20, 10)


def test_a_list_is_read_again_when_it_changes(tmp_path):
    write_imagenet_lt(tmp_path)
    settle(tmp_path)
    path = tmp_path / "ImageNet_LT_train.txt"
    found, told = look(path, listed_images, root=tmp_path)
    assert told == [f"{path}: looking for its 38 images; the next start is quick"]
    again, told = look(path, listed_images, root=tmp_path)
    assert told == []
    assert same(again, found)
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))
    shorter, told = look(path, listed_images, root=tmp_path)
    assert told
    assert len(shorter) == 37


def test_names_may_have_spaces_and_other_letters(tmp_path):
    write_class(tmp_path / "data" / "été 1", 0, 2, seed=1)
    (tmp_path / "list.txt").write_text("data/été 1/été 1_0.JPEG 0\n\n/data/été 1/été 1_1.JPEG 0\n")
    found, _ = look(tmp_path / "list.txt", listed_images, root=tmp_path)
    assert [os.path.isfile(found.path(place)) for place in range(2)] == [True, True]
    assert found.classes == ("été 1",)


def test_a_folder_of_ones_own_may_have_test_images_and_validation_images(tmp_path):
    write_imagenet(tmp_path, train=4, val=2)
    options = {"name": "image_folder", "folder": str(tmp_path), "workers": 0}
    alone = build_data(DataOptions.model_validate(options))
    assert [len(part) for part in (alone.train, alone.validation, alone.test)] == [30, 10, 20]
    shutil.copytree(tmp_path / "val", tmp_path / "test")
    (tmp_path / "test" / WNIDS[0] / f"{WNIDS[0]}_0.JPEG").unlink()
    both = build_data(DataOptions.model_validate(options))
    assert [len(part) for part in (both.train, both.validation, both.test)] == [40, 20, 19]
    assert both.test.files.root == tmp_path / "test"
    paper = build_data(DataOptions.model_validate({**options, "validation": 0}))
    assert [len(part) for part in (paper.train, paper.validation, paper.test)] == [40, 0, 19]
    shutil.rmtree(tmp_path / "val")
    test = build_data(DataOptions.model_validate(options))
    assert [len(part) for part in (test.train, test.validation, test.test)] == [30, 10, 19]


def test_few_labels_and_long_tails_are_of_files_too(tmp_path):
    write_imagenet(tmp_path, train=8, val=1)
    options = {"name": "imagenet", "folder": str(tmp_path), "validation": 0, "imbalance": 8}
    counts = build_data(DataOptions.model_validate(options)).class_counts.tolist()
    assert (counts[0], counts[-1]) == (8, 1)
    assert counts == sorted(counts, reverse=True)


def test_a_list_may_lie_in_the_home_folder(tmp_path, monkeypatch):
    data, home = write_imagenet_lt(tmp_path / "data"), tmp_path / "home"
    home.mkdir()
    for name in ("train", "test"):
        (data / f"ImageNet_LT_{name}.txt").rename(home / f"my {name}.txt")
    monkeypatch.setenv("HOME", str(home))
    lists = {"train_list": "~/my train.txt", "test_list": "~/my test.txt"}
    bundle = build_data(
        DataOptions.model_validate({"name": "imagenet_lt", "folder": str(data), "validation": 0, **lists})
    )
    assert len(bundle.test) == 20


# --- mistakes ---------------------------------------------------------------------------------------------


def complaint(**options):
    with pytest.raises(UserError) as caught:
        build_data(DataOptions.model_validate(options))
    (line,) = str(caught.value).splitlines()
    return line


def test_a_missing_folder_is_named(tmp_path):
    line = complaint(name="imagenet", folder=str(tmp_path / "none"))
    assert line == f"{tmp_path / 'none'}: no such folder; set `data.folder` to that of `imagenet`, or $LIMBECK_DATA"


@pytest.mark.parametrize(("name", "gone"), [("imagenet", "train"), ("imagenet", "val"), ("image_folder", "train")])
def test_a_missing_split_is_named(name, gone, tmp_path):
    write_imagenet(tmp_path, train=1, val=1)
    shutil.rmtree(tmp_path / gone)
    line = complaint(name=name, folder=str(tmp_path))
    assert line == f"{tmp_path}: expected the folders train and val of class folders, got no {gone}"


def test_test_images_are_asked_for(tmp_path):
    write_imagenet(tmp_path, train=1, val=0)
    shutil.rmtree(tmp_path / "val", ignore_errors=True)
    line = complaint(name="image_folder", folder=str(tmp_path))
    assert "expected a folder val or test beside train, got none" in line


def test_a_class_without_images_is_named(tmp_path):
    write_imagenet(tmp_path, train=1, val=1)
    for path in (tmp_path / "train" / WNIDS[4]).iterdir():
        path.unlink()
    assert f"{tmp_path / 'train' / WNIDS[4]}: expected images (.jpg" in complaint(name="imagenet", folder=str(tmp_path))


def test_a_class_of_one_split_alone_is_named(tmp_path):
    write_imagenet(tmp_path, train=1, val=1)
    shutil.rmtree(tmp_path / "val" / WNIDS[4])
    line = complaint(name="imagenet", folder=str(tmp_path))
    train = tmp_path / "train"
    assert line == f"{tmp_path / 'val'}: expected the class folders of {train}, got '{WNIDS[4]}' in {train} only"


def test_the_first_absent_images_of_a_list_are_named_and_all_are_counted(tmp_path):
    write_imagenet_lt(tmp_path)
    path = tmp_path / "ImageNet_LT_train.txt"
    path.write_text("".join(f"train/none/{number}.JPEG 0\n" for number in range(5)) + path.read_text())
    line = complaint(name="imagenet_lt", folder=str(tmp_path))
    first = ", ".join(f"train/none/{number}.JPEG" for number in range(3))
    assert f"{path} names images that are not in {tmp_path}: {first} and 2 more; `data.folder` expected" in line


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "expected lines `path label`, got none"),
        ("train/a.JPEG\n", "expected `path label` in line 1, got 'train/a.JPEG'"),
        ("train/a.JPEG -1\n", "expected `path label` in line 1, got 'train/a.JPEG -1'"),
    ],
)
def test_a_file_that_is_no_list_is_one_line(text, expected, tmp_path):
    write_imagenet_lt(tmp_path)
    (tmp_path / "mine.txt").write_text(text)
    line = complaint(name="imagenet_lt", folder=str(tmp_path), train_list="mine.txt")
    assert line == f"{tmp_path / 'mine.txt'}: {expected}"


def test_a_class_that_a_list_leaves_out_is_named(tmp_path):
    write_imagenet_lt(tmp_path)
    path = tmp_path / "ImageNet_LT_train.txt"
    path.write_text("".join(line for line in path.read_text().splitlines(keepends=True) if not line.endswith(" 4\n")))
    assert "expected an image of each class, got none of class 4" in complaint(name="imagenet_lt", folder=str(tmp_path))


def test_a_stray_huge_label_is_refused_before_a_name_is_kept_of_each_class(tmp_path):
    """Names of 10^30 classes would be more than memory holds."""
    write_imagenet_lt(tmp_path)
    path = tmp_path / "ImageNet_LT_train.txt"
    path.write_text(path.read_text() + f"train/{WNIDS[0]}/{WNIDS[0]}_0.JPEG {10**30}\n")
    line = complaint(name="imagenet_lt", folder=str(tmp_path))
    assert line == f"{path}: expected an image of each class, got none of class 10, and class {10**30}"


def test_a_list_of_test_images_may_have_fewer_than_classes(tmp_path):
    write_imagenet_lt(tmp_path)
    path = tmp_path / "ImageNet_LT_test.txt"
    path.write_text(path.read_text().splitlines()[-1])
    found, _ = look(path, listed_images, root=tmp_path)
    assert found.labels.tolist() == [9]


def test_a_folder_that_cannot_be_read_is_one_line(tmp_path, monkeypatch):
    write_imagenet(tmp_path, train=1, val=1)

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", refuse)
    line = complaint(name="imagenet", folder=str(tmp_path))
    assert line == f"{tmp_path / 'val'} cannot be read (permission denied); mend that"


@pytest.mark.parametrize("target", [f"../{WNIDS[1]}", "."])
def test_a_link_to_a_folder_inside_a_class_folder_is_refused(target, train):
    (train / WNIDS[0] / "more").symlink_to(target, target_is_directory=True)
    with pytest.raises(UserError) as caught:
        look(train)
    assert str(caught.value) == (
        f"{train / WNIDS[0] / 'more'}: expected no link to a folder inside a class folder, got one; "
        "put a folder in its place, or links to single images"
    )


def test_class_folders_and_images_may_be_links(train, tmp_path):
    shutil.move(train / WNIDS[0], tmp_path / "elsewhere")
    (train / WNIDS[0]).symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (train / WNIDS[1] / "linked.JPEG").symlink_to(tmp_path / "elsewhere" / f"{WNIDS[0]}_0.JPEG")
    found, _ = look(train)
    assert (len(found), len(found.classes)) == (21, 10)


def test_a_missing_list_is_named(tmp_path):
    write_imagenet(tmp_path, train=1, val=1)
    line = complaint(name="places_lt", folder=str(tmp_path))
    assert line.startswith(f"{tmp_path / 'Places_LT_train.txt'}: no such list; put it there, or set `data.train_list`")


def test_sizes_that_do_not_fit_are_refused_before_anything_is_read():
    with pytest.raises(ValueError, match=re.escape("`test_resize` expected at least `image_size`, 300, got 256")):
        DataOptions(name="imagenet", image_size=300)
    with pytest.raises(ValueError, match="`train_list` and `test_list` belong to imagenet_lt"):
        DataOptions(name="imagenet", train_list="x.txt")
    with pytest.raises(ValueError, match="`shifted_tests` belong to images in files, got `digits`"):
        DataOptions.model_validate({"shifted_tests": {"imagenet_r": "x"}})
