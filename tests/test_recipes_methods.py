"""The comparisons of all losses, and of the main ones, hold what they say."""

from __future__ import annotations

import pytest

from limbeck.config import TERMS
from limbeck.config_files import find_recipe, load_recipe

# Of adversarial training, of images without labels, of several views, of detectors, and of segmentation.
ELSEWHERE = {"mart", "pseudo_label", "probability_mse", "multi_js", "detection", "fgfi", "box_regression", "apd", "cwd"}


def test_the_comparison_on_digits_has_every_loss_of_the_catalogue():
    rows = load_recipe("distill/digits/methods").compare.contenders
    named = {term.name for row in rows.values() for setting in row.settings for term in setting}
    assert named == TERMS.keys() - ELSEWHERE


@pytest.mark.parametrize(("recipe", "settings"), [("distill/digits/methods", 3), ("distill/mnist5k/methods", 2)])
def test_every_row_has_as_many_settings_and_nothing_else_differs_between_them(recipe, settings):
    for name, row in load_recipe(recipe).compare.contenders.items():
        assert len(row.settings) == settings, name
        assert len(set(row.settings)) == settings, name


@pytest.mark.parametrize("folder", ["distill/digits", "distill/mnist5k", "robust/digits"])
def test_a_folder_stands_for_its_comparison_of_methods(folder):
    assert find_recipe(folder) == find_recipe(f"{folder}/methods")
