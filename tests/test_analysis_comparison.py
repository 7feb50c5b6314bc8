"""Claims about the summary of a comparison folder."""

import json

import numpy as np
import pytest
from fake_runs import LONG_TAILED, demo_like, fake_comparison, fake_run

from limbeck.analysis.comparison import summarise
from limbeck.analysis.pictures import comparison_pictures
from limbeck.analysis.report import html
from limbeck.analysis.rows import select
from limbeck.analysis.statistics import paired_difference, spread
from limbeck.analysis.tables import notes
from limbeck.errors import UserError

SEEDS = [(0.90, 0.89), (0.92, 0.90), (0.91, 0.91)]


def shifted(seeds, test, validation=0.0):
    return [(top1 + test, held_out + validation) for top1, held_out in seeds]


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_setting_is_selected_on_validation_alone(tmp_path):
    settings = [SEEDS, shifted(SEEDS, -0.05, 0.01), shifted(SEEDS, 0.05, -0.01)]
    folder = fake_comparison(tmp_path, {"kl": settings})
    assert summarise(folder).row("kl").selected == 1


def test_test_split_cannot_influence_the_selection(tmp_path):
    settings = [SEEDS, shifted(SEEDS, 0.0, 0.01), shifted(SEEDS, 0.0, -0.01)]
    folder = fake_comparison(tmp_path, {"kl": settings, "gkl": settings})
    before = [row.selected for row in summarise(folder).rows]
    rng = np.random.default_rng(0)
    for path in folder.rglob("results.json"):
        edit(path, lambda content: content["last"].update(test={**content["last"]["test"], "top1": rng.random()}))
    after = [row.selected for row in summarise(folder).rows]
    assert before == after == [1, 1]


def test_first_of_equal_settings_is_selected():
    assert select([None, spread([0.9, 0.8]), spread([0.8, 0.9])], seeds=2) == 1


def test_setting_with_unfinished_runs_stands_back_behind_a_complete_one():
    assert select([spread([0.8, 0.8]), spread([0.99])], seeds=2) == 0


def test_row_reports_the_last_epoch_of_the_selected_setting(tmp_path):
    folder = fake_comparison(tmp_path, {"kl": [SEEDS], "gkl": [shifted(SEEDS, 0.05, -0.02), SEEDS]})
    row = summarise(folder).row("gkl")
    assert row.main.values == pytest.approx([90.0, 92.0, 91.0])
    assert (row.main.mean, row.main.std, row.main.n) == pytest.approx((91.0, 1.0, 3))
    assert row.nll.mean == pytest.approx(2.5 * 0.09)
    assert row.ece.mean == pytest.approx(40 * 0.09)
    assert row.agreement.mean == pytest.approx(30 + 65 * 0.91)
    assert len(row.settings) == 2


def test_best_on_validation_is_reported_beside_the_last_epoch(tmp_path):
    folder = fake_comparison(tmp_path, {"kl": [SEEDS]})
    for path in folder.glob("kl/*/*/results.json"):
        edit(path, lambda content: content["best"].update(test={**content["best"]["test"], "top1": 0.95}))
    row = summarise(folder).row("kl")
    assert (row.main.mean, row.best_main.mean) == pytest.approx((91.0, 95.0))


def test_difference_is_paired_by_seed_in_percentage_points(tmp_path):
    better = [(0.93, 0.9), (0.94, 0.9), (0.935, 0.9)]
    comparison = summarise(fake_comparison(tmp_path, {"kl": [SEEDS], "gkl": [better]}))
    assert comparison.row("kl").difference is None
    found, expected = comparison.row("gkl").difference, paired_difference([93, 94, 93.5], [90, 92, 91])
    assert (found.mean, found.low, found.high, found.p) == pytest.approx(
        (expected.mean, expected.low, expected.high, expected.p)
    )


def test_p_values_are_adjusted_over_the_rows(tmp_path):
    comparison = summarise(demo_like(tmp_path))
    raw = {row.name: row.difference.p for row in comparison.rows if row.difference}
    assert raw["dkl"] is None
    assert comparison.row("gkl").p_holm == pytest.approx(2 * raw["gkl"])
    assert comparison.row("ce").p_holm == pytest.approx(3 * raw["ce"])
    words = {row.name: row.verdict for row in comparison.rows}
    expected = {"ce": "worse", "kl": "", "dkl": "identical", "ikl": "no difference seen", "gkl": "better"}
    assert words == expected


