"""Claims about comparisons of adversarial training: what chooses, what is compared, what is said."""

import json

import pytest
from fake_robust_runs import (
    ADVERSARY,
    EPSILON,
    attack_row,
    fake_robust_comparison,
    fake_robust_run,
    robust_demo_like,
    unattacked,
)

from limbeck.analysis import published
from limbeck.analysis.comparison import summarise
from limbeck.analysis.published import cells, compare_with_paper, titles
from limbeck.analysis.report import write_report
from limbeck.analysis.robust import attacks_of, epsilon_text
from limbeck.analysis.run_files import read_run
from limbeck.analysis.statistics import holm, paired_difference
from limbeck.analysis.tables import markdown, notes, plain
from limbeck.errors import UserError

SEEDS = [(0.97, 0.60, 0.96, 0.62), (0.98, 0.61, 0.97, 0.63), (0.96, 0.59, 0.95, 0.61)]


def shifted(seeds, *by):
    return [tuple(value + step for value, step in zip(seed, by, strict=True)) for seed in seeds]


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def edit_rows(folder, change):
    """Change the lines of robustness.json in a run folder."""
    edit(folder / "robustness.json", lambda content: content.update(rows=change(content["rows"])))


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    return summarise(robust_demo_like(tmp_path_factory.mktemp("comparison")))


def test_setting_is_chosen_by_robust_accuracy_on_validation_alone(tmp_path):
    cleaner = shifted(SEEDS, 0.01, 0.02, 0.02, -0.01)
    stronger = shifted(SEEDS, -0.02, -0.05, -0.02, 0.01)
    row = summarise(fake_robust_comparison(tmp_path, {"trades": [SEEDS, cleaner, stronger]})).row("trades")
    assert row.selected == 2
    assert [value.mean for value in row.validation] == pytest.approx([62, 61, 63])
    assert [value.mean for value in row.clean_validation] == pytest.approx([96, 98, 94])


def test_all_figures_are_of_the_weights_that_the_runs_report(tmp_path):
    folder = fake_robust_comparison(tmp_path, {"trades": [SEEDS]})
    row = summarise(folder).row("trades")
    assert row.main.values == pytest.approx([97, 98, 96])
    assert row.robust.epoch.values == (12, 13, 14)
    for path in folder.rglob("results.json"):
        edit(path, lambda content: content.update(reported="last"))
    row = summarise(folder).row("trades")
    assert row.main.values == pytest.approx([98, 99, 97])
    assert row.validation[0].mean == pytest.approx(57)
    assert row.robust.epoch.values == (20, 20, 20)


def test_autoattack_is_what_rows_are_compared_by(comparison):
    assert comparison.attacks.headline == "aa"
    assert comparison.measure == "test accuracy under aa"
    for row in comparison.rows:
        assert row.headline is row.robust.accuracy is row.robust.attacks["aa"]


def test_autoattack_is_it_even_where_another_attack_leaves_less(tmp_path):
    folder = fake_robust_comparison(tmp_path, {"trades": [SEEDS]})
    for run in folder.glob("*/*/*"):
        edit_rows(run, lambda rows: [rows[0] | {"accuracy": 0.1}, *rows[1:]])
    assert summarise(folder).attacks.headline == "aa"


def test_without_autoattack_on_every_run_it_is_the_common_attack_that_leaves_least(tmp_path):
    folder = fake_robust_comparison(tmp_path, {"trades": [SEEDS], "gkl": [SEEDS]})
    edit_rows(folder / "gkl/setting0/seed1", lambda rows: [row for row in rows if row["attack"] != "aa"])
    comparison = summarise(folder)
    assert list(comparison.attacks.made) == ["pgd20", "cw20"]
    assert comparison.attacks.headline == "cw20"
    assert comparison.row("gkl").headline.values == pytest.approx([62, 63, 61])


