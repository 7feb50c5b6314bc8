"""What is swept, and what is not a grid."""

from __future__ import annotations

import pytest

from limbeck.config_grid import read_grid, split_values
from limbeck.errors import UserError

RECIPE = "distill/digits/few-labels"


def test_the_grid_has_every_combination_and_plain_changes_apply_to_all():
    grid = read_grid(RECIPE, ["train.epochs=2", "optimizer.learning_rate=0.1,0.2", "losses.1.name=kl,gkl"])
    assert [(axis.path, axis.values) for axis in grid.axes] == [
        ("optimizer.learning_rate", (0.1, 0.2)),
        ("losses.1.name", ("kl", "gkl")),
    ]
    assert [point.name for point in grid.points] == [
        "learning_rate=0.1,name=kl",
        "learning_rate=0.1,name=gkl",
        "learning_rate=0.2,name=kl",
        "learning_rate=0.2,name=gkl",
    ]
    for point in grid.points:
        assert (point.recipe.optimizer.learning_rate, point.recipe.losses[1].name) == point.values
        assert point.recipe.train.epochs == 2


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("a=1", ["1"]),
        ("a=1,2", ["1", "2"]),
        ("a=[1,2]", ["[1,2]"]),
        ("a=[1,2],[3]", ["[1,2]", "[3]"]),
        ("a={b: 1, c: [2, 3]},4", ["{b: 1, c: [2, 3]}", "4"]),
        ("a='x, y',z", ["'x, y'", "z"]),
        ("a=", [""]),
    ],
)
def test_commas_within_brackets_and_quotes_belong_to_a_value(text, values):
    assert split_values(text) == values


def test_options_with_the_same_last_name_are_named_in_full():
    grid = read_grid(RECIPE, ["losses.0.weight=1,2", "losses.1.weight=1,2"])
    assert grid.points[1].name == "losses.0.weight=1,losses.1.weight=2"


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        ([], "expected an option with several values to sweep, such as --set train.epochs=10,20, got none"),
        (["train.epochs=3"], "expected an option with several values"),
        (["model.width=4,-1"], "--set model.width=-1: `model.width`"),
        (["model.widht=4,8"], "--set model.widht=4: unknown key `model.widht`; did you mean `width`"),
        (["train.epochs=1,,2"], "--set train.epochs=1,,2: expected values between the commas"),
        (["train.epochs=1,1"], "--set train.epochs=1,1: expected different values"),
        (["seed=1,2"], "--set seed=1,2: seeds are no option to choose; --seeds N"),
        (["train.epochs=1,2", "train.epochs=3"], "--set train.epochs: expected once, got it twice"),
        (["train.epochs=1,2", "train.epochs=3,4"], "--set train.epochs: expected once, got it twice"),
        (["train.epochs=1,2", "nothing"], "--set nothing: expected path=value"),
        (["teachers.0.recipe=supervised/digits/teacher,nowhere"], "`teachers.0.recipe`: unknown recipe `nowhere`"),
    ],
)
def test_a_mistake_names_the_override_before_anything_is_trained(overrides, line):
    with pytest.raises(UserError) as caught:
        read_grid(RECIPE, overrides)
    assert str(caught.value).startswith(line), str(caught.value)
