"""The picture of masks: every row beside the truth, colours by class, and files that are another task's."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from limbeck.analysis.segment_pictures import BACKGROUND, IGNORED, Masks, class_iou, coloured, draw
from limbeck.measures import segmentation


def masks(seed: int, teacher: bool = False) -> Masks:
    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, 5, (3, 3, 8, 8)).astype(np.uint8)
    images = rng.integers(0, 255, (3, 8, 8, 3)).astype(np.uint8)
    return Masks(images, drawn[0], drawn[1], drawn[2] if teacher else None, rng.integers(1, 9, (5, 5)))


@pytest.mark.parametrize("teacher", [False, True])
def test_each_row_has_a_line_below_image_and_truth_and_the_teacher_the_last(teacher):
    figure = draw({"none": masks(0), "gkl": masks(1, teacher)})
    labels = [axes.get_ylabel() for axes in figure.axes if axes.get_ylabel()]
    assert labels == ["image", "truth", "none", "gkl", *(["teacher"] if teacher else [])]
    assert len(figure.axes) == 3 * len(labels)


def test_classes_have_colours_of_their_own():
    palette = coloured(np.arange(21, dtype=np.uint8)[None])[0]
    gaps = np.abs(palette[:, None] - palette[None]).sum(-1) + np.eye(21)
    assert gaps.min() > 0.05
    assert tuple(palette[0]) == BACKGROUND
    assert tuple(coloured(np.full((1, 1), 255, dtype=np.uint8))[0, 0]) == IGNORED


def test_files_and_judges_find_the_same_intersection_over_union():
    confusion = masks(2).confusion
    confusion[2], confusion[:, 2] = 0, 0
    ours, theirs = class_iou(confusion), segmentation.class_iou(torch.from_numpy(confusion)).numpy()
    np.testing.assert_allclose(ours, theirs)