def test_robust_and_clean_differences_are_paired_and_corrected_each_by_itself(comparison):
    rows = {row.name: row for row in comparison.rows}
    for values, judged in (
        (lambda row: row.headline.values, lambda row: row.judged),
        (lambda row: row.main.values, lambda row: row.robust.clean),
    ):
        expected = [paired_difference(values(rows[name]), values(rows["trades"])) for name in ("pgd_at", "gkl")]
        for name, difference, p in zip(("pgd_at", "gkl"), expected, holm([e.p for e in expected]), strict=True):
            found = judged(rows[name])
            assert found.difference.mean == pytest.approx(difference.mean)
            assert (found.p_holm, found.difference.low) == (pytest.approx(p), pytest.approx(difference.low))
    assert (rows["gkl"].verdict, rows["gkl"].robust.clean.verdict) == ("better", "worse")
    assert (rows["trades"].verdict, rows["trades"].robust.clean.verdict) == ("", "")


def test_a_gain_that_clean_accuracy_pays_for_is_called_a_trade_off(comparison, tmp_path):
    assert [note for note in notes(comparison) if "TRADE-OFF" in note] == [
        "TRADE-OFF: gkl has +7.86 points under aa and -2.02 of clean top-1 against trades."
    ]
    free = [shifted(SEEDS, 0, 0.05, 0, 0)]
    assert "TRADE-OFF" not in str(summarise(fake_robust_comparison(tmp_path, {"trades": [SEEDS], "gkl": free})))


def test_table_shows_clean_accuracy_every_attack_the_worst_case_and_the_epoch(comparison):
    text = plain(comparison)
    assert max(map(len, text.splitlines())) <= 100
    (gkl,) = (line for line in markdown(comparison).splitlines() if line.startswith("| gkl"))
    robust = comparison.row("gkl").robust
    for values in (comparison.row("gkl").main, *robust.attacks.values(), robust.worst):
        shown = f"{values.mean:.2f} ± {values.std:.2f}"
        assert shown in text
        assert shown in gkl
    assert gkl.endswith("| 12–14 |")
    assert f"**{robust.accuracy.mean:.2f} ± {robust.accuracy.std:.2f}**" in gkl  # the most robust row, not the cleanest


def test_notes_say_once_how_the_attacks_were_made(comparison):
    text = " ".join(notes(comparison))
    for said in (
        "L∞ ball of radius epsilon = 0.2, pixels in [0, 1], n = 300 images",
        "pgd20: 20 steps of 0.25 epsilon, up the cross-entropy, uniform start, last iterate, seed 0, limbeck 0.1.0",
        "cw20: 20 steps of 0.25 epsilon, up the margin,",
        "aa (AutoAttack): standard, seed 0, pyautoattack 0.2.0",
        "chosen by mean robust accuracy on validation (pgd10), never by the test images",
        "best robust accuracy on validation (early stopping)",
    ):
        assert text.count(said) == 1, said
    assert "last epoch" not in text


def test_attacks_made_after_the_training_are_read(tmp_path):
    run = fake_robust_run(tmp_path / "run", attacks=("pgd20",))
    assert [attack.name for attack in attacks_of(read_run(run))] == ["pgd20"]
    edit_rows(run, lambda rows: [*rows, attack_row("aa", 0.5)])
    assert [(attack.name, attack.accuracy) for attack in attacks_of(read_run(run))][1:] == [("aa", 50.0)]


def test_attacks_on_other_weights_than_the_reported_ones_are_not(tmp_path):
    run = fake_robust_run(tmp_path / "run", attacks=("pgd20",))
    edit_rows(run, lambda rows: [*rows, attack_row("aa", 0.5)])
    edit(run / "robustness.json", lambda content: content.update(weights="last"))
    assert [attack.name for attack in attacks_of(read_run(run))] == ["pgd20"]


def test_attacks_at_other_radii_stay_out_of_the_table(tmp_path):
    comparison = summarise(fake_robust_comparison(tmp_path, {"trades": [SEEDS]}, epsilons=(0.1, EPSILON)))
    assert comparison.row("trades").headline.values == pytest.approx([60, 61, 59])


def test_without_attacks_on_test_images_rows_are_compared_by_that_of_the_validation(tmp_path):
    comparison = summarise(fake_robust_comparison(tmp_path, {"trades": [SEEDS], "gkl": [SEEDS]}, attacks=()))
    assert comparison.attacks.headline == "pgd10"
    assert comparison.row("gkl").headline.values == pytest.approx([64, 65, 63])
    assert "worst, %" not in markdown(comparison)
    assert "pgd10: as on validation" in " ".join(notes(comparison))


