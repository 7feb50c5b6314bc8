"""Pictures of retrieval are drawn from the run's files alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from limbeck.analysis import image_text_pictures
from limbeck.analysis.style import styled
from limbeck.errors import UserError


class FakeRun:
    split = "test"

    def __init__(self, folder: Path) -> None:
        self.folder = folder


def texts(*words):
    longest = max(map(len, words))
    return np.array([list(word.encode().ljust(longest, b"\0")) for word in words], dtype=np.uint8)


def write(folder, **more):
    folder.mkdir()
    confusion = np.array([[3, 1], [0, 0]])
    arrays = {"test_confusion": confusion, "test_class_names": texts("animal", "sign"), **more}
    np.savez(folder / "predictions.npz", **arrays)
    return FakeRun(folder)


@pytest.fixture
def run(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 3, 8, 8), dtype=np.uint8)
    right = np.array([[True, False, False], [False, False, False]])
    return write(
        tmp_path / "run",
        test_captions=texts("cat", "a face with a hat on"),
        test_caption_places=np.array([1, 4]),
        test_caption_images=images[:, 0],
        test_retrieved_images=images,
        test_retrieved_right=right,
    )


def test_a_run_has_a_grid_of_captions_and_its_confusion(run):
    with styled():
        drawn = image_text_pictures.pictures({"run": run})
        twice = image_text_pictures.pictures({"run": run, "other": run})
    assert [picture.name for picture in drawn] == ["retrieval", "zero_shot"]
    assert [picture.name for picture in twice] == ["retrieval_1", "zero_shot_1", "retrieval_2", "zero_shot_2"]
    assert all(picture.png.startswith(b"\x89PNG") for picture in drawn)
    assert image_text_pictures.compute(run).captions == ("cat", "a face with a hat on")


def test_a_right_image_has_a_frame_and_no_other_one(run):
    with styled():
        figure = image_text_pictures.draw_retrieval(image_text_pictures.compute(run))
    framed = [axes for axes in figure.axes if axes.axison and axes.spines["left"].get_visible()]
    assert framed == [figure.axes[2]]


def test_images_without_captions_have_their_confusion_alone(tmp_path):
    with styled():
        drawn = image_text_pictures.pictures({"run": write(tmp_path / "run")})
    assert [picture.name for picture in drawn] == ["zero_shot"]


def test_a_missing_and_a_foreign_file_are_one_line(tmp_path):
    with pytest.raises(UserError, match="is missing; train the run again"):
        image_text_pictures.compute(FakeRun(tmp_path))
    np.savez(tmp_path / "predictions.npz", test_logits=np.zeros(2))
    with pytest.raises(UserError, match="has no classes of zero-shot classification"):
        image_text_pictures.compute(FakeRun(tmp_path))
