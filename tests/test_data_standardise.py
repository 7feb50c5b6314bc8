"""Pixels that are left in [0, 1], as attacks expect them, and never standardised twice or for one network alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from engine_runs import recipe, student_recipe
from pydantic import ValidationError

from limbeck.config import AugmentOptions, DataOptions, Recipe
from limbeck.config_files import recipe_of_file
from limbeck.data import augment, build_data
from limbeck.engine.fit import fit
from limbeck.errors import UserError


@pytest.mark.parametrize("name", ["digits", "mnist5k"])
def test_pixels_that_are_not_standardised_are_the_bytes_over_their_maximum(name):
    data = build_data(DataOptions(name=name, standardise=False))
    for part in (data.train, data.validation, data.test):
        images = torch.cat(list(part.batches(500)))
        assert torch.equal(images, part.images / part.pixels.maximum)
        assert (float(images.min()), float(images.max())) == (0, 1)


def test_augmented_pixels_stay_between_0_and_1():
    """So that no attack starts outside of the images' range."""
    data = build_data(DataOptions(name="mnist5k", standardise=False))
    options = AugmentOptions(resized_crop=(0.3, 1.0), flip=True, auto_augment=True, rand_augment_operations=2, cutout=8)
    indices = torch.arange(500)
    views = augment(*data.train.take(indices)[:1], options, pixels=data.train.pixels, seed=0, epoch=1, indices=indices)
    assert (float(views.min()), float(views.max())) == (0, 1)


def test_the_same_images_left_in_their_range_are_other_data():
    plain, standardised = (build_data(DataOptions(standardise=on)) for on in (False, True))
    assert torch.equal(plain.train.images, standardised.train.images)
    assert plain.fingerprint != standardised.fingerprint


# --- networks and teachers ------------------------------------------------------------------------------------

TEACHER = {"model": {"name": "wrn_28_10_swish"}, "weights": "robust.pt"}


@pytest.mark.parametrize("changes", [{"model": TEACHER["model"]}, {"task": "distill", "teachers": [TEACHER]}])
def test_pixels_are_not_standardised_twice(changes):
    base = {"data": {"name": "cifar10"}, "model": {"name": "resnet8"}}
    expected = "`wrn_28_10_swish` standardises pixels itself, so `data.standardise` expected false, got true"
    with pytest.raises(ValidationError, match=expected):
        Recipe.model_validate(base | changes)
    Recipe.model_validate(base | changes | {"data": {"name": "cifar10", "standardise": False}})


@pytest.mark.parametrize(("theirs", "ours"), [(True, False), (False, True)])
def test_a_teacher_that_learned_from_other_pixels_is_refused(theirs, ours, tmp_path):
    fit(recipe(data={"standardise": theirs}, train={"epochs": 1}), tmp_path / "teacher")
    with pytest.raises(UserError) as caught:
        fit(student_recipe(tmp_path / "teacher", data={"standardise": ours}), tmp_path / "student")
    assert str(caught.value) == (
        f"{tmp_path / 'teacher'}: expected `data.standardise` {str(ours).lower()}, as the student's, "
        f"got {str(theirs).lower()}; the teacher sees the student's pixels"
    )


@pytest.mark.parametrize(("model", "standardise"), [("wrn_28_10_swish", False), ("wrn_28_10", True)])
def test_a_file_of_weights_is_evaluated_on_the_pixels_that_its_network_expects(model, standardise):
    options = recipe_of_file(None, model, Path("weights.pt"), "cifar10", ())
    assert options.data.standardise == standardise


def test_the_pixels_of_a_file_of_weights_can_be_chosen():
    """Most public robust networks without norms inside expect pixels in [0, 1]."""
    options = recipe_of_file(None, "wrn_34_10", Path("weights.pt"), "cifar10", ["data.standardise=false"])
    assert not options.data.standardise
    with pytest.raises(UserError, match="`wrn_28_10_swish` standardises pixels itself"):
        recipe_of_file(None, "wrn_28_10_swish", Path("weights.pt"), "cifar10", ["data.standardise=true"])
