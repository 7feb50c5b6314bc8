"""Claims about the pictures of robust runs: what is computed, what is drawn, when there are any."""

import json
import subprocess
import sys

import numpy as np
import pytest
from fake_robust_runs import ADVERSARY, EPSILON, fake_robust_comparison, fake_robust_run, robust_demo_like
from fake_runs import fake_run

from limbeck.analysis import curves, differences, epsilons, features, margins, moved, robust_pictures, trade_off
from limbeck.analysis.comparison import summarise
from limbeck.analysis.pictures import draw_comparison, draw_run
from limbeck.analysis.run_files import read_run
from limbeck.analysis.style import new_figure, styled
from limbeck.errors import UserError
from limbeck.present import plot

RADII = (0.1, 0.15, EPSILON)
SEEDS = [(0.97, 0.60, 0.96, 0.62), (0.98, 0.61, 0.97, 0.63)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return robust_demo_like(tmp_path_factory.mktemp("comparison"), seeds=2, epsilons=RADII)


@pytest.fixture(scope="module")
def rows(folder):
    return summarise(folder).selected_runs()


@pytest.fixture
def axes():
    with styled():
        yield new_figure(3.0)[1][0]


@pytest.fixture
def few_images(monkeypatch):
    monkeypatch.setattr(features, "IMAGES", 40)


def labels(axes):
    return axes.get_legend_handles_labels()[1]


def change(run, **arrays):
    """Replace arrays of robust_predictions.npz; None takes one out."""
    with np.load(run / "robust_predictions.npz") as file:
        kept = {name: file[name] for name in file if name not in arrays}
    new = {name: value for name, value in arrays.items() if value is not None}
    np.savez(run / "robust_predictions.npz", **kept, **new)


# --- accuracy against the radius ----------------------------------------------------------------------------


def test_rows_fall_from_clean_accuracy_along_one_attack(rows, axes):
    result = epsilons.compute(rows)
    assert (result.attack, result.trained, list(result.lines)) == ("aa", EPSILON, list(rows))
    fall = result.lines["gkl"]
    assert fall.epsilons.tolist() == [0, *RADII]
    for run, accuracy in zip(rows["gkl"], fall.accuracy, strict=True):
        found = {row["epsilon"]: row["accuracy"] for row in run.robustness["rows"] if row["attack"] == "aa"}
        assert accuracy == pytest.approx([100 * run.robustness["clean"], *(100 * found[radius] for radius in RADII)])
    epsilons.draw(result, axes)
    assert labels(axes) == [*rows, "trained at"]
    assert axes.lines[2].get_ydata() == pytest.approx(fall.accuracy.mean(0))
    assert [text.get_text() for text in axes.get_xticklabels()] == ["0, clean", "0.1", "0.15", "0.2"]


def test_a_single_run_has_a_line_for_each_attack(rows):
    result = epsilons.compute({"gkl": rows["gkl"][:1]})
    assert (result.attack, list(result.lines)) == (None, ["pgd20", "cw20", "aa"])


def test_only_radii_that_all_runs_have_are_drawn(tmp_path, rows):
    other = read_run(fake_robust_run(tmp_path / "run", epsilons=(0.05, *RADII[1:])))
    assert epsilons.compute({**rows, "other": [other]}).lines["gkl"].epsilons.tolist() == [0, 0.15, 0.2]
    single = read_run(fake_robust_run(tmp_path / "single"))
    assert epsilons.compute({**rows, "single": [single]}).empty


# --- probabilities ------------------------------------------------------------------------------------------


def test_movement_is_half_the_l1_distance_of_images_and_of_class_means(tmp_path):
    run = fake_robust_run(tmp_path / "run", counts=(30, 20))
    clean, adversarial = np.log([[0.9, 0.1], [0.7, 0.3], [0.2, 0.8]]), np.log([[0.6, 0.4], [0.8, 0.2], [0.2, 0.8]])
    change(run, labels=np.array([0, 0, 1]), clean_logits=clean, adversarial_logits=adversarial)
    row = moved.compute({"a": [read_run(run)]}).rows["a"]
    assert row.samples[0] == pytest.approx([20, 0])  # 30 and 10 points of probability; none
    assert row.means[0] == pytest.approx([10, 0])  # the mean goes from .8 to .7
    assert row.ratio == pytest.approx(0.5)
    assert moved.compute({"a": [read_run(run)]}).smallest == 1


def test_class_means_cannot_move_more_than_their_images_do(rows, axes):
    result = moved.compute(rows)
    for row in result.rows.values():
        assert (row.means <= row.samples + 1e-9).all()
        assert 0 < row.ratio <= 1
    moved.draw(result, axes)
    for line, row in zip(axes.lines, result.rows.values(), strict=False):
        assert line.get_xdata() == pytest.approx(row.samples.mean(0))
        assert line.get_ydata() == pytest.approx(row.means.mean(0))


def test_a_class_without_images_does_not_count(tmp_path):
    run = fake_robust_run(tmp_path / "run", counts=(30, 20, 10))
    with np.load(run / "robust_predictions.npz") as file:
        change(run, labels=file["labels"] % 2)
    row = moved.compute({"a": [read_run(run)]}).rows["a"]
    assert np.isnan(row.means[0]).tolist() == [False, False, True]
    assert np.isfinite(row.ratio)


def test_rows_are_compared_only_if_all_were_attacked_at_one_radius(rows, tmp_path):
    assert moved.compute({**rows, "plain": [read_run(fake_run(tmp_path / "run"))]}) is None
    other = fake_robust_run(tmp_path / "other")
    change(other, adversarial_epsilon=np.array(0.1))
    assert moved.compute({**rows, "other": [read_run(other)]}) is None


# --- features -----------------------------------------------------------------------------------------------


def test_class_ratio_is_distance_to_the_own_mean_over_distance_between_means():
    rng = np.random.default_rng(0)
    points, own = rng.normal(size=(30, 5)), np.arange(30) % 3
    means = [points[own == label].mean(0) for label in range(3)]
    intra = np.mean([np.linalg.norm(point - means[label]) for point, label in zip(points, own, strict=True)])
    inter = np.mean([np.linalg.norm(means[a] - means[b]) for a, b in ((0, 1), (0, 2), (1, 2))])
    assert features.class_ratio(points, own) == pytest.approx(intra / inter)
    assert features.class_ratio(7 * points + 3, own + 10) == pytest.approx(intra / inter)


def test_class_ratio_of_one_class_or_of_equal_means_is_not_a_number():
    assert np.isnan(features.class_ratio(np.ones((4, 2)), np.zeros(4)))
    assert np.isnan(features.class_ratio(np.ones((4, 2)), np.array([0, 0, 1, 1])))


def test_ratio_is_stated_on_the_features_themselves_and_grows_under_attack(rows):
    found = features.tightness(rows)
    assert {name: len(runs) for name, runs in found.items()} == {"pgd_at": 2, "trades": 2, "gkl": 2}
    with np.load(rows["gkl"][0].folder / "robust_predictions.npz") as file:
        assert found["gkl"][0].clean == features.class_ratio(file["clean_features"], file["labels"])
    assert all(each.adversarial > each.clean for runs in found.values() for each in runs)


def test_clean_and_attacked_images_lie_on_one_map(rows, axes, few_images):
    result = features.compute(rows["gkl"][0])
    assert result.clean.shape == result.adversarial.shape == (40, 2)
    assert result.tightness.clean == features.class_ratio(result.clean, result.labels)
    own = np.linalg.norm(result.clean - result.adversarial, axis=1).mean()
    anyones = np.linalg.norm(result.clean - np.roll(result.adversarial, 1, axis=0), axis=1).mean()
    assert own < anyones
    features.draw(result, axes)
    assert [len(collection.get_offsets()) for collection in axes.collections] == [40, 40]


def test_of_more_than_twenty_classes_twenty_are_drawn_the_same_for_all_runs(tmp_path, few_images):
    runs = [read_run(fake_robust_run(tmp_path / str(seed), seed=seed, counts=(10,) * 30)) for seed in range(2)]
    first, second = (features.compute(run) for run in runs)
    assert len(set(first.labels)) == 20
    assert (first.labels == second.labels).all()


def test_map_is_the_same_when_drawn_again(rows, few_images):
    first, second = (features.compute(rows["gkl"][0]) for _ in range(2))
    assert (first.clean == second.clean).all()


def test_nets_without_features_have_no_map(tmp_path):
    run = fake_robust_run(tmp_path / "run")
    change(run, clean_features=None, adversarial_features=None)
    assert features.compute(read_run(run)) is None
    assert features.tightness({"a": [read_run(run)]}) == {}


def test_map_without_scikit_learn_names_the_extra_and_other_pictures_are_drawn(tmp_path, monkeypatch, capsys):
    run = fake_robust_run(tmp_path / "run")
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setitem(sys.modules, "sklearn.manifold", None)
    with pytest.raises(UserError, match=r'needs `scikit-learn`: pip install "limbeck\[data\]"'):
        features.compute(read_run(run))
    monkeypatch.setattr(robust_pictures.importlib.util, "find_spec", lambda name: None)
    plot(run)
    printed = capsys.readouterr().out
    assert 'Without the map of features, which needs scikit-learn: pip install "limbeck[data]"' in printed
    assert "moved_probabilities.png" in printed
    assert "features.png" not in printed


# --- clean against robust -----------------------------------------------------------------------------------


def test_trade_off_has_the_chosen_settings_on_test_and_all_tried_on_validation(folder, axes):
    comparison = summarise(folder)
    result = trade_off.compute(comparison)
    row = comparison.row("gkl")
    assert (result.chosen["gkl"].clean, result.chosen["gkl"].robust) == (row.main, row.headline)
    clean = [point.clean.mean for point in result.tried["gkl"]]
    assert clean == sorted(clean, reverse=True)
    assert result.tried["gkl"][result.selected["gkl"]].robust == row.validation[row.selected]
    trade_off.draw(result, axes)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("test clean top-1, %", "test accuracy under aa, %")
    assert labels(axes) == ["pgd_at", "trades", "gkl"]


def on_cifar(folder, data, **options):
    """A comparison on other data, at 8/255 unless `options` say otherwise."""
    options = {"epsilons": (8 / 255,), "adversary": ADVERSARY | {"epsilon": 8 / 255}} | options
    fake_robust_comparison(folder, {"trades": [SEEDS]}, **options)
    for path in folder.rglob("results.json"):
        content = json.loads(path.read_text())
        path.write_text(json.dumps(content | {"data": data}))
    return trade_off.compute(summarise(folder)).published


def test_published_points_are_those_of_the_papers_tables(tmp_path, axes):
    points = on_cifar(tmp_path / "100", {"name": "cifar100"})
    assert trade_off.PublishedPoint("GKL-AT, basic", 65.76, 31.91) in points
    assert len(points) == 7
    points = on_cifar(tmp_path / "10", {"name": "cifar10", "generated": "edm.npz"})
    assert [(point.name, point.robust) for point in points] == [
        ("DM-AT, 20M generated", 67.31),
        ("GKL-AT, 20M generated", 67.75),
    ]
    trade_off.draw(trade_off.compute(summarise(tmp_path / "10")), axes)
    assert labels(axes) == ["published", "trades"]
    assert [text.get_text() for text in axes.texts] == [point.name for point in points]


@pytest.mark.parametrize(
    ("data", "options"),
    [
        ({"name": "digits"}, {}),
        ({"name": "cifar10", "labels_per_class": 100}, {}),
        ({"name": "cifar10", "imbalance": 10.0}, {}),
        ({"name": "cifar10"}, {"attacks": ("pgd20",)}),
        ({"name": "cifar10"}, {"epsilons": (0.1,), "adversary": ADVERSARY | {"epsilon": 0.1}}),
    ],
)
def test_figures_of_other_data_radii_and_attacks_do_not_stand_among_published_ones(tmp_path, data, options):
    assert on_cifar(tmp_path, data, **options) == ()


# --- the others ---------------------------------------------------------------------------------------------


def test_curves_have_robust_accuracy_and_the_epoch_that_is_reported(tmp_path, axes):
    run = read_run(fake_robust_run(tmp_path / "run", epoch=15))
    result = curves.compute({"gkl": [run]})
    assert result.reported == 15
    robust = result.rows["gkl"].values["robust"][0]
    assert robust.argmax() == 14
    curves.draw(result, axes, "robust")
    assert axes.lines[0].get_ydata() == pytest.approx(robust)
    assert labels(axes) == ["gkl", "reported"]


def test_curves_of_several_runs_have_no_one_epoch_that_is_reported(rows):
    assert curves.compute(rows).reported is None
    assert curves.compute({"gkl": rows["gkl"][:1]}).reported == 12


def test_curves_of_other_training_have_no_robust_accuracy(tmp_path):
    result = curves.compute({"kl": [read_run(fake_run(tmp_path / "plain"))]})
    assert not result.has("robust")
    assert result.reported is None


def test_margin_difference_of_gkl_at_to_trades_is_that_of_figure_4c(folder, rows):
    found = margins.difference(margins.compute(rows), summarise(folder).baseline).rows["gkl"]
    expected = [
        np.mean([margins.class_margins(run.scores.class_means) for run in rows[name]], axis=0)
        for name in ("gkl", "trades")
    ]
    assert found == pytest.approx(expected[0] - expected[1])


def test_clean_differences_are_drawn_below_the_robust_ones(folder):
    comparison = summarise(folder)
    robust, clean = differences.compute(comparison), differences.compute(comparison, clean=True)
    assert (robust.measure, clean.measure) == ("test accuracy under aa", "test clean top-1")
    assert robust.rows["gkl"] is comparison.row("gkl").difference
    assert clean.rows["gkl"] is comparison.row("gkl").robust.clean.difference


def test_comparison_has_every_picture_and_captions_state_the_ratios(folder, few_images):
    comparison = summarise(folder)
    names = [path.stem for path in draw_comparison(folder)]
    assert names[:3] == ["differences", "trade_off", "curves"]
    assert names[-3:] == ["epsilons", "moved_probabilities", "features"]
    with styled():
        captions = {
            picture.name: picture.caption
            for picture in robust_pictures.of_attacks(comparison.selected_runs(), comparison.baseline)
        }
    tight = [each.adversarial for each in features.tightness(comparison.selected_runs())["gkl"]]
    assert f"{np.mean(tight):.3f} ± {np.std(tight, ddof=1):.3f} attacked" in captions["features"]
    assert "40 test images of 10 classes" in captions["features"]
    ratio = moved.compute(comparison.selected_runs()).rows["gkl"].ratio
    assert f"gkl {ratio:.2f}" in captions["moved_probabilities"]


def test_run_that_was_attacked_later_has_the_pictures_too(tmp_path, few_images):
    run = fake_run(tmp_path / "plain", distill=False)
    attacked = fake_robust_run(tmp_path / "attacked", epsilons=RADII, reported="last")
    for name in ("robustness.json", "robust_predictions.npz"):
        (attacked / name).rename(run / name)
    assert [path.stem for path in draw_run(run, tmp_path)][-3:] == ["epsilons", "moved_probabilities", "features"]


def test_damaged_predictions_are_one_line_with_their_name(tmp_path):
    run = fake_robust_run(tmp_path / "run")
    (run / "robust_predictions.npz").write_bytes((run / "robust_predictions.npz").read_bytes()[:200])
    with pytest.raises(UserError, match=r"robust_predictions\.npz: cannot be read") as caught:
        draw_run(run, tmp_path)
    assert "\n" not in str(caught.value)


def test_drawing_needs_no_torch(folder):
    code = (
        "import sys; from pathlib import Path; from limbeck.analysis import features, pictures\n"
        "features.IMAGES = 30\n"
        f"pictures.draw_comparison(Path({str(folder)!r}))\n"
        "assert 'torch' not in sys.modules and 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
