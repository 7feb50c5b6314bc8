"""The picture of boxes: which found boxes are right, and that it is drawn from files alone."""

from __future__ import annotations

import json

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from limbeck.analysis.detect_pictures import Found, compute, draw, pictures, right_boxes
from limbeck.analysis.run_files import read_run
from limbeck.analysis.style import styled
from limbeck.errors import UserError


def found():
    true = np.array([[0, 1, 0, 0, 10, 10], [0, 2, 20, 20, 30, 30], [1, 1, 5, 5, 9, 9]], dtype=float)
    boxes = np.array(
        [
            [0, 0, 10, 9, 0.9, 1],  # right
            [0, 0, 10, 10, 0.8, 1],  # the box is taken
            [20, 20, 30, 30, 0.7, 1],  # another class
            [20, 20, 30, 30, 0.1, 2],  # not sure enough to be drawn
            [0, 0, 5, 5, 0.9, -1],  # none
        ]
    )
    return Found(np.zeros((2, 32, 32, 3), np.uint8), true, np.stack([boxes, boxes]), np.array([np.nan, 0.5, 0.5]))


def test_a_box_is_right_if_no_surer_one_has_taken_its_object():
    assert [right for _, right in right_boxes(found(), 0)] == [True, False, False]
    assert [right for _, right in right_boxes(found(), 1)] == [False, False, False]


def test_each_image_has_its_true_boxes_and_below_them_those_of_each_row():
    with styled():
        figure = draw({"kl": found(), "gkl": found()})
    boxes = [len(axes.patches) for axes in figure.axes]
    assert boxes == [2, 1, 3, 3, 3, 3]
    assert [axes.get_ylabel() for axes in figure.axes[::2]] == ["truth", "kl", "gkl"]


def run_folder(folder, arrays):
    from fake_runs import fake_run, write_json

    fake_run(folder)
    results = json.loads((folder / "results.json").read_text())
    write_json(folder / "results.json", {**results, "task": "detect"})
    np.savez(folder / "predictions.npz", **arrays)
    return read_run(folder)


def test_pictures_are_drawn_from_files_and_left_out_where_images_were_too_large(tmp_path):
    kept = found()
    arrays = {
        "test_pictures": kept.images.transpose(0, 3, 1, 2),
        "test_true_boxes": kept.true,
        "test_found_boxes": kept.found,
        "test_class_ap": kept.class_ap,
    }
    (picture,) = pictures({"run": run_folder(tmp_path / "small", arrays)})
    assert picture.name == "boxes"
    assert picture.png.startswith(b"\x89PNG")
    assert pictures({"run": run_folder(tmp_path / "large", {"test_class_ap": kept.class_ap})}) == []
    with pytest.raises(UserError, match="has no boxes"):
        compute(run_folder(tmp_path / "other", {"test_logits": kept.class_ap}))
