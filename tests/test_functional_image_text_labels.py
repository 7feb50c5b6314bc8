"""The contrastive losses of CLIP and SigLIP: whole, by blocks of rows, and in parts they are one function."""

from __future__ import annotations

import math

import pytest
import torch

from limbeck import contrastive_cross_entropy

FORMS = ("softmax", "sigmoid")


def leaves(count=7, width=4, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    features = [torch.randn(count, width, generator=generator, dtype=torch.float64) for _ in range(2)]
    return [x.to(dtype).requires_grad_() for x in (*features, torch.tensor(1.5), torch.tensor(-0.5))]


def value_of(tensors, **options):
    image, text, scale, bias = tensors
    return contrastive_cross_entropy(image, text, logit_scale=scale, logit_bias=bias, **options)


def twin(tensors, form):
    image, text, scale, bias = tensors
    s = scale * image @ text.T + bias
    values = []
    for i in range(len(s)):
        if form == "softmax":
            value = -(torch.log(s[i].exp()[i] / s[i].exp().sum()) + torch.log(s[i, i].exp() / s[:, i].exp().sum())) / 2
        else:
            pairs = [(s[i, j], i == j) for j in range(len(s))] + [(s[j, i], i == j) for j in range(len(s))]
            value = -sum(torch.log(torch.sigmoid(x if same else -x)) for x, same in pairs) / 2
        values.append(value)
    return torch.stack(values)


def gradients(value, tensors, weights):
    # The bias moves no softmax, so the twin's gradient of it is 0 but for rounding.
    return torch.autograd.grad((value * weights).sum(), tensors)


@pytest.mark.parametrize("tile", [None, 1, 3, 100])
@pytest.mark.parametrize("form", FORMS)
def test_value_and_all_gradients_are_the_twins(form, tile):
    tensors, weights = leaves(), torch.linspace(-1, 2, 7, dtype=torch.float64)
    found, expected = value_of(tensors, form=form, tile=tile, reduction="none"), twin(tensors, form)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    pairs = zip(gradients(found, tensors, weights), gradients(expected, tensors, weights), strict=True)
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("tile", [None, 2])
@pytest.mark.parametrize("form", FORMS)
def test_parts_beside_the_others_add_up_to_the_whole(form, tile):
    tensors = leaves(6)
    image, text, *scalars = tensors
    expected = torch.autograd.grad(value_of(tensors, form=form, reduction="sum"), tensors)
    total = 0.0
    for start, stop in ((0, 1), (1, 4), (4, 6)):
        others = tuple(torch.cat([x[:start], x[stop:]]) for x in (image, text))
        part = [image[start:stop], text[start:stop], *scalars]
        value = value_of(part, form=form, tile=tile, negatives=others, reduction="sum")
        value.backward()
        total += value.detach()
    torch.testing.assert_close(total, value_of(tensors, form=form, reduction="sum").detach(), rtol=1e-12, atol=0)
    for ours, theirs in zip((x.grad for x in tensors), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_pairs_that_nothing_tells_apart_cost_the_logarithm_of_their_number():
    tensors = leaves(5)
    tensors[2] = torch.zeros((), dtype=torch.float64)
    assert float(value_of(tensors).detach()) == pytest.approx(math.log(5), abs=1e-12)


def test_bf16_under_autocast_is_computed_in_float32():
    tensors = leaves(9, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        value = value_of(tensors, tile=4)
    assert value.dtype == torch.float32
    expected = value_of([x.detach().double() for x in tensors])
    assert float(value.detach()) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"form": "l2"}, "`form` expected 'softmax' or 'sigmoid', got 'l2'"),
        ({"tile": 0}, "`tile` expected a whole number of at least 1"),
        ({"reduction": "all"}, "`reduction` expected"),
        (
            {"negatives": (torch.zeros(2, 4), torch.zeros(3, 4))},
            "`negatives\\[0\\]` and `negatives\\[1\\]` expected one",
        ),
    ],
)
def test_a_wrong_option_is_said(options, message):
    with pytest.raises(ValueError, match=message):
        value_of(leaves(3), **options)