@pytest.mark.parametrize(("share", "verdict", "count"), [(1e-6, "identical", 3), (1e-2, "no difference seen", 4)])
def test_a_row_is_identical_only_if_its_nll_ties_too(tmp_path, share, verdict, count):
    folder = demo_like(tmp_path)
    path = folder / "dkl/setting0/seed3/results.json"
    results = json.loads(path.read_text())
    results["last"]["test"]["nll"] *= 1 + share
    path.write_text(json.dumps(results))
    comparison = summarise(folder)
    assert comparison.row("dkl").verdict == verdict
    ce = comparison.row("ce")
    assert ce.p_holm == pytest.approx(count * ce.difference.p)
    text = " ".join(notes(comparison))
    assert f"Holm over {count} rows" in text
    assert ("or all seeds tie" in text) == (verdict == "no difference seen")


def test_control_shows_the_largest_difference_of_rows_equal_by_theory(tmp_path):
    nearly = [(0.90, 0.89), (0.92 - 0.004, 0.90), (0.91 + 0.001, 0.91)]
    folder = fake_comparison(tmp_path, {"kl": [SEEDS], "dkl": [nearly]}, equal_by_theory=[("kl", "dkl"), ("a", "b")])
    (control,) = summarise(folder).controls
    assert (control.first, control.second, control.n) == ("kl", "dkl", 3)
    assert control.largest == pytest.approx(0.4)


def test_one_seed_is_no_evidence(tmp_path):
    folder = fake_comparison(tmp_path, {"kl": [SEEDS[:1]], "gkl": [[(0.99, 0.9)]]})
    row = summarise(folder).row("gkl")
    assert row.verdict == "no test"
    assert (row.main.std, row.difference.p, row.p_holm) == (None, None, None)


def test_head_and_tail_are_class_means_of_the_largest_and_smallest_third(tmp_path):
    folder = fake_comparison(tmp_path, {"kl": [SEEDS]}, counts=LONG_TAILED)
    heads, tails = [], []
    for run in sorted(folder.glob("kl/setting0/*")):
        with np.load(run / "predictions.npz") as file:
            right = file["test_logits"].argmax(1) == file["test_labels"]
            for thirds, labels in ((heads, (0, 1, 2)), (tails, (7, 8, 9))):
                thirds.append(100 * np.mean([right[file["test_labels"] == label].mean() for label in labels]))
    row = summarise(folder).row("kl")
    assert row.head.values == pytest.approx(heads)
    assert row.tail.values == pytest.approx(tails)


def test_balanced_classes_have_no_head_and_tail(tmp_path):
    row = summarise(fake_comparison(tmp_path, {"kl": [SEEDS]})).row("kl")
    assert (row.head, row.tail) == (None, None)


def test_missing_runs_are_listed_and_pairs_are_made_of_the_seeds_left(tmp_path):
    folder = fake_comparison(tmp_path, {"kl": [SEEDS], "gkl": [shifted(SEEDS, 0.01)]})
    (folder / "kl/setting0/seed1/results.json").unlink()
    comparison = summarise(folder)
    assert comparison.missing == ("kl/setting0/seed1",)
    assert (comparison.row("kl").main.n, comparison.row("gkl").main.n) == (2, 3)
    assert comparison.row("gkl").difference.values == pytest.approx([1.0, 1.0])


def test_row_without_any_finished_run_is_missing_not_zero(tmp_path):
    folder = fake_comparison(tmp_path, {"kl": [SEEDS], "gkl": [SEEDS]})
    for path in folder.glob("kl/*/*/results.json"):
        path.unlink()
    comparison = summarise(folder)
    assert [row.name for row in comparison.rows] == ["gkl"]
    assert comparison.baseline is None
    assert comparison.row("gkl").difference is None
    assert len(comparison.missing) == 3


def test_several_settings_without_a_validation_split_are_refused(tmp_path):
    blind = [(0.9, None), (0.91, None)]
    with pytest.raises(UserError, match=r"row `kl` .* no validation split .* `data.validation`"):
        summarise(fake_comparison(tmp_path / "two", {"kl": [blind, blind]}))
    row = summarise(fake_comparison(tmp_path / "one", {"kl": [blind]})).row("kl")
    assert (row.best_main, row.validation) == (None, (None,))


