"""Claims about the pictures: what is computed, what is drawn, which files there are."""

import subprocess
import sys

import numpy as np
import pytest
from fake_runs import LONG_TAILED, demo_like, fake_run

from limbeck.analysis import convergence, curves, differences, margins, per_class, predicted_scores, prior
from limbeck.analysis.comparison import summarise
from limbeck.analysis.pictures import _predictions, _short_names, draw_comparison, draw_run
from limbeck.analysis.run_files import read_run
from limbeck.analysis.style import COLOURS, new_figure, styled
from limbeck.errors import UserError

PNG = b"\x89PNG\r\n"


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    accuracies = {"kl": 0.88, "gkl": 0.92}
    return {
        name: [
            read_run(fake_run(folder / f"{name}{seed}", top1=top1, validation=top1, seed=seed, counts=LONG_TAILED))
            for seed in range(3)
        ]
        for name, top1 in accuracies.items()
    }


@pytest.fixture
def axes():
    with styled():
        yield new_figure(3.0)[1][0]


def labels(axes):
    return axes.get_legend_handles_labels()[1]


def test_curves_hold_every_epoch_of_every_run(rows, axes):
    result = curves.compute(rows)
    assert result.rows["kl"].values["main"].shape == (3, 20)
    assert result.teacher == pytest.approx(98.0)
    curves.draw(result, axes, "main")
    assert labels(axes) == ["kl", "gkl", "teacher"]
    assert axes.lines[0].get_ydata() == pytest.approx(result.rows["kl"].values["main"].mean(0))


def test_curves_stop_where_the_shortest_run_of_a_row_stands(tmp_path):
    runs = [read_run(fake_run(tmp_path / str(epochs), epochs=epochs)) for epochs in (3, 5)]
    assert curves.compute({"kl": runs}).rows["kl"].epochs.tolist() == [1, 2, 3]


def test_curves_without_validation_have_the_training_loss_alone(tmp_path):
    result = curves.compute({"kl": [read_run(fake_run(tmp_path / "run", validation=None))]})
    assert result.has("train_loss")
    assert not result.has("main")


def test_curves_of_a_run_without_an_epoch_are_refused(tmp_path):
    run = fake_run(tmp_path / "run", epochs=1)
    (run / "metrics.jsonl").write_text("")
    with pytest.raises(UserError, match="no epoch is finished yet"):
        curves.compute({"kl": [read_run(run)]})


def test_a_single_epoch_is_seen_and_whole(tmp_path, axes):
    runs = {name: [read_run(fake_run(tmp_path / name, epochs=1))] for name in ("kl", "gkl")}
    curves.draw(curves.compute(runs), axes, "train_loss")
    assert {line.get_marker() for line in axes.lines} == {"o"}
    assert axes.get_xticks().tolist() == [1]


@pytest.mark.parametrize("picture", [curves, convergence, predicted_scores])
def test_rows_that_coincide_share_a_line_and_a_label(rows, axes, picture):
    twins = {"kl": rows["kl"], "dkl": rows["kl"], "gkl": rows["gkl"]}
    picture.draw(picture.compute(twins), axes)
    drawn = {line.get_label(): line for line in axes.lines}
    assert "kl = dkl" in drawn
    assert not {"kl", "dkl"} & drawn.keys()
    assert drawn["gkl"].get_color() == COLOURS[2]  # as in the pictures in which all three stand apart


def test_classes_stand_from_most_to_fewest_training_images(tmp_path, axes):
    run = read_run(fake_run(tmp_path / "run", counts=(5, 50, 20)))
    result = per_class.compute({"kl": [run]})
    assert result.order.tolist() == [1, 2, 0]
    assert result.rows["kl"][0] == pytest.approx(100 * run.scores.accuracy[[1, 2, 0]])
    per_class.draw(result, axes)
    assert [text.get_text() for text in axes.get_xticklabels()] == ["1", "2", "0"]
    assert axes.get_xlabel() == "class, from most to fewest training images"


def test_classes_of_equal_size_are_in_no_order_of_size(axes):
    per_class.draw(per_class.PerClass(np.arange(3), np.array([2, 2, 2]), {"kl": np.ones((1, 3))}, "test"), axes)
    assert axes.get_xlabel() == "class"


