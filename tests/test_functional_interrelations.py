"""Similarities of classes equal their definitions, written out pair by pair in float64."""

from __future__ import annotations

import math

import pytest
import torch

from limbeck.functional import _alignment, interrelations
from limbeck.functional.interrelations import (
    centroid_cosine,
    classifier_cosine,
    cost_from_interrelations,
    covariance_alignment,
    linear_cka,
    polynomial_cka,
    rbf_cka,
    uniform_interrelations,
)

EXACT = {"rtol": 0, "atol": 1e-10}
SHAPES = [(4, 6, 9), (3, 40, 5), (5, 2, 3)]  # few samples and many; two samples


def sets(classes=4, samples=6, size=9):
    """Features of classes whose means and directions differ, and correlated over the samples."""
    generator = torch.Generator().manual_seed(0)
    shared = torch.randn(samples, size, generator=generator, dtype=torch.float64)
    own = torch.randn(classes, samples, size, generator=generator, dtype=torch.float64)
    means = 3 * torch.randn(classes, 1, size, generator=generator, dtype=torch.float64)
    return shared + own + means


def twin_of_kernels(features, kernel):
    """HSIC with the centring matrix, one pair of classes at a time."""
    classes, samples, _ = features.shape
    h = torch.eye(samples, dtype=torch.float64) - 1 / samples
    ks = [kernel(x) for x in features]

    def hsic(i, j):
        return torch.trace(ks[i] @ h @ ks[j] @ h) / (samples - 1) ** 2

    return torch.tensor(
        [[hsic(i, j) / math.sqrt(hsic(i, i) * hsic(j, j)) for j in range(classes)] for i in range(classes)],
        dtype=torch.float64,
    )


