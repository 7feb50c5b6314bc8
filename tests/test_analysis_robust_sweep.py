"""Claims about sweeps of adversarial training."""

import pytest
from fake_robust_runs import fake_robust_sweep, unattacked

from limbeck.analysis.style import new_figure, styled
from limbeck.analysis.sweep import columns, notes, rich_table, summarise
from limbeck.analysis.sweep_picture import draw_lines, draw_map, picture

WEIGHT = "losses.1.weight"
# (clean, robust on test, clean and robust on validation): the most robust on validation is neither that on test nor
# the cleanest.
POINTS = {
    1.0: [(0.98, 0.50, 0.97, 0.52), (0.98, 0.52, 0.97, 0.50)],
    3.0: [(0.96, 0.60, 0.95, 0.64), (0.96, 0.62, 0.95, 0.62)],
    9.0: [(0.93, 0.65, 0.92, 0.60), (0.93, 0.67, 0.92, 0.58)],
}


def test_the_most_robust_on_validation_is_chosen_and_only_its_test_accuracies_are_shown(tmp_path):
    sweep = summarise(fake_robust_sweep(tmp_path, WEIGHT, POINTS))
    assert sweep.chosen is sweep.points[1]
    titles, rows = columns(sweep)
    named = ["validation pgd10, %", "validation clean, %", "n", "test aa, %", "test clean, %"]
    assert [title.replace("\n", " ") for title in titles] == ["losses.1. weight", *named]
    assert rows == [
        ["1", "51.00 ± 1.41", "97.00 ± 0.00", "2/2", "", ""],
        ["3", "63.00 ± 1.41", "95.00 ± 0.00", "2/2", "61.00 ± 1.41 *", "96.00 ± 0.00"],
        ["9", "59.00 ± 1.41", "92.00 ± 0.00", "2/2", "", ""],
    ]


def test_notes_say_which_weights_are_reported_and_how_they_were_attacked(tmp_path):
    text = " ".join(notes(summarise(fake_robust_sweep(tmp_path, WEIGHT, POINTS))))
    assert "Weights of the epoch with the best robust accuracy on validation" in text
    assert "L∞ ball of radius epsilon = 0.2" in text
    assert "aa (AutoAttack): standard" in text
    assert "* chosen on validation among 3 points" in text
    assert "Last epoch" not in text


@pytest.mark.parametrize(
    ("option", "values"), [("epsilon", (0.1, 0.2, 0.3)), ("validation_attack", ("pgd1", "pgd10", "cw40"))]
)
def test_points_that_were_attacked_otherwise_are_not_chosen_from(tmp_path, option, values):
    points = dict(zip(values, POINTS.values(), strict=True))
    sweep = summarise(fake_robust_sweep(tmp_path, f"adversary.{option}", points))
    assert sweep.chosen is None
    assert columns(sweep)[0][1:] == ["validation\nrobust accuracy, %", "validation\nclean, %", "n"]
    assert "robust accuracies cannot be compared, so none is chosen" in " ".join(notes(sweep))


def test_options_of_the_adversary_that_do_not_measure_are_compared(tmp_path):
    points = dict(zip((1, 5, 10), POINTS.values(), strict=True))
    assert summarise(fake_robust_sweep(tmp_path, "adversary.steps", points)).chosen.values == (5,)


def test_without_validation_none_is_chosen(tmp_path):
    points = {value: [seed[:2] for seed in seeds] for value, seeds in POINTS.items()}
    sweep = summarise(fake_robust_sweep(tmp_path, WEIGHT, points))
    assert sweep.chosen is None
    titles, rows = columns(sweep)
    assert titles[1:] == ["test\naa, %", "test\nclean, %", "n"]
    assert [row[1] for row in rows] == ["51.00 ± 1.41", "61.00 ± 1.41", "66.00 ± 1.41"]


def test_test_images_are_attacked_for_the_chosen_point_alone(tmp_path):
    folder = fake_robust_sweep(tmp_path, WEIGHT, POINTS)
    for run in folder.glob("weight=[19].0/seed*"):
        unattacked(run)
    assert columns(summarise(folder))[1][1][4] == "61.00 ± 1.41 *"


def test_before_any_attack_test_shows_that_of_the_validation(tmp_path):
    folder = fake_robust_sweep(tmp_path, WEIGHT, POINTS)
    for run in folder.glob("*/seed*"):
        unattacked(run)
    sweep = summarise(folder)
    assert sweep.chosen is sweep.points[1]
    titles, rows = columns(sweep)
    assert (titles[4], rows[1][4]) == ("test\npgd10, %", "65.00 ± 1.41 *")


def test_picture_shows_robust_and_clean_accuracy(tmp_path):
    sweep = summarise(fake_robust_sweep(tmp_path, WEIGHT, POINTS))
    with styled():
        _, panels = new_figure(6, 2)
        robust, clean = (
            draw_lines(sweep, axes, clean=clean) for axes, clean in zip(panels, (False, True), strict=True)
        )
    assert (robust.get_ylabel(), clean.get_ylabel()) == ("validation pgd10, %", "validation clean top-1, %")
    assert robust.containers[0].lines[0].get_ydata() == pytest.approx([51, 63, 59])
    assert clean.containers[0].lines[0].get_ydata() == pytest.approx([97, 95, 92])
    assert picture(sweep).png.startswith(b"\x89PNG")


def test_map_shows_clean_accuracy_too(tmp_path):
    from dataclasses import replace

    sweep = summarise(fake_robust_sweep(tmp_path, WEIGHT, POINTS))
    second = replace(sweep.axes[0], path="seed", values=(0,))
    with styled():
        axes = draw_map(replace(sweep, axes=(sweep.axes[0], second)), new_figure(3)[1][0], clean=True)
    assert [text.get_text() for text in axes.texts] == ["97.0", "95.0*", "92.0"]


def test_the_table_prints_in_eighty_columns(tmp_path):
    from rich.console import Console

    console = Console(width=80, record=True, file=open(tmp_path / "out", "w", encoding="utf-8"))  # noqa: SIM115
    console.print(rich_table(summarise(fake_robust_sweep(tmp_path, WEIGHT, POINTS))))
    text = console.export_text()
    assert "61.00 ± 1.41 *" in text
    assert "96.00 ± 0.00" in text