def test_no_whisker_passes_the_ends_of_accuracy(axes):
    accuracy = np.array([[0.0, 100.0, 50.0], [100.0, 100.0, 50.0]])  # standard deviation 70.7 about 50, then 0
    per_class.draw(per_class.PerClass(np.arange(3), np.array([2, 2, 2]), {"kl": accuracy}, "test"), axes)
    (whiskers,) = axes.containers[0].lines[2]
    assert [segment[:, 1].tolist() for segment in whiskers.get_segments()] == [[0, 100], [100, 100], [50, 50]]


def test_margin_is_equation_14():
    means = np.array([[0.6, 0.3, 0.1], [0.5, 0.2, 0.3], [0.0, 0.1, 0.9]])
    assert margins.class_margins(means) == pytest.approx([0.3, -0.3, 0.8])


def test_margin_difference_is_between_the_means_over_runs(rows, axes):
    result = margins.compute(rows)
    found = margins.difference(result, "kl")
    assert found.rows["gkl"] == pytest.approx(result.rows["gkl"].mean(0) - result.rows["kl"].mean(0))
    assert found.rows["kl"] == pytest.approx(np.zeros(10))
    margins.draw_difference(found, axes)
    assert [bar.get_height() for bar in axes.patches] == pytest.approx(found.rows["gkl"])


def test_predicted_scores_are_sorted_and_sum_to_one(rows, axes):
    result = predicted_scores.compute(rows)
    for scores in (*result.rows.values(), result.teacher):
        assert (np.diff(scores, axis=1) <= 0).all()
        assert scores.sum(1) == pytest.approx(np.ones(10), abs=1e-5)
    assert axes.get_yscale() == "linear"
    assert predicted_scores.draw(result, axes).get_yscale() == "log"


def test_prior_is_in_percent_and_no_two_entries_have_one_colour(axes):
    table = np.array([[0.9, 0.09, 0.01], [0.002, 0.99, 0.008], [0.1, 0.1, 0.8]])
    prior.draw(prior.Prior(table), axes)
    (image,) = axes.images
    assert (image.norm.vmin, image.norm.vmax) == pytest.approx((0.2, 99))
    colours = sorted(np.asarray(image.norm(100 * np.unique(table))))
    assert np.diff(colours).min() > 0.01
    bar = image.colorbar
    assert "percent" in bar.ax.get_ylabel()
    assert [text.get_text() for text in bar.ax.get_yticklabels()] == ["1", "10", "50", "90", "99"]
    assert [text.get_text() for text in axes.texts[:3]] == ["90", "9.0", "1.0"]


def test_prior_with_zeros_uniform_or_of_one_class_is_drawn(axes):
    for table in (np.eye(3), np.full((3, 3), 1 / 3), np.ones((1, 1)), np.full((40, 40), 0.025)):
        prior.draw(prior.Prior(table), axes)
        axes.figure.canvas.draw_idle()


def test_run_without_a_class_prior_says_which_terms_keep_one(tmp_path):
    with pytest.raises(UserError, match="`prior: class`"):
        prior.compute(read_run(fake_run(tmp_path / "run", distill=False)))


def test_prior_of_the_last_row_that_has_one_is_shown(rows, tmp_path):
    bare = [read_run(fake_run(tmp_path / "run", distill=False, counts=LONG_TAILED))]
    with styled():
        shown = list(_predictions({**rows, "ce": bare}, None))[-1]
    assert shown.title == "Class prior of gkl"


def test_convergence_keeps_the_place_of_rows_without_a_teacher(rows, tmp_path, axes):
    bare = read_run(fake_run(tmp_path / "run", distill=False))
    result = convergence.compute({"ce": [bare], **rows})
    assert result.rows["ce"] is None
    assert result.rows["kl"].shape == (3, 20, 4)
    convergence.draw(result, axes, 3)
    assert labels(axes) == ["kl", "gkl"]
    assert axes.lines[0].get_color() == COLOURS[1]
    assert axes.lines[0].get_ydata() == pytest.approx(result.rows["kl"][..., 3].mean(0))