def gaussian(x, bandwidth):
    squared = torch.stack([torch.stack([(a - b).square().sum() for b in x]) for a in x])
    median = squared.flatten().sort().values[(squared.numel() - 1) // 2]
    return torch.exp(-squared / (2 * bandwidth**2 * median))


def cosine(a, b):
    return (a @ b) / math.sqrt(float((a @ a) * (b @ b)))


# --- equal to their definitions ---


@pytest.mark.parametrize("shape", SHAPES)
def test_linear_cka_is_its_definition(shape):
    x = sets(*shape)
    torch.testing.assert_close(linear_cka(x), twin_of_kernels(x, lambda y: y @ y.mT), **EXACT)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("products", [_alignment.gram_products, _alignment.block_products])
def test_both_forms_of_the_products_are_the_loop_over_pairs(shape, products):
    x = sets(*shape)
    x = x - x.mean(1, keepdim=True)
    looped = torch.stack([torch.stack([(a.mT @ b).square().sum() for b in x]) for a in x])
    torch.testing.assert_close(products(x), looped, rtol=1e-12, atol=0)


@pytest.mark.parametrize(("shape", "form"), [((4, 6, 9), "gram_products"), ((3, 400, 5), "block_products")])
def test_the_cheaper_form_is_taken(shape, form, monkeypatch):
    taken = []

    def seen(name, original):
        return lambda x: taken.append(name) or original(x)

    for name in ("gram_products", "block_products"):
        monkeypatch.setattr(interrelations, name, seen(name, getattr(_alignment, name)))
    linear_cka(sets(*shape))
    assert taken == [form]


@pytest.mark.parametrize("bandwidth", [0.2, 0.6])
@pytest.mark.parametrize("shape", SHAPES[:2])
def test_rbf_cka_is_its_definition(shape, bandwidth):
    x = sets(*shape)
    expected = twin_of_kernels(x, lambda y: gaussian(y, bandwidth))
    torch.testing.assert_close(rbf_cka(x, bandwidth=bandwidth), expected, **EXACT)


@pytest.mark.parametrize("power", [1, 2, 4])
@pytest.mark.parametrize("shape", SHAPES)
def test_polynomial_cka_is_its_definition(shape, power):
    x = sets(*shape)
    expected = twin_of_kernels(x, lambda y: (y @ y.mT + 1) ** power)
    torch.testing.assert_close(polynomial_cka(x, power=power), expected, **EXACT)


def test_pieces_of_the_kernels_are_the_whole(monkeypatch):
    x = sets(3, 17, 4)
    whole = [linear_cka(x[:, :, :4]), rbf_cka(x), polynomial_cka(x)]
    monkeypatch.setattr(_alignment, "CHUNK", 3 * 17 * 5)  # five rows, and a rest of two
    for one, other in zip(whole, [linear_cka(x), rbf_cka(x), polynomial_cka(x)], strict=True):
        torch.testing.assert_close(one, other, **EXACT)


@pytest.mark.parametrize("center", [True, False])
def test_centroid_cosine_is_its_definition(center):
    means = sets().mean(1)
    rows = means - means.mean(0) if center else means
    cosines = torch.stack([torch.stack([cosine(a, b) for b in rows]) for a in rows])
    assert cosines.min() < 0
    torch.testing.assert_close(centroid_cosine(means, center=center), (1 + cosines) / 2, **EXACT)
    torch.testing.assert_close(centroid_cosine(means, center=center, negative="clip"), cosines.clamp_min(0), **EXACT)


@pytest.mark.parametrize("negative", ["shift", "clip"])
def test_classifier_cosine_is_its_definition_and_detached(negative):
    weight = sets()[:, 0].requires_grad_()
    rows = weight.detach()
    cosines = torch.stack([torch.stack([cosine(a, b) for b in rows]) for a in rows])
    expected = (1 + cosines) / 2 if negative == "shift" else cosines.clamp_min(0)
    result = classifier_cosine(weight, negative=negative)
    assert not result.requires_grad
    torch.testing.assert_close(result, expected, **EXACT)


def test_covariance_alignment_is_its_definition():
    covariances = torch.stack([torch.cov(x.mT) for x in sets()])
    rows = [s.flatten() for s in covariances]
    expected = torch.stack([torch.stack([cosine(a, b) for b in rows]) for a in rows])
    torch.testing.assert_close(covariance_alignment(covariances), expected, **EXACT)
    torch.testing.assert_close(covariance_alignment(7 * covariances), expected, **EXACT)


# --- laws ---

KERNELS = {"linear": linear_cka, "rbf": rbf_cka, "polynomial": polynomial_cka}
ALL = {
    **KERNELS,
    "centroid": lambda x: centroid_cosine(x.mean(1)),
    "classifier": lambda x: classifier_cosine(x[:, 0]),
    "covariance": lambda x: covariance_alignment(torch.stack([torch.cov(y.mT) for y in x])),
}


@pytest.mark.parametrize("similarity", ALL.values(), ids=ALL)
def test_a_similarity_is_symmetric_within_bounds_one_on_the_diagonal_and_makes_a_cost(similarity):
    ir = similarity(sets())
    assert ir.dtype == torch.float64
    assert torch.equal(ir, ir.mT)
    assert torch.equal(ir.diagonal(), torch.ones(4, dtype=torch.float64))
    assert ir.min() >= 0
    assert ir.max() <= 1
    cost = cost_from_interrelations(ir.float())
    assert cost.dtype == torch.float32
    assert torch.equal(cost.diagonal(), torch.zeros(4))


@pytest.mark.parametrize("similarity", ALL.values(), ids=ALL)
def test_to_rename_the_classes_renames_the_matrix(similarity):
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(similarity(sets()[order]), similarity(sets())[order][:, order], **EXACT)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("similarity", KERNELS.values(), ids=KERNELS)
def test_arithmetic_is_in_float64_whatever_the_dtype_and_autocast(similarity, dtype):
    x = sets().to(dtype)
    with torch.autocast("cpu"):
        result = similarity(x)
    torch.testing.assert_close(result, similarity(x.double()), rtol=0, atol=0)


def test_the_pairing_of_the_samples_makes_cka_and_leaves_covariances_alone():
    x = sets(2, 30, 5)
    x[1] = 2 * x[0] + 1
    mixed = torch.stack([x[0], x[1, torch.randperm(30, generator=torch.Generator().manual_seed(1))]])
    assert linear_cka(x)[0, 1] > 1 - 1e-12
    assert linear_cka(mixed)[0, 1] < 0.5
    for y in (x, mixed):
        assert covariance_alignment(torch.stack([torch.cov(z.mT) for z in y]))[0, 1] > 1 - 1e-12


def test_cka_of_independent_samples_tells_their_number():
    """About 1 / sqrt((N/r_i + 1)(N/r_j + 1)) with r the effective rank, D here: no relation, all the same."""
    x = torch.randn(20, 60, 30, generator=torch.Generator().manual_seed(0))
    off = linear_cka(x)[~torch.eye(20, dtype=torch.bool)]
    assert abs(float(off.mean()) - 1 / (60 / 30 + 1)) < 0.02
    assert off.std() < 0.03


def test_a_far_mean_does_not_swallow_the_rbf_kernel():
    x = sets()
    torch.testing.assert_close(rbf_cka(x + 1e6), rbf_cka(x), rtol=0, atol=1e-6)


# --- the cost ---


@pytest.mark.parametrize("sharpness", [0.5, 1.0, 2.0])
def test_the_cost_is_its_definition(sharpness):
    ir = linear_cka(sets())
    expected = 1 - torch.exp(-sharpness * (1 - ir))
    torch.testing.assert_close(cost_from_interrelations(ir, sharpness=sharpness), expected, **EXACT)


def test_no_sharpness_leaves_the_distance():
    ir = linear_cka(sets())
    torch.testing.assert_close(cost_from_interrelations(ir, sharpness=0), 1 - ir, **EXACT)


def test_uniform_interrelations_make_a_constant_cost():
    cost = cost_from_interrelations(uniform_interrelations(4))
    torch.testing.assert_close(cost, (1 - math.exp(-1)) * (1 - torch.eye(4, dtype=torch.float64)), **EXACT)


# --- mistakes ---


def constant(c):
    x = sets()
    x[c] = 0.1  # three of it have a mean other than it, by rounding
    return x


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: linear_cka([1.0]), TypeError, "`features` expected a tensor, got list"),
        (lambda: linear_cka(torch.ones(2, 3, 4, dtype=torch.int64)), TypeError, "floating dtype, got torch.int64"),
        (lambda: linear_cka(torch.ones(3, 4)), ValueError, "`features` expected a non-empty shape (C, N, D), got (3,"),
        (lambda: linear_cka(torch.ones(3, 0, 4)), ValueError, "non-empty"),
        (lambda: linear_cka(torch.ones(3, 1, 4)), ValueError, "at least 2 samples of each class, got 1"),
        (lambda: linear_cka(torch.full((3, 2, 4), math.nan)), ValueError, "finite numbers, got NaN or infinity"),
        *((lambda k=k: k(constant(2)), ValueError, "class 2 expected samples that differ") for k in KERNELS.values()),
        (lambda: rbf_cka(sets(), bandwidth=0.0), ValueError, "`bandwidth` expected a finite number above 0, got 0"),
        (
            lambda: rbf_cka(torch.tensor([[[0.0]] * 5 + [[1.0]]])),
            ValueError,
            "class 0 expected samples of which fewer than half are equal",
        ),
        (lambda: polynomial_cka(sets(), power=0), ValueError, "`power` expected a whole number of at least 1, got 0"),
        (lambda: polynomial_cka(1e80 * sets()), ValueError, "products within float64"),
        (lambda: centroid_cosine(torch.ones(3, 4)), ValueError, "class 0 expected a mean other than the mean of all"),
        (lambda: centroid_cosine(torch.eye(3), negative="abs"), ValueError, "`negative` expected 'shift' or 'clip'"),
        (lambda: classifier_cosine(torch.diag(torch.tensor([1.0, 0.0]))), ValueError, "class 1 expected a row other"),
        (lambda: covariance_alignment(torch.ones(2, 3, 4)), ValueError, "expected square matrices (C, D, D)"),
        (lambda: covariance_alignment(torch.zeros(2, 3, 3)), ValueError, "class 0 expected a matrix other than 0"),
        (lambda: uniform_interrelations(0), ValueError, "`num_classes` expected a whole number of at least 1, got 0"),
        (lambda: cost_from_interrelations(torch.ones(2, 3)), ValueError, "a square matrix (C, C), got (2, 3)"),
        (lambda: cost_from_interrelations(2 * torch.eye(2) - 1), ValueError, "values in [0, 1], got -1 to 1"),
        (lambda: cost_from_interrelations(0.5 * torch.eye(2)), ValueError, "a diagonal of 1, got 0.5"),
        (lambda: cost_from_interrelations(torch.ones(2, 2).tril()), ValueError, "symmetric matrix"),
        (lambda: cost_from_interrelations(torch.eye(2), sharpness=-1), ValueError, "`sharpness`"),
    ],
)
def test_a_mistake_is_named(call, error, words):
    with pytest.raises(error) as caught:
        call()
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
