"""Claims about reading run folders."""

import json

import numpy as np
import pytest
from fake_runs import fake_run

from limbeck.analysis.run_files import class_accuracy, class_means, read_run
from limbeck.errors import UserError


def replace_arrays(run, **arrays):
    with np.load(run / "predictions.npz") as file:
        kept = {name: file[name] for name in file if name not in arrays}
    np.savez(run / "predictions.npz", **kept, **{name: value for name, value in arrays.items() if value is not None})


def test_class_means_are_the_mean_softmax_of_each_true_class():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(20, 3)) * 5, np.array([0, 2] * 10)
    expected = [np.exp(row) / np.exp(row).sum() for row in logits]
    means = class_means(logits, labels, 3)
    assert means[0] == pytest.approx(np.mean(expected[0::2], axis=0), abs=1e-12)
    assert means[2] == pytest.approx(np.mean(expected[1::2], axis=0), abs=1e-12)
    assert np.isnan(means[1]).all()


def test_class_means_survive_logits_of_any_scale():
    means = class_means(np.array([[1e4, -1e4], [0.0, 1e4]]), np.array([0, 1]), 2)
    assert means == pytest.approx(np.eye(2))


def test_accuracy_of_a_class_without_samples_is_nan():
    logits = np.array([[1.0, 0, 0], [0, 1, 0], [1, 0, 0]])
    assert class_accuracy(logits, np.array([0, 0, 0]), 3) == pytest.approx([2 / 3, np.nan, np.nan], nan_ok=True)


def test_scores_agree_with_the_predictions(tmp_path):
    run = fake_run(tmp_path / "run")
    scores = read_run(run).scores
    with np.load(run / "predictions.npz") as file:
        assert scores.class_means == pytest.approx(class_means(file["test_logits"], file["test_labels"], 10), abs=1e-6)
        right = file["test_logits"].argmax(1) == file["test_labels"]
    assert np.mean(scores.accuracy) == pytest.approx(right.mean())


def test_run_without_teacher_has_neither_its_scores_nor_a_prior(tmp_path):
    scores = read_run(fake_run(tmp_path / "run", distill=False)).scores
    assert (scores.teacher_class_means, scores.prior) == (None, None)


def test_half_a_last_line_of_metrics_is_left_out(tmp_path):
    run = fake_run(tmp_path / "run", epochs=4)
    text = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(text[:-20])
    assert [line["epoch"] for line in read_run(run).epochs] == [1, 2, 3]


def test_damaged_line_of_metrics_is_named(tmp_path):
    run = fake_run(tmp_path / "run", epochs=2)
    lines = (run / "metrics.jsonl").read_text().splitlines()
    (run / "metrics.jsonl").write_text("\n".join([lines[0], "{oops", *lines[2:]]) + "\n")
    with pytest.raises(UserError, match=r"metrics\.jsonl: line 2 .*train the run again"):
        _ = read_run(run).epochs


@pytest.mark.parametrize("keep", [0, 100, 3000])
def test_truncated_predictions_are_one_line_naming_the_file(tmp_path, keep):
    run = fake_run(tmp_path / "run")
    content = (run / "predictions.npz").read_bytes()
    (run / "predictions.npz").write_bytes(content[:keep])
    with pytest.raises(UserError, match=r"predictions\.npz.*train the run again") as caught:
        _ = read_run(run).scores
    assert "\n" not in str(caught.value)


def test_foreign_predictions_are_refused(tmp_path):
    run = fake_run(tmp_path / "run")
    replace_arrays(run, test_logits=None)
    with pytest.raises(UserError, match="test_logits"):
        _ = read_run(run).scores
    (run / "predictions.npz").unlink()
    with pytest.raises(UserError, match=r"predictions\.npz is missing"):
        _ = read_run(run).scores


def test_pickled_arrays_are_not_opened(tmp_path):
    run = fake_run(tmp_path / "run")
    replace_arrays(run, test_labels=np.array([{}, {}], dtype=object))
    with pytest.raises(UserError, match=r"predictions\.npz"):
        _ = read_run(run).scores


def test_other_folder_is_no_run(tmp_path):
    with pytest.raises(UserError, match="is no run folder"):
        read_run(tmp_path)


def test_metric_tells_null_from_damage(tmp_path):
    run = read_run(fake_run(tmp_path / "run", validation=None))
    assert run.metric("last", "validation", "top1") is None
    assert run.metric("best", "test", "top1") is None
    assert run.metric("last", "test", "agreement") is not None
    assert run.metric("last", "test", "no_such_measure") is None
    with pytest.raises(UserError, match=r"the key `last\.tests`"):
        run.metric("last", "tests", "top1")
    content = json.loads((run.folder / "results.json").read_text())
    content["last"]["test"]["top1"] = "high"
    (run.folder / "results.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"a number at `last\.test\.top1`, got 'high'"):
        read_run(run.folder).metric("last", "test", "top1")
