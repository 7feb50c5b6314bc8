"""Divergences of image-text similarities: tiles, parts and plain forms are one function."""

from __future__ import annotations

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from limbeck import ContrastiveDivergenceLoss, contrastive_divergence

DIVERGENCES = ("kl", "js", "gkl", "sigmoid_kl")
OPTIONS = {"temperature": 2.0, "weight_power": 0.4, "mse_weight": 0.7, "ce_weight": 1.3}
NAMES = ("logit_scale", "target_logit_scale", "logit_bias", "target_logit_bias")


def pairs(count, widths=(4, 6), dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(count, width) for width in widths for _ in range(2)]
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


def scalars(dtype=torch.float64):
    return [torch.tensor(x, dtype=dtype) for x in (1.5, 2.0, -1.0, 0.5)]


def value_of(tensors, **options):
    return contrastive_divergence(*tensors[:4], **dict(zip(NAMES, tensors[4:], strict=True)), **options)


def value_and_gradients(tensors, weights=None, **options):
    leaves = [x.detach().clone().requires_grad_() for x in tensors]
    value = value_of(leaves, **options)
    value = value if weights is None else (value * weights).sum()
    return [value.detach(), *torch.autograd.grad(value, leaves)]


# --- the twin: one row after the other, from the definitions ------------------------------------------------


def twin_row(s, t, divergence):
    temperature, power = OPTIONS["temperature"], OPTIONS["weight_power"]
    if divergence == "sigmoid_kl":
        q, p = torch.sigmoid(s / temperature), torch.sigmoid(t / temperature)
        return (p * torch.log(p / q) + (1 - p) * torch.log((1 - p) / (1 - q))).sum()
    q, p = torch.softmax(s / temperature, 0), torch.softmax(t / temperature, 0)
    if divergence == "kl":
        return (p * torch.log(p / q)).sum()
    if divergence == "js":
        m = (p + q) / 2
        return ((p * torch.log(p / m)).sum() + (q * torch.log(q / m)).sum()) / 2
    w = torch.softmax(t.detach(), 0) ** power
    gaps = (s[:, None] - s[None]) - (t[:, None] - t[None])
    mse = (w[:, None] * w[None] * gaps**2).sum() / 4 / w.sum() ** 2
    return OPTIONS["mse_weight"] * mse - OPTIONS["ce_weight"] * (p.detach() * q.log()).sum()


def twin(tensors, divergence):
    image, text, target_image, target_text, a, target_a, b, target_b = tensors
    s, t = a * image @ text.T + b, target_a * target_image @ target_text.T + target_b
    rows = [(twin_row(s[i], t[i], divergence) + twin_row(s[:, i], t[:, i], divergence)) / 2 for i in range(len(image))]
    return torch.stack(rows)


def agree(found, expected, bound):
    for x, y in zip(found, expected, strict=True):
        assert (x - y).abs().max() <= bound * max(1.0, float(y.abs().max()))


@pytest.mark.parametrize("tile", [None, 1, 3, 100])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_value_and_all_gradients_are_the_twins(divergence, tile):
    tensors, weights = [*pairs(7), *scalars()], torch.linspace(-1, 2, 7, dtype=torch.float64)
    leaves = [x.clone().requires_grad_() for x in tensors]
    expected = twin(leaves, divergence)
    gradients = torch.autograd.grad((expected * weights).sum(), leaves)
    options = {"divergence": divergence, "tile": tile, "reduction": "none", **OPTIONS}
    agree([value_of(tensors, **options)], [expected.detach()], 1e-12)
    agree(value_and_gradients(tensors, weights, **options)[1:], gradients, 1e-12)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_tiles_agree_with_the_plain_form_where_softmaxes_are_sharp(divergence):
    tensors = [*pairs(40, (16, 24)), *scalars()]
    tensors[4:6] = [torch.tensor(100.0).double(), torch.tensor(80.0).double()]
    options = {"divergence": divergence, "normalize": True, **OPTIONS, "temperature": 1.0}
    agree(value_and_gradients(tensors, tile=7, **options), value_and_gradients(tensors, **options), 1e-12)