def test_attacks_that_are_not_finished_are_said_and_stand_back(tmp_path):
    folder = fake_robust_comparison(tmp_path, {"trades": [SEEDS], "gkl": [SEEDS]})
    unattacked(folder / "gkl/setting0/seed1")
    comparison = summarise(folder)
    assert comparison.attacks.headline == "pgd10"
    said = "LEFT OUT, because not all runs have it at this epsilon: pgd20 (5 of 6 runs), cw20 (5 of 6 runs), aa (5 of 6"
    assert said in " ".join(notes(comparison))
    edit_rows(folder / "trades/setting0/seed1", lambda rows: rows[:2])
    assert "aa (4 of 6 runs)" in " ".join(notes(summarise(folder)))


def test_only_the_chosen_setting_need_be_attacked(tmp_path):
    weaker = shifted(SEEDS, 0, 0, 0, -0.05)
    folder = fake_robust_comparison(tmp_path, {"trades": [SEEDS, weaker], "gkl": [SEEDS, weaker]})
    for run in folder.glob("*/setting1/*"):
        unattacked(run)
    comparison = summarise(folder)
    assert comparison.attacks.headline == "aa"
    assert "LEFT OUT" not in str(comparison)


def test_worst_case_needs_the_same_attacks_on_every_run(tmp_path):
    folder = fake_robust_comparison(tmp_path, {"trades": [SEEDS], "gkl": [SEEDS]})
    assert summarise(folder).row("gkl").robust.worst.mean == pytest.approx(60)
    edit(folder / "trades/setting0/seed0/robustness.json", lambda content: content["worst"][0]["attacks"].pop())
    assert summarise(folder).row("gkl").robust.worst is None


@pytest.mark.parametrize("change", [{"step_size": 0.02}, {"start": "none"}, {"seed": 1}, {"library": "limbeck 0.2.0"}])
def test_attacks_that_were_made_otherwise_are_not_called_comparable(tmp_path, change):
    folder = fake_robust_comparison(tmp_path, {"trades": [SEEDS], "gkl": [SEEDS]})
    assert "NOT COMPARABLE" not in str(summarise(folder))
    edit_rows(folder / "gkl/setting0/seed2", lambda rows: [rows[0] | change, *rows[1:]])
    assert "NOT COMPARABLE: pgd20 was not made in the same way" in " ".join(notes(summarise(folder)))


def test_fewer_images_for_some_runs_are_said(tmp_path):
    folder = fake_robust_comparison(tmp_path, {"trades": [SEEDS], "gkl": [SEEDS]})
    edit_rows(folder / "gkl/setting0/seed2", lambda rows: [row | {"n": 100} for row in rows])
    assert "n = 100 or 300 (NOT THE SAME NUMBER FOR ALL) images" in " ".join(notes(summarise(folder)))


def test_autoattack_on_few_classes_is_not_called_standard(tmp_path):
    folder = fake_robust_comparison(tmp_path, {"trades": [SEEDS]})
    for run in folder.glob("*/*/*"):
        edit_rows(run, lambda rows: [row | {"standard": row["standard"] and False} for row in rows])
    assert "aa (AutoAttack): not the standard version" in " ".join(notes(summarise(folder)))


def test_warnings_of_the_evaluation_are_passed_on(tmp_path):
    folder = fake_robust_comparison(tmp_path, {"trades": [SEEDS], "gkl": [SEEDS]}, warnings=["Square found more."])
    edit(folder / "gkl/setting0/seed2/robustness.json", lambda content: content.update(warnings=[]))
    assert "WARNING of the evaluation in 5 of 6 runs: Square found more." in notes(summarise(folder))


def test_rows_with_an_adversary_of_their_own_are_said(tmp_path):
    folder = fake_robust_comparison(tmp_path, {"trades": [SEEDS], "pgd_at": [SEEDS]})
    own = {"start": "uniform", "steps": 5}
    edit(folder / "comparison.json", lambda content: content["rows"]["pgd_at"].update(adversary=own))
    assert "Trained against an adversary of its own: pgd_at: start uniform, steps 5." in notes(summarise(folder))