def test_sizes_teachers_and_times_come_from_the_files(tmp_path):
    comparison = summarise(demo_like(tmp_path))
    assert comparison.images == {"train": sum(LONG_TAILED), "validation": 200, "test": 300}
    assert comparison.teachers == pytest.approx((97.5,))
    assert comparison.seconds == {"teachers": 3, "students": 61}
    assert (comparison.epochs, comparison.seeds) == (20, (0, 1, 2, 3, 4))


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content.pop("rows"),
        lambda content: content.update(format=2),
        lambda content: content["rows"]["kl"]["runs"][0].pop(),
        lambda content: content["rows"]["kl"]["settings"].pop(),
        lambda content: content.update(seeds="many"),
        lambda content: content.update(equal_by_theory=[["kl"]]),
    ],
)
def test_damaged_comparison_is_one_line_with_the_way_out(tmp_path, damage):
    folder = fake_comparison(tmp_path, {"kl": [SEEDS]})
    edit(folder / "comparison.json", damage)
    with pytest.raises(UserError, match=r"comparison\.json.*run `limbeck compare` again") as caught:
        summarise(folder)
    assert "\n" not in str(caught.value)


def test_folder_without_a_comparison_or_without_finished_runs_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"comparison\.json is missing"):
        summarise(tmp_path)
    folder = fake_comparison(tmp_path, {"kl": [SEEDS]})
    for path in folder.rglob("results.json"):
        path.unlink()
    with pytest.raises(UserError, match="none of the 3 runs is finished"):
        summarise(folder)


@pytest.mark.parametrize(("text", "reason"), [("{", "JSON"), ("[1]", "object"), ('{"format": 1}', "the key `last`")])
def test_damaged_results_name_their_file(tmp_path, text, reason):
    folder = fake_comparison(tmp_path, {"kl": [SEEDS]})
    (folder / "kl/setting0/seed1/results.json").write_text(text)
    with pytest.raises(UserError, match=rf"seed1/results\.json.*{reason}"):
        summarise(folder)


def test_results_without_test_accuracy_name_what_is_expected(tmp_path):
    folder = fake_comparison(tmp_path, {"kl": [SEEDS]})
    edit(folder / "kl/setting0/seed0/results.json", lambda content: content["last"].update(test={}))
    with pytest.raises(UserError, match=r"seed0/results\.json: expected `last\.test\.top1`"):
        summarise(folder)


def without_test_split(run):
    """Change a run to what a user's own loaders leave behind when there are none of test images."""

    def change(content):
        content["class_counts"] = []
        for key in ("last", "best"):
            content[key]["test"] = None
        for teacher in content["teachers"]:
            teacher["test"] = None

    edit(run / "results.json", change)
    with np.load(run / "predictions.npz") as file:
        arrays = dict(file)
    for name in [name for name in arrays if "test_" in name]:
        arrays[name.replace("test_", "validation_")] = arrays[name]
        arrays[name] = arrays[name][:0]
    arrays["train_class_counts"] = arrays["train_class_counts"][:0]
    np.savez(run / "predictions.npz", **arrays)


def test_without_a_test_split_validation_is_reported_and_called_so(tmp_path):
    folder = fake_comparison(tmp_path, {"ce": [SEEDS], "kl": [SEEDS]})
    edit(folder / "comparison.json", lambda content: content.update(teachers=[]))
    for run in folder.glob("*/setting0/seed*"):
        without_test_split(run)
    comparison = summarise(folder)
    row = comparison.row("ce")
    assert comparison.split == "validation"
    assert row.main.values == tuple(pytest.approx(100 * validation) for _, validation in SEEDS)
    assert row.best_main is None
    assert comparison.teachers == (pytest.approx(98.0),)
    for text in (comparison.table(), html(comparison, comparison_pictures(comparison))):
        words = " ".join(text.split())
        assert "validation top-1, %" in words
        assert "Images: 200 validation" in words
        assert "test top-1" not in words.lower()


def test_several_settings_chosen_on_the_split_that_is_reported_are_called_optimistic(tmp_path):
    folder = fake_comparison(tmp_path, {"kl": [SEEDS, SEEDS]})
    for run in folder.glob("*/setting*/seed*"):
        without_test_split(run)
    assert "the figure shown: it is optimistic" in " ".join(notes(summarise(folder)))


def test_runs_without_test_and_validation_have_nothing_to_report(tmp_path):
    folder = fake_comparison(tmp_path, {"kl": [SEEDS]})
    edit(folder / "comparison.json", lambda content: content.update(teachers=[]))
    edit(folder / "kl/setting0/seed0/results.json", lambda content: content["last"].update(test=None, validation=None))
    with pytest.raises(UserError, match="expected a test or a validation split to report, got neither"):
        summarise(folder)


def test_runs_of_a_supervised_comparison_have_no_agreement(tmp_path):
    folder = fake_comparison(tmp_path, {"kl": [SEEDS[:2]]})
    for seed in range(2):
        fake_run(folder / f"kl/setting0/seed{seed}", seed=seed, distill=False)
    assert summarise(folder).row("kl").agreement is None
