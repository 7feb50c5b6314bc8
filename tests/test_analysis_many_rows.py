"""A comparison of dozens of losses stays readable: a list by difference, and a few rows in the other pictures."""

from __future__ import annotations

import pytest
from fake_runs import fake_comparison

from limbeck.analysis import differences
from limbeck.analysis.comparison import summarise
from limbeck.analysis.pictures import SHOWN, comparison_pictures, some_rows
from limbeck.analysis.style import new_figure, styled

ROWS = {"kl": 0.80, "ce": 0.70, **{f"loss{number}": 0.80 + 0.01 * number for number in range(10)}}


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    # On validation the order is the reverse of that on test.
    rows = {name: [[(top1, 1.6 - top1), (top1 + 0.01, 1.6 - top1)]] for name, top1 in ROWS.items()}
    return summarise(fake_comparison(tmp_path_factory.mktemp("many") / "many", rows))


def test_pictures_of_many_rows_show_the_baseline_and_the_best_on_validation(many):
    assert list(some_rows(many)) == ["kl", "ce", "loss0", "loss1", "loss2", "loss3"][:SHOWN]


def test_few_rows_are_all_shown(tmp_path):
    rows = {name: [[(0.8, 0.8)]] for name in list(ROWS)[: differences.MANY]}
    assert list(some_rows(summarise(fake_comparison(tmp_path / "few", rows)))) == list(rows)


def test_captions_say_which_rows_of_how_many_are_drawn(many):
    captions = {picture.name: picture.caption for picture in comparison_pictures(many)}
    note = f"Of 12 rows: the baseline and the {SHOWN - 1} best on validation."
    assert captions["curves"].endswith(note)
    assert note not in captions["differences"]


def test_many_differences_are_a_list_with_the_largest_first(many):
    with styled():
        axes = differences.draw(differences.compute(many), new_figure(3.0)[1][0])
        names = [label.get_text().split(":")[0] for label in axes.get_yticklabels()]
    assert names == [f"loss{number}" for number in range(9, -1, -1)] + ["ce"]


@pytest.mark.parametrize(
    ("baseline", "note"),
    [
        ("kl", f"the baseline and the {SHOWN - 1} first ones."),
        ("gone", f"the {SHOWN - 1} first ones."),
    ],
)
def test_captions_claim_no_validation_and_no_baseline_that_is_not_there(tmp_path, baseline, note):
    rows = {name: [[(top1, None), (top1 + 0.01, None)]] for name, top1 in ROWS.items()}
    comparison = summarise(fake_comparison(tmp_path / "many", rows, baseline=baseline))
    captions = {picture.name: picture.caption for picture in comparison_pictures(comparison)}
    assert captions["per_class"].endswith(f" Of 12 rows: {note}")