def test_differences_show_every_seed_and_the_interval(tmp_path, axes):
    result = differences.compute(summarise(demo_like(tmp_path)))
    assert list(result.rows) == ["ce", "dkl", "ikl", "gkl"]
    differences.draw(result, axes)
    intervals = [line for line in axes.lines if len(line.get_xdata()) == 2 and line.get_linewidth() == 3]
    assert [tuple(line.get_xdata()) for line in intervals] == [
        (row.low, row.high) for row in result.rows.values() if row.low is not None
    ]


def test_comparison_has_every_picture(tmp_path):
    paths = draw_comparison(demo_like(tmp_path, seeds=2))
    names = ["differences", "curves", "convergence", "per_class", "margins", "predicted_scores", "prior"]
    assert [path.name for path in paths] == [f"{name}.png" for name in names]
    assert all(path.parent == tmp_path and path.read_bytes().startswith(PNG) for path in paths)


def test_supervised_run_has_the_pictures_it_can_have(tmp_path):
    run = fake_run(tmp_path / "run", distill=False, validation=None, counts=(40, 30))
    assert [path.stem for path in draw_run(run, tmp_path / "new" / "pictures")] == [
        "curves",
        "per_class",
        "margins",
        "predicted_scores",
    ]


def test_two_runs_of_one_name_are_told_apart_and_compared(tmp_path):
    first, second = (fake_run(tmp_path / name / "seed0", top1=top1) for name, top1 in (("kl", 0.88), ("gkl", 0.92)))
    alone, both = draw_run(second, tmp_path / "alone"), draw_run(second, tmp_path / "both", against=first)
    assert [path.name for path in alone] == [path.name for path in both]
    assert _short_names(first, second) == ["kl", "gkl"]
    assert _short_names(first, second.parent / "seed1") == ["kl/seed0", "gkl/seed1"]
    assert _short_names(first.parent, first) == ["kl", "kl/seed0"]
    with pytest.raises(UserError, match=r"expected two runs, got .*seed0 twice"):
        draw_run(second, tmp_path, against=second)


def test_runs_with_other_classes_are_not_compared(tmp_path):
    first, second = fake_run(tmp_path / "ten"), fake_run(tmp_path / "three", counts=(30, 20, 10))
    with pytest.raises(UserError, match="same classes, got ten 10, three 3"):
        draw_run(second, tmp_path, against=first)


def test_unfinished_run_has_learning_curves(tmp_path):
    run = fake_run(tmp_path / "run")
    (run / "results.json").unlink()
    (run / "predictions.npz").unlink()
    assert [path.stem for path in draw_run(run, run)] == ["curves", "convergence"]


def test_class_without_test_images_leaves_a_gap(tmp_path):
    run = fake_run(tmp_path / "run", counts=(40, 30, 20))
    with np.load(run / "predictions.npz") as file:
        arrays = dict(file)
    arrays["test_labels"] = arrays["test_labels"] % 2
    np.savez(run / "predictions.npz", **arrays)
    assert np.isnan(margins.compute({"kl": [read_run(run)]}).rows["kl"][0]).tolist() == [False, False, True]
    assert len(draw_run(run, tmp_path)) == 6


def test_folder_that_cannot_be_written_is_named(tmp_path):
    run = fake_run(tmp_path / "run")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file.* cannot be written"):
        draw_run(run, tmp_path / "file")


def test_missing_matplotlib_names_the_extra(tmp_path, monkeypatch):
    run = fake_run(tmp_path / "run")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match=r'pip install "limbeck\[viz\]"'):
        draw_run(run, tmp_path)


def test_drawing_needs_neither_torch_nor_pyplot(tmp_path):
    run = fake_run(tmp_path / "run")
    code = (
        "import sys; from pathlib import Path; from limbeck.analysis.pictures import draw_run\n"
        "assert 'matplotlib' not in sys.modules and 'scipy' not in sys.modules and 'rich' not in sys.modules\n"
        f"draw_run(Path({str(run)!r}), Path({str(tmp_path)!r}))\n"
        "assert 'torch' not in sys.modules and 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
