"""Claims about the picture of a pool: what is read of a run, and what is drawn."""

import json

import numpy as np
import pytest

from limbeck.analysis import semi_supervised_pictures as pool
from limbeck.analysis.run_files import read_run
from limbeck.analysis.style import new_figure, styled
from limbeck.errors import UserError


def run_of(folder, channels=1, shares=(0.0, 0.25, 0.5), **arrays):
    folder.mkdir()
    numbered = enumerate(shares, 1)
    lines = [{"kind": "epoch", "epoch": epoch, "train": {"loss": 1.0, "mask": share}} for epoch, share in numbered]
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    generator = np.random.default_rng(0)
    weak, strong = generator.normal(size=(2, 5, channels, 4, 6))
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8], [0.5, 0.5], [0.0, 1.0], [0.6, 0.4]])
    kept = {"weak_views": weak, "strong_views": strong, "weak_probabilities": probabilities, **arrays}
    np.savez(folder / "predictions.npz", **{name: value for name, value in kept.items() if value is not None})
    return read_run(folder)


def test_over_each_image_stands_the_class_and_its_probability(tmp_path):
    views = pool.views(run_of(tmp_path / "run"))
    assert views.said.tolist() == [0, 1, 0, 1, 0]
    assert views.confidence.tolist() == [0.9, 0.8, 0.5, 1.0, 0.6]
    with styled():
        axes = pool.draw_views(views, new_figure(3.0)[1][0], columns=4)
        assert [text.get_text() for text in axes.texts] == ["0\n90 %", "1\n80 %", "0\n50 %", "1\n100 %"]


@pytest.mark.parametrize("channels", [1, 3])
def test_the_sheet_has_weak_views_above_strong_ones(tmp_path, channels):
    views = pool.views(run_of(tmp_path / "run", channels))
    with styled():
        sheet = pool.draw_views(views, new_figure(3.0)[1][0]).images[0].get_array()
    assert sheet.shape == (9, 34, 3)
    low, high = views.weak.min(), views.weak.max()
    expected = np.clip((views.weak[0] - low) / (high - low), 0, 1).transpose(1, 2, 0)
    assert np.allclose(sheet[:4, :6], np.broadcast_to(expected, (4, 6, 3)))


def test_shares_are_those_of_the_epochs_in_percent(tmp_path):
    shares = pool.shares({"kl": run_of(tmp_path / "run")})
    assert shares["kl"].tolist() == [0, 25, 50]


def test_a_run_without_a_pool_has_no_picture(tmp_path):
    assert pool.pictures({"none": run_of(tmp_path / "run", weak_views=None)}) == []


def test_rows_with_a_pool_share_one_picture(tmp_path):
    rows = {"kl": run_of(tmp_path / "kl"), "gkl": run_of(tmp_path / "gkl")}
    with styled():
        (picture,) = pool.pictures(rows)
    assert picture.name == "unlabelled"
    assert picture.png.startswith(b"\x89PNG")


def test_a_damaged_file_is_one_line(tmp_path):
    run = run_of(tmp_path / "run")
    (run.folder / "predictions.npz").write_bytes(b"no archive")
    with pytest.raises(UserError, match="train the run again"):
        pool.views(run)
