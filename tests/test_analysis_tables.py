"""Claims about the tables of a comparison."""

import io
import json
from dataclasses import replace

import pytest
from fake_runs import demo_like, fake_comparison
from rich.console import Console

from limbeck.analysis.comparison import summarise
from limbeck.analysis.tables import chosen_options, describe_setting, markdown, notes, plain, rich_table

SEEDS = [(0.90, 0.89), (0.92, 0.90), (0.91, 0.91)]


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    return summarise(demo_like(tmp_path_factory.mktemp("comparison")))


def test_every_table_holds_the_same_numbers(comparison):
    for text in (plain(comparison), markdown(comparison)):
        for row in comparison.rows:
            assert f"{row.main.mean:.2f} ± {row.main.std:.2f}" in text
            if row.difference is not None and row.difference.low is not None:
                difference = row.difference
                assert f"{difference.mean:+.2f} [{difference.low:+.2f}, {difference.high:+.2f}]" in text


def test_table_fits_100_columns_with_its_cells_whole(comparison):
    lines = plain(comparison).splitlines()
    assert max(map(len, lines)) <= 100
    assert any("gkl" in line and "better" in line for line in lines)
    assert any("ikl" in line and "no difference seen" in line for line in lines)


def test_best_row_is_bold_and_rows_without_a_difference_are_dim(comparison):
    console = Console(width=100, force_terminal=True, color_system="standard", record=True, file=io.StringIO())
    console.print(rich_table(comparison))
    styled = console.export_text(styles=True).splitlines()
    assert any("\x1b[1m" in line and "gkl" in line for line in styled)
    assert any("\x1b[2m" in line and "ikl" in line for line in styled)
    assert not any("\x1b[2m" in line and line.strip().startswith("ce") for line in styled)


def test_notes_say_what_the_numbers_are(comparison):
    text = " ".join(notes(comparison))
    for said in (
        "n = 5 seeds",
        "± is the standard deviation",
        "407 train, 200 validation, 300 test",
        "paired by seed: t-interval of 95 %",
        "Holm over 3 rows",
        "chosen by mean validation top-1",
        "gkl weight 1",
        "kl and dkl are equal by theory; test top-1 identical on 5 seeds",
        "Test top-1 of the teacher: 97.50 %",
        "3 largest and smallest of 10 classes",
    ):
        assert said in text


def test_one_of_anything_is_no_plural(tmp_path):
    folder = fake_comparison(tmp_path, {"kl": [SEEDS[:1]], "gkl": [SEEDS[:1]]})
    found = summarise(folder)
    assert "n = 1 seed per row, 1 epoch, " in " ".join(notes(replace(found, epochs=1)))
    assert "n = 1 seed per row, 20 epochs, " in " ".join(notes(found))


def test_incomplete_comparison_says_so_first(tmp_path):
    folder = fake_comparison(tmp_path, {"kl": [SEEDS], "gkl": [SEEDS]})
    (folder / "gkl/setting0/seed2/results.json").unlink()
    found = summarise(folder)
    assert notes(found)[0].startswith("INCOMPLETE: 1 run not finished (gkl/setting0/seed2)")
    assert "(n=2)" in plain(found)


def test_a_teacher_that_is_still_to_come_does_not_hide_the_table(tmp_path):
    folder = fake_comparison(tmp_path, {"kl": [SEEDS], "gkl": [SEEDS]})
    plan = json.loads((folder / "comparison.json").read_text())
    (folder / "comparison.json").write_text(json.dumps(plan | {"teachers": ["teacher0", "split1/teacher0"]}))
    assert "Test top-1 of the teacher: 97.50 %." in notes(summarise(folder))


def test_unequal_numbers_of_settings_are_said(tmp_path):
    folder = fake_comparison(tmp_path, {"kl": [SEEDS], "gkl": [SEEDS, SEEDS]})
    assert "not given equal numbers of settings" in " ".join(notes(summarise(folder)))


def test_columns_that_no_run_can_fill_are_left_out(tmp_path):
    text = markdown(summarise(fake_comparison(tmp_path, {"kl": [[(0.9, None), (0.92, None)]]})))
    assert "head" not in text
    assert "best epoch" not in text


def test_top5_stands_in_the_table_of_a_hundred_classes(tmp_path):
    few, many = (fake_comparison(tmp_path / str(n), {"kl": [SEEDS]}, counts=[30] * n) for n in (10, 100))
    assert "top-5" not in markdown(summarise(few))
    assert "top-5, %" in markdown(summarise(many))
    assert summarise(many).row("kl").top5.mean == 100


def test_markdown_has_as_many_cells_in_every_line(comparison):
    table = [line for line in markdown(comparison).splitlines() if line.startswith("|")]
    assert len(table) == 2 + 5
    assert len({line.count("|") for line in table}) == 1
    assert "**92.04 ± 0.29**" in table[-1]


def test_row_names_with_brackets_are_not_markup(tmp_path):
    text = plain(summarise(fake_comparison(tmp_path, {"kl [red]": [SEEDS]}, baseline="kl [red]")))
    assert any(line.startswith(" kl [red]") and "91.00" in line for line in text.splitlines())
    assert "vs kl [red], points" in " ".join(text.split())


def test_setting_reads_as_text_without_the_defaults_common_to_all_terms(comparison):
    terms = comparison.row("gkl").settings[1]
    assert describe_setting(terms) == (
        "cross_entropy (label_smoothing 0) + gkl (weight 2, temperature 4, scale_by_t2 yes)"
    )


def test_chosen_options_are_those_in_which_the_settings_differ(comparison):
    assert chosen_options(comparison.row("gkl")) == "weight 1"
    assert chosen_options(comparison.row("ce")) == ""


def test_training_images_without_a_class_each_are_counted_too(tmp_path):
    folder = fake_comparison(tmp_path, {"kl": [[(0.9, None)]]}, baseline="kl")
    for path in folder.rglob("results.json"):
        results = json.loads(path.read_text()) | {"class_counts": [], "training_images": 22}
        path.write_text(json.dumps(results))
    assert "Images: 22 train, " in notes(summarise(folder))[0]