@pytest.mark.parametrize("tile", [None, 2])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_parts_beside_the_others_add_up_to_the_whole(divergence, tile):
    tensors = [*pairs(6), *scalars()]
    options = {"divergence": divergence, "tile": tile, "reduction": "sum", "normalize": True, **OPTIONS}
    expected = value_and_gradients(tensors, **options)
    leaves = [x.clone().requires_grad_() for x in tensors]
    total = 0.0
    for start, stop in ((0, 1), (1, 4), (4, 6)):  # of unequal sizes
        part = [x[start:stop] for x in leaves[:4]]
        others = [torch.cat([x[:start], x[stop:]]) for x in leaves[:4]]
        value = value_of(
            [*part, *leaves[4:]], negatives=tuple(others[:2]), target_negatives=tuple(others[2:]), **options
        )
        value.backward()
        total += value.detach()
    agree([total, *(x.grad for x in leaves)], expected, 1e-12)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_finite_differences_see_the_tiled_gradient_of_the_student(divergence):
    image, text, target_image, target_text = pairs(4, (2, 3))

    def of_student(image, text, scale):
        teacher = {"logit_scale": scale, "target_logit_scale": 2.0, "logit_bias": -0.5}
        options = {"divergence": divergence, "tile": 3, **OPTIONS}
        return contrastive_divergence(image, text, target_image, target_text, **teacher, **options)

    leaves = [x.requires_grad_() for x in (image, text, torch.tensor(1.2).double())]
    assert torch.autograd.gradcheck(of_student, leaves)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 2e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_low_precision_is_float64_but_for_rounding(divergence, dtype, bound):
    tensors = [*pairs(30, (8, 8), dtype), *scalars(dtype)]
    options = {"divergence": divergence, "normalize": True, **OPTIONS}
    expected = value_and_gradients([x.double() for x in tensors], **options)
    with torch.autocast("cpu", torch.bfloat16):  # the arithmetic is in float32 all the same
        found = value_and_gradients(tensors, tile=8, **options)
    assert found[0].dtype == torch.float32
    assert all(x.dtype == dtype for x in found[1:])
    agree(found, expected, bound)


def test_the_backward_pass_under_autocast_is_as_precise():
    tensors = [*pairs(30, (8, 8), torch.float32), *scalars(torch.float32)]
    expected = value_and_gradients(tensors, tile=8)
    with torch.autocast("cpu", torch.bfloat16):
        found = value_and_gradients(tensors, tile=8)
    assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))


