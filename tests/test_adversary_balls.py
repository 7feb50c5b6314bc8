"""The ball: a step climbs most, a projection moves least, a start belongs to its sample."""

from __future__ import annotations

import pytest
import torch

from limbeck.adversary import ascend, project, start_points

NORMS = ["linf", "l2"]
ORDER = {"linf": torch.inf, "l2": 2}


def points(*shape, seed=0, dtype=torch.float64):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def lengths(offsets, norm):
    return torch.linalg.vector_norm(offsets.flatten(1), ORDER[norm], dim=1)


def starts(images, start, norm, *, epsilon=0.1, seed=0, epoch=1, indices=None):
    indices = torch.arange(len(images)) if indices is None else torch.tensor(indices)
    return start_points(images, start, epsilon=epsilon, norm=norm, seed=seed, epoch=epoch, indices=indices)


@pytest.mark.parametrize("norm", NORMS)
def test_a_step_has_its_length_and_no_other_of_that_length_climbs_more(norm):
    origin, gradient = points(6, 3, 4), points(6, 3, 4, seed=1) - 0.5
    moved = ascend(origin, gradient, 0.3, norm) - origin
    torch.testing.assert_close(lengths(moved, norm), torch.full((6,), 0.3, dtype=torch.float64))
    others = torch.randn(6, 500, 12, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    others = 0.3 * others / torch.linalg.vector_norm(others, ORDER[norm], dim=-1, keepdim=True)
    climbed = (moved * gradient).flatten(1).sum(1)
    assert (climbed.unsqueeze(1) >= (others * gradient.flatten(1).unsqueeze(1)).sum(-1)).all()


@pytest.mark.parametrize("norm", NORMS)
def test_a_sample_without_a_gradient_stays_where_it_is(norm):
    origin, gradient = points(2, 3), torch.tensor([[0.0, 0.0, 0.0], [1.0, -2.0, 0.0]], dtype=torch.float64)
    moved = ascend(origin, gradient, 0.3, norm)
    assert torch.equal(moved[0], origin[0])
    assert not torch.equal(moved[1], origin[1])


def test_a_vanishing_gradient_still_has_a_direction():
    """The squares of these components are 0 in float32."""
    gradient = 1e-30 * torch.tensor([[3.0, -4.0]])
    torch.testing.assert_close(ascend(torch.zeros(1, 2), gradient, 1.0, "l2"), torch.tensor([[0.6, -0.8]]))


@pytest.mark.parametrize("norm", NORMS)
def test_a_projection_is_the_nearest_point_of_the_ball(norm):
    centre, far = points(5, 2), 4 * points(5, 2, seed=1) - 2
    nearest = project(far, centre, 0.4, norm)
    assert (lengths(nearest - centre, norm) <= 0.4 + 1e-12).all()
    angles = torch.linspace(0, 2 * torch.pi, 2001, dtype=torch.float64)
    rim = torch.stack([angles.cos(), angles.sin()], -1)
    rim = 0.4 * rim / torch.linalg.vector_norm(rim, ORDER[norm], dim=-1, keepdim=True)
    distances = torch.linalg.vector_norm(centre.unsqueeze(1) + rim - far.unsqueeze(1), dim=-1).min(1).values
    outside = lengths(far - centre, norm) > 0.4
    assert outside.sum() >= 3
    torch.testing.assert_close(lengths(nearest - far, "l2")[outside], distances[outside], atol=1e-6, rtol=0)


@pytest.mark.parametrize("norm", NORMS)
def test_what_lies_in_the_ball_is_left_alone_bit_for_bit(norm):
    centre = points(64, 3, dtype=torch.float32)
    inside = 1e-3 * points(64, 3, seed=1, dtype=torch.float32)
    assert not torch.equal(centre + (inside - centre), inside)  # rounding
    assert torch.equal(project(inside, centre, 2.0, norm), inside)
    assert torch.equal(project(centre, centre, 2.0, norm), centre)


def test_uniform_starts_fill_the_cube_evenly():
    offsets = starts(torch.zeros(2000, 5, dtype=torch.float64), "uniform", "linf") / 0.1
    assert offsets.abs().max() <= 1
    assert offsets.mean(0).abs().max() < 0.05
    torch.testing.assert_close(offsets.var(0), torch.full((5,), 1 / 3, dtype=torch.float64), atol=0.03, rtol=0)


def test_uniform_starts_fill_the_ball_evenly():
    """The share of the volume within a radius r is r^D."""
    offsets = starts(torch.zeros(2000, 1, 5, dtype=torch.float64), "uniform", "l2").flatten(1) / 0.1
    inside = lengths(offsets, "l2").pow(5).sort().values
    assert inside[-1] <= 1
    assert (inside - torch.linspace(0, 1, 2000, dtype=torch.float64)).abs().max() < 0.04
    assert offsets.mean(0).abs().max() < 0.05
    second = offsets.T @ offsets / 2000  # of the even ball: 1 / (D + 2) on the diagonal
    torch.testing.assert_close(second, torch.eye(5, dtype=torch.float64) / 7, atol=0.02, rtol=0)


def test_gaussian_starts_are_normal_of_scale_001_and_not_clipped():
    offsets = starts(torch.zeros(2000, 5, dtype=torch.float64), "gaussian", "linf", epsilon=1e-6) / 0.001
    assert offsets.mean().abs() < 0.03
    assert (offsets.square().mean() - 1).abs() < 0.05
    assert (offsets.pow(4).mean() - 3).abs() < 0.3
    assert offsets.abs().max() > 3


def test_the_start_none_is_a_copy_of_the_images():
    images = points(2, 3)
    copy = starts(images, "none", "linf")
    assert torch.equal(copy, images)
    assert copy.data_ptr() != images.data_ptr()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("start", ["uniform", "gaussian"])
def test_the_start_of_a_sample_depends_on_its_index_alone(start, norm):
    images = points(4, 1, 3, 3)
    together = starts(images, start, norm, indices=[7, 3, 12, 5])
    assert torch.equal(starts(images[[2, 0]], start, norm, indices=[12, 7]), together[[2, 0]])
    assert not torch.equal(starts(images, start, norm, indices=[7, 3, 12, 6])[3], together[3])
    assert not torch.equal(starts(images, start, norm, indices=[7, 3, 12, 5], seed=1), together)
    assert not torch.equal(starts(images, start, norm, indices=[7, 3, 12, 5], epoch=2), together)


def test_starts_stay_what_they_were():
    """Runs of an older version resume."""
    images = torch.zeros(1, 3, dtype=torch.float64)
    kinds = [("uniform", "linf"), ("uniform", "l2"), ("gaussian", "linf")]
    drawn = torch.cat([starts(images, *kind, epsilon=1.0) for kind in kinds])
    before = [[0.79437, 0.319974, -0.421299], [-0.335091, -0.061925, -0.429403], [-0.000645, -0.000119, -0.000826]]
    torch.testing.assert_close(drawn, torch.tensor(before, dtype=torch.float64), atol=1e-6, rtol=0)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("start", ["uniform", "gaussian"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_start_has_the_dtype_and_the_memory_format_of_the_images(start, norm, dtype):
    images = points(2, 3, 4, 4).to(dtype).contiguous(memory_format=torch.channels_last)
    drawn = starts(images, start, norm)
    assert drawn.dtype == dtype
    assert drawn.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda x: ascend(x, x, 0.1, "l1"), "`norm` expected 'linf' or 'l2', got 'l1'"),
        (lambda x: project(x, x, 0.1, "l1"), "`norm` expected 'linf' or 'l2', got 'l1'"),
        (lambda x: starts(x, "none", "l1"), "`norm` expected 'linf' or 'l2', got 'l1'"),
        (lambda x: starts(x, "normal", "linf"), "`start` expected 'none', 'uniform' or 'gaussian', got 'normal'"),
        (lambda x: starts(x, "uniform", "linf", indices=[3]), r"`indices` expected one per image, shape \(2,\)"),
    ],
)
def test_a_wrong_word_is_an_error(call, words):
    with pytest.raises(ValueError, match=words):
        call(points(2, 3))


def test_indices_are_integers():
    with pytest.raises(TypeError, match="`indices` expected int64"):
        starts(points(2, 3), "uniform", "linf", indices=[0.0, 1.0])