def test_a_row_that_was_not_attacked_at_the_baselines_radius_is_refused_with_the_way_out(tmp_path):
    folder = fake_robust_comparison(tmp_path, {"trades": [SEEDS], "gkl": [SEEDS]})
    far = fake_robust_run(folder / "gkl/setting0/seed0", epsilons=(0.1,), adversary=ADVERSARY | {"epsilon": 0.1})
    with pytest.raises(UserError, match=rf"{far}.*epsilon 0\.2 .*`limbeck evaluate RUN --attacks pgd20 --epsilon 0\.2"):
        summarise(folder)


def test_two_norms_are_not_compared(tmp_path):
    folder = fake_robust_comparison(tmp_path, {"trades": [SEEDS], "gkl": [SEEDS]})
    edit_rows(folder / "gkl/setting0/seed0", lambda rows: [row | {"norm": "l2"} for row in rows])
    with pytest.raises(UserError, match="in the norms l2 and linf, which cannot be compared"):
        summarise(folder)


@pytest.mark.parametrize(
    ("file", "damage", "line"),
    [
        ("robustness.json", lambda content: content["rows"][0].pop("accuracy"), "'accuracy'"),
        ("robustness.json", lambda content: content["worst"][0].pop("attacks"), "'attacks'"),
        ("robustness.json", lambda content: content.update(format=2), "expected format 1"),
        ("results.json", lambda content: content["adversary"].pop("epsilon"), "the key `adversary.epsilon`"),
        ("results.json", lambda content: content.update(reported="swa"), "the key `swa`"),
    ],
)
def test_damaged_files_are_one_line_with_their_name(tmp_path, file, damage, line):
    folder = fake_robust_comparison(tmp_path, {"trades": [SEEDS]})
    edit(folder / "trades/setting0/seed0" / file, damage)
    with pytest.raises(UserError, match=rf"seed0/{file}.*{line}") as caught:
        summarise(folder)
    assert "\n" not in str(caught.value)


def beside_a_paper(folder, **options):
    """The table of a comparison of 97 % clean accuracy and 60 % under attack, beside a paper's figures."""
    fake_robust_comparison(folder, {"trades": [SEEDS], "gkl": [SEEDS]}, **options)
    figures = {"rows": {"acat": 87.0, "gkl": 92.0}, "robust_rows": {"acat": 58.0, "gkl": 61.0}}
    published = {"source": "A table", "teacher": None, "student": None, **figures}
    said = {"published": published, "protocol": "paper", "contenders": ["trades", "gkl"]}
    edit(folder / "comparison.json", lambda content: content.update(said))
    return compare_with_paper(folder)


def test_both_accuracies_of_a_paper_stand_beside_ours(tmp_path):
    table = beside_a_paper(tmp_path)
    assert [title.replace("\n", " ") for title in titles(table)[2:]] == [
        *("paper, clean %", "ours, clean %", "ours − paper"),
        *("paper, aa %", "ours, aa %", "ours − paper"),
    ]
    assert {line[0]: line[2:] for line in cells(table)} == {
        "trades": ("-", "97.00 ± 1.00", "-", "-", "60.00 ± 1.00", "-"),
        "acat": ("87.00", "-", "-", "58.00", "-", "-"),
        "gkl": ("92.00", "97.00 ± 1.00", "+5.00", "61.00", "60.00 ± 1.00", "-1.00"),
    }


def test_a_papers_autoattack_is_not_subtracted_from_another_attack(tmp_path):
    table = beside_a_paper(tmp_path, attacks=("pgd20",))
    (gkl,) = (line for line in cells(table) if line[0] == "gkl")
    assert gkl[4] == "+5.00"
    assert gkl[7] == "-"
    assert any("AutoAttack (aa), ours under pgd20" in sentence for sentence in published.notes(table))


def test_report_explains_attacks_and_names_what_chose(tmp_path):
    text = write_report(robust_demo_like(tmp_path, seeds=2)).read_text(encoding="utf-8")
    for said in ("validation robust (pgd10), %", "what an attack leaves", "clean verdict", "test accuracy under aa, %"):
        assert said in text


@pytest.mark.parametrize(("epsilon", "text"), [(8 / 255, "8/255"), (0.5, "0.5"), (0.2, "0.2"), (0.031, "0.031")])
def test_radius_is_written_as_papers_do(epsilon, text):
    assert epsilon_text(epsilon) == text