class Largest(TorchDispatchMode):
    """Elements of the largest tensor made."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        sizes = [x.untyped_storage().nbytes() // x.element_size() for x in tree_leaves(made) if torch.is_tensor(x)]
        self.elements = max([self.elements, *sizes])
        return made


def largest(tile, divergence):
    leaves = [x.requires_grad_() for x in [*pairs(200, (4, 4)), *scalars()]]
    others = pairs(100, (4, 4), seed=1)
    with Largest() as mode:
        negatives = {"negatives": tuple(others[:2]), "target_negatives": tuple(others[2:])}
        value_of(leaves, divergence=divergence, tile=tile, **negatives).backward()
    return mode.elements


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_no_matrix_is_made_with_tiles(divergence):
    assert largest(None, divergence) >= 200 * 300
    assert largest(20, divergence) <= 300 * 8  # features and statistics of a row; a tile is 20 x 20


@pytest.mark.parametrize("divergence", ["kl", "js", "gkl"])
def test_a_bias_moves_no_softmax(divergence):
    tensors = [*pairs(5), *scalars()]
    value, *gradients = value_and_gradients(tensors, divergence=divergence, tile=2)
    tensors[6] += 3
    agree([value_of(tensors, divergence=divergence, tile=2)], [value], 1e-12)
    assert abs(gradients[6]) < 1e-12


def test_scale_and_bias_may_have_one_axis_as_those_of_siglip():
    tensors = [*pairs(5), *scalars()]
    of_one_axis = [*tensors[:4], *(x.unsqueeze(0) for x in tensors[4:])]
    for divergence in ("gkl", "sigmoid_kl"):
        found, expected = (value_and_gradients(x, divergence=divergence, tile=2) for x in (of_one_axis, tensors))
        agree([x.squeeze() if x.dim() == 1 else x for x in found], expected, 0.0)


def test_a_student_like_its_teacher_has_nothing_to_learn():
    images, texts = pairs(6)[:2]
    for divergence in ("kl", "js", "sigmoid_kl"):
        tensors = [images, texts, images, texts, *(torch.tensor(x).double() for x in (3.0, 3.0, 1.0, 1.0))]
        agree(value_and_gradients(tensors, divergence=divergence, tile=4), [torch.zeros(())] * 9, 1e-12)


def test_distant_sides_stay_finite():
    images, texts = torch.eye(4), torch.eye(4).flip(0)
    for divergence in DIVERGENCES:
        tensors = [images, texts, images, images, *(torch.tensor(x) for x in (1e4, 1e4, 0.0, 0.0))]
        tiled = value_and_gradients(tensors, divergence=divergence, tile=3)
        agree(tiled, value_and_gradients(tensors, divergence=divergence), 1e-5)
        assert all(torch.isfinite(x).all() for x in tiled)
    assert float(value_of(tensors, divergence="js", tile=3)) == pytest.approx(math.log(2))


def test_a_teacher_under_inference_mode_can_be_learnt_from():
    image, text, *teacher = pairs(5)
    with torch.inference_mode():
        teacher = [x * 1 for x in teacher]
    image.requires_grad_()
    values = [
        contrastive_divergence(image, text, *teacher, logit_scale=1.0, target_logit_scale=1.0, tile=tile)
        for tile in (2, 5)
    ]
    gradients = [torch.autograd.grad(value, image)[0] for value in values]
    agree(gradients[:1], gradients[1:], 1e-12)


def test_second_derivatives_are_refused_with_tiles_and_made_without():
    image, *others = pairs(4)
    image.requires_grad_()
    for tile, message in ((2, "tile=None"), (None, None)):
        value = contrastive_divergence(image, *others, logit_scale=1.0, target_logit_scale=1.0, tile=tile)
        if message:
            with pytest.raises(RuntimeError, match=message):
                torch.autograd.grad(value, image, create_graph=True)
        else:
            (gradient,) = torch.autograd.grad(value, image, create_graph=True)
            assert torch.autograd.grad(gradient.square().sum(), image)[0].abs().sum() > 0


@pytest.mark.parametrize("tile", [None, 2])
def test_t_squared_keeps_the_size_of_kl(tile):
    tensors = [*pairs(5), *scalars()]
    plain = value_of(tensors, temperature=3.0, tile=tile)
    agree([value_of(tensors, temperature=3.0, scale_by_t2=True, tile=tile)], [9 * plain], 1e-12)


def test_the_module_is_the_function():
    tensors = [*pairs(5), *scalars()]
    options = {"divergence": "gkl", "tile": 2, "normalize": True, "reduction": "none", **OPTIONS}
    module = ContrastiveDivergenceLoss(**options)
    found = module(*tensors[:4], **dict(zip(NAMES, tensors[4:], strict=True)))
    assert torch.equal(found, value_of(tensors, **options))
    assert "divergence='gkl'" in repr(module)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"divergence": "l2"}, "`divergence` expected one of 'kl'"),
        ({"temperature": 0.0}, "`temperature` expected"),
        ({"weight_power": -1.0}, "`weight_power` expected"),
        ({"tile": 0}, "`tile` expected a whole number of at least 1"),
        ({"divergence": "gkl", "scale_by_t2": True}, "`scale_by_t2` expected False"),
        ({"reduction": "all"}, "`reduction` expected"),
    ],
)
def test_a_wrong_option_is_said_by_function_and_module(options, message):
    with pytest.raises(ValueError, match=message):
        value_of([*pairs(3), *scalars()], **options)
    with pytest.raises(ValueError, match=message):
        ContrastiveDivergenceLoss(**options)


def test_wrong_features_are_said():
    image, text, target_image, target_text = pairs(3)
    scales = {"logit_scale": 1.0, "target_logit_scale": 1.0}
    for given, message in (
        ((image, text[:2], target_image, target_text), "`image_features` and `text_features` expected one"),
        ((image, text, target_image[:2], target_text[:2]), "expected the same N pairs, got 3 and 2"),
        ((image[0], text[0], target_image, target_text), "shape \\(N, D\\)"),
    ):
        with pytest.raises(ValueError, match=message):
            contrastive_divergence(*given, **scales)
    with pytest.raises(TypeError, match="`text_features` expected a floating dtype"):
        contrastive_divergence(image, text.long(), target_image, target_text, **scales)
    given = (image, text, target_image, target_text)
    with pytest.raises(ValueError, match="`logit_bias` expected a number or a floating tensor of one, got the shape"):
        contrastive_divergence(*given, **scales, logit_bias=torch.zeros(2))
    for ours, theirs, message in (
        ((image, text), None, "both or neither"),
        ((image, text), (image, text), "`target_negatives` expected features of width 6, got 4"),
        ((image, text), (target_image[:2], target_text[:2]), "expected equal numbers, got 3"),
        ((image,), (target_image, target_text), "expected a pair"),
    ):
        with pytest.raises(ValueError, match=message):
            contrastive_divergence(*given, **scales, negatives=ours, target_negatives=theirs)
