"""The picture of interrelations: alike classes side by side, the nearest ones named, and files that are whole."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from limbeck.analysis import interrelations
from limbeck.analysis.style import styled
from limbeck.errors import UserError
from limbeck.interrelation_files import InterrelationFile, encode, read_interrelations


def similarities(groups=3, members=4, seed=0):
    """Classes of groups that share most of a direction, in an order that hides the groups."""
    rng = np.random.default_rng(seed)
    rows = np.repeat(rng.normal(size=(groups, 8)), members, axis=0) + 0.2 * rng.normal(size=(groups * members, 8))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    matrix = (1 + rows @ rows.T) / 2
    np.fill_diagonal(matrix, 1)
    hidden = rng.permutation(groups * members)
    return matrix[np.ix_(hidden, hidden)].astype(np.float32), hidden // members


def content(matrix, **changes):
    fields = {
        "interrelations": matrix,
        "cost": 1 - matrix,
        "kind": "centroid",
        "options": {"features": "penultimate", "center": True, "negative": "shift"},
        "sharpness": 0.0,
        "teacher": "teacher",
        "teacher_fingerprint": "a" * 64,
        "data": "digits",
        "data_fingerprint": "b" * 64,
        "split": "training",
        "samples": (9,) * len(matrix),
        "limbeck": "0.1.0",
    }
    return InterrelationFile(**{**fields, **changes})


def test_alike_classes_are_side_by_side():
    matrix, group = similarities()
    order = interrelations.compute(content(matrix)).order
    assert sorted(order) == list(range(12))
    assert np.count_nonzero(np.diff(group[order])) == 2  # from group to group, and never back


def test_the_nearest_class_is_the_most_alike_other_one():
    matrix, group = similarities()
    nearest = interrelations.nearest_classes(matrix)
    assert nearest.shape == (12, 3)
    for c, row in enumerate(nearest):
        expected = sorted(set(range(12)) - {c}, key=lambda other: -matrix[c, other])[:3]
        assert row.tolist() == expected
        assert (group[row] == group[c]).all()


def test_two_classes_have_one_nearest_each():
    assert interrelations.nearest_classes(np.eye(2)).tolist() == [[1], [0]]


def texts(axes):
    return [text.get_text() for text in axes.texts]


def drawn(result):
    from matplotlib.figure import Figure

    with styled():
        left, right = Figure().subplots(1, 2)
        interrelations.draw(result, left)
        interrelations.draw_nearest(result, right)
    return left, right


def test_the_map_has_the_similarities_in_the_order_of_the_clusters_and_no_diagonal():
    matrix, _ = similarities()
    result = interrelations.compute(content(matrix))
    left, right = drawn(result)
    shown = np.asarray(left.images[0].get_array())
    expected = matrix[np.ix_(result.order, result.order)].astype(np.float64)
    off = ~np.eye(12, dtype=bool)
    np.testing.assert_array_equal(shown[off], expected[off])
    assert np.isnan(np.diagonal(np.ma.getdata(left.images[0].get_array()))).all()
    assert [tick.get_text() for tick in left.get_yticklabels()] == [str(c) for c in result.order]
    assert left.images[0].get_clim() == (expected[off].min(), expected[off].max())
    first = result.order[0]
    assert texts(right)[0].split() == [
        f"{first}:",
        *(word for other in result.nearest[first] for word in (str(other), f"{matrix[first, other]:.2f}")),
    ]
    assert len(texts(right)) == 12


def test_of_many_classes_those_with_the_nearest_ones_are_listed():
    matrix, _ = similarities(groups=12, members=5)
    left, right = drawn(interrelations.compute(content(matrix)))
    assert len(texts(right)) == interrelations.LISTED
    others = matrix - 2 * np.eye(60)
    assert texts(right)[0].split()[0] == f"{int(np.argmax(others.max(1)))}:"
    assert len(left.get_xticks()) == 20
    assert "one in 3 is named" in left.get_xlabel()


def test_equal_similarities_have_no_nearest_classes():
    _, right = drawn(interrelations.compute(content(np.eye(5, dtype=np.float32), kind="uniform")))
    assert texts(right) == ["All classes are equally unlike:\nnone is nearest."]


@pytest.mark.parametrize(("name", "start"), [("a.png", b"\x89PNG"), ("new/a.svg", b"<?xml")])
@pytest.mark.parametrize("classes", [1, 2, 12])
def test_a_picture_is_a_file_and_the_same_again(tmp_path, name, start, classes):
    matrix = similarities()[0][:classes, :classes]
    out = tmp_path / name
    interrelations.save_picture(content(matrix), out)
    first = out.read_bytes()
    assert first.startswith(start)
    interrelations.save_picture(content(matrix), out)
    assert out.read_bytes() == first


def test_another_ending_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"--plot expected a file that ends with .png or .svg, got .*a.pdf"):
        interrelations.save_picture(content(np.eye(2, dtype=np.float32)), tmp_path / "a.pdf")


def test_a_long_title_is_cut():
    result = interrelations.compute(content(np.eye(2, dtype=np.float32), teacher="t" * 99))
    assert len(result.title) == interrelations.LONGEST
    assert result.title.endswith("…")


# --- files ---


def test_a_file_brings_back_matrices_and_provenance(tmp_path):
    written = content(similarities()[0], kind="cka", options={"per_class": 9, "seed": 3}, sharpness=1.5)
    path = tmp_path / "a.safetensors"
    path.write_bytes(encode(written))
    read = read_interrelations(path)
    for field in dataclasses.fields(InterrelationFile):
        one, other = getattr(read, field.name), getattr(written, field.name)
        assert np.array_equal(one, other) if isinstance(one, np.ndarray) else one == other, field.name


def test_a_file_that_is_none_is_named(tmp_path):
    from safetensors.numpy import save

    path = tmp_path / "a.safetensors"
    good = encode(content(np.eye(2, dtype=np.float32)))
    foreign = save({"interrelations": np.eye(2)}, {"format": "pt"})
    for bytes_, words in ((None, "no such file"), (good[:99], "damaged"), (foreign, "other tensors"), (b"", "damaged")):
        if bytes_ is not None:
            path.write_bytes(bytes_)
        with pytest.raises(UserError, match=words) as caught:
            read_interrelations(path)
        assert "make one with: limbeck interrelations TEACHER DATA" in str(caught.value)
